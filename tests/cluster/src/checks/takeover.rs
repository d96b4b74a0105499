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
use std::collections::BTreeMap;
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
    let after = syns_sent_again()?;
    let lost: BTreeMap<&String, u64> =
        after.iter().map(|(who, count)| (who, count - before.get(who).unwrap_or(count))).collect();
    let lost: BTreeMap<&String, u64> = lost.into_iter().filter(|(_, count)| *count > 0).collect();
    ensure!(lost.is_empty(), "connections had to be asked for again, which takes a second each: {lost:?}");
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

/// By each pod of bookinfo and by each DPU, so far.
fn syns_sent_again() -> Result<BTreeMap<String, u64>> {
    let mut processes = BTreeMap::new();
    for pod in bookinfo::all()? {
        let pod = Pod::of(&pod)?;
        processes.insert(pod.name, pod.pid);
    }
    for host in HOSTS {
        let pid = Machine::find(&host.dpu())?.pids_of("dataplane").first().copied();
        processes.insert(host.dpu(), pid.with_context(|| format!("no dataplane runs on {}", host.dpu()))?);
    }
    processes.into_iter().map(|(who, pid)| Ok((who, of_namespace(pid)?))).collect()
}

fn of_namespace(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/net/netstat");
    probe::syns_sent_again(&std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?)
}
