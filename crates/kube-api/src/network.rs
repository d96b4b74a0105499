//! `Network`: what pods may join by the annotation `dpumesh.io/network`.

use super::condition::{Condition, conditions};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A network that pods may join.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dpumesh.io",
    version = "v1",
    kind = "Network",
    doc = "A network that pods may join by the annotation dpumesh.io/network.",
    plural = "networks",
    status = "NetworkStatus",
    category = "dpumesh",
    printcolumn(name = "VNI", type_ = "integer", json_path = ".spec.vni"),
    printcolumn(name = "MTU", type_ = "integer", json_path = ".spec.mtu"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].message"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// VXLAN network identifier, 1 to 16777215; 0: pods are on the underlay.
    #[serde(default)]
    #[schemars(schema_with = "integer")]
    pub vni: u32,
    /// Bytes, 576 to 65535; 0: the uplink's own.
    #[serde(default)]
    #[schemars(schema_with = "integer")]
    pub mtu: u32,
}

/// What the controller says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// Accepted: the network is in force as it is written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// Never negative; what fits is said by the condition `Accepted`, with the reason.
fn integer(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "integer", "format": "int64", "minimum": 0, "maximum": u32::MAX, "default": 0})
}
