//! Under load: everything that may die is killed and comes back, and no request on an established route fails.

use super::{Check, Stage};
use crate::bookinfo;
use crate::control;
use crate::kubectl;
use crate::layout::HOSTS;
use crate::machine::Machine;
use crate::node;
use crate::pod::{Load, faultless};
use crate::product;
use anyhow::{Context, Result, ensure};
use lab::shell;
use std::time::{Duration, Instant};

pub const CHECKS: &[Check] = &[
    Check { name: "a_killed_istiod_comes_back_under_load_without_one_failed_request", run: istiod },
    Check { name: "a_killed_api_server_comes_back_under_load_without_one_failed_request", run: api_server },
    Check {
        name: "the_leading_controller_is_killed_and_another_follows_it_under_load_without_one_failed_request",
        run: controller,
    },
    Check { name: "killed_adapters_come_back_under_load_without_one_failed_request", run: adapters },
    Check { name: "killed_node_daemons_come_back_under_load_without_one_failed_request", run: node_daemons },
    Check { name: "kubelets_are_restarted_under_load_without_one_failed_request", run: kubelets },
    Check { name: "runtimes_are_restarted_under_load_without_one_failed_request", run: runtimes },
    SCALED,
];

/// Part of the demonstration, too.
pub const SCALING: &[Check] = &[SCALED];

const SCALED: Check =
    Check { name: "a_deployment_is_scaled_up_and_down_under_load_without_one_failed_request", run: scaled };

/// Pages a second; each is about four calls between pods.
const RATE: &str = "50";

/// Seconds after which load ends by itself.
const LONGEST: &str = "240";

/// Steady load of the client on the whole application.
fn load(stage: &Stage) -> Result<Load> {
    let bookinfo = stage.bookinfo()?;
    let words = ["--rate", RATE, "--connections", "6", "--seconds", LONGEST];
    bookinfo.client.load(
        &stage.cluster.program("lab-load")?,
        "load-steady",
        &bookinfo.productpage,
        "/productpage",
        &words,
    )
}

fn pause(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}

/// Does something to the cluster under load; `disturb` returns once all is as before.
pub(super) fn under_load(stage: &Stage, disturb: impl FnOnce() -> Result<()>) -> Result<String> {
    let load = load(stage)?;
    pause(0.7);
    let started = Instant::now();
    let disturbed = disturb();
    let seconds = started.elapsed().as_secs_f64();
    pause(0.7);
    let outcome = load.stop()?;
    disturbed?;
    faultless(&outcome, 40)?;
    Ok(format!(
        "back after {seconds:.1} s; {} requests, none failed, p50 {:.1} ms, p99 {:.1} ms",
        outcome.requests, outcome.p50_ms, outcome.p99_ms
    ))
}

fn istiod(stage: &Stage) -> Result<String> {
    restarted(stage, control::Program::Istiod)
}

fn api_server(stage: &Stage) -> Result<String> {
    restarted(stage, control::Program::ApiServer)
}

fn restarted(stage: &Stage, program: control::Program) -> Result<String> {
    under_load(stage, || {
        program.process()?.kill()?;
        pause(1.0);
        program.start(&stage.cluster.tools)?.wait()
    })
}

/// Killed, it leads on when it is back, before its lease is over; deleted, it hands the lease over.
fn controller(stage: &Stage) -> Result<String> {
    let old = product::leader()?;
    let killed = under_load(stage, || {
        product::kill_pod(&old.name)?;
        shell::wait_for("a lease that is renewed", Duration::from_secs(40), || {
            let now = product::leader()?;
            ensure!(now.renewed > old.renewed, "{} has not renewed it", now.name);
            Ok(())
        })?;
        product::wait_ready("controller", 2)
    })?;
    let leads = product::leader()?.name;
    let deleted = under_load(stage, || {
        kubectl::run(&format!("-n {} delete pod {leads} --wait=false", product::NAMESPACE))?;
        shell::wait_for("another leader", Duration::from_secs(40), || {
            ensure!(product::leader()?.name != leads, "{leads} still leads");
            Ok(())
        })?;
        product::wait_ready("controller", 2)
    })?;
    Ok(format!("killed: {killed}\ndeleted: {deleted}; {} leads after {leads}", product::leader()?.name))
}

fn adapters(stage: &Stage) -> Result<String> {
    under_load(stage, || product::kill_and_wait("istio-dpu-adapter", "adapter"))
}

fn node_daemons(stage: &Stage) -> Result<String> {
    under_load(stage, || product::kill_and_wait("istio-dpu-cni-node", "cni-node"))
}

fn kubelets(stage: &Stage) -> Result<String> {
    restarted_on_nodes(stage, node::Program::Kubelet)
}

fn runtimes(stage: &Stage) -> Result<String> {
    restarted_on_nodes(stage, node::Program::Containerd)
}

fn restarted_on_nodes(stage: &Stage, program: node::Program) -> Result<String> {
    under_load(stage, || {
        for host in HOSTS {
            program.process(host)?.kill()?;
        }
        pause(0.5);
        for host in HOSTS {
            program.start(&stage.cluster.tools, host)?;
        }
        for host in HOSTS {
            node::wait_runtime(&Machine::find(&host.node())?)?;
            node::wait(host)?;
        }
        Ok(())
    })
}

/// Up to three of a version, and down to one: new pods take their share, and none that goes cuts a request.
fn scaled(stage: &Stage) -> Result<String> {
    let deployment = format!("-n {} scale deployment reviews-v1 --replicas", bookinfo::NAMESPACE);
    let count = |wanted: usize| {
        shell::wait_for("pods of reviews-v1", Duration::from_secs(40), || {
            let pods = kubectl::json(&format!("-n {} get pods -l app=reviews,version=v1", bookinfo::NAMESPACE))?;
            let there = pods["items"].as_array().map_or(0, Vec::len);
            let ready = crate::pod::ready(bookinfo::NAMESPACE, "app=reviews,version=v1")?.len();
            ensure!(there == wanted && ready == wanted, "{there} are there, {ready} ready, {wanted} wanted");
            Ok(())
        })
    };
    under_load(stage, || {
        kubectl::run(&format!("{deployment}=3"))?;
        count(3).context("scaled up")?;
        pause(1.0);
        kubectl::run(&format!("{deployment}=1"))?;
        count(1).context("scaled down")
    })
}
