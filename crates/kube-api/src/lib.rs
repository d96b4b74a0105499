//! The product's own Kubernetes kinds: `Network`, `DpuNode`, `DpuWorkload` of `dpumesh.io/v1`, and the names
//! by which its other objects are found.
//!
//! The controller writes them, the command-line tool reads them, and the chart ships `definitions`. Plain data:
//! who writes what, and when, is the controller's affair. Status fields that are unknown are left out.

// Two printed columns of one type are no repetition.
#![allow(clippy::duplicated_attributes)]

mod condition;
mod dpu_node;
mod dpu_workload;
pub mod mesh;
mod network;

pub use condition::{Condition, ConditionStatus, condition, rfc3339, set_condition};
pub use dpu_node::{DpuNode, DpuNodeSpec, DpuNodeStatus, Resources, Versions};
pub use dpu_workload::{
    AttachmentState, ConfigurationState, DpuWorkload, DpuWorkloadFields, DpuWorkloadStatus, MutualTls, Refusal,
};
pub use network::{Network, NetworkSpec, NetworkStatus};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// API group of our kinds.
pub const GROUP: &str = "dpumesh.io";
/// Where the product is installed unless its administrator chose otherwise.
pub const NAMESPACE: &str = "dpumesh-system";

/// Names of objects that the chart makes in the product's namespace.
pub mod objects {
    /// Lease of the controller that leads.
    pub const LEASE: &str = "dpumesh-controller";
    /// Secret with the authority of the programs' certificates: `tls.crt`, `tls.key`.
    pub const CA_SECRET: &str = "dpumesh-ca";
    /// ConfigMap with that authority's certificate: `ca.crt`.
    pub const CA_CONFIG_MAP: &str = "dpumesh-ca";
    /// ConfigMap with what an installation chose that the command-line tool needs: `settings.json`.
    pub const SETTINGS_CONFIG_MAP: &str = "dpumesh-settings";
    pub const CONTROLLER: &str = "dpumesh-controller";
    pub const ADAPTER: &str = "dpumesh-adapter";
    pub const CNI_NODE: &str = "dpumesh-cni-node";
}

/// Annotations that people put on objects of others.
pub mod annotations {
    /// On a Node: address of its DPU's uplink on the fabric.
    pub const UNDERLAY_ADDRESS: &str = "dpumesh.io/underlay-address";
    /// On a Pod: `closed` or `bypass`.
    pub const ON_FAILURE: &str = "dpumesh.io/on-failure";
    /// On a Pod: name of a Network.
    pub const NETWORK: &str = "dpumesh.io/network";
}

/// All definitions, in the order in which they are shown.
pub fn definitions() -> [CustomResourceDefinition; 3] {
    [Network::crd(), DpuNode::crd(), DpuWorkload::crd()]
}

/// All definitions as one YAML text, as the chart ships it.
pub fn yaml() -> Result<String, serde_saphyr::ser::Error> {
    let mut text = "# Made by `istio-dpu-controller crds`; do not edit.\n".to_owned();
    for definition in definitions() {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&definition)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
