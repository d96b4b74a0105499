//! What was seen at the API server at one moment. All that is judged is judged from this.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube_api::{DpuNode, DpuWorkload, Network};

/// Objects of a kind, or why they could not be seen.
pub type Found<T> = Result<Vec<T>, String>;

/// The objects that matter.
#[derive(Clone, Debug)]
pub struct Seen {
    pub now: Timestamp,
    /// Namespace of the release.
    pub system_namespace: String,
    /// The namespace whose pods were asked for; all when absent.
    pub namespace: Option<String>,
    pub nodes: Found<Node>,
    pub namespaces: Found<Namespace>,
    /// Of `namespace`.
    pub pods: Found<Pod>,
    pub dpu_nodes: Found<DpuNode>,
    /// Of `namespace`.
    pub workloads: Found<DpuWorkload>,
    pub networks: Found<Network>,
    /// Of the release, as are the following.
    pub system_pods: Found<Pod>,
    pub deployments: Found<Deployment>,
    pub daemon_sets: Found<DaemonSet>,
    pub leases: Found<Lease>,
}

impl Seen {
    /// Why something could not be seen, each reason once.
    pub fn unseen(&self) -> Vec<String> {
        let errors = [
            self.nodes.as_ref().err(),
            self.namespaces.as_ref().err(),
            self.pods.as_ref().err(),
            self.dpu_nodes.as_ref().err(),
            self.workloads.as_ref().err(),
            self.networks.as_ref().err(),
            self.system_pods.as_ref().err(),
            self.deployments.as_ref().err(),
            self.daemon_sets.as_ref().err(),
            self.leases.as_ref().err(),
        ];
        let mut reasons: Vec<String> = errors.into_iter().flatten().cloned().collect();
        reasons.dedup();
        reasons
    }
}

impl Seen {
    /// DpuNodes of nodes that have a DPU. Every Node has a DpuNode; where none of our daemons is meant to run and none
    /// ever reported, there is no DPU.
    pub fn with_dpu(&self) -> impl Iterator<Item = &DpuNode> {
        all(&self.dpu_nodes).iter().filter(|node| {
            let reported = node.status.as_ref().is_some_and(|status| !status.conditions.is_empty());
            reported || self.system_pods.is_err() || self.runs_daemon(node.metadata.name.as_deref())
        })
    }

    fn runs_daemon(&self, node: Option<&str>) -> bool {
        all(&self.system_pods).iter().any(|pod| {
            let labels = pod.metadata.labels.as_ref();
            let component = labels.and_then(|labels| labels.get("app.kubernetes.io/component")).map(String::as_str);
            matches!(component, Some("adapter" | "cni-node"))
                && pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == node
        })
    }
}

/// The objects, none when they could not be seen.
pub fn all<T>(found: &Found<T>) -> &[T] {
    found.as_deref().unwrap_or_default()
}

/// How long ago, in the largest unit that says it: "12 s", "3 min", "5 h", "9 d".
pub fn ago(seconds: i64) -> String {
    match seconds.max(0) {
        seconds if seconds < 120 => format!("{seconds} s"),
        seconds if seconds < 7200 => format!("{} min", seconds / 60),
        seconds if seconds < 172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}
