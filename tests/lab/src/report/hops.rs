//! One request of the product page, and every pass that it made through a proxy.

use crate::checks::wait;
use crate::hops::Hop;
use crate::pods::{PODS, vip};
use anyhow::{Result, ensure};

/// Sends it and prints its way.
pub fn print() -> Result<String> {
    println!("\n== One request: curl → productpage → details, reviews → ratings → mongodb");
    let (page, hops) =
        wait::traced("curl", vip::PRODUCTPAGE, "productpage", "/productpage", &["-H", "end-user: jason"], 5)?;
    ensure!(page.status == 200, "the page answered {}: {}", page.status, page.text);
    for hop in &hops {
        print_hop(hop);
    }
    let encrypted = hops.iter().filter(|hop| hop.upstream_tls).count();
    Ok(format!("{} passes, {} of them encrypted to the other host", hops.len(), encrypted))
}

fn print_hop(hop: &Hop) {
    let host = hop.host.map(|host| host.node()).unwrap_or_default();
    println!(
        "\n  {} {} {} → {}  [{} pass on {host}, {:.1} ms]",
        hop.method,
        hop.authority,
        hop.path,
        hop.status(),
        hop.pass,
        hop.duration_ms
    );
    let line = |name: &str, value: &str| {
        if !value.is_empty() {
            println!("      {name:<13} {value}");
        }
    };
    line("pod", &format!("{} ({})", pod_name(&hop.workload), hop.identity));
    line("VF, port", &join(&[&hop.port, &hop.representor]));
    line("listener", &join(&[&hop.listener, &hop.filter_chain]));
    line("route", &join(&[&hop.route_config, &hop.virtual_host, &hop.route]));
    line("cluster", &hop.cluster);
    line("endpoint", &endpoint(hop));
    if hop.upstream_tls {
        line("mutual TLS", &format!("as {} to {}", hop.own_identity, hop.peer_identity));
    }
    if hop.downstream_tls {
        line("mutual TLS", &format!("from {}", hop.downstream_peer));
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
