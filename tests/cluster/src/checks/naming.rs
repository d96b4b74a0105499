//! Istio's objects in force are named where people look: the status of the pods that they shape, the pods' events, and the
//! one screen; and no longer once they are deleted.

use super::{Check, Stage};
use crate::bookinfo::{self, NAMESPACE, seconds_until};
use crate::install::dpumesh;
use crate::kubectl::{self, Applied};
use crate::pod::Pod;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;

pub const CHECKS: &[Check] = &[Check {
    name: "objects_in_force_are_named_in_status_events_and_on_one_screen_until_they_are_deleted",
    run: named,
}];

/// Seconds within which all of it must be told.
const LIMIT: u64 = 15;

const FOUR_KINDS: &str = include_str!("../../manifests/istio/four-kinds.yaml");

/// They shape whoever calls the ratings, which each pod of the namespace may.
const OF_CALLERS: [&str; 2] = ["VirtualService bookinfo/ratings-timeout", "DestinationRule bookinfo/ratings-limits"];
/// They shape the ratings alone.
const OF_CALLEE: [&str; 2] =
    ["PeerAuthentication bookinfo/ratings-strict", "AuthorizationPolicy bookinfo/ratings-readers"];

fn named(stage: &Stage) -> Result<String> {
    let (ratings, details) = (Pod::find(NAMESPACE, "app=ratings")?, Pod::find(NAMESPACE, "app=details")?);
    let objects = Applied::new(FOUR_KINDS)?;
    let told = seconds_until("names of four objects", LIMIT, || {
        everywhere(stage, &ratings, &[OF_CALLERS, OF_CALLEE].concat(), &[])?;
        everywhere(stage, &details, &OF_CALLERS, &OF_CALLEE)?;
        counted(stage)
    })?;
    stage.bookinfo()?.page().context("with all four in force")?;
    let event = event(&ratings)?;
    objects.delete()?;
    let gone = seconds_until("end of four objects", LIMIT, || {
        let all = [OF_CALLERS, OF_CALLEE].concat();
        everywhere(stage, &ratings, &[], &all)?;
        everywhere(stage, &details, &[], &all)?;
        let screen = screen(stage)?;
        absent(all.iter().copied().filter(|object| screen.contains(object)), "`dpumesh status`")
    })?;
    Ok(format!(
        "all four kinds are in status, event and on the screen after {told:.2} s, gone {gone:.2} s after they were deleted; \
         an event of {}:\n{event}",
        ratings.name
    ))
}

/// Status and newest event of a pod name these, and not those.
fn everywhere(stage: &Stage, pod: &Pod, these: &[&str], not_those: &[&str]) -> Result<()> {
    let (status, event, screen) = (status(pod)?, event(pod)?, screen(stage)?);
    for object in these {
        ensure!(status.contains(*object), "{}: its DpuWorkload does not name {object:?}: {status:?}", pod.name);
        ensure!(event.contains(object), "{}: its newest event does not name {object:?}: {event}", pod.name);
    }
    absent(not_those.iter().copied().filter(|object| status.contains(*object)), &format!("DpuWorkload {}", pod.name))?;
    absent(not_those.iter().copied().filter(|object| event.contains(object)), &format!("an event of {}", pod.name))?;
    let missing: Vec<&&str> = these.iter().filter(|object| !screen.contains(**object)).collect();
    ensure!(missing.is_empty(), "`dpumesh status` does not name {missing:?}:\n{screen}");
    Ok(())
}

fn absent<'a>(found: impl Iterator<Item = &'a str>, place: &str) -> Result<()> {
    let found: Vec<&str> = found.collect();
    ensure!(found.is_empty(), "{place} names {found:?}");
    Ok(())
}

/// The screen says how many pods each object shapes.
fn counted(stage: &Stage) -> Result<()> {
    let screen = screen(stage)?;
    let callers = OF_CALLERS.map(|object| (object, bookinfo::PODS));
    for (object, pods) in callers.into_iter().chain(OF_CALLEE.map(|object| (object, 1))) {
        let line = screen.lines().find(|line| line.starts_with(object)).unwrap_or_default();
        let told = line.split_whitespace().last().and_then(|word| word.parse::<usize>().ok());
        ensure!(told == Some(pods), "`dpumesh status` says of {object}: {line:?}; it shapes {pods} pods");
    }
    Ok(())
}

fn status(pod: &Pod) -> Result<BTreeSet<String>> {
    let workload = kubectl::json(&format!("-n {} get dpuworkload {}", pod.namespace, pod.name))?;
    let objects = workload["status"]["istioObjects"].as_array().into_iter().flatten().filter_map(Value::as_str);
    Ok(objects.map(str::to_owned).collect())
}

/// What the newest word about a pod's configuration is.
fn event(pod: &Pod) -> Result<String> {
    let filter = format!("regarding.name={},reason=Configured", pod.name);
    let events = kubectl::json(&format!("-n {} get events.events.k8s.io --field-selector {filter}", pod.namespace))?;
    let newest = events["items"].as_array().into_iter().flatten().max_by_key(|event| told_at(event));
    let note = newest.and_then(|event| event["note"].as_str()).with_context(|| format!("{} has no event", pod.name))?;
    Ok(note.to_owned())
}

/// The same again is counted, with the time of the last.
fn told_at(event: &Value) -> String {
    let last = event["series"]["lastObservedTime"].as_str().or(event["eventTime"].as_str());
    last.unwrap_or_default().to_owned()
}

fn screen(stage: &Stage) -> Result<String> {
    Ok(dpumesh(&stage.cluster, &["status"])?.text)
}
