//! `DpuNode`: a server and its DPU. The controller makes one for each Node.

use super::condition::{Condition, conditions};
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

/// A server and its DPU, named as the Node.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dpumesh.io",
    version = "v1",
    kind = "DpuNode",
    doc = "A server and its DPU, named as the Node.",
    plural = "dpunodes",
    status = "DpuNodeStatus",
    category = "dpumesh",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.vfsFree", description = "VFs that no pod has"),
    printcolumn(name = "VFs", type_ = "integer", json_path = ".status.vfsTotal"),
    printcolumn(name = "Dataplane", type_ = "boolean", json_path = ".status.dataplaneConnected"),
    printcolumn(name = "Proxy", type_ = "boolean", json_path = ".status.proxyConnected"),
    printcolumn(name = "Streams", type_ = "string", json_path = ".status.streams"),
    printcolumn(name = "Underlay", type_ = "string", json_path = ".status.underlayAddress"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Problems", type_ = "string", json_path = ".status.problems", priority = 1)
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DpuNodeSpec {
    /// Address of the DPU's uplink on the fabric, instead of the one that the DPU tells. The annotation
    /// dpumesh.io/underlay-address of the Node comes before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay_address: Option<String>,
}

/// What the programs of the node tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DpuNodeStatus {
    /// Address of the DPU's uplink, as the dataplane tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay_address: Option<String>,
    /// VFs that pods may get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vfs_total: Option<i64>,
    /// VFs that no pod has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vfs_free: Option<i64>,
    /// Whether the dataplane answers the node daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataplane_connected: Option<bool>,
    /// Whether dpu-proxy follows the adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_connected: Option<bool>,
    /// Streams to istiod, "OPEN/WANTED".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<String>,
    /// xDS resources of all workloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Of the programs of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<Versions>,
    /// What is wrong, for a person.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "problems")]
    pub problems: Vec<String>,
    /// Host: the node daemon reports. Proxy: the adapter reports. Ready: pods can be attached and governed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// Numbers of xDS resources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What istiod sent for all workloads.
    pub received: i64,
    /// Distinct ones that are stored.
    pub stored: i64,
}

/// Versions of the programs of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni_node: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
}

/// A set, so that each writer owns its own.
fn problems(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = <Vec<String>>::json_schema(generator);
    schema.insert("x-kubernetes-list-type".to_owned(), "set".into());
    schema
}
