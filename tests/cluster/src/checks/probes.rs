//! The kubelet's probes pass under strict mutual TLS with nothing changed in manifests, and nothing else passes for them.

use super::{Check, Stage};
use crate::bookinfo::{NAMESPACE, seconds_until};
use crate::kubectl::{self, Applied};
use crate::layout::{CONTROL, HOST_PORT, Host, netns};
use crate::machine::Machine;
use crate::pod::{self, Pod, Service};
use anyhow::{Context, Result, ensure};
use lab::traffic::{self, Response};
use lab::{probe, shell};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

pub const CHECKS: &[Check] = &[Check {
    name: "probes_of_every_kind_pass_under_strict_mutual_tls_and_nothing_else_passes_for_them",
    run: probed,
}];

const PROBED: &str = include_str!("../../manifests/probed.yaml");
const STRICT: &str = include_str!("../../manifests/istio/strict.yaml");
const OUTSIDER: &str = include_str!("../../manifests/outsider.yaml");
/// Pods of the Deployment, one on each node.
const PODS: usize = 2;
/// And of the one where nobody listens.
const DEAF: usize = 4;
/// How long its probes are watched.
const WATCHED: Duration = Duration::from_secs(30);
/// Within this an answer comes, or none does.
const BRIEF: &[&str] = &["--max-time", "2"];

fn probed(stage: &Stage) -> Result<String> {
    let bookinfo = stage.bookinfo()?;
    kubectl::apply(OUTSIDER)?;
    kubectl::wait_condition("-n outside pod outsider", "Ready", 30)?;
    let outsider = Pod::find("outside", "app=outsider")?;
    let strict = Applied::new(STRICT)?;
    seconds_until("no answer for an outsider", 15, || {
        refused(&outsider.get(&bookinfo.details, "/details/0", BRIEF)?, "an outsider")
    })?;
    let deployment = Applied::new(PROBED)?;
    let started = ready()?;
    let watched = watch()?;
    never_ready()?;
    let pods: Vec<Pod> = pod::ready(NAMESPACE, "role=probed")?.iter().map(Pod::of).collect::<Result<_>>()?;
    for pod in &pods {
        strangers(pod, &outsider)?;
        counted(pod.host)?;
    }
    neighbours(&bookinfo.details)?;
    strict.delete()?;
    for pod in &pods {
        permitted(pod)?;
    }
    deployment.delete()?;
    gone()?;
    Ok(format!("{PODS} pods ready after {started:.1} s under STRICT; {watched}"))
}

fn ready() -> Result<f64> {
    let waited = seconds_until("pods with probes", 90, || {
        let ready = pod::ready(NAMESPACE, "role=probed")?.len();
        ensure!(ready == PODS, "{ready} of {PODS} are ready");
        Ok(())
    });
    waited.with_context(|| format!("events:\n{}", pod::warnings(NAMESPACE).unwrap_or_default()))
}

/// They stay as they are: no restart, and ready at every look.
fn watch() -> Result<String> {
    let until = std::time::Instant::now() + WATCHED;
    while std::time::Instant::now() < until {
        shell::check_interrupted()?;
        let pods = pod::ready(NAMESPACE, "role=probed")?;
        ensure!(pods.len() == PODS, "only {} are ready:\n{}", pods.len(), pod::warnings(NAMESPACE)?);
        let restarts: u64 = pods.iter().map(restarts).sum();
        ensure!(restarts == 0, "{restarts} restarts:\n{}", pod::warnings(NAMESPACE)?);
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(format!("no restart in {} s", WATCHED.as_secs()))
}

/// Of a pod that was ready once, that state has changed since its container started.
fn never_ready() -> Result<()> {
    let pods = kubectl::json(&format!("-n {NAMESPACE} get pods -l role=deaf"))?;
    let pods = pods["items"].as_array().context("a list of pods")?;
    ensure!(pods.len() == DEAF, "{} of {DEAF} pods where nobody listens", pods.len());
    for pod in pods {
        let started = pod.pointer("/status/containerStatuses/0/state/running/startedAt").and_then(Value::as_str);
        let started = started.context("a container where nobody listens does not run")?;
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let changed =
            conditions.filter(|one| one["type"] == "Ready").find_map(|one| one["lastTransitionTime"].as_str());
        let changed = changed.context("nothing is said of whether it is ready")?;
        // Both in UTC and in whole seconds, as Kubernetes writes them.
        ensure!(changed <= started, "a pod was or is ready where nobody listens: {}", pod["status"]);
    }
    Ok(())
}

fn restarts(pod: &Value) -> u64 {
    let containers = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    containers.filter_map(|one| one["restartCount"].as_u64()).sum()
}

/// Under STRICT: what the node itself may ask is what the kubelet asks, and whoever takes its address gets nothing.
fn strangers(pod: &Pod, outsider: &Pod) -> Result<()> {
    let at = |port: u16| format!("{}:{port}", pod.address);
    let (http, grpc, tcp) = (at(9080), at(9090), at(27017));
    let ask = |to: &str, path: &str, options: &[&str]| of_node(pod.host, to, path, &[options, BRIEF].concat());
    for path in ["/started", "/healthz?full=yes", "/ratings/0"] {
        let answer = ask(&http, path, &[])?;
        ensure!(answer.status == 200, "the node asks as the kubelet does, {path}: {} {}", answer.status, answer.error);
    }
    let h2: &[&str] = &["--http2-prior-knowledge"];
    for (to, path, options) in [
        (&http, "/healthz", [].as_slice()),
        (&http, "/admin", &[]),
        (&http, "/started", &["-X", "POST"]),
        (&http, "/started", h2),
        (&grpc, "/lab.ratings.v1.Ratings/Get", h2),
        (&grpc, "/grpc.health.v1.Health/Watch", h2),
        (&tcp, "/", &[]),
    ] {
        refused(&ask(to, path, options)?, &format!("the node itself at {to}{path} {options:?}"))?;
    }
    refused(&outsider_as(outsider, HOST_PORT.node, &http)?, "a pod that takes the node's address on its link")?;
    refused(&outsider_as(outsider, &pod.host.address(), &http)?, "a pod that takes the node's address")?;
    refused(&outsider.get(&plain(&http), "/started", BRIEF)?, "a pod outside the mesh")?;
    refused(&fabric_as(HOST_PORT.node, &http)?, "a machine of the fabric that takes the node's address")
}

/// A port without probes is refused to the node as to anybody.
fn neighbours(details: &Service) -> Result<()> {
    for pod in pod::ready(NAMESPACE, "app=details")?.iter().map(Pod::of) {
        let pod = pod?;
        let answer = of_node(pod.host, &format!("{}:9080", pod.address), "/details/0", BRIEF)?;
        refused(&answer, &format!("the node itself at {}, which has no probe", details.host))?;
    }
    Ok(())
}

/// Without STRICT the node is a plain client, also at ports with probes.
fn permitted(pod: &Pod) -> Result<()> {
    let h2: &[&str] = &["--http2-prior-knowledge"];
    for (port, path, options) in
        [(9080, "/ratings/1", [].as_slice()), (9080, "/ratings/1", h2), (9090, "/lab.ratings.v1.Ratings/None", h2)]
    {
        seconds_until("an answer for the node", 15, || {
            let answer = of_node(pod.host, &format!("{}:{port}", pod.address), path, &[options, BRIEF].concat())?;
            ensure!(answer.status == 200, "{port}{path} {options:?}: {} {}", answer.status, answer.error);
            Ok(())
        })?;
    }
    Ok(())
}

/// Every kind of probe was counted by the DPU.
fn counted(host: Host) -> Result<()> {
    let stats = probe::get(&netns(&host.dpu()), "127.0.0.1:15000", "/stats/prometheus")?;
    for kind in ["http", "grpc", "tcp"] {
        let series = format!("dpu_proxy_probes_total{{kind=\"{kind}\",result=\"relayed\"}}");
        ensure!(stats.contains(&series), "{} has no {series}", host.dpu());
    }
    Ok(())
}

fn gone() -> Result<()> {
    shell::wait_for("end of the pods with probes", Duration::from_secs(60), || {
        let left = kubectl::run(&format!("-n {NAMESPACE} get pods -l role -o name"))?;
        ensure!(left.trim().is_empty(), "{left}");
        Ok(())
    })
}

fn of_node(host: Host, to: &str, path: &str, options: &[&str]) -> Result<Response> {
    traffic::ask(Machine::find(&host.node())?.command("curl"), to, to, path, options)
}

/// From inside a pod, with an address that is not its own.
fn outsider_as(outsider: &Pod, address: &str, to: &str) -> Result<Response> {
    let taken = format!("ip addr add {address}/32 dev eth0 && trap 'ip addr del {address}/32 dev eth0' EXIT");
    traffic::ask(with_address(outsider.command("sh"), &taken, address), to, to, "/started", BRIEF)
}

/// From the router of the fabric.
fn fabric_as(address: &str, to: &str) -> Result<Response> {
    let taken = format!("ip addr add {address}/32 dev fabric && trap 'ip addr del {address}/32 dev fabric' EXIT");
    traffic::ask(with_address(shell::command_in(CONTROL, "sh"), &taken, address), to, to, "/started", BRIEF)
}

/// A shell that takes an address, calls curl with the further words from it, and gives it back.
fn with_address(mut command: Command, taken: &str, address: &str) -> Command {
    command.args(["-c", &format!("{taken}; curl --interface {address} \"$@\""), "sh"]);
    command
}

fn plain(to: &str) -> Service {
    Service { address: to.to_owned(), host: to.to_owned() }
}

fn refused(answer: &Response, who: &str) -> Result<()> {
    ensure!(answer.status == 0, "{who} is answered {}: {}", answer.status, answer.text.trim());
    Ok(())
}
