//! Pods that go leave nothing: each node's VFs, addresses, ports, records and maps are those of the pods that run.

use super::{Check, Stage};
use crate::bookinfo;
use crate::kubectl;
use crate::layout::{HOSTS, Host, VFS, netns};
use crate::machine::Machine;
use crate::product::{ATTACHMENTS, PORTS, PROXY_WORKLOADS, Page, WORKLOADS};
use anyhow::{Context, Result, ensure};
use lab::shell;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const CHECKS: &[Check] = &[Check { name: "pods_that_are_deleted_and_recreated_leak_nothing", run: recreated }];

fn recreated(stage: &Stage) -> Result<String> {
    let count = bookinfo::all()?.len();
    let before = uids()?;
    kubectl::run(&format!("-n {} delete pods --all --wait=false", bookinfo::NAMESPACE))?;
    shell::wait_for("new pods", Duration::from_secs(90), || {
        let now = uids()?;
        ensure!(now.is_disjoint(&before), "{} old pods are still there", now.intersection(&before).count());
        Ok(())
    })?;
    bookinfo::wait_ready(count)?;
    stage.bookinfo()?.wait_served()?;
    let found: Result<Vec<String>> = HOSTS.into_iter().map(audited).collect();
    Ok(format!("{count} pods replaced\n{}", found?.join("\n")))
}

fn uids() -> Result<BTreeSet<String>> {
    let pods = kubectl::json(&format!("-n {} get pods", bookinfo::NAMESPACE))?;
    Ok(pods["items"].as_array().into_iter().flatten().map(|pod| text(&pod["metadata"]["uid"])).collect())
}

/// Waits until a host holds what its pods need, and nothing else.
pub(super) fn audited(host: Host) -> Result<String> {
    shell::wait_for(&format!("audit of {}", host.node()), Duration::from_secs(20), || audit(host))
}

/// The pods of a node that have a VF.
struct Pods {
    uids: BTreeSet<String>,
    addresses: BTreeSet<String>,
    governed: BTreeSet<String>,
}

fn pods(host: Host) -> Result<Pods> {
    let all =
        kubectl::json(&format!("get pods -A --field-selector spec.nodeName={},status.phase=Running", host.node()))?;
    let own = all["items"].as_array().cloned().unwrap_or_default();
    let own: Vec<Value> = own.into_iter().filter(|pod| pod["spec"]["hostNetwork"] != true).collect();
    let governed = own.iter().filter(|pod| pod["metadata"]["namespace"] == bookinfo::NAMESPACE);
    Ok(Pods {
        uids: own.iter().map(|pod| text(&pod["metadata"]["uid"])).collect(),
        addresses: own.iter().map(|pod| text(&pod["status"]["podIP"])).collect(),
        governed: governed.map(|pod| text(&pod["metadata"]["uid"])).collect(),
    })
}

fn audit(host: Host) -> Result<String> {
    let pods = pods(host)?;
    let count = pods.uids.len();
    entries(ATTACHMENTS, host, "", count)?;
    entries(WORKLOADS, host, "/workloads", pods.governed.len())?;
    entries(PORTS, host, "", count)?;
    entries(PROXY_WORKLOADS, host, "", pods.governed.len())?;
    let pinned = pinned(host)?;
    ensure!(pinned == count, "programs of {pinned} representors are pinned on {}, {count} pods have one", host.dpu());
    let objects = objects(host)?;
    ensure!(objects == count, "{objects} DpuWorkloads name {}, {count} pods have a VF", host.node());
    let free = free_vfs(host)?;
    ensure!(free + count == VFS as usize, "{free} VFs are free, {count} pods have one, there are {VFS}");
    let leases = leases(host)?;
    ensure!(leases == pods.addresses, "leases {leases:?}, pods have {:?}", pods.addresses);
    let records = names(&Machine::find(&host.node())?.file("/var/lib/dpumesh"), "json")?;
    ensure!(records == count, "{records} records of attachments, {count} pods");
    Ok(format!("{}: {count} pods, {free} of {VFS} VFs free, {} leases, {records} records", host.node(), leases.len()))
}

fn entries(page: Page, host: Host, list: &str, count: usize) -> Result<()> {
    let answer = page.read(host)?;
    let there = answer.pointer(list).and_then(Value::as_array).map(Vec::len);
    ensure!(
        there == Some(count),
        "{} of {} has {there:?} entries, {count} were expected: {answer}",
        page.program,
        host.node()
    );
    Ok(())
}

/// Representors on the DPU that have programs.
fn pinned(host: Host) -> Result<usize> {
    let found = Machine::find(&host.dpu())?.run("find /sys/fs/bpf/dpumesh -name rep_ingress-*")?;
    Ok(found.lines().count())
}

/// Our objects of pods of a node.
fn objects(host: Host) -> Result<usize> {
    let all = kubectl::json("get dpuworkloads -A")?;
    let workloads = all["items"].as_array().into_iter().flatten();
    Ok(workloads.filter(|workload| workload["status"]["node"] == host.node()).count())
}

/// VFs in the node's own namespace.
fn free_vfs(host: Host) -> Result<usize> {
    let shown = shell::run(&format!("ip -n {} -br link show", netns(&host.node())))?;
    Ok(shown.lines().filter(|line| line.starts_with("vf")).count())
}

/// Addresses that the IPAM plugin has given away.
fn leases(host: Host) -> Result<BTreeSet<String>> {
    let folder = Machine::find(&host.node())?.file("/var/lib/cni/networks/dpumesh");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect())
}

/// Number of files with that ending below a folder.
fn names(folder: &Path, ending: &str) -> Result<usize> {
    let (mut found, mut folders) = (0, vec![PathBuf::from(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => folders.push(entry.path()),
                false => found += usize::from(entry.path().extension().is_some_and(|extension| extension == ending)),
            }
        }
    }
    Ok(found)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
