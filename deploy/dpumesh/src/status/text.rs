//! The state of an installation on one screen. What is wrong comes last, where the eye is.

use super::{Health, NodeLine, Program, Status, WorkloadLine};
use crate::run::Outcome;
use crate::seen::ago;
use crate::table::columns;
use std::collections::BTreeMap;
use std::fmt::{Debug, Write};

/// Istio objects that are listed without `wide`.
const OBJECTS_SHOWN: usize = 12;
/// Pods that are listed, all of them, without being asked for; of more, only those that are not good.
const PODS_SHOWN: usize = 30;

/// For a person. `wide`: every workload with its VF and identity, and every Istio object.
pub fn text(status: &Status, wide: bool) -> String {
    let parts = [
        head(status),
        nodes(status),
        namespaces(status),
        workloads(status, wide),
        istio_objects(status, wide),
        problems(status),
    ];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

fn head(status: &Status) -> String {
    let programs: Vec<String> = status.programs.iter().map(program).collect();
    if programs.is_empty() {
        return String::new();
    }
    format!("{}: {}\n", status.system_namespace, programs.join(", "))
}

fn program(program: &Program) -> String {
    let leader = program.leader.as_ref().map(|leader| format!(" (leader {leader})")).unwrap_or_default();
    format!("{} {}/{}{leader}", program.name, program.ready, program.wanted)
}

fn nodes(status: &Status) -> String {
    let header = ["NODE", "READY", "DATAPLANE", "PROXY", "VFS USED", "STREAMS", "RESOURCES", "UNDERLAY", "PODS"];
    columns(header, status.nodes.iter().map(node))
}

fn node(node: &NodeLine) -> [String; 9] {
    let yes = |state: Option<bool>| match state {
        Some(true) => "yes".to_owned(),
        Some(false) => "NO".to_owned(),
        None => "?".to_owned(),
    };
    let vfs = match (node.vfs_total, node.vfs_free) {
        (Some(total), Some(free)) => format!("{} of {total}", total - free),
        _ => "?".to_owned(),
    };
    let resources = match (node.resources_received, node.resources_stored) {
        (Some(received), Some(stored)) => format!("{received} -> {stored}"),
        _ => "?".to_owned(),
    };
    [
        node.node.clone(),
        yes(node.ready),
        yes(node.dataplane_connected),
        yes(node.proxy_connected),
        vfs,
        or_dash(&node.streams),
        resources,
        or_dash(&node.underlay_address),
        node.workloads.to_string(),
    ]
}

/// Counts for each namespace.
fn namespaces(status: &Status) -> String {
    let mut groups: BTreeMap<&str, Vec<&WorkloadLine>> = BTreeMap::new();
    for line in &status.workloads {
        groups.entry(&line.namespace).or_default().push(line);
    }
    let header = ["NAMESPACE", "PODS", "GOVERNED", "OPEN", "ACCEPTED", "WAITING", "REFUSED", "DENIED", "mTLS"];
    columns(header, groups.into_iter().map(|(namespace, lines)| group(namespace, &lines)))
}

fn group(namespace: &str, lines: &[&WorkloadLine]) -> [String; 9] {
    use kube_api::{AttachmentState as Attachment, ConfigurationState as Configuration};
    let count = |is: &dyn Fn(&WorkloadLine) -> bool| lines.iter().filter(|line| is(line)).count().to_string();
    let configured = |state: Configuration| count(&|line| line.configuration == Some(state));
    let mut modes: Vec<String> = lines.iter().filter_map(|line| line.mutual_tls).map(|mode| word(&mode)).collect();
    modes.sort();
    modes.dedup();
    [
        namespace.to_owned(),
        lines.len().to_string(),
        count(&|line| line.governed),
        count(&|line| line.state == Some(Attachment::Open)),
        configured(Configuration::Accepted),
        configured(Configuration::Waiting),
        configured(Configuration::Refused),
        configured(Configuration::Denied),
        or_dash(&modes.join(", ")),
    ]
}

/// All of them when they are few or were asked for; else those that are not good.
fn workloads(status: &Status, wide: bool) -> String {
    let shows_all = wide || status.namespace.is_some() || status.workloads.len() <= PODS_SHOWN;
    let lines: Vec<_> = status.workloads.iter().filter(|line| shows_all || line.health != Health::Good).collect();
    let hidden = status.workloads.len() - lines.len();
    let mut text = if wide {
        columns(WIDE_HEADER, lines.into_iter().map(wide_workload))
    } else {
        columns(HEADER, lines.into_iter().map(workload))
    };
    if hidden > 0 {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{hidden} pods are good and not listed (-n NAMESPACE, -o wide)");
    }
    text
}

const HEADER: [&str; 7] = ["POD", "NODE", "VF", "STATE", "CONFIGURATION", "ACKNOWLEDGED", "mTLS"];
const WIDE_HEADER: [&str; 10] =
    ["POD", "NODE", "VF", "ADDRESS", "STATE", "CONFIGURATION", "ACKNOWLEDGED", "mTLS", "SCOPE", "IDENTITY"];

fn workload(line: &WorkloadLine) -> [String; 7] {
    [
        format!("{}/{}", line.namespace, line.pod),
        or_dash(&line.node),
        or_dash(&line.vf),
        or(&line.state),
        configuration(line),
        acknowledged(line),
        or(&line.mutual_tls),
    ]
}

fn wide_workload(line: &WorkloadLine) -> [String; 10] {
    let [pod, node, vf, state, configuration, acknowledged, mutual_tls] = workload(line);
    let (address, scope, identity) = (or_dash(&line.address), or_dash(&line.scope), or_dash(&line.identity));
    [pod, node, vf, address, state, configuration, acknowledged, mutual_tls, scope, identity]
}

fn configuration(line: &WorkloadLine) -> String {
    if line.governed { or(&line.configuration) } else { "not governed".to_owned() }
}

fn acknowledged(line: &WorkloadLine) -> String {
    line.acknowledged_seconds_ago.map_or_else(|| "-".to_owned(), |seconds| format!("{} ago", ago(seconds)))
}

fn istio_objects(status: &Status, wide: bool) -> String {
    let shown = if wide { status.istio_objects.len() } else { OBJECTS_SHOWN };
    let rows = status.istio_objects.iter().take(shown).map(|one| [one.object.clone(), one.workloads.to_string()]);
    let mut text = columns(["ISTIO OBJECT IN FORCE", "PODS"], rows);
    if let Some(rest) = status.istio_objects.len().checked_sub(shown).filter(|rest| *rest > 0) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "and {rest} more (-o wide)");
    }
    text
}

fn problems(status: &Status) -> String {
    let mut text = String::new();
    for (index, problem) in status.problems.iter().enumerate() {
        let _ = writeln!(text, "{}. {}: {}\n   -> {}", index + 1, problem.place, problem.what, problem.advice);
    }
    for reason in &status.unseen {
        let _ = writeln!(text, "?  {reason}");
    }
    text + &verdict(status)
}

fn verdict(status: &Status) -> String {
    let pods = status.workloads.len();
    let pending = status.workloads.iter().filter(|line| line.health == Health::Pending).count();
    match status.outcome() {
        Outcome::Good if pending > 0 => {
            format!("OK: {pods} pods on {} nodes, {pending} of them on their way\n", status.nodes.len())
        }
        Outcome::Good => format!("OK: {pods} pods on {} nodes\n", status.nodes.len()),
        Outcome::Bad if status.problems.len() == 1 => "1 PROBLEM\n".to_owned(),
        Outcome::Bad => format!("{} PROBLEMS\n", status.problems.len()),
        Outcome::Unknown => "NOT ALL COULD BE SEEN: what could be is good\n".to_owned(),
    }
}

fn or<T: Debug>(value: &Option<T>) -> String {
    value.as_ref().map_or_else(|| "-".to_owned(), word)
}

/// The name of a variant is its word.
fn word<T: Debug>(value: &T) -> String {
    format!("{value:?}")
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}
