//! Istio's standard metrics, of both reporters, for workloads.
//!
//! The labels of a series are made once and its handles kept, so a request costs one look-up. How many
//! series are kept is bounded: labels hold nothing that a client chooses.

use super::Finished;
use crate::connection::{Connection, Gate};
use crate::stats::{Counter, Histogram, Stats};
use crate::stream_info::UpstreamInfo;
use dpu_proxy_core::head::RequestHead;
use dpu_proxy_core::model::Workload;
use mesh_model::Identity;
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::rc::Rc;

/// Series kept by hash; above it all are looked up again by their labels.
const KEPT: usize = 8192;
const UNKNOWN: &str = "unknown";

/// Handles by what makes a series.
#[derive(Debug, Default)]
pub(super) struct IstioMetrics {
    /// Of the mesh cluster that this node is of.
    cluster_id: String,
    http: RefCell<HashMap<u64, Rc<HttpSeries>>>,
    tcp: RefCell<HashMap<u64, Rc<TcpSeries>>>,
}

#[derive(Debug)]
struct HttpSeries {
    requests: Rc<Counter>,
    duration: Rc<Histogram>,
    request_bytes: Rc<Histogram>,
    response_bytes: Rc<Histogram>,
}

#[derive(Debug)]
struct TcpSeries {
    opened: Rc<Counter>,
    closed: Rc<Counter>,
    sent: Rc<Counter>,
    received: Rc<Counter>,
}

type Labels = Vec<(&'static str, String)>;

impl IstioMetrics {
    /// For workloads of a mesh cluster.
    pub fn new(cluster_id: &str) -> Self {
        Self { cluster_id: cluster_id.to_owned(), ..Self::default() }
    }

    /// Counts what has finished; nothing for connections that belong to no workload.
    pub fn count(&self, stats: &Stats, finished: &Finished<'_>) {
        let Some(workload) = finished.connection.workload.as_deref() else { return };
        match finished.request {
            Some(request) => self.count_request(stats, finished, workload, request),
            None => self.count_connection(stats, finished, workload),
        }
    }

    fn count_request(&self, stats: &Stats, finished: &Finished<'_>, workload: &Workload, request: &RequestHead) {
        let is_grpc = request.headers.get(b"content-type").is_some_and(|kind| kind.starts_with(b"application/grpc"));
        let key = key(finished, workload, is_grpc);
        let make = || HttpSeries::new(stats, &http_labels(finished, workload, &self.cluster_id, is_grpc));
        let series = kept(&self.http, key, make);
        let info = finished.info;
        series.requests.inc();
        series.duration.observe(info.duration.unwrap_or_default().as_secs_f64() * 1000.0);
        series.request_bytes.observe(info.bytes_received as f64);
        series.response_bytes.observe(info.bytes_sent as f64);
    }

    fn count_connection(&self, stats: &Stats, finished: &Finished<'_>, workload: &Workload) {
        let key = key(finished, workload, false);
        let series = kept(&self.tcp, key, || TcpSeries::new(stats, &tcp_labels(finished, workload, &self.cluster_id)));
        series.opened.inc();
        series.closed.inc();
        series.sent.add(finished.info.bytes_sent);
        series.received.add(finished.info.bytes_received);
    }
}

fn kept<T>(all: &RefCell<HashMap<u64, Rc<T>>>, key: u64, make: impl FnOnce() -> T) -> Rc<T> {
    let mut all = all.borrow_mut();
    if all.len() >= KEPT {
        all.clear();
    }
    Rc::clone(all.entry(key).or_insert_with(|| Rc::new(make())))
}

impl HttpSeries {
    fn new(stats: &Stats, labels: &Labels) -> Self {
        let labels = borrowed(labels);
        Self {
            requests: stats.counter("istio_requests_total", &labels),
            duration: stats.histogram("istio_request_duration_milliseconds", &labels),
            request_bytes: stats.histogram("istio_request_bytes", &labels),
            response_bytes: stats.histogram("istio_response_bytes", &labels),
        }
    }
}

impl TcpSeries {
    fn new(stats: &Stats, labels: &Labels) -> Self {
        let labels = borrowed(labels);
        Self {
            opened: stats.counter("istio_tcp_connections_opened_total", &labels),
            closed: stats.counter("istio_tcp_connections_closed_total", &labels),
            sent: stats.counter("istio_tcp_sent_bytes_total", &labels),
            received: stats.counter("istio_tcp_received_bytes_total", &labels),
        }
    }
}

fn borrowed(labels: &Labels) -> Vec<(&'static str, &str)> {
    labels.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// Everything that the labels depend on.
fn key(finished: &Finished<'_>, workload: &Workload, is_grpc: bool) -> u64 {
    let (connection, info) = (finished.connection, finished.info);
    let mut hasher = DefaultHasher::new();
    workload.uid.hash(&mut hasher);
    is_outbound(connection).hash(&mut hasher);
    connection.peer_identity().hash(&mut hasher);
    (info.status, info.flags.to_bits(), info.grpc_status, is_grpc).hash(&mut hasher);
    if let Some(upstream) = &info.upstream {
        upstream.cluster.id.hash(&mut hasher);
        upstream.endpoint.as_ref().map(|endpoint| &endpoint.istio_workload).hash(&mut hasher);
        principal(upstream).hash(&mut hasher);
    }
    hasher.finish()
}

fn is_outbound(connection: &Connection) -> bool {
    matches!(connection.gate, Gate::Outbound(_))
}

fn principal(upstream: &UpstreamInfo) -> Option<&str> {
    upstream.peer.as_ref().and_then(|peer| peer.uri_sans.first()).map(String::as_str)
}

/// One end of a call, as labels name it.
#[derive(Clone, Debug)]
struct End {
    workload: String,
    namespace: String,
    principal: String,
    app: String,
    version: String,
    cluster: String,
}

impl Default for End {
    fn default() -> Self {
        let unknown = || UNKNOWN.to_owned();
        Self {
            workload: unknown(),
            namespace: unknown(),
            principal: unknown(),
            app: unknown(),
            version: unknown(),
            cluster: unknown(),
        }
    }
}

impl End {
    fn of_workload(workload: &Workload, cluster_id: &str) -> Self {
        let name = or_unknown(&workload.workload_name);
        Self {
            app: workload.labels.get("app").map_or_else(|| name.clone(), Clone::clone),
            version: workload.labels.get("version").map_or_else(|| "latest".to_owned(), Clone::clone),
            workload: name,
            namespace: workload.namespace.clone(),
            principal: workload.identity.to_string(),
            cluster: or_unknown(cluster_id),
        }
    }

    /// Of `istio.workload` metadata: "name;namespace;canonical service;revision;cluster".
    fn of_metadata(text: &str) -> Self {
        let mut parts = text.split(';').map(or_unknown);
        let mut next = || parts.next().unwrap_or_else(|| UNKNOWN.to_owned());
        let (workload, namespace, app, version, cluster) = (next(), next(), next(), next(), next());
        Self { workload, namespace, app, version, cluster, principal: UNKNOWN.to_owned() }
    }

    /// Of what a certificate says.
    fn of_principal(principal: &str) -> Self {
        let identity = principal.parse::<Identity>().ok();
        let namespace = identity.map_or_else(|| UNKNOWN.to_owned(), |identity| identity.namespace().to_owned());
        Self { namespace, principal: principal.to_owned(), ..Self::default() }
    }

    fn labels(self, names: [&'static str; 8]) -> impl Iterator<Item = (&'static str, String)> {
        let values = [
            self.workload,
            self.namespace,
            self.principal,
            self.app.clone(),
            self.version.clone(),
            self.cluster,
            self.app,
            self.version,
        ];
        names.into_iter().zip(values)
    }
}

fn or_unknown(text: &str) -> String {
    if text.is_empty() { UNKNOWN.to_owned() } else { text.to_owned() }
}

const SOURCE: [&str; 8] = [
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "source_canonical_service",
    "source_canonical_revision",
];
const DESTINATION: [&str; 8] = [
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "destination_canonical_service",
    "destination_canonical_revision",
];

fn tcp_labels(finished: &Finished<'_>, workload: &Workload, cluster_id: &str) -> Labels {
    let (connection, info) = (finished.connection, finished.info);
    let own = End::of_workload(workload, cluster_id);
    let other = other_end(connection, info.upstream.as_ref());
    let outbound = is_outbound(connection);
    let reporter = if outbound { "source" } else { "destination" };
    let (source, destination) = if outbound { (own, other) } else { (other, own) };
    let (service, name, namespace) = service(outbound, info.upstream.as_ref(), &destination);
    let mut labels = vec![("reporter", reporter.to_owned())];
    labels.extend(source.labels(SOURCE));
    labels.extend(destination.labels(DESTINATION));
    labels.extend([
        ("destination_service", service),
        ("destination_service_name", name),
        ("destination_service_namespace", namespace),
        ("request_protocol", "tcp".to_owned()),
        ("response_flags", info.flags.to_string()),
        ("connection_security_policy", security(connection).to_owned()),
    ]);
    labels
}

fn http_labels(finished: &Finished<'_>, workload: &Workload, cluster_id: &str, is_grpc: bool) -> Labels {
    let mut labels = tcp_labels(finished, workload, cluster_id);
    let protocol = if is_grpc { "grpc" } else { "http" };
    for (name, value) in &mut labels {
        if *name == "request_protocol" {
            *value = protocol.to_owned();
        }
    }
    labels.push(("response_code", finished.info.status.to_string()));
    let grpc = finished.info.grpc_status.map(|status| status.to_string()).unwrap_or_default();
    labels.push(("grpc_response_status", grpc));
    labels
}

fn other_end(connection: &Connection, upstream: Option<&UpstreamInfo>) -> End {
    match (is_outbound(connection), upstream) {
        (true, Some(upstream)) => {
            let metadata = upstream.endpoint.as_ref().map_or("", |endpoint| &endpoint.istio_workload);
            let principal = or_unknown(principal(upstream).unwrap_or_default());
            End { principal, ..End::of_metadata(metadata) }
        }
        (true, None) => End::default(),
        (false, _) => connection.peer_identity().map_or_else(End::default, End::of_principal),
    }
}

/// Host, name and namespace of the called service: by the cluster's name on the way out
/// ("outbound|PORT|SUBSET|HOST"), by the workload itself on the way in.
fn service(outbound: bool, upstream: Option<&UpstreamInfo>, destination: &End) -> (String, String, String) {
    let cluster = upstream.map_or("", |upstream| &upstream.cluster.cluster.name);
    if !outbound {
        let host = format!("{}.{}.svc.cluster.local", destination.app, destination.namespace);
        return (host, destination.app.clone(), destination.namespace.clone());
    }
    let Some(host) = cluster.strip_prefix("outbound|").and_then(|rest| rest.rsplit('|').next()) else {
        let name = or_unknown(cluster);
        return (name.clone(), name, UNKNOWN.to_owned());
    };
    match host.split_once(".svc.").and_then(|(front, _)| front.split_once('.')) {
        Some((name, namespace)) => (host.to_owned(), name.to_owned(), namespace.to_owned()),
        None => (host.to_owned(), host.to_owned(), UNKNOWN.to_owned()),
    }
}

/// Only the callee's side knows; Istio's other side says "unknown".
fn security(connection: &Connection) -> &'static str {
    match (is_outbound(connection), connection.peer()) {
        (true, _) => UNKNOWN,
        (false, Some(_)) => "mutual_tls",
        (false, None) => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_names_its_workload() {
        let end = End::of_metadata("reviews-v1;bookinfo;reviews;v1;Kubernetes");
        assert_eq!(
            (end.workload, end.namespace, end.app, end.version),
            four("reviews-v1", "bookinfo", "reviews", "v1")
        );
        assert_eq!(End::of_metadata("").workload, UNKNOWN);
    }

    fn four(a: &str, b: &str, c: &str, d: &str) -> (String, String, String, String) {
        (a.to_owned(), b.to_owned(), c.to_owned(), d.to_owned())
    }

    #[test]
    fn a_peer_is_known_by_its_certificate() {
        let end = End::of_principal("spiffe://cluster.local/ns/bookinfo/sa/reviews");
        assert_eq!((end.namespace.as_str(), end.workload.as_str()), ("bookinfo", UNKNOWN));
    }
}
