//! `DpuWorkload`: a pod that a DPU serves, named as the pod and owned by it.

use crate::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A workload has nothing to choose: all of it is status.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dpumesh.io",
    version = "v1",
    kind = "DpuWorkload",
    plural = "dpuworkloads",
    shortname = "dw",
    category = "dpumesh",
    namespaced,
    no_spec,
    status = "DpuWorkloadStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A pod that a DPU serves. It has the pod's name and goes with it; the controller writes its status.",
    printcolumn(name = "Node", type_ = "string", json_path = ".status.node"),
    printcolumn(name = "VF", type_ = "string", json_path = ".status.vf"),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.addresses[0]"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Configuration", type_ = "string", json_path = ".status.configuration"),
    printcolumn(name = "mTLS", type_ = "string", json_path = ".status.mutualTLS"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Identity", type_ = "string", json_path = ".status.identity", priority = 1),
    printcolumn(name = "Istio", type_ = "string", json_path = ".status.istioObjects", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct DpuWorkloadFields {}

/// What the node's programs report of the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DpuWorkloadStatus {
    /// Node that it runs on.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Whether the pod asked for the mesh. A pod outside it has a VF and no configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub governed: Option<bool>,
    /// Virtual function that it has, e.g. "vf3".
    #[serde(skip_serializing_if = "String::is_empty")]
    pub vf: String,
    /// Id of the dataplane's port.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub port: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Name of the Network that it joined; absent: the default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<AttachmentState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration: Option<ConfigurationState>,
    /// "spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT".
    #[serde(skip_serializing_if = "String::is_empty")]
    pub identity: String,
    #[serde(rename = "mutualTLS", skip_serializing_if = "Option::is_none")]
    pub mutual_tls: Option<MutualTls>,
    /// Scope that the proxy acknowledged last, "scope@HASH". Workloads with the same one share all resources.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub scope: String,
    /// Istio objects that shape the acknowledged configuration, "VirtualService NAMESPACE/NAME", sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub istio_objects: Vec<String>,
    /// What istiod sent that was refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
    /// Why it is not open or not accepted, for a person.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// When the proxy acknowledged the scope, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledged_at: Option<String>,
    /// Attached: the pod has its VF and its port is open. Configured: the proxy acknowledged the newest configuration.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// How far the pod's attachment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum AttachmentState {
    /// ADD is under way.
    Attaching,
    /// The port drops everything: configuration is awaited or was withdrawn.
    Closed,
    Open,
    /// ADD failed and was undone; the runtime will try again.
    Failed,
    /// DEL is under way.
    Detaching,
}

/// What became of the configuration that istiod sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ConfigurationState {
    /// The stream to istiod, the certificate or the proxy's answer is awaited.
    Waiting,
    /// The proxy acknowledged the newest configuration.
    Accepted,
    /// The newest configuration was refused; the one before stays in force.
    Refused,
    /// istiod refuses the workload's stream or certificate.
    Denied,
}

/// How the pod's ports take connections from the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum MutualTls {
    Disabled,
    Permissive,
    Strict,
}

/// A resource that was refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// xDS resource name.
    pub resource: String,
    pub reason: String,
}
