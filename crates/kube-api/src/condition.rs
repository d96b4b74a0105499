//! Conditions, as `metav1.Condition`.

use k8s_openapi::jiff::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// One aspect of the state of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Type of the condition in CamelCase.
    #[serde(rename = "type")]
    pub kind: String,
    /// True, False or Unknown.
    pub status: ConditionStatus,
    /// Why, in one CamelCase word.
    pub reason: String,
    /// Why, for a person.
    #[serde(default)]
    pub message: String,
    /// When the status changed last.
    #[schemars(schema_with = "date_time")]
    pub last_transition_time: String,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

impl Condition {
    /// Holds or not, from `now` on.
    pub fn new(kind: &str, holds: Option<bool>, reason: &str, message: &str, now: Timestamp) -> Self {
        let status = match holds {
            Some(true) => ConditionStatus::True,
            Some(false) => ConditionStatus::False,
            None => ConditionStatus::Unknown,
        };
        Self {
            kind: kind.to_owned(),
            status,
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: rfc3339(now),
        }
    }

    /// The same, with the time at which `before` came to this status.
    pub fn since(mut self, before: &[Self]) -> Self {
        let same = before.iter().find(|other| other.kind == self.kind && other.status == self.status);
        if let Some(same) = same {
            self.last_transition_time.clone_from(&same.last_transition_time);
        }
        self
    }
}

/// The condition of that name.
pub fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.kind == kind)
}

/// Adds or replaces a condition; keeps the time when the status is the same.
pub fn set_condition(conditions: &mut Vec<Condition>, condition: Condition) {
    let condition = condition.since(conditions);
    match conditions.iter_mut().find(|other| other.kind == condition.kind) {
        Some(other) => *other = condition,
        None => conditions.push(condition),
    }
}

/// A time as statuses carry it: RFC 3339, in seconds.
pub fn rfc3339(time: Timestamp) -> String {
    // The API server compares times as it writes them: without fractions.
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

/// A list of conditions, of which each writer owns its own.
pub(super) fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = <Vec<Condition>>::json_schema(generator);
    schema.insert("x-kubernetes-list-type".to_owned(), "map".into());
    schema.insert("x-kubernetes-list-map-keys".to_owned(), vec!["type"].into());
    schema
}

pub(super) fn date_time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time"})
}
