//! `DpuWorkload`: what became of a pod on its DPU. Named as the pod, which owns it.

use super::condition::{Condition, conditions, date_time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What became of a pod on its DPU; it has the pod's name and goes with it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dpumesh.io",
    version = "v1",
    kind = "DpuWorkload",
    doc = "What became of a pod on its DPU. It has the name of the pod and goes with it.",
    plural = "dpuworkloads",
    shortname = "dw",
    namespaced,
    no_spec,
    status = "DpuWorkloadStatus",
    category = "dpumesh",
    printcolumn(name = "Node", type_ = "string", json_path = ".status.node"),
    printcolumn(name = "VF", type_ = "string", json_path = ".status.vf"),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.addresses[0]"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Configuration", type_ = "string", json_path = ".status.configuration"),
    printcolumn(name = "mTLS", type_ = "string", json_path = ".status.mutualTLS"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Istio", type_ = "string", json_path = ".status.istioObjects", priority = 1),
    printcolumn(name = "Identity", type_ = "string", json_path = ".status.identity", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason", priority = 1),
    printcolumn(
        name = "Configuration Reason",
        type_ = "string",
        json_path = ".status.configurationReason",
        priority = 1
    )
)]
pub struct DpuWorkloadFields {}

/// What the node daemon tells (the upper part), and the adapter (the lower part).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DpuWorkloadStatus {
    /// Node that runs the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// VF that the pod has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vf: Option<String>,
    /// Id of its port on the dataplane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Addresses of the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// MAC address of the VF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Network that the pod joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Whether the pod is in the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub governed: Option<bool>,
    /// State of the attachment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<AttachmentState>,
    /// Why it is in that state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,

    /// State of what istiod says for the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<ConfigurationState>,
    /// Why it is in that state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration_reason: Option<String>,
    /// SPIFFE name of the pod in the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// How the pod takes connections of the mesh.
    #[serde(rename = "mutualTLS", default, skip_serializing_if = "Option::is_none")]
    pub mutual_tls: Option<MutualTls>,
    /// Configuration that the proxy acknowledged, by its content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Istio objects that shape it, "KIND NAMESPACE/NAME".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub istio_objects: Vec<String>,
    /// What istiod sent that was refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
    /// When the proxy acknowledged it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "date_time")]
    pub acknowledged_at: Option<String>,

    /// Attached: the port passes traffic. Configured: the newest configuration is in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// How far a pod's attachment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AttachmentState {
    /// ADD is under way.
    Attaching,
    /// The port drops everything.
    Closed,
    /// Traffic passes.
    Open,
    /// ADD failed and was undone.
    Failed,
    /// DEL is under way.
    Detaching,
}

/// What became of the configuration of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConfigurationState {
    /// istiod, the certificate or the proxy is awaited.
    Waiting,
    /// The proxy acknowledged the newest.
    Accepted,
    /// The newest was refused; the one before stays in force.
    Refused,
    /// istiod refuses the workload.
    Denied,
}

/// How a pod takes connections of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MutualTls {
    Disabled,
    Permissive,
    Strict,
}

/// A refused resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// Its xDS name.
    pub resource: String,
    pub reason: String,
}
