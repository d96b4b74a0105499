//! The hop log: one JSON line for every request or TCP connection that passed, with each hop it took,
//! for a person who follows a request and for tests. What is unknown is an empty text.

use super::Finished;
use super::context::protocol_name;
use crate::connection::{Connection, Gate};
use crate::stream_info::{StreamInfo, UpstreamInfo};
use crate::worker::Worker;
use dpu_proxy_core::head::RequestHead;
use dpu_proxy_core::model::Workload;
use serde::Serialize;
use std::time::UNIX_EPOCH;

/// Fields of a line, in order.
#[derive(Debug, Serialize)]
struct Hop<'a> {
    /// Seconds since 1970.
    time: f64,
    request_id: String,
    pass: &'static str,
    workload: &'a str,
    identity: String,
    port: &'a str,
    representor: String,
    listener: &'a str,
    filter_chain: &'a str,
    route_config: &'a str,
    virtual_host: &'a str,
    route: &'a str,
    cluster: &'a str,
    endpoint: String,
    own_identity: String,
    peer_identity: String,
    upstream_tls: bool,
    downstream_tls: bool,
    downstream_peer: &'a str,
    method: String,
    path: String,
    authority: String,
    protocol: &'static str,
    status: u16,
    flags: String,
    details: &'a str,
    duration_ms: f64,
    local_callee: String,
}

/// The line of a finished request or connection, with its end.
pub(super) fn line(worker: &Worker, finished: &Finished<'_>) -> Vec<u8> {
    written(&hop(worker, finished))
}

/// The line of a probe: it takes no way but from the host to the pod.
pub(super) fn probe(worker: &Worker, connection: &Connection, info: &StreamInfo) -> Vec<u8> {
    let finished = Finished { connection, info, request: None, response: None, access_logs: &[] };
    let endpoint = connection.original_destination.to_string();
    written(&Hop { pass: "probe", endpoint, ..hop(worker, &finished) })
}

fn written(hop: &Hop<'_>) -> Vec<u8> {
    // A flat struct of texts and numbers always has a JSON form.
    let mut line = serde_json::to_vec(hop).unwrap_or_default();
    line.push(b'\n');
    line
}

fn hop<'a>(worker: &Worker, finished: &Finished<'a>) -> Hop<'a> {
    let (connection, info) = (finished.connection, finished.info);
    let workload = connection.workload.as_deref();
    let upstream = info.upstream.as_ref();
    let text = |pick: fn(&RequestHead) -> &[u8]| {
        finished.request.map(|head| String::from_utf8_lossy(pick(head)).into_owned()).unwrap_or_default()
    };
    Hop {
        time: info.started_wall.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
        request_id: text(|head| head.header("x-request-id").unwrap_or_default()),
        pass: pass(connection),
        workload: workload.map_or("", |workload| &workload.uid.0),
        identity: workload.map(|workload| workload.identity.to_string()).unwrap_or_default(),
        port: workload.map_or("", |workload| &workload.port.0),
        representor: representor(worker, workload),
        listener: &connection.listener.name,
        filter_chain: &connection.chain.name,
        route_config: info.route_config.as_ref().map_or("", |routes| &routes.name),
        virtual_host: info.virtual_host.as_ref().map_or("", |host| &host.name),
        route: &info.route,
        cluster: upstream.map_or("", |upstream| &upstream.cluster.cluster.name),
        endpoint: upstream.and_then(|u| u.endpoint.as_ref()).map(|e| e.address.to_string()).unwrap_or_default(),
        own_identity: upstream.and_then(|u| u.own_identity.as_deref()).unwrap_or("").to_owned(),
        peer_identity: peer_identity(upstream).to_owned(),
        upstream_tls: upstream.is_some_and(|upstream| upstream.peer.is_some() && !is_one_pass(connection, upstream)),
        downstream_tls: connection.tls.is_some() && connection.gate != Gate::Local,
        downstream_peer: connection.peer_identity().unwrap_or(""),
        method: text(RequestHead::method),
        path: text(RequestHead::path),
        authority: text(RequestHead::authority),
        protocol: protocol(finished.request),
        status: info.status,
        flags: info.flags.to_string(),
        details: if info.details.is_empty() { &info.connection_termination_details } else { &info.details },
        duration_ms: info.duration.unwrap_or_default().as_secs_f64() * 1000.0,
        local_callee: local_callee(worker, connection, info),
    }
}

fn pass(connection: &Connection) -> &'static str {
    match (&connection.gate, connection.direction) {
        (Gate::Local, _) => "local",
        (Gate::Inbound | Gate::Host, _) | (Gate::Bound(_), dpu_proxy_core::model::TrafficDirection::Inbound) => {
            "inbound"
        }
        (Gate::Outbound(_) | Gate::Bound(_), _) => "outbound",
    }
}

fn is_one_pass(connection: &Connection, upstream: &UpstreamInfo) -> bool {
    upstream.is_local && matches!(connection.gate, Gate::Outbound(_))
}

fn representor(worker: &Worker, workload: Option<&Workload>) -> String {
    let devices = worker.devices();
    workload.and_then(|workload| devices.representors.get(&workload.port)).map(ToString::to_string).unwrap_or_default()
}

fn peer_identity(upstream: Option<&UpstreamInfo>) -> &str {
    let peer = upstream.and_then(|upstream| upstream.peer.as_ref());
    peer.and_then(|peer| peer.uri_sans.first()).map_or("", String::as_str)
}

fn protocol(request: Option<&RequestHead>) -> &'static str {
    request.map_or("TCP", |head| protocol_name(head.version))
}

fn local_callee(worker: &Worker, connection: &Connection, info: &StreamInfo) -> String {
    let upstream = info.upstream.as_ref().filter(|upstream| is_one_pass(connection, upstream));
    let address = upstream.and_then(|upstream| upstream.endpoint.as_ref()).map(|endpoint| endpoint.address.ip());
    let snapshot = worker.snapshot();
    address.and_then(|ip| snapshot.by_address.get(&ip)).map(|callee| callee.uid.0.clone()).unwrap_or_default()
}
