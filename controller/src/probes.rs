//! What the kubelet asks a pod over the network, of its specification: probes of containers and of init containers
//! that stay, and hooks of their lifecycle. Pure.
//!
//! As the kubelet reads it: a named port is one of the same container, or a number in quotes; a probe with a `host`
//! of its own is not for the pod; a path is written as Go's `net/url` writes it. What the kubelet cannot make sense of
//! it does not ask, so it is not here.

use crate::kubernetes::{Checked, port_number};
use crate::object::{Probe, ProbeKind};
use k8s_openapi::api::core::v1::{
    Container, HTTPGetAction, Lifecycle, LifecycleHandler, PodSpec, Probe as ApiProbe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeSet;

/// Each once, ordered.
pub(crate) fn probes(spec: &PodSpec) -> Checked<Vec<Probe>> {
    let mut all = BTreeSet::new();
    let stays = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let init = spec.init_containers.iter().flatten().filter(stays);
    for container in spec.containers.iter().chain(init) {
        let own = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
        for probe in own.into_iter().flatten() {
            all.extend(of_probe(container, probe)?);
        }
        all.extend(of_lifecycle(container)?);
    }
    Ok(all.into_iter().collect())
}

fn of_probe(container: &Container, probe: &ApiProbe) -> Checked<Option<Probe>> {
    if let Some(action) = &probe.http_get {
        return http(container, action);
    }
    if let Some(action) = &probe.tcp_socket {
        return tcp(container, action);
    }
    let Some(action) = &probe.grpc else { return Ok(None) };
    Ok(Some(Probe { port: port_number(&field(container, "grpc.port"), action.port)?, kind: ProbeKind::Grpc }))
}

fn of_lifecycle(container: &Container) -> Checked<Vec<Probe>> {
    let Some(Lifecycle { post_start, pre_stop, .. }) = &container.lifecycle else { return Ok(Vec::new()) };
    let hooks = [post_start, pre_stop].into_iter().flatten();
    let asks = hooks.filter_map(|hook: &LifecycleHandler| hook.http_get.as_ref());
    asks.filter_map(|action| http(container, action).transpose()).collect()
}

fn http(container: &Container, action: &HTTPGetAction) -> Checked<Option<Probe>> {
    let Some(port) = port(container, &action.port, "httpGet.port", action.host.as_deref())? else { return Ok(None) };
    let kind = match action.scheme.as_deref() {
        Some("HTTPS") => ProbeKind::Https,
        _ => ProbeKind::Http(request_target(action.path.as_deref().unwrap_or_default())),
    };
    Ok(Some(Probe { port, kind }))
}

fn tcp(container: &Container, action: &TCPSocketAction) -> Checked<Option<Probe>> {
    let port = port(container, &action.port, "tcpSocket.port", action.host.as_deref())?;
    Ok(port.map(|port| Probe { port, kind: ProbeKind::Tcp }))
}

/// The number; `None` when the pod is not asked.
fn port(container: &Container, port: &IntOrString, name: &str, host: Option<&str>) -> Checked<Option<u16>> {
    if host.is_some_and(|host| !host.is_empty()) {
        return Ok(None);
    }
    match port {
        IntOrString::Int(number) => port_number(&field(container, name), *number).map(Some),
        IntOrString::String(name) => Ok(named(container, name)),
    }
}

fn named(container: &Container, name: &str) -> Option<u16> {
    let declared = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
    let number = declared.map_or_else(|| name.parse().ok(), |port| u16::try_from(port.container_port).ok());
    number.filter(|port| *port > 0)
}

/// Path and query as they stand in the request line.
fn request_target(path: &str) -> String {
    let path = path.split('#').next().unwrap_or_default();
    let slash = if path.starts_with('/') { "" } else { "/" };
    let escaped = path.bytes().map(|byte| match byte {
        b' ' | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => format!("%{byte:02X}"),
        byte if byte.is_ascii_graphic() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    escaped.fold(slash.to_owned(), |all, one| all + &one)
}

fn field(container: &Container, name: &str) -> String {
    format!("spec.containers[{}].{name}", container.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probes_of(spec: &str) -> Checked<Vec<Probe>> {
        probes(&serde_saphyr::from_str(spec).expect("a specification"))
    }

    fn http(port: u16, path: &str) -> Probe {
        Probe { port, kind: ProbeKind::Http(path.to_owned()) }
    }

    #[test]
    fn every_kind_of_probe_of_every_container_that_stays_is_found_once() {
        let found = probes_of(
            "
containers:
- name: app
  ports: [{name: web, containerPort: 8080}]
  livenessProbe: {httpGet: {port: web, path: /healthz}}
  readinessProbe: {httpGet: {port: 8080, path: /healthz}}
  startupProbe: {grpc: {port: 9090}}
  lifecycle:
    postStart: {httpGet: {port: 8081, path: /started}}
    preStop: {exec: {command: [sleep, '1']}}
- name: db
  livenessProbe: {tcpSocket: {port: 5432}}
  readinessProbe: {exec: {command: [ready]}}
initContainers:
- name: migrate
  livenessProbe: {tcpSocket: {port: 1}}
- name: beside
  restartPolicy: Always
  ports: [{name: web, containerPort: 7070}]
  startupProbe: {httpGet: {port: web, scheme: HTTPS, path: /x}}
",
        );
        let tcp = Probe { port: 5432, kind: ProbeKind::Tcp };
        let https = Probe { port: 7070, kind: ProbeKind::Https };
        let grpc = Probe { port: 9090, kind: ProbeKind::Grpc };
        assert_eq!(found.expect("valid"), [tcp, https, http(8080, "/healthz"), http(8081, "/started"), grpc]);
    }

    #[test]
    fn a_port_is_the_containers_own_or_a_number_and_the_host_is_the_pod() {
        for (port, number) in [("web", Some(80)), ("'81'", Some(81)), ("other", None), ("'0'", None)] {
            let spec = format!(
                "containers: [{{name: a, ports: [{{name: web, containerPort: 80}}], livenessProbe: {{tcpSocket: {{port: {port}}}}}}},
                 {{name: b, ports: [{{name: other, containerPort: 82}}]}}]"
            );
            let ports: Vec<u16> = probes_of(&spec).expect("valid").iter().map(|probe| probe.port).collect();
            assert_eq!(ports, number.into_iter().collect::<Vec<_>>(), "{port}");
        }
        let elsewhere = "containers: [{name: a, livenessProbe: {httpGet: {host: 127.0.0.1, port: 80}}}]";
        assert_eq!(probes_of(elsewhere).expect("valid"), []);
        let error = probes_of("containers: [{name: a, livenessProbe: {grpc: {port: 70000}}}]").expect_err("range");
        assert_eq!(error.to_string(), "spec.containers[a].grpc.port: 70000 is not 1 to 65535");
    }

    #[test]
    fn a_path_is_written_as_the_kubelet_sends_it() {
        for (path, sent) in [
            ("", "/"),
            ("healthz", "/healthz"),
            ("/a?b=c&d=%20#top", "/a?b=c&d=%20"),
            ("/a b", "/a%20b"),
            ("/ä", "/%C3%A4"),
            ("/it's(1)*", "/it's(1)*"),
        ] {
            assert_eq!(request_target(path), sent);
        }
    }
}
