//! Nodes with a DPU, and their addresses.

use super::{Checked, Finding};
use crate::seen::all;
use k8s_openapi::api::core::v1::Node;
use kube_api::{DpuNode, annotations};
use std::collections::BTreeMap;

pub(super) fn dpus(checked: &Checked) -> Finding {
    if let Err(reason) = &checked.seen.dpu_nodes {
        return Finding::Unknown(reason.clone());
    }
    let nodes: Vec<&DpuNode> = checked.seen.with_dpu().collect();
    if nodes.is_empty() {
        return Finding::bad("no node with a DPU is known", "does a controller lead (dpumesh status)?");
    }
    let away = |node: &&&DpuNode| {
        let status = node.status.clone().unwrap_or_default();
        status.dataplane_connected != Some(true) || status.proxy_connected != Some(true)
    };
    let names: Vec<String> = nodes.iter().filter(away).map(|node| name(node)).collect();
    match names.first() {
        None => Finding::good(format!("the DPUs of {} nodes are connected", nodes.len())),
        Some(first) => Finding::bad(
            format!("not connected: {}", names.join(", ")),
            format!("once per DPU: dpumesh dpu certificates {first} --out DIR; dpumesh dpu manifest {first} --out DIR"),
        ),
    }
}

fn name(node: &DpuNode) -> String {
    node.metadata.name.clone().unwrap_or_default()
}

/// Every node with a DPU has an address on the fabric, and no two the same.
pub(super) fn underlay(checked: &Checked) -> Finding {
    let seen = &checked.seen;
    if let Some(reason) = seen.nodes.as_ref().err().or(seen.dpu_nodes.as_ref().err()) {
        return Finding::Unknown(reason.clone());
    }
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    let mut missing = Vec::new();
    for node in seen.with_dpu() {
        let Some(address) = address(node, all(&seen.nodes)) else {
            missing.push(name(node));
            continue;
        };
        if let Some(other) = owners.insert(address.clone(), name(node)) {
            let what = format!("{other} and {} both have {address}: each takes the other's packets", name(node));
            return Finding::bad(what, format!("kubectl annotate node NODE {}=ADDRESS", annotations::UNDERLAY_ADDRESS));
        }
    }
    match missing.first() {
        None if owners.is_empty() => Finding::Unknown("no node with a DPU is known".to_owned()),
        None => Finding::good(format!("{} nodes have an address on the fabric", owners.len())),
        Some(first) => Finding::bad(
            format!("no address on the fabric: {}", missing.join(", ")),
            format!(
                "the DPU reports it once connected; or: kubectl annotate node {first} {}=ADDRESS",
                annotations::UNDERLAY_ADDRESS
            ),
        ),
    }
}

/// The annotation goes before the spec, and the spec before what the DPU reports.
fn address(node: &DpuNode, nodes: &[Node]) -> Option<String> {
    let kubernetes = nodes.iter().find(|one| one.metadata.name == node.metadata.name);
    let annotated =
        kubernetes.and_then(|one| one.metadata.annotations.as_ref()?.get(annotations::UNDERLAY_ADDRESS)).cloned();
    let chosen = node.spec.underlay_address.clone();
    let reported =
        node.status.as_ref().and_then(|status| status.underlay_address.clone()).filter(|text| !text.is_empty());
    annotated.or(chosen).or(reported)
}

/// Addresses of pods come from the node's own range.
pub(super) fn pod_cidrs(checked: &Checked) -> Finding {
    let seen = &checked.seen;
    if let Some(reason) = seen.nodes.as_ref().err().or(seen.dpu_nodes.as_ref().err()) {
        return Finding::Unknown(reason.clone());
    }
    let has_range =
        |node: &Node| node.spec.as_ref().is_some_and(|spec| spec.pod_cidr.is_some() || spec.pod_cidrs.is_some());
    let has_dpu = |node: &&Node| seen.with_dpu().any(|one| one.metadata.name == node.metadata.name);
    let without: Vec<String> = all(&seen.nodes)
        .iter()
        .filter(has_dpu)
        .filter(|node| !has_range(node))
        .filter_map(|node| node.metadata.name.clone())
        .collect();
    match without.is_empty() {
        true => Finding::good("every node with a DPU has a range for its pods"),
        false => Finding::bad(
            format!("no spec.podCIDRs: {}", without.join(", ")),
            "kube-controller-manager --allocate-node-cidrs=true --cluster-cidr=CIDR",
        ),
    }
}
