//! Conditions of a status, in the shape that `kubectl wait --for=condition=…` reads.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether something holds, since when, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Name of the condition, CamelCase.
    #[serde(rename = "type")]
    pub type_: String,
    /// True, False or Unknown.
    pub status: ConditionStatus,
    /// metadata.generation of the object that it was computed from; 0 where there is none.
    #[serde(default)]
    pub observed_generation: i64,
    /// When the status became what it is, RFC 3339.
    pub last_transition_time: String,
    /// One CamelCase word for programs.
    pub reason: String,
    /// What it means and what to do, for people.
    pub message: String,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    True,
    False,
    #[default]
    Unknown,
}

/// The condition of that name.
pub fn condition<'a>(conditions: &'a [Condition], name: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == name)
}
