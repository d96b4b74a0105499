//! `DpuNode`: a node with a DPU, named as the node.

use crate::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What an administrator may say of a node's DPU.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dpumesh.io",
    version = "v1",
    kind = "DpuNode",
    plural = "dpunodes",
    shortname = "dpunode",
    category = "dpumesh",
    status = "DpuNodeStatus",
    derive = "PartialEq",
    doc = "A node with a DPU. It has the node's name; the controller makes it and writes its status.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Underlay", type_ = "string", json_path = ".status.underlayAddress"),
    printcolumn(name = "VFs", type_ = "integer", json_path = ".status.vfsTotal"),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.vfsFree"),
    printcolumn(name = "Dataplane", type_ = "boolean", json_path = ".status.dataplaneConnected"),
    printcolumn(name = "Proxy", type_ = "boolean", json_path = ".status.proxyConnected"),
    printcolumn(name = "Streams", type_ = "string", json_path = ".status.streams"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Problems", type_ = "string", json_path = ".status.problems", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DpuNodeSpec {
    /// Address of the DPU's uplink on the fabric, in the place of what the DPU reports. The Node's annotation
    /// dpumesh.io/underlay-address goes before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub underlay_address: Option<IpAddr>,
}

/// What the node's programs report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DpuNodeStatus {
    /// Address of the DPU's uplink on the fabric that other nodes are told.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub underlay_address: String,
    /// Virtual functions that the node has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vfs_total: Option<u32>,
    /// Those that no pod has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vfs_free: Option<u32>,
    /// The DPU's dataplane answers the node daemon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane_connected: Option<bool>,
    /// The DPU's proxy is connected to the adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_connected: Option<bool>,
    /// Streams of workloads to istiod, "open/wanted".
    #[serde(skip_serializing_if = "String::is_empty")]
    pub streams: String,
    /// Resources that istiod sent for all workloads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources_received: Option<u64>,
    /// Distinct ones that are stored and were sent to the DPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources_stored: Option<u64>,
    /// Version of each program that reported, by its name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub versions: BTreeMap<String, String>,
    /// What is wrong, for a person, one line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// Ready: pods can be attached and governed here, or why not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
