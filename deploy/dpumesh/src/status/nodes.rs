//! Nodes with a DPU.

use crate::problem::Problem;
use crate::seen::{Seen, all};
use kube_api::{ConditionStatus, DpuNode, DpuNodeStatus, condition};
use serde::Serialize;

/// Conditions of a DpuNode: the node daemon reports, the adapter reports, and all is well.
const HOST: &str = "Host";
const PROXY: &str = "Proxy";
const READY: &str = "Ready";

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
    let mut lines: Vec<NodeLine> = seen.with_dpu().map(|node| line(seen, node)).collect();
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
        // What was reported last is not what is, once nobody reports.
        dataplane_connected: status.dataplane_connected.filter(|_| reports(&status, HOST)),
        proxy_connected: status.proxy_connected.filter(|_| reports(&status, PROXY)),
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
    match condition(&status.conditions, READY)?.status {
        ConditionStatus::True => Some(true),
        ConditionStatus::False => Some(false),
        ConditionStatus::Unknown => None,
    }
}

/// What is wrong with nodes.
pub fn problems(seen: &Seen) -> Vec<Problem> {
    if seen.with_dpu().next().is_none() {
        let advice = format!("kubectl -n {} logs deployment/dpumesh-controller --all-pods", seen.system_namespace);
        return vec![Problem::new(
            "nodes",
            "none with a DPU is known: no controller leads, or no node has a DPU",
            advice,
        )];
    }
    seen.with_dpu().flat_map(|node| of_node(seen, node)).collect()
}

fn of_node(seen: &Seen, node: &DpuNode) -> Vec<Problem> {
    let (name, status) = (name(node), status(node));
    let of = |what: &str, advice: String| Problem::new(format!("node {name}"), what, advice);
    let on_dpu = |pod: &str| {
        format!("on its DPU: does the pod {pod} run, are its certificates valid (`dpumesh dpu certificates {name}`)?")
    };
    let mut problems = Vec::new();
    if !reports(&status, HOST) {
        problems.push(of("its node daemon does not report", log(seen, "cni-node", &name)));
    } else if status.dataplane_connected == Some(false) {
        problems.push(of("its DPU's dataplane does not answer: new pods wait", on_dpu("dpumesh-dataplane")));
    }
    if !reports(&status, PROXY) {
        problems.push(of("its adapter does not report", log(seen, "adapter", &name)));
    } else if status.proxy_connected == Some(false) {
        problems.push(of("its DPU's proxy is not connected: no new configuration", on_dpu("dpumesh-dpu-proxy")));
    }
    let described = format!("kubectl describe dpunode {name}");
    problems.extend(status.problems.iter().map(|problem| of(problem, described.clone())));
    if problems.is_empty() && ready(&status) == Some(false) {
        let message = condition(&status.conditions, READY).map(|ready| ready.message.clone()).unwrap_or_default();
        problems.push(of(&message, described));
    }
    let open = streams(status.streams.as_deref().unwrap_or_default()).filter(|(open, wanted)| open < wanted);
    if let Some((open, wanted)) = open {
        let what = format!("{open} of {wanted} streams to istiod are open");
        problems.push(of(&what, "is istiod up, does it trust the adapter? (dpumesh check)".to_owned()));
    }
    problems
}

/// Whether the condition of a reporting program holds.
fn reports(status: &DpuNodeStatus, name: &str) -> bool {
    condition(&status.conditions, name).is_some_and(|condition| condition.status == ConditionStatus::True)
}

/// How to see what a program on the node says.
fn log(seen: &Seen, program: &str, node: &str) -> String {
    let namespace = &seen.system_namespace;
    let pod = all(&seen.system_pods).iter().find(|pod| {
        let labels = pod.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get("app.kubernetes.io/component")).is_some_and(|label| label == program)
            && pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node)
    });
    match pod.and_then(|pod| pod.metadata.name.as_ref()) {
        Some(pod) => format!("kubectl -n {namespace} logs {pod}"),
        None => {
            format!("no pod of {program} is on {node}: kubectl -n {namespace} describe daemonset dpumesh-{program}")
        }
    }
}

/// "3/4" as numbers.
fn streams(text: &str) -> Option<(u32, u32)> {
    let (open, wanted) = text.split_once('/')?;
    Some((open.trim().parse().ok()?, wanted.trim().parse().ok()?))
}
