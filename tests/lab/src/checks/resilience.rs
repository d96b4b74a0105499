//! Under load: configuration changes, and programs that die and come back.

use super::Check;
use super::wait::pod;
use crate::lab::Lab;
use crate::load::Outcome;
use crate::pods::vip;
use crate::programs::Program;
use crate::replay::Scenario;
use crate::topology::HOSTS;
use crate::traffic::{Load, on};
use anyhow::{Result, ensure};
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "a_configuration_change_under_load_takes_effect_without_one_failed_request", run: shift },
    Check { name: "a_killed_adapter_comes_back_under_load_without_one_failed_request", run: adapter },
    Check { name: "a_killed_controller_comes_back_under_load_without_one_failed_request", run: controller },
    Check { name: "a_killed_node_daemon_comes_back_under_load_without_one_failed_request", run: cni_node },
    Check { name: "a_control_plane_that_restarts_under_load_fails_no_request", run: control_plane },
];

/// Steady load from the product page's pod on the reviews.
pub(super) fn load(lab: &Lab, name: &str) -> Result<Load> {
    let mut words = on(vip::REVIEWS, "reviews:9080", "/reviews/0");
    words.extend(["--rate", "200", "--connections", "8", "--seconds", "60"]);
    Load::start(&lab.binaries, pod("productpage-v1")?, name, &words)
}

/// Lets time pass under load.
pub(super) fn pause(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}

/// Requests were made and all answered.
pub(super) fn faultless(outcome: &Outcome) -> Result<()> {
    ensure!(outcome.requests > 100, "only {} requests were made", outcome.requests);
    ensure!(outcome.failed == 0, "{} of {} failed: {:?}", outcome.failed, outcome.requests, outcome.failures);
    Ok(())
}

fn shift(lab: &mut Lab) -> Result<()> {
    let steady = load(lab, "load-shift")?;
    pause(1.5);
    lab.push(Scenario::Shift)?;
    pause(2.0);
    let mut words = on(vip::REVIEWS, "reviews:9080", "/reviews/0");
    words.extend(["--requests", "200"]);
    let after = Load::start(&lab.binaries, pod("productpage-v1")?, "load-after-shift", &words)?.finish()?;
    let outcome = steady.stop()?;
    faultless(&outcome)?;
    faultless(&after)?;
    ensure!(outcome.counted.contains_key("v1"), "the load began after the change: {:?}", outcome.counted);
    ensure!(after.counted.keys().eq(["v3"]), "two seconds after the shift: {:?}", after.counted);
    Ok(())
}

fn adapter(lab: &mut Lab) -> Result<()> {
    restarted(lab, "adapter", &HOSTS.map(Program::Adapter))?;
    // A restarted adapter still learns of changes.
    lab.push(Scenario::Shift)?;
    let mut words = on(vip::REVIEWS, "reviews:9080", "/reviews/0");
    words.extend(["--requests", "100"]);
    crate::shell::wait_for("the shift through a restarted adapter", Duration::from_secs(15), || {
        let after = Load::start(&lab.binaries, pod("productpage-v1")?, "load-after-adapter", &words)?.finish()?;
        ensure!(after.counted.keys().eq(["v3"]), "{:?}", after.counted);
        Ok(())
    })
}

fn controller(lab: &mut Lab) -> Result<()> {
    restarted(lab, "controller", &[Program::Controller])
}

fn cni_node(lab: &mut Lab) -> Result<()> {
    restarted(lab, "cni-node", &HOSTS.map(Program::CniNode))
}

fn control_plane(lab: &mut Lab) -> Result<()> {
    restarted(lab, "control-plane", &[Program::ControlPlane])
}

/// Kills the programs under load, lets the load go on without them, and starts them again.
fn restarted(lab: &mut Lab, name: &str, programs: &[Program]) -> Result<()> {
    let steady = load(lab, &format!("load-{name}"))?;
    pause(1.0);
    for program in programs {
        lab.process(*program)?.kill()?;
    }
    pause(1.5);
    for program in programs {
        lab.start(*program)?;
        lab.wait_ready(*program)?;
    }
    pause(2.0);
    faultless(&steady.stop()?)
}
