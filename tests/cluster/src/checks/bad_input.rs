//! What goes wrong is said where its operator looks, with the reason, and goes wrong alone.

use super::{Check, Stage};
use crate::bookinfo;
use crate::control;
use crate::install::{chart, helm, values};
use crate::kubectl::{self, Applied};
use crate::layout::{CONTROL_ADDRESS, HOSTS};
use crate::machine::{Machine, tail};
use crate::pki::write_private;
use crate::pod::Pod;
use crate::product::NAMESPACE;
use anyhow::{Result, ensure};
use lab::shell;
use serde_json::Value;
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "helm_refuses_values_that_make_no_sense_and_names_them", run: senseless_values },
    Check { name: "a_program_with_a_wrong_token_is_refused_and_its_log_says_so", run: wrong_token },
    Check { name: "a_pod_with_an_unknown_network_is_told_so_in_its_events", run: unknown_network },
    Check { name: "a_node_without_vfs_left_says_so_in_the_pods_events", run: no_vfs_left },
    Check {
        name: "a_workload_whose_configuration_is_refused_is_alone_and_its_events_say_why",
        run: refused_configuration,
    },
    Check { name: "a_workload_whose_identity_istiod_denies_is_alone_and_its_events_say_why", run: denied_identity },
    Check { name: "a_pod_that_starts_while_istiod_is_away_waits_for_it", run: unreachable_istiod },
];

const OUTSIDE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: outside}\n";
const UNKNOWN_NETWORK: &str = include_str!("../../manifests/unknown-network.yaml");
const FILLER: &str = include_str!("../../manifests/filler.yaml");
const NEWCOMER: &str = include_str!("../../manifests/newcomer.yaml");
const UNSUPPORTED: &str = include_str!("../../manifests/istio/unsupported.yaml");

/// Values, and the word of the refusal that names what is wrong.
const SENSELESS: [(&str, &str); 5] = [
    ("controller.replicas=-1", "replicas"),
    ("cniNode.podReadyTimeoutMs=soon", "podReadyTimeoutMs"),
    ("management.hostAddress=card", "hostAddress"),
    ("cniNode.vfProvider=magic", "vfProvider"),
    ("istiod.port=15012", "port"),
];

fn senseless_values(stage: &Stage) -> Result<String> {
    let (chart, values) = (chart().display().to_string(), values().display().to_string());
    for (value, word) in SENSELESS {
        let words = ["template", "checked", &chart, "-f", &values, "--set", value];
        let refusal = helm(&stage.cluster, &words).err().map(|error| format!("{error:#}"));
        ensure!(refusal.as_ref().is_some_and(|text| text.contains(word)), "`--set {value}`: {refusal:?}");
    }
    Ok(format!("{} values are refused by name", SENSELESS.len()))
}

/// A second adapter on a node, with a token that the API server has never issued.
fn wrong_token(stage: &Stage) -> Result<String> {
    let machine = Machine::find(&HOSTS[0].node())?;
    let ca = kubectl::json(&format!("-n {NAMESPACE} get configmap dpumesh-ca"))?;
    write_private(&machine.file("/run/wrong-ca.crt"), ca["data"]["ca.crt"].as_str().unwrap_or_default())?;
    write_private(&machine.file("/run/wrong-token"), "eyJhbGciOiJub25lIn0.e30.")?;
    let service = kubectl::json(&format!("-n {NAMESPACE} get service dpumesh-controller"))?;
    let controller = service["spec"]["clusterIP"].as_str().unwrap_or_default();
    let line = format!(
        "--node node1 --controller https://{controller}:15100 --enroll https://{controller}:15102 --enroll-token /run/wrong-token \
         --tls-ca /run/wrong-ca.crt --control-plane https://{CONTROL_ADDRESS}:15012 --control-plane-ca /run/wrong-ca.crt \
         --listen 127.0.0.1:25110 --health-listen 127.0.0.1:25111"
    );
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let process = machine.spawn(&stage.cluster.program("istio-dpu-adapter")?.to_string_lossy(), &words)?;
    let told = shell::wait_for("word of the wrong token", Duration::from_secs(20), || {
        let log = tail(&process.name);
        let line = log.lines().find(|line| line.contains("not enrolled") && line.contains("token"));
        line.map(str::to_owned).ok_or_else(|| anyhow::anyhow!("its log ends:\n{log}"))
    });
    process.stop()?;
    told
}

fn unknown_network(_: &Stage) -> Result<String> {
    kubectl::apply(OUTSIDE)?;
    let _pod = Applied::new(UNKNOWN_NETWORK)?;
    event("outside", "lost", &["nowhere"])
}

fn no_vfs_left(_: &Stage) -> Result<String> {
    kubectl::apply(OUTSIDE)?;
    let fillers = Applied::new(FILLER)?;
    let told = shell::wait_for("an event of a pod without VF", Duration::from_secs(60), || {
        let events = kubectl::json("-n outside get events.events.k8s.io --field-selector type=Warning")?;
        let notes = events["items"].as_array().into_iter().flatten().filter_map(|event| event["note"].as_str());
        let mut notes = notes.filter(|note| note.to_lowercase().contains("no free vf") || note.contains("VFs"));
        notes.next().map(str::to_owned).ok_or_else(|| anyhow::anyhow!("no event speaks of VFs: {events}"))
    });
    fillers.delete()?;
    shell::wait_for("end of the fillers", Duration::from_secs(60), || {
        let pods = kubectl::json("-n outside get pods -l app=filler")?;
        ensure!(pods["items"].as_array().is_some_and(Vec::is_empty), "some are still there");
        Ok(())
    })?;
    told
}

/// JWT is not done by the proxy: the callee stays on its last good configuration, and is told of.
fn refused_configuration(stage: &Stage) -> Result<String> {
    let details = Pod::find(bookinfo::NAMESPACE, "app=details")?;
    let object = Applied::new(UNSUPPORTED)?;
    let told = event(bookinfo::NAMESPACE, &details.name, &["jwt"]).and_then(|text| {
        stage.bookinfo()?.page()?;
        others_accepted(&details.name)?;
        Ok(text)
    });
    object.delete()?;
    let accepted =
        shell::wait_for("accepted configuration", Duration::from_secs(20), || configuration(&details.name, "Accepted"));
    told.and_then(|text| accepted.map(|()| text))
}

fn others_accepted(except: &str) -> Result<()> {
    let workloads = kubectl::json(&format!("-n {} get dpuworkloads", bookinfo::NAMESPACE))?;
    for workload in workloads["items"].as_array().into_iter().flatten() {
        let (name, configuration) = (&workload["metadata"]["name"], &workload["status"]["configuration"]);
        ensure!(name == except || configuration == "Accepted", "{name} is {configuration}, too");
    }
    Ok(())
}

fn configuration(pod: &str, wanted: &str) -> Result<()> {
    let workload = kubectl::json(&format!("-n {} get dpuworkload {pod}", bookinfo::NAMESPACE))?;
    ensure!(workload["status"]["configuration"] == wanted, "{}", workload["status"]);
    Ok(())
}

/// An istiod that doesn't trust the adapter gives a new identity no certificate; those that have one go on.
fn denied_identity(stage: &Stage) -> Result<String> {
    let (istiod, tools) = (control::Program::Istiod, &stage.cluster.tools);
    istiod.process()?.kill()?;
    control::start_istiod(tools, "istio-system/somebody-else")?.wait()?;
    let newcomer = Applied::new(NEWCOMER)?;
    let told = event(bookinfo::NAMESPACE, "newcomer", &["IdentityDenied"]).and_then(|text| {
        stage.bookinfo()?.page()?;
        Ok(text)
    });
    istiod.process()?.kill()?;
    istiod.start(tools)?.wait()?;
    let started = kubectl::wait_condition("-n bookinfo pod newcomer", "Ready", 60);
    newcomer.delete()?;
    told.and_then(|text| started.map(|()| format!("{text}\nit started once istiod trusted the adapter again")))
}

/// The pod is not started ungoverned; its DpuWorkload says what it waits for.
fn unreachable_istiod(stage: &Stage) -> Result<String> {
    let istiod = control::Program::Istiod;
    istiod.process()?.kill()?;
    let told = new_pod("app=details").and_then(|pod| {
        let told = shell::wait_for("word of istiod's absence", Duration::from_secs(20), || waits_for_istiod(&pod))?;
        let object = kubectl::json(&format!("-n {} get pod {pod}", bookinfo::NAMESPACE))?;
        ensure!(object["status"]["phase"] == "Pending", "it is {} without configuration", object["status"]["phase"]);
        Ok(told)
    });
    istiod.start(&stage.cluster.tools)?.wait()?;
    let told = told?;
    bookinfo::wait_ready(bookinfo::PODS)?;
    stage.bookinfo()?.wait_served()?;
    Ok(format!("{told}\nit started once istiod was there"))
}

fn waits_for_istiod(pod: &str) -> Result<String> {
    let workload = kubectl::json(&format!("-n {} get dpuworkload {pod}", bookinfo::NAMESPACE))?;
    let reason = workload["status"]["configurationReason"].as_str().unwrap_or_default();
    ensure!(reason.contains("istiod"), "its DpuWorkload says {}", workload["status"]);
    Ok(reason.to_owned())
}

/// Deletes a pod and names the one that takes its place.
fn new_pod(selector: &str) -> Result<String> {
    let names = || -> Result<Vec<String>> {
        let pods = kubectl::json(&format!("-n {} get pods -l {selector}", bookinfo::NAMESPACE))?;
        let names = pods["items"].as_array().into_iter().flatten().map(|pod| pod["metadata"]["name"].as_str());
        Ok(names.flatten().map(str::to_owned).collect())
    };
    let old = names()?;
    kubectl::run(&format!("-n {} delete pods -l {selector} --wait=false", bookinfo::NAMESPACE))?;
    shell::wait_for("a new pod", Duration::from_secs(20), || {
        names()?.into_iter().find(|name| !old.contains(name)).ok_or_else(|| anyhow::anyhow!("there is none"))
    })
}

/// Waits for a warning about a pod that has all these words; its text.
fn event(namespace: &str, pod: &str, words: &[&str]) -> Result<String> {
    let filter = format!("type=Warning,regarding.name={pod}");
    shell::wait_for(&format!("an event of {pod}"), Duration::from_secs(45), || {
        let events = kubectl::json(&format!("-n {namespace} get events.events.k8s.io --field-selector {filter}"))?;
        let notes: Vec<String> = events["items"].as_array().into_iter().flatten().map(line).collect();
        let found =
            notes.iter().find(|note| words.iter().all(|word| note.to_lowercase().contains(&word.to_lowercase())));
        found
            .cloned()
            .ok_or_else(|| anyhow::anyhow!("no event has {words:?}; there are {notes:?}; {NAMESPACE}'s logs say more"))
    })
}

fn line(event: &Value) -> String {
    format!("{}: {}", event["reason"].as_str().unwrap_or_default(), event["note"].as_str().unwrap_or_default())
}
