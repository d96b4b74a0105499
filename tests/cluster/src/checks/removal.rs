//! The last check: `helm uninstall` leaves nodes as they were.

use super::{Check, Stage};
use crate::bookinfo;
use crate::install::{RELEASE, helm};
use crate::kubectl;
use crate::layout::{HOSTS, Host, netns};
use crate::machine::Machine;
use crate::product::NAMESPACE;
use anyhow::{Result, ensure};
use lab::shell;
use std::time::Duration;

pub const CHECKS: &[Check] =
    &[Check { name: "after_helm_uninstall_a_new_pod_gets_the_network_that_was_there_before", run: removed }];

const AFTERWARDS: &str = include_str!("../../manifests/afterwards.yaml");

fn removed(stage: &Stage) -> Result<String> {
    let before: Vec<Vec<String>> = HOSTS.into_iter().map(files).collect::<Result<_>>()?;
    kubectl::run(&format!(
        "delete namespace {} outside --wait=true --timeout=60s --ignore-not-found",
        bookinfo::NAMESPACE
    ))?;
    helm(&stage.cluster, &["uninstall", RELEASE, "-n", NAMESPACE, "--wait", "--timeout", "90s"])?;
    for (host, before) in HOSTS.into_iter().zip(before) {
        shell::wait_for(&format!("{} without our files", host.node()), Duration::from_secs(30), || {
            let left: Vec<String> = files(host)?.into_iter().filter(|file| file.contains("dpu")).collect();
            ensure!(left.is_empty(), "still there: {left:?}, of {before:?}");
            let ways = shell::run(&format!("ip -n {} route show dev pf0", netns(&host.node())))?;
            ensure!(!ways.contains("via"), "the way to its pods is still there: {ways}");
            Ok(())
        })?;
    }
    kubectl::apply(AFTERWARDS)?;
    kubectl::wait_condition("-n default pod afterwards", "Ready", 60)?;
    let pod = kubectl::json("-n default get pod afterwards")?;
    let address = pod["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    ensure!(address.starts_with("10.245."), "a new pod has the address {address}, which is not of the bridge");
    kubectl::run("-n default delete pod afterwards --wait=false")?;
    Ok(format!("the bridge's configuration is in force again: a new pod got {address}"))
}

/// What the runtime reads on a node, and its plugins.
fn files(host: Host) -> Result<Vec<String>> {
    let machine = Machine::find(&host.node())?;
    let mut names = Vec::new();
    for folder in ["/etc/cni/net.d", "/opt/cni/bin"] {
        for entry in std::fs::read_dir(machine.file(folder))? {
            names.push(format!("{folder}/{}", entry?.file_name().to_string_lossy()));
        }
    }
    Ok(names)
}
