//! Istio's objects, applied with kubectl: what each is for happens, and how soon.

use super::{Check, Stage};
use crate::bookinfo::{Bookinfo, NAMESPACE, seconds_until};
use crate::kubectl::{self, Applied};
use crate::pod::{Pod, Service, faultless};
use anyhow::{Context, Result, ensure};
use lab::load::Outcome;

pub const CHECKS: &[Check] = &[
    Check { name: "a_destination_rule_makes_subsets_that_a_virtual_service_routes_to", run: subsets },
    Check { name: "a_virtual_service_splits_requests_by_weight", run: weights },
    Check { name: "a_virtual_service_routes_by_header", run: header },
    Check { name: "a_virtual_service_answers_with_a_fault", run: fault },
    Check { name: "an_authorization_policy_denies_an_identity", run: deny },
    Check { name: "strict_peer_authentication_refuses_who_has_no_identity", run: strict },
];

/// Seconds within which an object must be in force everywhere.
const LIMIT: u64 = 15;

/// Points in a hundred by which a split may be off: three standard deviations of 2,000 requests, and a bit.
const TOLERANCE: f64 = 3.5;

const SUBSETS: &str = include_str!("../../manifests/istio/subsets.yaml");
const WEIGHTS: &str = include_str!("../../manifests/istio/weights.yaml");
const HEADER: &str = include_str!("../../manifests/istio/header.yaml");
const FAULT: &str = include_str!("../../manifests/istio/fault.yaml");
const DENY: &str = include_str!("../../manifests/istio/deny.yaml");
const STRICT: &str = include_str!("../../manifests/istio/strict.yaml");
const OUTSIDER: &str = include_str!("../../manifests/outsider.yaml");

fn subsets(stage: &Stage) -> Result<String> {
    let bookinfo = stage.bookinfo()?;
    kubectl::apply(SUBSETS)?;
    let delay = seconds_until("all requests at v3", LIMIT, || only(&requests(stage, &bookinfo, 30, &[])?, "v3"))?;
    Ok(format!("all requests at v3 after {delay:.2} s"))
}

fn weights(stage: &Stage) -> Result<String> {
    let bookinfo = stage.bookinfo()?;
    kubectl::apply(WEIGHTS)?;
    let delay = seconds_until("requests at v1 and v2", LIMIT, || {
        let seen = requests(stage, &bookinfo, 40, &[])?;
        ensure!(seen.counted.keys().eq(["v1", "v2"]), "answered by {:?}", seen.counted);
        Ok(())
    })?;
    let seen = requests(stage, &bookinfo, 2000, &[])?;
    let share = seen.percent("v1");
    ensure!((share - 80.0).abs() <= TOLERANCE, "v1 got {share:.1} % of {} requests, not 80 %", seen.requests);
    Ok(format!("in force after {delay:.2} s; v1 got {share:.1} % of {} requests (80 % asked for)", seen.requests))
}

fn header(stage: &Stage) -> Result<String> {
    let bookinfo = stage.bookinfo()?;
    kubectl::apply(HEADER)?;
    let delay = seconds_until("requests of jason at v2, of others at v1", LIMIT, || {
        only(&requests(stage, &bookinfo, 20, &["--header", "end-user:jason"])?, "v2")?;
        only(&requests(stage, &bookinfo, 20, &[])?, "v1")
    })?;
    Ok(format!("jason at v2, others at v1 after {delay:.2} s"))
}

fn fault(stage: &Stage) -> Result<String> {
    let bookinfo = stage.bookinfo()?;
    let object = Applied::new(FAULT)?;
    let delay = seconds_until("418 for testers", LIMIT, || {
        status(&bookinfo.client, &bookinfo.ratings, &["-H", "end-user: tester"], 418)
    })?;
    status(&bookinfo.client, &bookinfo.ratings, &[], 200)?;
    object.delete()?;
    let gone = seconds_until("200 for testers again", LIMIT, || {
        status(&bookinfo.client, &bookinfo.ratings, &["-H", "end-user: tester"], 200)
    })?;
    Ok(format!("418 for testers after {delay:.2} s; gone {gone:.2} s after it was deleted"))
}

fn deny(stage: &Stage) -> Result<String> {
    let bookinfo = stage.bookinfo()?;
    let denied = Pod::find(NAMESPACE, "app=productpage")?;
    seconds_until("200 for the product page", LIMIT, || status(&denied, &bookinfo.ratings, &[], 200))?;
    let object = Applied::new(DENY)?;
    let delay = seconds_until("403 for the product page", LIMIT, || status(&denied, &bookinfo.ratings, &[], 403))?;
    status(&bookinfo.client, &bookinfo.ratings, &[], 200).context("another identity")?;
    object.delete()?;
    let gone = seconds_until("200 again", LIMIT, || status(&denied, &bookinfo.ratings, &[], 200))?;
    Ok(format!("403 for productpage after {delay:.2} s, 200 for others; gone {gone:.2} s after it was deleted"))
}

/// A pod outside the mesh is let in before, and not afterwards.
fn strict(stage: &Stage) -> Result<String> {
    let bookinfo = stage.bookinfo()?;
    let outsider = outsider()?;
    seconds_until("details for an outsider", LIMIT, || status(&outsider, &bookinfo.details, &[], 200))?;
    let object = Applied::new(STRICT)?;
    let delay = seconds_until("no answer for an outsider", LIMIT, || {
        status(&outsider, &bookinfo.details, &["--max-time", "2"], 0)
    })?;
    bookinfo.page().context("within the mesh")?;
    object.delete()?;
    let gone =
        seconds_until("details for an outsider again", LIMIT, || status(&outsider, &bookinfo.details, &[], 200))?;
    Ok(format!("an outsider is refused after {delay:.2} s, members are not; gone {gone:.2} s after it was deleted"))
}

/// A pod of a namespace that is not of the mesh.
fn outsider() -> Result<Pod> {
    kubectl::apply(OUTSIDER)?;
    kubectl::wait_condition("-n outside pod outsider", "Ready", 30)?;
    Pod::find("outside", "app=outsider")
}

/// Requests from the client to the reviews.
pub(super) fn requests(stage: &Stage, bookinfo: &Bookinfo, count: u32, words: &[&str]) -> Result<Outcome> {
    let count = count.to_string();
    let words = [&["--requests", count.as_str(), "--connections", "2"], words].concat();
    let outcome = bookinfo
        .client
        .load(&stage.cluster.program("lab-load")?, "load-istio", &bookinfo.reviews, "/reviews/0", &words)?
        .finish()?;
    faultless(&outcome, 1)?;
    Ok(outcome)
}

fn only(outcome: &Outcome, version: &str) -> Result<()> {
    ensure!(outcome.counted.keys().eq([version]), "answered by {:?}", outcome.counted);
    Ok(())
}

/// What a service answers to a pod; 0 is no answer at all.
fn status(from: &Pod, to: &Service, options: &[&str], expected: u16) -> Result<()> {
    let path = if to.host.starts_with("ratings") { "/ratings/0" } else { "/details/0" };
    let answer = from.get(to, path, options)?;
    ensure!(
        answer.status == expected,
        "{} answers {} to {}: {} {}",
        to.host,
        answer.status,
        from.name,
        answer.text.trim(),
        answer.error
    );
    Ok(())
}
