//! What each admin page says.

use super::is_draining;
use crate::shared::{Report, Shared};
use crate::tls::peer::Description;
use crate::tls::secrets::Secrets;
use crate::workers::Workers;
use dpu_proxy_core::model::{Scope, Workload};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// Envoy's server states.
pub(super) fn state(shared: &Shared) -> &'static str {
    match (is_draining(shared), shared.report.borrow().live) {
        (true, _) => "DRAINING",
        (false, true) => "LIVE",
        (false, false) => "INITIALIZING",
    }
}

/// Metrics of the process as a whole.
pub(super) fn process_metrics(shared: &Shared) -> String {
    let report = shared.report.borrow().clone();
    let uptime = shared.settings.started.elapsed().as_secs();
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, value: u64| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
    };
    metric("envoy_server_live", "gauge", u64::from(state(shared) == "LIVE"));
    metric("envoy_server_uptime", "gauge", uptime);
    metric("envoy_server_concurrency", "gauge", shared.settings.workers as u64);
    metric("dpu_proxy_unsupported_total", "counter", report.unsupported.len() as u64);
    metric("dpu_proxy_refused_resources", "gauge", report.refused.len() as u64);
    metric("dpu_proxy_workloads", "gauge", shared.state.borrow().snapshot.workloads.len() as u64);
    let connected = |side: &Option<Result<(), String>>| u64::from(matches!(side, Some(Ok(()))));
    metric("envoy_control_plane_connected_state", "gauge", connected(&report.control_plane));
    metric("dpu_proxy_dataplane_connected", "gauge", connected(&report.dataplane));
    text
}

#[derive(Clone, Copy, Debug, Default)]
struct HostCounts {
    connections: u64,
    connect_failures: u64,
    active: u64,
    requests: u64,
    successes: u64,
    errors: u64,
}

type Hosts = BTreeMap<(String, String), (HostCounts, bool)>;

/// `/clusters`: `cluster::address::statistic::value` lines.
pub(super) async fn clusters(workers: &Workers) -> String {
    let mut hosts = Hosts::new();
    for (name, address, counts, is_ejected) in workers.gather(|worker| hosts_of(worker)).await.into_iter().flatten() {
        let (total, ejected) = hosts.entry((name, address)).or_default();
        total.add(counts);
        *ejected |= is_ejected;
    }
    let mut text = String::new();
    for ((name, address), (counts, is_ejected)) in &hosts {
        counts.write(&format!("{name}::{address}"), *is_ejected, &mut text);
    }
    text
}

fn hosts_of(worker: &crate::worker::Worker) -> Vec<(String, String, HostCounts, bool)> {
    let now = std::time::Instant::now();
    let mut all = Vec::new();
    for cluster in worker.clusters() {
        for host in cluster.hosts() {
            let state = &host.state;
            let counts = HostCounts {
                connections: state.connections.get(),
                connect_failures: state.connect_failures.get(),
                active: u64::from(host.active()),
                requests: state.requests.get(),
                successes: state.successes.get(),
                errors: state.errors.get(),
            };
            all.push((cluster.name(), host.address().to_string(), counts, host.is_ejected(now)));
        }
    }
    all
}

impl HostCounts {
    fn add(&mut self, other: Self) {
        self.connections += other.connections;
        self.connect_failures += other.connect_failures;
        self.active += other.active;
        self.requests += other.requests;
        self.successes += other.successes;
        self.errors += other.errors;
    }

    fn write(&self, prefix: &str, is_ejected: bool, text: &mut String) {
        let lines = [
            ("cx_total", self.connections),
            ("cx_connect_fail", self.connect_failures),
            ("rq_active", self.active),
            ("rq_total", self.requests),
            ("rq_success", self.successes),
            ("rq_error", self.errors),
        ];
        for (name, value) in lines {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{prefix}::{name}::{value}");
        }
        let health = if is_ejected { "/failed_outlier_check" } else { "healthy" };
        let _ = writeln!(text, "{prefix}::health_flags::{health}");
    }
}

/// `/listeners`: `name::address` lines, and what could not be opened.
pub(super) fn listeners(report: &Report) -> String {
    let open = report.listening.iter().map(|(name, address)| format!("{name}::{address}\n"));
    let failed = report.not_listening.iter().map(|reason| format!("# {reason}\n"));
    open.chain(failed).collect()
}

/// `/certs`, in Envoy's form.
pub(super) fn certificates(secrets: &Secrets) -> Value {
    let named = secrets.key_pairs.iter().map(|(name, pair)| certificate(name, &pair.description, &[]));
    let roots = secrets.roots.iter().map(|(name, roots)| authority(name, &roots.descriptions));
    let own = secrets.identities.iter().map(|(identity, secret)| {
        certificate(&identity.to_string(), &secret.key_pair.description, &secret.roots.descriptions)
    });
    json!({ "certificates": named.chain(roots).chain(own).collect::<Vec<_>>() })
}

fn certificate(name: &str, leaf: &Description, roots: &[Description]) -> Value {
    json!({
        "name": name,
        "ca_cert": roots.iter().map(describe).collect::<Vec<_>>(),
        "cert_chain": [describe(leaf)],
    })
}

fn authority(name: &str, roots: &[Description]) -> Value {
    json!({ "name": name, "ca_cert": roots.iter().map(describe).collect::<Vec<_>>(), "cert_chain": [] })
}

fn describe(one: &Description) -> Value {
    let uris = one.uri_sans.iter().map(|uri| json!({ "uri": uri }));
    let hosts = one.dns_sans.iter().map(|dns| json!({ "dns": dns }));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    json!({
        "subject": one.subject,
        "issuer": one.issuer,
        "serial_number": one.serial,
        "subject_alt_names": uris.chain(hosts).collect::<Vec<_>>(),
        "valid_from": one.not_before,
        "expiration_time": one.not_after,
        "days_until_expiration": (one.not_after_seconds - now).max(0) / 86_400,
    })
}

/// `/server_info`.
pub(super) fn server_info(shared: &Shared) -> Value {
    let settings = &shared.settings;
    let report = shared.report.borrow().clone();
    let side = |side: &Option<Result<(), String>>| match side {
        None => json!("none"),
        Some(Ok(())) => json!("connected"),
        Some(Err(reason)) => json!({ "disconnected": reason }),
    };
    json!({
        "version": format!("dpu-proxy/{}", env!("CARGO_PKG_VERSION")),
        "state": state(shared),
        "uptime_current_epoch": format!("{}s", settings.started.elapsed().as_secs()),
        "node": { "id": settings.hostname },
        "command_line_options": {
            "concurrency": settings.workers,
            "drain_time": format!("{}s", settings.drain_time.as_secs()),
        },
        "control_plane": side(&report.control_plane),
        "dataplane": side(&report.dataplane),
    })
}

/// `/config_dump`: names and versions of all resources, what was refused, and the root scope.
pub(super) fn config_dump(shared: &Shared) -> Value {
    let report = shared.report.borrow().clone();
    let snapshot = shared.state.borrow().snapshot.clone();
    let resources = report.resources.iter();
    let refused = report.refused.iter();
    json!({
        "version": snapshot.version,
        "resources": resources.map(|((kind, name), version)| json!({"type": kind, "name": name, "version": version}))
            .collect::<Vec<_>>(),
        "refused": refused.map(|((kind, name), reason)| json!({"type": kind, "name": name, "reason": reason}))
            .collect::<Vec<_>>(),
        "incomplete": report.incomplete,
        "root": scope(&snapshot.root),
        "scopes": snapshot.workloads.values().map(|workload| (workload.scope.name.clone(), scope(&workload.scope)))
            .collect::<serde_json::Map<_, _>>(),
    })
}

fn scope(scope: &Scope) -> Value {
    let mut clusters: Vec<_> = scope.clusters.keys().collect();
    let mut routes: Vec<_> = scope.routes.keys().collect();
    clusters.sort_unstable();
    routes.sort_unstable();
    let listeners = scope.listeners.iter().map(|listener| {
        let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
        json!({
            "name": listener.name,
            "address": listener.address.to_string(),
            "bind_to_port": listener.bind_to_port,
            "filter_chains": chains.map(|chain| &chain.name).collect::<Vec<_>>(),
        })
    });
    json!({ "listeners": listeners.collect::<Vec<_>>(), "routes": routes, "clusters": clusters })
}

/// `/unsupported`.
pub(super) fn unsupported(report: &Report) -> Value {
    json!(report.unsupported)
}

/// `/workloads`.
pub(super) fn workloads(shared: &Shared) -> Value {
    let state = shared.state.borrow().clone();
    let report = shared.report.borrow().clone();
    let mut all: Vec<&Workload> = state.snapshot.workloads.values().map(|workload| &**workload).collect();
    all.sort_by(|one, other| one.uid.cmp(&other.uid));
    let one = |workload: &&Workload| {
        let readiness = report.readiness.get(&workload.port);
        json!({
            "uid": workload.uid.0,
            "namespace": workload.namespace,
            "name": workload.name,
            "identity": workload.identity.to_string(),
            "addresses": workload.addresses,
            "port": workload.port.0,
            "representor": state.devices.representors.get(&workload.port),
            "scope": workload.scope.name,
            "certificate": state.secrets.identities.contains_key(&workload.identity),
            "ready": readiness.is_some_and(Result::is_ok),
            "reason": readiness.and_then(|state| state.as_ref().err()),
        })
    };
    json!(all.iter().map(one).collect::<Vec<_>>())
}
