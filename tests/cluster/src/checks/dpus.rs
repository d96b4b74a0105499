//! The programs of a DPU die as containers do, and their kubelet starts them again. Without the dataplane nothing changes
//! for traffic; without the proxy nothing passes that is not governed.

use super::leaks::audited;
use super::resilience::under_load;
use super::{Check, Stage};
use crate::bookinfo::{self, Bookinfo, seconds_until};
use crate::kubectl::{self, Applied};
use crate::layout::{HOSTS, Host};
use crate::machine::Machine;
use crate::pod::{Pod, Service};
use crate::product;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check {
        name: "killed_dataplanes_are_started_again_by_their_kubelets_under_load_without_one_failed_request",
        run: dataplanes,
    },
    Check {
        name: "a_killed_proxy_lets_nothing_pass_ungoverned_and_serves_again_by_itself_with_all_pods_attached",
        run: proxy,
    },
];

/// Seconds from the death of a proxy until the page is served: its kubelet sees it die within one or two, its container
/// starts, the adapter sends it all configuration, and certificates are made. (A kubelet waits longer before it starts
/// again what dies often.)
const SERVED_AGAIN_S: u64 = 25;

/// Seconds that a single call waits.
const PATIENCE: &[&str] = &["--max-time", "1"];

const STRICT: &str = include_str!("../../manifests/istio/strict.yaml");
const OUTSIDER: &str = include_str!("../../manifests/outsider.yaml");

fn dataplanes(stage: &Stage) -> Result<String> {
    let found = under_load(stage, || {
        let dead: Result<Vec<Vec<i32>>> =
            HOSTS.into_iter().map(|host| product::kill_on_dpu("dataplane", host)).collect();
        let pairs = HOSTS.into_iter().zip(dead?);
        pairs.into_iter().try_for_each(|(host, dead)| product::wait_again_on_dpu("dataplane", host, &dead))
    })?;
    let audits: Result<Vec<String>> = HOSTS.into_iter().map(audited).collect();
    Ok(format!("{found}\n{}", audits?.join("\n")))
}

/// Under strict mutual TLS, so that an answer to an outsider, or one whose callee saw no identity, passed ungoverned.
fn proxy(stage: &Stage) -> Result<String> {
    let strict = Applied::new(STRICT)?;
    kubectl::apply(OUTSIDER)?;
    kubectl::wait_condition("-n outside pod outsider", "Ready", 30)?;
    let found = killed(stage, &stage.bookinfo()?);
    strict.delete()?;
    found
}

fn killed(stage: &Stage, bookinfo: &Bookinfo) -> Result<String> {
    let (outsider, details) = (Pod::find("outside", "app=outsider")?, Pod::find(bookinfo::NAMESPACE, "app=details")?);
    let host = details.host;
    seconds_until("strict mutual TLS", 15, || {
        ensure!(ask(&outsider, &bookinfo.details)? == Passed::Nothing, "an outsider is answered");
        whole(bookinfo)
    })?;
    let before = uids()?;
    let is_over = &AtomicBool::new(false);
    let callers =
        [(&outsider, &bookinfo.details), (&bookinfo.client, &bookinfo.details), (&details, &bookinfo.ratings)];
    let (seconds, seen) = std::thread::scope(|scope| {
        let watchers = callers.map(|(from, to)| scope.spawn(move || watched(from, to, is_over)));
        let seconds = died_and_served(bookinfo, host);
        is_over.store(true, Ordering::Relaxed);
        let seen: Result<Vec<Seen>> = watchers.into_iter().map(|one| one.join().expect("it does not panic")).collect();
        Ok::<_, anyhow::Error>((seconds?, seen?))
    })?;
    let [outsiders, into, out_of] = seen.as_slice() else { bail!("three watch") };
    ensure!(outsiders.governed == 0, "an outsider was answered {} times under strict mutual TLS", outsiders.governed);
    ensure!(into.nothing > 0 && out_of.nothing > 0, "no call met the dead proxy: {into:?}, {out_of:?}");
    let audit = still_attached(stage, &before, host)?;
    Ok(format!(
        "served again {seconds:.1} s after it died (limit {SERVED_AGAIN_S} s); meanwhile {} calls got no answer, those that \
         got one were governed ({} before and after), {} of an outsider got none\nopen pods stayed attached: {audit}",
        into.nothing + out_of.nothing,
        into.governed + out_of.governed,
        outsiders.nothing
    ))
}

/// Seconds until the page with all its parts is served again, nobody having done anything.
fn died_and_served(bookinfo: &Bookinfo, host: Host) -> Result<f64> {
    std::thread::sleep(Duration::from_millis(500));
    let dead = product::kill_on_dpu("dpu-proxy", host)?;
    let seconds = seconds_until("the page after its proxy died", SERVED_AGAIN_S, || {
        let runs = Machine::find(&host.dpu())?.pids_of("dpu-proxy");
        ensure!(runs.iter().any(|pid| !dead.contains(pid)), "no new proxy runs on {}", host.dpu());
        whole(bookinfo)
    })?;
    product::wait_again_on_dpu("dpu-proxy", host, &dead)?;
    Ok(seconds)
}

/// The page with what details and reviews add to it, each of which saw the caller's identity.
fn whole(bookinfo: &Bookinfo) -> Result<()> {
    let page = bookinfo.client.get(&bookinfo.productpage, "/productpage", &["--max-time", "2"])?;
    for part in ["/details/caller/certificate", "/reviews/caller/certificate"] {
        let certificate = page.json.pointer(part).and_then(Value::as_str).unwrap_or_default();
        ensure!(certificate.contains("spiffe://"), "the page has no {part}: {} {}", page.status, page.text.trim());
    }
    Ok(())
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passed {
    /// No answer, or one of a proxy that could not reach the callee.
    Nothing,
    /// The callee answered, and saw who called.
    Governed,
}

/// Calls that were made.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    nothing: u32,
    governed: u32,
}

fn watched(from: &Pod, to: &Service, is_over: &AtomicBool) -> Result<Seen> {
    let mut seen = Seen::default();
    while !is_over.load(Ordering::Relaxed) {
        match ask(from, to)? {
            Passed::Nothing => seen.nothing += 1,
            Passed::Governed => seen.governed += 1,
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(seen)
}

/// An answer of a callee that saw no identity fails the check.
fn ask(from: &Pod, to: &Service) -> Result<Passed> {
    let path = if to.host.starts_with("ratings") { "/ratings/0" } else { "/details/0" };
    let answer = from.get(to, path, PATIENCE)?;
    let certificate = answer.json["caller"]["certificate"].as_str().unwrap_or_default();
    match (answer.status, certificate.contains("URI=spiffe://")) {
        (200, true) => Ok(Passed::Governed),
        (200, false) => bail!("{} answered {} ungoverned: {}", to.host, from.name, answer.text.trim()),
        _ => Ok(Passed::Nothing),
    }
}

/// The same pods, ready and open; and each node holds what these need.
fn still_attached(stage: &Stage, before: &BTreeSet<String>, host: Host) -> Result<String> {
    ensure!(uids()? == *before, "pods were replaced: {:?}", uids()?.symmetric_difference(before));
    bookinfo::wait_ready(bookinfo::PODS)?;
    stage.bookinfo()?.wait_served()?;
    let workloads = kubectl::json(&format!("-n {} get dpuworkloads", bookinfo::NAMESPACE))?;
    for workload in workloads["items"].as_array().into_iter().flatten() {
        let (name, state) = (&workload["metadata"]["name"], &workload["status"]["state"]);
        ensure!(state == "Open", "{name} is {state}");
    }
    audited(host)
}

fn uids() -> Result<BTreeSet<String>> {
    let uid = |pod: &Value| Some(pod["metadata"]["uid"].as_str()?.to_owned());
    bookinfo::all()?.iter().map(|pod| uid(pod).context("a pod without uid")).collect()
}
