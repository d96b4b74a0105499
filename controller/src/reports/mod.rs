//! What nodes tell, written down where people look: status of DpuWorkload and DpuNode, events of pods.
//!
//! In: reports of the node daemon and the adapter of each node, over streams (`service`). `board`
//! keeps the newest and what is not written yet; `workload` and `node` say what is to be written,
//! `event` what a person is told, `peer_authentication` which of those objects shape a pod; all of them are
//! pure. `writer` writes, `recorder` sends events.
//!
//! The two programs of a node may report to different replicas. Each part of a status has a field
//! manager of its own, so the API server puts the parts together.

pub mod board;
pub mod event;
pub mod node;
pub mod peer_authentication;
pub mod recorder;
mod service;
pub mod workload;
pub(crate) mod write;
pub mod writer;

pub use service::service;

use std::fmt;

/// Which program tells, and so which part of a status it owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The node daemon: attachments, and the host.
    Host,
    /// The adapter: configurations, and the proxy.
    Proxy,
}

impl Part {
    /// Of the program's name in its certificate.
    pub fn of_program(program: &str) -> Option<Self> {
        match program {
            "cni-node" => Some(Self::Host),
            "adapter" => Some(Self::Proxy),
            _ => None,
        }
    }

    /// Owner of the fields.
    pub fn manager(self) -> &'static str {
        match self {
            Self::Host => "dpumesh-cni-node",
            Self::Proxy => "dpumesh-adapter",
        }
    }
}

/// What is written at once: one part of one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    Node {
        part: Part,
        node: String,
    },
    /// As that node tells it.
    Workload {
        part: Part,
        node: String,
        namespace: String,
        name: String,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { node, .. } => write!(f, "DpuNode {node}"),
            Self::Workload { namespace, name, .. } => write!(f, "DpuWorkload {namespace}/{name}"),
        }
    }
}
