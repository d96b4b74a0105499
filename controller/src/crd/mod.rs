//! Our own kinds of the Kubernetes API, `dpumesh.io/v1`: what people write (`Network`, `DpuNode`)
//! and what they read (`DpuNode`, `DpuWorkload`). The definitions that the chart installs are made
//! of these types: `istio-dpu-controller crds`.

// Two printed columns of one type are no repetition.
#![allow(clippy::duplicated_attributes)]

mod condition;
mod dpu_node;
mod dpu_workload;
mod network;

pub use condition::{Condition, ConditionStatus, set_condition};
pub use dpu_node::{DpuNode, DpuNodeSpec, DpuNodeStatus, Resources, Versions};
pub use dpu_workload::{
    AttachmentState, ConfigurationState, DpuWorkload, DpuWorkloadFields, DpuWorkloadStatus, MutualTls, Refusal,
};
pub use network::{Network, NetworkSpec, NetworkStatus};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// API group of our kinds.
pub const GROUP: &str = "dpumesh.io";

/// All definitions.
pub fn definitions() -> [CustomResourceDefinition; 3] {
    [Network::crd(), DpuNode::crd(), DpuWorkload::crd()]
}

/// All definitions as one YAML text.
pub fn yaml() -> Result<String, serde_saphyr::ser::Error> {
    let mut text = "# Made by `istio-dpu-controller crds`; do not edit.\n".to_owned();
    for definition in definitions() {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&definition)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_ships_what_the_types_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/dpumesh/crds/dpumesh.yaml");
        let shipped = std::fs::read_to_string(path).expect("the chart has the definitions");
        let made = yaml().expect("YAML");
        assert!(shipped == made, "{path} is old: run `istio-dpu-controller crds > {path}`");
    }

    #[test]
    fn what_is_printed_is_read_back_the_same() {
        let text = yaml().expect("YAML");
        let read: Vec<CustomResourceDefinition> =
            text.split("---\n").skip(1).map(|document| serde_saphyr::from_str(document).expect("YAML")).collect();
        assert_eq!(read, definitions());
    }
}
