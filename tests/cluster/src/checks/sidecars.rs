//! One mesh: a pod with a plain Istio sidecar calls pods behind DPUs and is called by them, under strict mutual TLS.

use super::{Check, Stage};
use crate::bookinfo::seconds_until;
use crate::kubectl::{self, Applied};
use crate::pod::{Pod, Service};
use crate::sidecar::Sidecar;
use anyhow::{Context, Result, ensure};
use lab::traffic::Response;

pub const CHECKS: &[Check] = &[Check {
    name: "a_pod_with_a_plain_sidecar_and_pods_behind_dpus_call_one_another_under_strict_mutual_tls",
    run: interop,
}];

const LEGACY: &str = include_str!("../../manifests/legacy.yaml");
const STRICT: &str = include_str!("../../manifests/istio/strict.yaml");

fn interop(stage: &Stage) -> Result<String> {
    let _pods = Applied::new(LEGACY)?;
    kubectl::wait_condition("-n legacy pod legacy", "Ready", 30)?;
    let legacy = Pod::find("legacy", "app=legacy")?;
    let sidecar = Sidecar::start(&stage.cluster.tools, &legacy, "legacy", 9080)?;
    let found = sidecar.wait().and_then(|()| under_strict(stage, &legacy));
    sidecar.stop()?;
    found
}

/// Both namespaces strict, so that a call that succeeds was mutual TLS.
fn under_strict(stage: &Stage, legacy: &Pod) -> Result<String> {
    let strict = format!("{STRICT}---\n{}", STRICT.replace("bookinfo", "legacy"));
    let _policies = Applied::new(&strict)?;
    calls(stage, legacy)
}

fn calls(stage: &Stage, legacy: &Pod) -> Result<String> {
    let bookinfo = stage.bookinfo()?;
    let service = Service::find("legacy", "legacy", 9080)?;
    seconds_until("a call of the sidecar's pod to details", 20, || {
        let answer = legacy.get(&bookinfo.details, "/details/0", &[])?;
        seen(&answer, "spiffe://cluster.local/ns/legacy/sa/legacy")
            .context("details, called by the pod with the sidecar")
    })?;
    seconds_until("a call to the sidecar's pod", 20, || {
        let answer = bookinfo.client.get(&service, "/details/0", &[])?;
        seen(&answer, "spiffe://cluster.local/ns/bookinfo/sa/curl").context("the pod with the sidecar, called by curl")
    })?;
    Ok("details saw spiffe://cluster.local/ns/legacy/sa/legacy, the sidecar's pod saw spiffe://cluster.local/ns/bookinfo/sa/curl".to_owned())
}

/// The callee was told the caller's identity by its own proxy.
fn seen(answer: &Response, identity: &str) -> Result<()> {
    ensure!(answer.status == 200, "it answers {}: {} {}", answer.status, answer.text.trim(), answer.error);
    let certificate = answer.json["caller"]["certificate"].as_str().unwrap_or_default();
    ensure!(certificate.contains(&format!("URI={identity}")), "it saw the certificate {certificate:?}, not {identity}");
    Ok(())
}
