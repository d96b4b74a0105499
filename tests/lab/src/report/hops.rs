//! One request of the product page, and every pass that it made through a proxy.

use crate::checks::wait;
use crate::hops::Hop;
use crate::pods::{PODS, Pod, vip};
use crate::{hops, shell};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// Each call leaves by one pass and arrives by another.
const PASSES: [(&str, &str); 8] = [
    ("outbound", "/productpage"),
    ("local", "/productpage"),
    ("outbound", "/details/0"),
    ("inbound", "/details/0"),
    ("outbound", "/reviews/0"),
    ("inbound", "/reviews/0"),
    ("outbound", "/ratings/0"),
    ("inbound", "/ratings/0"),
];

/// Sends it and prints its way.
pub fn print() -> Result<String> {
    println!("\n== One request: curl → productpage → details, reviews → ratings → mongodb");
    let id = wait::request_id();
    let header = format!("x-request-id: {id}");
    let options = ["-H", header.as_str(), "-H", "end-user: jason"];
    let page = wait::get("curl", vip::PRODUCTPAGE, "productpage", "/productpage", &options)?;
    ensure!(page.status == 200, "the page answered {}: {}", page.status, page.text);
    let mut hops = hops::of_request(&id, &PASSES)?;
    let since = hops.first().map_or(0.0, |hop| hop.time);
    hops.extend(of_database(since)?);
    hops.iter().for_each(print_hop);
    let encrypted = hops.iter().filter(|hop| hop.upstream_tls).count();
    let strangers = hops.iter().filter(|hop| hop.upstream_tls && hop.peer_identity.is_empty()).count();
    ensure!(strangers == 0, "{strangers} of {encrypted} encrypted calls went to a peer without identity");
    ensure!(encrypted == 4, "{encrypted} calls went to the other host encrypted, not 4");
    Ok(format!("{} passes; {encrypted} calls to the other host, each over mutual TLS", hops.len()))
}

/// The TCP connection to the database, which has no request id.
fn of_database(since: f64) -> Result<Vec<Hop>> {
    let database = Pod::named("mongodb-v1").context("no pod mongodb-v1")?;
    shell::wait_for("the connection to mongodb in the hop logs", Duration::from_secs(3), || {
        let mut hops = hops::all()?;
        hops.retain(|hop| hop.time >= since && (hop.workload == database.uid() || hop.callee() == Some(database)));
        ensure!(hops.len() >= 2, "there are {} passes", hops.len());
        Ok(hops)
    })
}

fn print_hop(hop: &Hop) {
    let host = hop.host.map(|host| host.node()).unwrap_or_default();
    let what = match hop.method.as_str() {
        "" => "TCP connection".to_owned(),
        method => format!("{method} {} {} → {}", hop.authority, hop.path, hop.status()),
    };
    println!("\n  {what}  [{} pass on {host}, {:.1} ms]", hop.pass, hop.duration_ms);
    let line = |name: &str, value: &str| {
        if !value.is_empty() {
            println!("      {name:<14} {value}");
        }
    };
    line("pod", &format!("{} ({})", pod_name(&hop.workload), hop.identity));
    line("VF, port", &join(&[&hop.port, &hop.representor]));
    line("listener", &join(&[&hop.listener, &hop.filter_chain]));
    line("route", &join(&[&hop.route_config, &hop.virtual_host, &hop.route]));
    line("cluster", &hop.cluster);
    line("endpoint", &endpoint(hop));
    if hop.upstream_tls {
        line("mutual TLS as", &hop.own_identity);
        line("           to", &hop.peer_identity);
    }
    if hop.downstream_tls {
        line("mutual TLS of", &hop.downstream_peer);
    }
    if hop.pass == "local" {
        line("same host", &format!("called by {}, not encrypted to itself", hop.downstream_peer));
    }
}

fn endpoint(hop: &Hop) -> String {
    let callee = hop.callee().map(|pod| format!(" ({} on {})", pod.name, pod.host.node()));
    format!("{}{}", hop.endpoint, callee.unwrap_or_default())
}

/// Proxies know workloads by uid.
fn pod_name(workload: &str) -> String {
    PODS.iter().find(|pod| pod.uid() == workload).map_or_else(|| workload.to_owned(), |pod| pod.name.to_owned())
}

fn join(parts: &[&String]) -> String {
    parts.iter().filter(|part| !part.is_empty()).map(|part| part.as_str()).collect::<Vec<_>>().join(" → ")
}
