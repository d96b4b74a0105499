//! What a user gets: a chart that is in order, pods that are attached and governed without a word about it in their
//! manifests, identities, and what Kubernetes can be asked about all that.

use super::{Check, Stage};
use crate::bookinfo;
use crate::install::{chart, dpumesh, helm, values};
use crate::kubectl;
use crate::layout::{HOSTS, Host};
use crate::machine::Machine;
use crate::memory::{Memory, PublicKey};
use crate::product::NAMESPACE;
use anyhow::{Context, Result, ensure};
use lab::shell;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "the_chart_passes_lint_and_the_api_servers_schema", run: chart_in_order },
    Check {
        name: "values_that_make_no_sense_are_refused_and_programs_have_the_flags_of_the_chart",
        run: values_checked,
    },
    Check { name: "every_pod_of_bookinfo_has_a_vf_and_is_governed", run: attached },
    Check { name: "pods_are_told_of_in_events_and_in_one_status_screen", run: told },
    Check { name: "a_page_passes_all_services_each_call_under_its_own_identity", run: identities },
    Check { name: "hosts_hold_no_key_of_a_workload", run: no_keys },
];

fn chart_in_order(stage: &Stage) -> Result<String> {
    let (chart, values) = (chart().display().to_string(), values().display().to_string());
    // Helm asks a server for its version when it installs; here it must be told.
    let version = kubectl::json("version")?["serverVersion"]["gitVersion"].as_str().unwrap_or_default().to_owned();
    helm(&stage.cluster, &["lint", "--strict", &chart, "-f", &values, "--kube-version", &version])?;
    let words = ["template", "checked", &chart, "-n", NAMESPACE, "-f", &values, "--include-crds"];
    let rendered = helm(&stage.cluster, &[words.as_slice(), &["--kube-version", &version]].concat())?;
    let mut command = kubectl::command();
    command.args(["apply", "--dry-run=server", "--validate=strict", "-f", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("a pipe")?.write_all(rendered.as_bytes())?;
    let output = child.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "the API server does not accept the chart's objects: {}", errors.trim());
    let count = String::from_utf8_lossy(&output.stdout).lines().count();
    Ok(format!("helm lint is content; the API server accepts all {count} objects"))
}

fn values_checked(stage: &Stage) -> Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/test-chart");
    let (helm, program) = (stage.cluster.tools.path("helm"), stage.cluster.program("dpumesh")?);
    let binaries = program.parent().context("a program is in a folder")?;
    let output = shell::output(Command::new(script).arg(helm).arg(binaries))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(format!("{} values and manifests", text.lines().count()))
}

fn attached(_: &Stage) -> Result<String> {
    let pods = bookinfo::all()?;
    ensure!(pods.len() == bookinfo::PODS, "{} pods are ready, not {}", pods.len(), bookinfo::PODS);
    let lines: Result<Vec<String>> = pods.iter().map(attached_pod).collect();
    Ok(lines?.join("\n"))
}

/// Our object of a pod says what the pod is.
fn attached_pod(pod: &Value) -> Result<String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    shell::wait_for(&format!("status of {name}"), Duration::from_secs(10), || {
        let workload = kubectl::json(&format!("-n {} get dpuworkload {name}", bookinfo::NAMESPACE))?;
        let status = &workload["status"];
        let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
        ensure!(text("state") == "Open" && text("configuration") == "Accepted", "it says {status}");
        ensure!(
            status["addresses"].to_string().contains(pod["status"]["podIP"].as_str().unwrap_or("?")),
            "it says {status}"
        );
        let account = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default();
        let identity = format!("spiffe://cluster.local/ns/{}/sa/{account}", bookinfo::NAMESPACE);
        ensure!(text("identity") == identity, "its identity is {}, not {identity}", text("identity"));
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        Ok(format!(
            "{name:<32} {node} {:<6} {:<12} {identity}",
            text("vf"),
            pod["status"]["podIP"].as_str().unwrap_or_default()
        ))
    })
}

fn told(stage: &Stage) -> Result<String> {
    let client = stage.bookinfo()?.client;
    for reason in ["Attached", "Configured"] {
        shell::wait_for(&format!("event {reason}"), Duration::from_secs(10), || {
            let filter = format!("regarding.name={},reason={reason}", client.name);
            let events =
                kubectl::json(&format!("-n {} get events.events.k8s.io --field-selector {filter}", client.namespace))?;
            ensure!(events["items"].as_array().is_some_and(|items| !items.is_empty()), "{} has none", client.name);
            Ok(())
        })?;
    }
    let screen = dpumesh(&stage.cluster, &["status"])?.text;
    for wanted in HOSTS.map(Host::node).iter().chain([&client.name]) {
        ensure!(screen.contains(wanted.as_str()), "`dpumesh status` says nothing of {wanted}:\n{screen}");
    }
    Ok(screen.trim_end().to_owned())
}

fn identities(stage: &Stage) -> Result<String> {
    let page = stage.bookinfo()?.page()?;
    let mut seen = Vec::new();
    for (callee, caller, pointer) in [
        ("productpage", "curl", "/caller/certificate"),
        ("details", "productpage", "/details/caller/certificate"),
        ("reviews", "productpage", "/reviews/caller/certificate"),
    ] {
        let certificate = page.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let identity = format!("spiffe://cluster.local/ns/{}/sa/{caller}", bookinfo::NAMESPACE);
        ensure!(certificate.contains(&identity), "{callee} saw {certificate:?}, not {identity}");
        seen.push(format!("{callee} saw {identity}"));
    }
    Ok(seen.join("\n"))
}

/// Private keys of workloads are made on the DPU: no file of ours on a node holds one, and no program there has one in its
/// memory. The same search finds them in the memory of the proxies, and finds the certificates, which are public, in that
/// of the adapters.
fn no_keys(_: &Stage) -> Result<String> {
    let proxies: Vec<Vec<Memory>> =
        HOSTS.into_iter().map(|host| memories(&host.dpu(), "dpu-proxy")).collect::<Result<_>>()?;
    let certificates: BTreeMap<PublicKey, String> = proxies.iter().flatten().flat_map(Memory::certificates).collect();
    let mut found = Vec::new();
    for (host, proxies) in HOSTS.into_iter().zip(&proxies) {
        no_files(host)?;
        let keys: BTreeSet<PublicKey> = proxies.iter().flat_map(|proxy| proxy.private_keys(&certificates)).collect();
        ensure!(!keys.is_empty(), "the search finds no key where they are, in the proxy of {}", host.dpu());
        found.push(format!("{}: the proxy has the keys of {}", host.dpu(), workloads(&keys, &certificates)));
        found.push(no_keys_on(host, &certificates)?);
    }
    Ok(found.join("\n"))
}

/// What the programs of a node have of these certificates.
fn no_keys_on(host: Host, certificates: &BTreeMap<PublicKey, String>) -> Result<String> {
    let (mut known, mut size) = (0, 0);
    for program in ["istio-dpu-adapter", "istio-dpu-cni-node", "istio-dpu-controller"] {
        for memory in memories(&host.node(), program)? {
            let keys = memory.private_keys(certificates);
            ensure!(keys.is_empty(), "{program} of {} has keys of {}", host.node(), workloads(&keys, certificates));
            size += memory.mib();
            if program == "istio-dpu-adapter" {
                known = memory.certificates().keys().filter(|key| certificates.contains_key(*key)).count();
                ensure!(known > 0, "the search finds no certificate in the adapter of {}", host.node());
            }
        }
    }
    Ok(format!(
        "{}: no key in {size} MiB of its programs' memory, where {known} of the certificates are; none in a file",
        host.node()
    ))
}

fn memories(machine: &str, program: &str) -> Result<Vec<Memory>> {
    let pids = Machine::find(machine)?.pids_of(program);
    ensure!(!pids.is_empty(), "no {program} runs on {machine}");
    pids.into_iter().map(Memory::of).collect()
}

fn workloads(keys: &BTreeSet<PublicKey>, certificates: &BTreeMap<PublicKey, String>) -> String {
    let names: BTreeSet<&str> = keys.iter().filter_map(|key| certificates.get(key)?.rsplit('/').next()).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

fn no_files(host: Host) -> Result<()> {
    let machine = Machine::find(&host.node())?;
    let found = shell::attempt(&format!(
        "grep -rlE PRIVATE.KEY {} {}",
        machine.file("/var/lib/dpumesh").display(),
        machine.file("/run/dpumesh").display()
    ));
    ensure!(found.is_none(), "keys on {}: {}", host.node(), found.unwrap_or_default().trim());
    Ok(())
}
