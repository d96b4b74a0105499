//! The programs of the product, started as they would be on a server, each in its namespace with its own
//! certificate, log and place for sockets.

mod authority;
mod bootstrap;
mod process;
mod start;

pub use authority::{Authority, signing_request, write_token};
pub use process::tail;
pub use process::{Binaries, Process};
pub use start::{Program, ProxyOptions, hop_log, istio_token, manifests};

use crate::state::FOLDER;
use crate::topology::Host;
use std::path::PathBuf;

/// The folder of a host's programs.
pub fn folder(host: Host) -> PathBuf {
    PathBuf::from(FOLDER).join(host.node())
}

/// The folder of all logs.
pub fn logs() -> PathBuf {
    PathBuf::from(FOLDER).join("logs")
}
