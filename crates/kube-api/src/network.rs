//! `Network`: what a pod joins by its annotation `dpumesh.io/network`.

use crate::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Largest VXLAN network identifier.
pub const VNI_MAX: u32 = (1 << 24) - 1;

/// A network that pods may join.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dpumesh.io",
    version = "v1",
    kind = "Network",
    plural = "networks",
    category = "dpumesh",
    status = "NetworkStatus",
    derive = "PartialEq",
    doc = "A network that pods may join by the annotation dpumesh.io/network.",
    printcolumn(name = "VNI", type_ = "integer", json_path = ".spec.vni"),
    printcolumn(name = "MTU", type_ = "integer", json_path = ".spec.mtu"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type=='Accepted')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Accepted')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkSpec {
    /// VXLAN network identifier, 1 to 16777215; 0 means the underlay.
    #[serde(default)]
    #[schemars(range(min = 0, max = 16_777_215))]
    pub vni: u32,
    /// Largest packet in bytes, 576 to 65535; 0 means the uplink's own.
    #[serde(default)]
    #[schemars(range(min = 0, max = 65_535))]
    pub mtu: u32,
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// Accepted: pods can join, or why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
