//! Plain types that every program shares. No I/O, no protobuf, no clock.
//!
//! In: text and numbers, parsed at the edge by `FromStr` and `TryFrom`. Out: values in which an
//! invalid state cannot be written. Conversions from the wire live in `mesh-api`.

mod identity;
mod mac;

pub use identity::{Identity, IdentityError};
pub use mac::{MacAddress, MacError};

use serde::{Deserialize, Serialize};
use std::fmt;

/// Kubernetes pod UID: the name of a workload on every wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkloadUid(pub String);

/// Name of a dataplane port, unique on one DPU, e.g. `vf3`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortId(pub String);

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What happens to a workload's traffic when it cannot be governed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Dropped. The default.
    #[default]
    Closed,
    /// Forwarded ungoverned.
    Bypass,
}
