//! The mesh: a governed call between two pods, through the DPUs of the lab and through a pair of Envoys
//! as sidecars.
//!
//! Ours is the lab with its real programs under the recorded configuration (strict mTLS, authorization by
//! identity, telemetry, access log); a call on one host is one pass through one proxy, a call across
//! hosts passes the proxies of both DPUs. The peer is a pair of stock Envoys in namespaces and links of
//! the same kind, with the filters of a mesh that both sides have. Both call a server of the same 1 KiB.

mod dpus;
mod server;
mod sidecars;

use crate::load::Load;
use crate::measure::{self, Measured, Plan};
use anyhow::Context;
use conformance::program::Programs;
use dpus::Dpus;
use lab::pods::Pod;
use sidecars::Sidecars;
use std::path::PathBuf;

/// A call from this pod to the ratings, which admit the identity of the reviews only.
#[derive(Debug)]
pub struct Case {
    pub name: &'static str,
    pub caller: &'static str,
    /// Highest ratio of CPU time (ours to the pair of sidecars) that the project aims at.
    pub target: Option<f64>,
}

/// The pod that is called, on host 1.
const CALLEE: &str = "ratings-v1";
/// As applications call it.
const AUTHORITY: &str = "ratings:9080";
const PATH: &str = "/ratings/0";

/// Every case.
pub fn all() -> Vec<Case> {
    vec![
        Case { name: "mesh-same-host", caller: "reviews-v1", target: Some(0.25) },
        Case { name: "mesh-cross-host", caller: "reviews-v2", target: None },
    ]
}

/// Runs all rounds of these cases in one lab.
pub fn run(cases: &[Case], plan: &Plan, programs: &Programs) -> anyhow::Result<Vec<Measured>> {
    if cases.is_empty() {
        return Ok(Vec::new());
    }
    let dpus = Dpus::start().context("starting the lab")?;
    let sidecars = Sidecars::start(cases, programs).context("starting the sidecars")?;
    cases.iter().map(|case| one(case, plan, &dpus, &sidecars)).collect()
}

fn one(case: &Case, plan: &Plan, dpus: &Dpus, sidecars: &Sidecars) -> anyhow::Result<Measured> {
    eprintln!("{}: {} rounds of {} s for each side", case.name, plan.rounds, plan.load.as_secs());
    let measured = Measured::of(case.name, Load::KeepAlive { connections: 32 }, case.target);
    let (envoy, ours) = (sidecars.subject(case.caller)?, dpus.subject(case.caller)?);
    measure::rounds(measured, &envoy, &ours, plan).with_context(|| format!("case {}", case.name))
}

fn pod(name: &str) -> anyhow::Result<&'static Pod> {
    Pod::named(name).with_context(|| format!("the lab has no pod {name}"))
}

/// A folder that goes when the lab goes.
fn folder(name: &str) -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(lab::state::FOLDER).join("bench").join(name);
    std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}
