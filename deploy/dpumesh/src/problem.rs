//! Something that is wrong, and what to do about it.

use serde::Serialize;

/// Where, what, and a command or a sentence that leads on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    pub place: String,
    pub what: String,
    pub advice: String,
}

impl Problem {
    pub fn new(place: impl Into<String>, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into(), advice: advice.into() }
    }
}
