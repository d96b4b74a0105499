//! CNI errors: the code tells the runtime what to do, the text tells a person.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Codes of the CNI specification, and ours from 100 on.
pub mod code {
    /// The network configuration asks for a version that we don't speak.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the network configuration is not supported.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// An environment variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Something could not be read or written.
    pub const IO: u32 = 5;
    /// The network configuration is not JSON, or not of the expected shape.
    pub const DECODE: u32 = 6;
    /// The network configuration is well-formed and wrong.
    pub const INVALID_CONFIG: u32 = 7;
    /// A passing condition: the runtime should try again.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: ADD cannot work now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: as 50, and attached containers may have lost their network too.
    pub const NOT_AVAILABLE_LIMITED: u32 = 51;

    /// The device id names no VF of this host.
    pub const UNKNOWN_VF: u32 = 100;
    /// The VF belongs to another pod, or none is free.
    pub const VF_NOT_FREE: u32 = 101;
    /// The delegated IPAM plugin failed.
    pub const IPAM: u32 = 102;
    /// The dataplane refused the port.
    pub const DATAPLANE: u32 = 103;
    /// The kernel refused a change of a link, an address or a route.
    pub const KERNEL: u32 = 104;
    /// The port did not open in time.
    pub const NOT_READY: u32 = 105;
    /// CHECK found something that is not as it was made.
    pub const CHECK_FAILED: u32 = 106;
    /// The daemon could not keep its records.
    pub const RECORDS: u32 = 107;
    /// ADD for a container and interface that is attached already.
    pub const ALREADY_ATTACHED: u32 = 108;
}

/// What a plugin prints on standard output when it fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct CniError {
    /// See [`code`].
    pub code: u32,
    /// One line.
    pub msg: String,
    /// Why, and what to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same with what to do about it.
    pub fn hint(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.details.is_empty() {
            true => write!(f, "{} (CNI code {})", self.msg, self.code),
            false => write!(f, "{}: {} (CNI code {})", self.msg, self.details, self.code),
        }
    }
}
