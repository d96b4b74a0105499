//! The peer: an Envoy in each pod's namespace, mTLS between them, on bridges and routes of the kernel.
//!
//! The application calls its sidecar on a loopback port. In a cluster its packets would be redirected
//! there by nftables, on both sides of the call: that this is not counted is to Envoy's favour.

use super::{AUTHORITY, CALLEE, Case, PATH, folder, pod, server};
use crate::PROXY_CORE;
use crate::load::Target;
use crate::machine::on_core;
use crate::measure::Subject;
use anyhow::{Context, ensure};
use conformance::program::{Ports, Programs};
use lab::pods::Pod;
use lab::probe;
use lab::programs::{Authority, Process};
use lab::shell::{run, run_in};
use lab::topology::{HOSTS, Host, PREFIX, build};
use std::path::Path;

const OUTBOUND: &str = include_str!("../../bootstraps/sidecar-outbound.yaml");
const INBOUND: &str = include_str!("../../bootstraps/sidecar-inbound.yaml");
/// Where the application calls its sidecar.
const OUTBOUND_PORT: u16 = 15001;

/// The sidecars; they go when the lab goes.
pub struct Sidecars {
    inbound: Process,
    /// By the name of the caller.
    outbound: Vec<(&'static str, Process)>,
}

impl Sidecars {
    /// Builds namespaces and links, starts the server and the sidecars.
    pub fn start(cases: &[Case], programs: &Programs) -> anyhow::Result<Self> {
        build_network(cases)?;
        let callee = pod(CALLEE)?;
        server::start("bench-sidecar-ratings", &namespace(callee.name))?;
        let authority = Authority::new("sidecars")?;
        let inbound = sidecar(callee, INBOUND, &authority, programs)?;
        let start =
            |case: &Case| anyhow::Ok((case.caller, sidecar(pod(case.caller)?, OUTBOUND, &authority, programs)?));
        let outbound = cases.iter().map(start).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self { inbound, outbound })
    }

    /// The pair that a call of this pod passes.
    pub fn subject(&self, caller: &str) -> anyhow::Result<Subject> {
        let outbound = self.outbound.iter().find(|(name, _)| *name == caller).context("the caller has a sidecar")?;
        let target = Target {
            namespace: Some(namespace(caller)),
            address: ([127, 0, 0, 1], OUTBOUND_PORT).into(),
            host: Some(AUTHORITY),
            path: PATH,
        };
        let answer = probe_once(&target)?;
        ensure!(answer == 200, "the sidecars answer {answer}");
        Ok(Subject { processes: [&outbound.1, &self.inbound].map(|process| process.id.pid as u32).into(), target })
    }
}

fn probe_once(target: &Target) -> anyhow::Result<u16> {
    let namespace = target.namespace.clone().context("sidecars have a namespace")?;
    let host = target.host.unwrap_or_default();
    let url = format!("http://{}{}", target.address, target.path);
    let line = format!("curl -sS -o /dev/null --retry 5 --max-time 10 -w %{{http_code}} -H host:{host} {url}");
    Ok(run_in(&namespace, &line)?.trim().parse()?)
}

/// Starts the sidecar of a pod.
fn sidecar(pod: &Pod, template: &str, authority: &Authority, programs: &Programs) -> anyhow::Result<Process> {
    let name = format!("sidecar-{}", pod.name);
    let folder = folder(&name)?;
    authority.issue(&folder, "sidecar", &pod.identity(), &[])?;
    let config = folder.join("envoy.yaml");
    std::fs::write(&config, values(&folder)?.render(template)?)?;
    let mut words = vec!["-c".to_owned(), config.display().to_string()];
    // Every Envoy of a machine needs a base id of its own.
    let base = pod.address.rsplit('.').next().unwrap_or_default();
    words.extend(["--concurrency", "1", "-l", "warning", "--base-id"].map(str::to_owned));
    words.push(format!("{}{base}", pod.host.number));
    let envoy = programs.envoy.to_string_lossy();
    let process = on_core(PROXY_CORE, || Process::start(&name, &namespace(pod.name), &envoy, &words))??;
    probe::wait_ready(&name, &namespace(pod.name), "127.0.0.1:15000", "/ready")
        .with_context(|| format!("its log ends:\n{}", lab::programs::tail(&name)))?;
    Ok(process)
}

fn values(folder: &Path) -> anyhow::Result<Ports> {
    let mut values = Ports::default();
    values.set("port", OUTBOUND_PORT);
    values.set("callee", pod(CALLEE)?.address);
    values.set("callee_identity", pod(CALLEE)?.identity());
    values.set("caller_identity", pod("reviews-v1")?.identity());
    values.set("folder", folder.display());
    Ok(values)
}

/// Namespace of a pod with a sidecar. The lab removes it with its own, by the prefix.
fn namespace(pod: &str) -> String {
    format!("{PREFIX}sidecar-{pod}")
}

fn host_namespace(host: Host) -> String {
    format!("{PREFIX}sidecar-{}", host.node())
}

/// Two hosts that route between a bridge of pods and a fabric.
fn build_network(cases: &[Case]) -> anyhow::Result<()> {
    let fabric = format!("{PREFIX}sidecar-fabric");
    build::namespace_with_bridge(&fabric)?;
    HOSTS.into_iter().try_for_each(|host| build_host(host, &fabric))?;
    build_pod(pod(CALLEE)?)?;
    cases.iter().try_for_each(|case| build_pod(pod(case.caller)?))
}

fn build_host(host: Host, fabric: &str) -> anyhow::Result<()> {
    let (own, other) = (host_namespace(host), Host { number: 3 - host.number });
    build::namespace_with_bridge(&own)?;
    build::address(&own, "br0", &format!("10.244.{}.1", host.number))?;
    build::plug(fabric, &host.fabric_port(), (&own, "uplink"))?;
    build::address(&own, "uplink", &host.underlay())?;
    run_in(&own, "sysctl -q -w net.ipv4.ip_forward=1")?;
    run(&format!("ip -n {own} route add 10.244.{}.0/24 via {}", other.number, other.underlay())).map(drop)
}

fn build_pod(pod: &Pod) -> anyhow::Result<()> {
    let (own, number) = (namespace(pod.name), pod.host.number);
    let last = pod.address.rsplit('.').next().unwrap_or_default();
    build::namespace(&own)?;
    build::plug(&host_namespace(pod.host), &format!("pod{last}"), (&own, "eth0"))?;
    build::address(&own, "eth0", pod.address)?;
    run(&format!("ip -n {own} route add default via 10.244.{number}.1")).map(drop)
}
