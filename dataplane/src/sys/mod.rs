//! The one door to the kernel: eBPF objects, links, rules, routes, neighbours, sysctls, sockets.

pub mod abi;
pub mod links;
pub mod network;
pub mod programs;
pub mod seqpacket;
pub mod sysctl;

use std::fmt::Display;
use std::path::PathBuf;

/// What the kernel refused, and to whom.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("cannot load {what}: {reason}")]
    Object { what: &'static str, reason: String },
    #[error("cannot load {what}: {reason} (needs root, or CAP_BPF and CAP_NET_ADMIN)")]
    Load { what: String, reason: String },
    #[error("cannot {action} map {map}: {reason}")]
    Map { map: &'static str, action: &'static str, reason: String },
    #[error("cannot attach {program} to {target}: {reason}")]
    Attach { program: &'static str, target: String, reason: String },
    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("cannot {action}: {reason}")]
    Netlink { action: String, reason: String },
    #[error("there is no interface {0:?} in this network namespace: create it, or correct the name")]
    NoInterface(String),
}

impl KernelError {
    fn object(what: &str, error: &dyn std::error::Error) -> Self {
        Self::Load { what: what.to_owned(), reason: chain(error) }
    }

    pub(crate) fn map(map: &'static str, action: &'static str, error: &dyn std::error::Error) -> Self {
        Self::Map { map, action, reason: chain(error) }
    }

    fn attach(program: &'static str, target: &str, error: &dyn Display) -> Self {
        Self::Attach { program, target: target.to_owned(), reason: error.to_string() }
    }
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
