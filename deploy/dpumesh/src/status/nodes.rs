//! Nodes with a DPU.

use crate::problem::Problem;
use crate::seen::{Seen, all};
use kube_api::{ConditionStatus, DpuNode, DpuNodeStatus, condition};
use serde::Serialize;

/// A node in one line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeLine {
    pub node: String,
    /// Absent: nothing has been reported.
    pub ready: Option<bool>,
    pub dataplane_connected: Option<bool>,
    pub proxy_connected: Option<bool>,
    pub vfs_total: Option<i64>,
    pub vfs_free: Option<i64>,
    /// "open/wanted".
    pub streams: String,
    pub resources_received: Option<i64>,
    pub resources_stored: Option<i64>,
    pub underlay_address: String,
    /// Those of `namespace`, or all.
    pub workloads: usize,
}

/// By name.
pub fn lines(seen: &Seen) -> Vec<NodeLine> {
    let mut lines: Vec<NodeLine> = all(&seen.dpu_nodes).iter().map(|node| line(seen, node)).collect();
    lines.sort_by(|one, other| one.node.cmp(&other.node));
    lines
}

fn line(seen: &Seen, node: &DpuNode) -> NodeLine {
    let (name, status) = (name(node), status(node));
    let on_it = |workload: &&kube_api::DpuWorkload| {
        workload.status.as_ref().is_some_and(|status| status.node.as_ref() == Some(&name))
    };
    NodeLine {
        ready: ready(&status),
        dataplane_connected: status.dataplane_connected,
        proxy_connected: status.proxy_connected,
        vfs_total: status.vfs_total,
        vfs_free: status.vfs_free,
        streams: status.streams.unwrap_or_default(),
        resources_received: status.resources.as_ref().map(|resources| resources.received),
        resources_stored: status.resources.as_ref().map(|resources| resources.stored),
        underlay_address: status.underlay_address.unwrap_or_default(),
        workloads: all(&seen.workloads).iter().filter(on_it).count(),
        node: name,
    }
}

fn name(node: &DpuNode) -> String {
    node.metadata.name.clone().unwrap_or_default()
}

fn status(node: &DpuNode) -> DpuNodeStatus {
    node.status.clone().unwrap_or_default()
}

fn ready(status: &DpuNodeStatus) -> Option<bool> {
    match condition(&status.conditions, "Ready")?.status {
        ConditionStatus::True => Some(true),
        ConditionStatus::False => Some(false),
        ConditionStatus::Unknown => None,
    }
}

/// What is wrong with nodes.
pub fn problems(seen: &Seen) -> Vec<Problem> {
    let nodes = all(&seen.dpu_nodes);
    if nodes.is_empty() {
        let advice = format!("kubectl -n {} logs deployment/dpumesh-controller --all-pods", seen.system_namespace);
        return vec![Problem::new("nodes", "no DpuNode is there: no controller leads, or no node has a DPU", advice)];
    }
    nodes.iter().flat_map(|node| of_node(seen, node)).collect()
}

fn of_node(seen: &Seen, node: &DpuNode) -> Vec<Problem> {
    let (name, status) = (name(node), status(node));
    let of = |what: String, advice: String| Problem::new(format!("node {name}"), what, advice);
    let log = |program: &str| {
        let selector = format!("-l app.kubernetes.io/component={program} --prefix");
        format!("kubectl -n {} logs {selector} (the pod on {name})", seen.system_namespace)
    };
    if node.status.is_none() || (status.vfs_total.is_none() && status.proxy_connected.is_none()) {
        return vec![of("none of its programs has reported".to_owned(), log("cni-node"))];
    }
    let mut problems = Vec::new();
    if status.dataplane_connected == Some(false) {
        let advice = format!(
            "on its DPU: does the pod dpumesh-dataplane run, are its certificates valid (`dpumesh dpu certificates {name}`)?"
        );
        problems.push(of("its DPU's dataplane does not answer: new pods wait there".to_owned(), advice));
    }
    if status.proxy_connected == Some(false) {
        let advice = format!(
            "on its DPU: does the pod dpumesh-dpu-proxy run, are its certificates valid (`dpumesh dpu certificates {name}`)?"
        );
        problems
            .push(of("its DPU's proxy is not connected: governed pods get no new configuration".to_owned(), advice));
    }
    problems
        .extend(status.problems.iter().map(|problem| of(problem.clone(), format!("kubectl describe dpunode {name}"))));
    if problems.is_empty() && ready(&status) == Some(false) {
        let message = condition(&status.conditions, "Ready").map(|ready| ready.message.clone()).unwrap_or_default();
        problems.push(of(message, format!("kubectl describe dpunode {name}")));
    }
    if let Some((open, wanted)) =
        streams(status.streams.as_deref().unwrap_or_default()).filter(|(open, wanted)| open < wanted)
    {
        let what = format!("{open} of {wanted} streams to istiod are open");
        problems.push(of(what, "dpumesh check; is istiod up?".to_owned()));
    }
    problems
}

/// "3/4" as numbers.
fn streams(text: &str) -> Option<(u32, u32)> {
    let (open, wanted) = text.split_once('/')?;
    Some((open.trim().parse().ok()?, wanted.trim().parse().ok()?))
}
