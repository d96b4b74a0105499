//! The installed product in an administrator's hands: `dpumesh check` on a good installation and on broken ones, and
//! `helm upgrade` under load.

use super::resilience::under_load;
use super::{Check, Stage};
use crate::bookinfo;
use crate::control;
use crate::dpu;
use crate::install::{Told, dpumesh, prepare_dpu, upgrade, wait_dpu};
use crate::kubectl::{self, Applied};
use crate::layout::HOSTS;
use crate::machine::Machine;
use crate::product::{self, NAMESPACE};
use anyhow::{Context, Result, ensure};
use lab::shell;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "dpumesh_check_is_content_with_a_good_installation", run: good },
    Check { name: "dpumesh_check_names_a_dpu_without_proxy_and_what_to_do_mends_it", run: proxy_taken_away },
    Check { name: "dpumesh_check_names_an_istiod_that_does_not_trust_the_adapter_and_what_to_do", run: no_trust },
    Check { name: "helm_upgrade_replaces_all_programs_under_load_without_one_failed_request_and_back", run: upgraded },
];

const NEWCOMER: &str = include_str!("../../manifests/newcomer.yaml");

fn good(stage: &Stage) -> Result<String> {
    content(stage).map(|told| told.text.trim_end().to_owned())
}

/// `dpumesh check` and `dpumesh status` exit with 0, and find nothing wrong or unknown.
fn content(stage: &Stage) -> Result<Told> {
    shell::wait_for("an installation that `dpumesh` finds good", Duration::from_secs(30), || {
        for command in ["check", "status"] {
            let told = dpumesh(&stage.cluster, &[command])?;
            ensure!(told.code == Some(0), "`dpumesh {command}` exits with {:?}:\n{}", told.code, told.text);
        }
        let told = dpumesh(&stage.cluster, &["check"])?;
        let is_fine = |line: &str| ["ok  ", "note", "    "].iter().any(|mark| line.starts_with(mark));
        ensure!(told.text.lines().all(is_fine), "{}", told.text);
        Ok(told)
    })
}

/// `dpumesh check` exits with 1; the lines about it, if one has these words and the next one has the advice.
fn names(stage: &Stage, words: &str, advice: &str) -> Result<String> {
    shell::wait_for(&format!("`dpumesh check` to say {words:?}"), Duration::from_secs(90), || {
        let told = dpumesh(&stage.cluster, &["check"])?;
        let mut lines = told.text.lines().skip_while(|line| !(line.starts_with("BAD") && line.contains(words)));
        let found = (lines.next(), lines.next());
        match (told.code, found) {
            (Some(1), (Some(what), Some(how))) if how.contains(advice) => Ok(format!("{what}\n{how}")),
            (code, _) => anyhow::bail!("it exits with {code:?} and says\n{}", told.text),
        }
    })
}

/// What the tool says to do is done, and helps.
fn proxy_taken_away(stage: &Stage) -> Result<String> {
    let host = HOSTS[1];
    let (node, machine) = (host.node(), Machine::find(&host.dpu())?);
    std::fs::remove_file(machine.file(dpu::MANIFESTS).join("dpumesh-dpu-proxy.yaml"))?;
    let found = names(stage, &format!("not connected: {node}"), &format!("dpumesh dpu manifest {node} --out"));
    prepare_dpu(&stage.cluster, host)?;
    let found = found?;
    shell::wait_for("a proxy", Duration::from_secs(60), || {
        ensure!(!machine.pids_of("dpu-proxy").is_empty(), "none runs on {}", host.dpu());
        Ok(())
    })?;
    wait_dpu(host)?;
    kubectl::wait_condition(&format!("dpunode {node}"), "Ready", 60)?;
    stage.bookinfo()?.wait_served()?;
    content(stage).context("after the manifest was written again")?;
    Ok(format!("{found}\nit is content after that was done"))
}

/// Pods that have certificates go on; it shows by one that has none yet.
fn no_trust(stage: &Stage) -> Result<String> {
    let (istiod, tools) = (control::Program::Istiod, &stage.cluster.tools);
    istiod.process()?.kill()?;
    control::start_istiod(tools, "istio-system/somebody-else")?.wait()?;
    let newcomer = Applied::new(NEWCOMER)?;
    let found =
        names(stage, "istiod refuses", "CA_TRUSTED_NODE_ACCOUNTS of istiod must have dpumesh-system/dpumesh-adapter");
    let served = stage.bookinfo()?.page().context("while istiod does not trust the adapter");
    istiod.process()?.kill()?;
    istiod.start(tools)?.wait()?;
    let started = kubectl::wait_condition(&format!("-n {} pod newcomer", bookinfo::NAMESPACE), "Ready", 60);
    newcomer.delete()?;
    let found = found?;
    served?;
    started?;
    content(stage).context("once istiod trusts the adapter again")?;
    Ok(format!("{found}\nit is content once istiod trusts the adapter again"))
}

/// A value that all programs of the chart are told, so that all are replaced.
fn upgraded(stage: &Stage) -> Result<String> {
    let there = under_load(stage, || replaced(stage, "debug", &["--set", "log.level=debug"]))?;
    let back = under_load(stage, || replaced(stage, "info", &[]))?;
    content(stage)?;
    Ok(format!("log.level=debug: {there}\nand back: {back}"))
}

/// Upgrades, and sees that every program is another one with the wanted level.
fn replaced(stage: &Stage, level: &str, values: &[&str]) -> Result<()> {
    let before = programs()?;
    upgrade(&stage.cluster, values)?;
    shell::wait_for("programs of the chart", Duration::from_secs(30), || {
        let after = programs()?;
        let kept: Vec<&String> = after.iter().map(|(name, _)| name).filter(|name| has(&before, name)).collect();
        ensure!(kept.is_empty() && after.len() == before.len(), "not replaced: {kept:?}; {} run", after.len());
        let wanted = format!("--log-level={level}");
        let other = after.iter().find(|(_, arguments)| !arguments.contains(&wanted));
        ensure!(other.is_none(), "{other:?} was not given {wanted}");
        Ok(())
    })?;
    product::wait_ready("controller", 2)?;
    product::wait_ready("adapter", HOSTS.len())?;
    product::wait_ready("cni-node", HOSTS.len())
}

fn has(programs: &BTreeSet<(String, String)>, name: &str) -> bool {
    programs.iter().any(|(other, _)| other == name)
}

/// Pods of the chart, with the arguments of their programs.
fn programs() -> Result<BTreeSet<(String, String)>> {
    let pods = kubectl::json(&format!("-n {NAMESPACE} get pods -l app.kubernetes.io/name=dpumesh"))?;
    let of = |pod: &Value| {
        let arguments = pod["spec"]["containers"][0]["args"].to_string();
        Some((pod["metadata"]["name"].as_str()?.to_owned(), arguments))
    };
    Ok(pods["items"].as_array().into_iter().flatten().filter_map(of).collect())
}
