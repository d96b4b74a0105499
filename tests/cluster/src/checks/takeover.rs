//! The proxies of DPUs are replaced as an administrator does it, by another manifest on each DPU.

use super::resilience::under_load;
use super::{Check, Stage};
use crate::bookinfo;
use crate::install::{prepare_dpu, upgrade, wait_dpu};
use crate::layout::{HOSTS, Host};
use crate::machine::Machine;
use crate::pod::Pod;
use anyhow::{Context, Result, ensure};
use lab::{probe, shell};
use std::time::Duration;

pub const CHECKS: &[Check] = &[Check {
    name: "proxies_of_dpus_are_upgraded_under_load_without_one_failed_request_or_a_connection_that_waits",
    run: upgraded,
}];

/// A value that only the proxies' manifests have. Theirs is what the proxies run with that come with it.
const OTHER: &[&str] = &["--set", "dpu.proxyDrainSeconds=60"];

fn upgraded(stage: &Stage) -> Result<String> {
    let before = syns_sent_again()?;
    let there = under_load(stage, || replaced(stage, OTHER))?;
    let back = under_load(stage, || replaced(stage, &[]))?;
    let lost = syns_sent_again()? - before;
    ensure!(lost == 0, "{lost} connections had to be asked for again, which takes a second each");
    Ok(format!("both DPUs, one after the other: {there}\nand back: {back}\nno connection had to be asked for again"))
}

/// Upgrades the chart's values, then DPU after DPU, each until the old proxy has ended.
fn replaced(stage: &Stage, values: &[&str]) -> Result<()> {
    upgrade(&stage.cluster, values)?;
    for host in HOSTS {
        let old = proxies(host)?;
        prepare_dpu(&stage.cluster, host)?;
        shell::wait_for(&format!("another proxy on {}", host.dpu()), Duration::from_secs(90), || {
            let now = proxies(host)?;
            ensure!(now.len() == 1 && now != old, "{now:?} run, {old:?} ran before");
            Ok(())
        })?;
        wait_dpu(host)?;
    }
    Ok(())
}

fn proxies(host: Host) -> Result<Vec<i32>> {
    Ok(Machine::find(&host.dpu())?.pids_of("dpu-proxy"))
}

/// By all pods of bookinfo and by both DPUs, so far.
fn syns_sent_again() -> Result<u64> {
    let pods: Result<Vec<i32>> = bookinfo::all()?.iter().map(|pod| Ok(Pod::of(pod)?.pid)).collect();
    let mut processes = pods?;
    for host in HOSTS {
        processes.extend(Machine::find(&host.dpu())?.pids_of("dataplane"));
    }
    processes.iter().map(|pid| of_namespace(*pid)).sum()
}

fn of_namespace(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/net/netstat");
    probe::syns_sent_again(&std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?)
}
