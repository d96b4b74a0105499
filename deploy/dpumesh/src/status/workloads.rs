//! Pods that a DPU serves, those that should be and are not, and the Istio objects in force.

use crate::problem::Problem;
use crate::seen::{Seen, ago, all};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube_api::mesh::{Labels, asks_for_mesh};
use kube_api::{AttachmentState, ConfigurationState, DpuWorkload, DpuWorkloadStatus, MutualTls, Refusal};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What takes longer than this is wrong, in seconds.
const PATIENCE_S: i64 = 60;

/// How it is with a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Health {
    Good,
    /// On its way, and not for long.
    Pending,
    Bad,
}

/// A workload in one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadLine {
    pub namespace: String,
    pub pod: String,
    pub node: String,
    pub health: Health,
    pub governed: bool,
    pub vf: String,
    pub address: String,
    pub state: Option<AttachmentState>,
    pub configuration: Option<ConfigurationState>,
    #[serde(rename = "mutualTLS")]
    pub mutual_tls: Option<MutualTls>,
    pub identity: String,
    pub scope: String,
    /// Since the proxy acknowledged.
    pub acknowledged_seconds_ago: Option<i64>,
    pub istio_objects: Vec<String>,
    pub refusals: Vec<Refusal>,
    pub reason: String,
}

/// An Istio object and how many workloads it shapes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IstioObject {
    /// "VirtualService NAMESPACE/NAME".
    pub object: String,
    pub workloads: usize,
}

/// By namespace and name.
pub fn lines(seen: &Seen) -> Vec<WorkloadLine> {
    let mut lines: Vec<WorkloadLine> = all(&seen.workloads).iter().map(|workload| line(seen, workload)).collect();
    lines.sort_by(|one, other| (&one.namespace, &one.pod).cmp(&(&other.namespace, &other.pod)));
    lines
}

fn line(seen: &Seen, workload: &DpuWorkload) -> WorkloadLine {
    let status = workload.status.clone().unwrap_or_default();
    let born = workload.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let age = seen.now.as_second() - born.unwrap_or(seen.now).as_second();
    let acknowledged = status.acknowledged_at.as_ref().and_then(|text| text.parse::<Timestamp>().ok());
    WorkloadLine {
        namespace: workload.metadata.namespace.clone().unwrap_or_default(),
        pod: workload.metadata.name.clone().unwrap_or_default(),
        health: health(&status, age),
        governed: status.governed != Some(false),
        node: status.node.unwrap_or_default(),
        vf: status.vf.unwrap_or_default(),
        address: status.addresses.first().cloned().unwrap_or_default(),
        state: status.state,
        configuration: status.configuration,
        mutual_tls: status.mutual_tls,
        identity: status.identity.unwrap_or_default(),
        scope: status.scope.unwrap_or_default(),
        acknowledged_seconds_ago: acknowledged.map(|then| seen.now.as_second() - then.as_second()),
        istio_objects: status.istio_objects,
        refusals: status.refusals,
        reason: [status.reason, status.configuration_reason].into_iter().flatten().collect::<Vec<_>>().join("; "),
    }
}

fn health(status: &DpuWorkloadStatus, age: i64) -> Health {
    use AttachmentState as Attachment;
    use ConfigurationState as Configuration;
    let is_governed = status.governed != Some(false);
    match (status.state, status.configuration) {
        (Some(Attachment::Failed), _) | (_, Some(Configuration::Refused | Configuration::Denied)) => Health::Bad,
        (Some(Attachment::Open), Some(Configuration::Accepted)) => Health::Good,
        (Some(Attachment::Open), _) if !is_governed => Health::Good,
        (Some(Attachment::Detaching), _) => Health::Pending,
        _ if age <= PATIENCE_S => Health::Pending,
        _ => Health::Bad,
    }
}

/// Every Istio object of a workload, with the number of workloads.
pub fn istio_objects(lines: &[WorkloadLine]) -> Vec<IstioObject> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for object in lines.iter().flat_map(|line| &line.istio_objects) {
        *counts.entry(object).or_default() += 1;
    }
    counts.into_iter().map(|(object, workloads)| IstioObject { object: object.to_owned(), workloads }).collect()
}

/// What is wrong with workloads, and with pods that are none.
pub fn problems(seen: &Seen, lines: &[WorkloadLine]) -> Vec<Problem> {
    let bad = lines.iter().filter(|line| line.health == Health::Bad).map(of_workload);
    bad.chain(without_vf(seen)).collect()
}

fn of_workload(line: &WorkloadLine) -> Problem {
    let name = format!("{}/{}", line.namespace, line.pod);
    let (what, advice) = match (line.state, line.configuration) {
        (Some(AttachmentState::Failed), _) => {
            ("it could not be attached", format!("kubectl -n {} describe pod {}", line.namespace, line.pod))
        }
        (_, Some(ConfigurationState::Denied)) => {
            ("istiod refuses it", "dpumesh check; does the service account exist, is the adapter trusted?".to_owned())
        }
        (_, Some(ConfigurationState::Refused)) => {
            ("its newest configuration was refused, the one before is in force", format!("dpumesh describe pod {name}"))
        }
        (Some(AttachmentState::Open), _) => {
            ("it works, and waits for new configuration for long", format!("dpumesh describe pod {name}"))
        }
        (Some(AttachmentState::Closed), _) => {
            ("its port is closed: nothing passes", format!("dpumesh describe pod {name}"))
        }
        _ => ("its attachment takes long", format!("kubectl -n {} describe pod {}", line.namespace, line.pod)),
    };
    let reason = match (line.reason.is_empty(), line.refusals.first()) {
        (false, _) => format!(": {}", line.reason),
        (true, Some(refusal)) => format!(": {}: {}", refusal.resource, refusal.reason),
        (true, None) => String::new(),
    };
    Problem::new(format!("{name} on {}", line.node), format!("{what}{reason}"), advice)
}

/// Pods that asked for the mesh, on nodes with a DPU, and have no VF.
fn without_vf(seen: &Seen) -> Vec<Problem> {
    let nodes: BTreeSet<&str> = seen.with_dpu().filter_map(|node| node.metadata.name.as_deref()).collect();
    let key = |namespace: &Option<String>, name: &Option<String>| (namespace.clone(), name.clone());
    let known: BTreeSet<_> =
        all(&seen.workloads).iter().map(|one| key(&one.metadata.namespace, &one.metadata.name)).collect();
    let lost = all(&seen.pods).iter().filter(|pod| {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        node.is_some_and(|node| nodes.contains(node))
            && !known.contains(&key(&pod.metadata.namespace, &pod.metadata.name))
            && lives(pod)
            && asks(seen, pod)
    });
    lost.filter_map(|pod| of_lost(seen, pod)).collect()
}

fn lives(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && matches!(phase, Some("Running" | "Pending"))
}

fn asks(seen: &Seen, pod: &Pod) -> bool {
    let empty = Labels::new();
    let namespace = all(&seen.namespaces).iter().find(|one| one.metadata.name == pod.metadata.namespace);
    let of_namespace = namespace.and_then(|namespace| namespace.metadata.labels.as_ref()).unwrap_or(&empty);
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    asks_for_mesh(pod.metadata.labels.as_ref().unwrap_or(&empty), of_namespace, host_network)
}

fn of_lost(seen: &Seen, pod: &Pod) -> Option<Problem> {
    let (namespace, name) = (pod.metadata.namespace.clone()?, pod.metadata.name.clone()?);
    let age = seen.now.as_second() - pod.metadata.creation_timestamp.as_ref()?.0.as_second();
    if age <= PATIENCE_S {
        return None;
    }
    let runs = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    let (what, advice) = match runs {
        true => (
            "it asks for the mesh and has no VF: it was started before".to_owned(),
            format!("kubectl -n {namespace} delete pod {name} (its owner makes it anew)"),
        ),
        false => {
            (format!("it waits for its VF since {}", ago(age)), format!("kubectl -n {namespace} describe pod {name}"))
        }
    };
    Some(Problem::new(format!("{namespace}/{name}"), what, advice))
}
