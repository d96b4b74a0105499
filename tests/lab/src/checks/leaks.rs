//! When all pods are gone, nothing of them is left on hosts and DPUs.

use super::Check;
use super::wait::{json, until_served};
use crate::lab::Lab;
use crate::pods::PODS;
use crate::programs::folder;
use crate::shell;
use crate::state::PINS;
use crate::topology::{HOSTS, Host, VFS};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const CHECKS: &[Check] =
    &[Check { name: "after_the_last_pod_nothing_of_them_is_left_on_hosts_and_dpus", run: nothing_left }];

fn nothing_left(lab: &mut Lab) -> Result<()> {
    PODS.iter().try_for_each(|pod| lab.detach(pod))?;
    let left = HOSTS.into_iter().try_for_each(|host| {
        shell::wait_for(&format!("{} without pods", host.node()), Duration::from_secs(10), || audit(host))
    });
    PODS.iter().try_for_each(|pod| lab.attach(pod))?;
    left?;
    until_served(lab)
}

fn audit(host: Host) -> Result<()> {
    pages(host)?;
    links(host)?;
    kernel(host)?;
    files(host)
}

/// What the programs say.
fn pages(host: Host) -> Result<()> {
    for (namespace, address, path, list) in [
        (host.namespace(), "127.0.0.1:15121", "/attachments", ""),
        (host.namespace(), "127.0.0.1:15111", "/workloads", "/workloads"),
        (host.dpu(), "127.0.0.1:15131", "/ports", ""),
        (host.dpu(), "127.0.0.1:15000", "/workloads", ""),
    ] {
        let page = json(&namespace, address, path)?;
        let list = page.pointer(list).and_then(|list| list.as_array());
        ensure!(list.is_some_and(Vec::is_empty), "http://{address}{path} in {namespace} still has {page}");
    }
    let stored = json(&host.namespace(), "127.0.0.1:15111", "/aggregation")?;
    ensure!(stored["stored"]["resources"] == 0, "the adapter still stores {}", stored["stored"]);
    Ok(())
}

/// All VFs are back, down and under their names; nothing else was made.
fn links(host: Host) -> Result<()> {
    let shown = shell::run(&format!("ip -n {} -br link show", host.namespace()))?;
    let mut names: Vec<&str> = shown.lines().filter_map(|line| line.split(['@', ' ']).next()).collect();
    names.sort_unstable();
    let vfs = (0..VFS).map(|vf| format!("vf{vf}"));
    let mut expected: Vec<String> = ["lo", "mgmt0", "cp0"].map(str::to_owned).into_iter().chain(vfs).collect();
    expected.sort_unstable();
    ensure!(names == expected, "links of {}: {names:?}", host.node());
    let up: Vec<&str> = shown.lines().filter(|line| line.starts_with("vf") && line.contains("UP,")).collect();
    ensure!(up.is_empty(), "VFs that are still up: {up:?}");
    Ok(())
}

/// Routes, rules and neighbours that name a pod or a representor, and programs pinned for one. Neighbours that the
/// kernel itself looked for without success are its own to forget.
fn kernel(host: Host) -> Result<()> {
    let own = format!("10.244.{}.", host.number);
    for what in ["-4 route show table all", "-4 rule show", "neigh show nud permanent"] {
        let shown = shell::run(&format!("ip -n {} {what}", host.dpu()))?;
        let left: Vec<&str> = shown.lines().filter(|line| line.contains(&own) || line.contains("pf0vf")).collect();
        ensure!(left.is_empty(), "`ip {what}` on the DPU of {}: {left:?}", host.node());
    }
    let pins = names(&Path::new(PINS).join(host.node()))?;
    let left: Vec<_> = pins.iter().filter(|name| name.starts_with("rep_")).collect();
    ensure!(left.is_empty(), "still pinned: {left:?}");
    Ok(())
}

/// Records of the node daemon, addresses of the IPAM plugin.
fn files(host: Host) -> Result<()> {
    let records = names(&folder(host).join("cni/records"))?;
    ensure!(records.is_empty(), "records: {records:?}");
    let addresses = names(&folder(host).join("ipam"))?;
    let left: Vec<_> = addresses.iter().filter(|name| name.starts_with("10.")).collect();
    ensure!(left.is_empty(), "addresses that are still taken: {left:?}");
    Ok(())
}

/// Names of all files below a folder.
fn names(folder: &Path) -> Result<Vec<String>> {
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::from(folder)]);
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.file_name().to_string_lossy().into_owned()),
            }
        }
    }
    Ok(found)
}
