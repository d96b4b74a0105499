//! One request and one answer on the daemon's Unix socket: JSON, ended by closing the direction.

use crate::environment::Environment;
use crate::error::{CniError, code};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Largest message in bytes; a network configuration is a few kilobytes.
pub const MESSAGE_LIMIT_BYTES: u64 = 4 * 1024 * 1024;

/// Plugin to daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub environment: Environment,
    /// The network configuration as it came.
    pub netconf: Map<String, Value>,
}

/// Daemon to plugin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// What to print; nothing for commands without a result.
    Done(Option<Value>),
    Failed(CniError),
}

/// Sends the request and waits for its answer.
pub fn call(socket: &Path, request: &Request, timeout: Duration) -> Result<Answer, CniError> {
    let mut stream = UnixStream::connect(socket).map_err(|error| unreachable(socket, &error))?;
    let text = serde_json::to_vec(request)
        .map_err(|error| CniError::new(code::IO, format!("cannot encode the request: {error}")))?;
    let mut exchange = || -> std::io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(timeout))?;
        stream.write_all(&text)?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        (&stream).take(MESSAGE_LIMIT_BYTES).read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|error| interrupted(socket, &error.to_string()))?;
    serde_json::from_slice(&answer).map_err(|_| interrupted(socket, "it closed the connection without an answer"))
}

fn unreachable(socket: &Path, error: &std::io::Error) -> CniError {
    CniError::new(code::TRY_AGAIN_LATER, format!("the node daemon does not answer at {}: {error}", socket.display()))
        .hint("is the pod of istio-dpu-cni-node on this node running? Until it is, the kubelet tries again (or set daemonSocket in the network configuration)")
}

fn interrupted(socket: &Path, reason: &str) -> CniError {
    CniError::new(
        code::TRY_AGAIN_LATER,
        format!("the node daemon at {} stopped in the middle of the request: {reason}", socket.display()),
    )
    .hint("it undoes what was half done when it starts again, and the kubelet tries again; see its log")
}
