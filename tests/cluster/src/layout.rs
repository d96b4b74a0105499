//! Who is where: control plane, nodes, DPUs, their addresses and links.
//!
//! ```text
//!   control plane: 192.0.2.1 on `br0`          192.168.90.254 on `fabric`
//!        │            │                              │             │
//!      node1        node2                          dpu1          dpu2      uplinks 192.168.90.1, .2
//!      .11          .12                              ║             ║
//!        ╚══ mgmt0 192.168.100.1 – 192.168.100.2 ════╝   and VFs vfK ═ pf0vfK
//!        ╚══ pf0 192.168.101.1 – 192.168.101.2 pf0hpf ╝   the node's own way to its pods
//! ```
//!
//! The control plane routes between both: what leaves a DPU for istiod, the API server or a node that has no
//! governed pods goes through it, as through the router of a data centre.

use std::path::{Path, PathBuf};

/// Every network namespace and link on the machine begins so.
pub const PREFIX: &str = "dm-cl-";
/// Everything else: state, keys, logs, what the machines see as their own paths.
pub const FOLDER: &str = "/var/lib/dpumesh-cluster";
/// Parent of the control groups of all containers.
pub const CGROUP: &str = "dpumesh-cluster";
/// Namespace of the control plane.
pub const CONTROL: &str = "dm-cl-cp";
/// Address of API server, istiod and DNS.
pub const CONTROL_ADDRESS: &str = "192.0.2.1";
/// The router's address on the fabric.
pub const FABRIC_ADDRESS: &str = "192.168.90.254";
/// Addresses of services.
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
/// Addresses of pods that have a VF; each node gets a part of it.
pub const POD_RANGE: &str = "10.244.0.0/16";
/// Address of the service `kubernetes`, the first of the range.
pub const KUBERNETES_SERVICE: &str = "10.96.0.1";
/// Address of the service `kube-dns`.
pub const DNS_SERVICE: &str = "10.96.0.10";
/// Virtual functions of each node.
pub const VFS: u32 = 16;
/// A node's address on its management link, the same on each, as a card's is.
pub const MANAGEMENT: &str = "192.168.100.1";
/// The DPU's end of it.
pub const DPU_MANAGEMENT: &str = "192.168.100.2";
/// The link of a node's physical function, the same on each: its end, the DPU's end.
pub const HOST_PORT: Link = Link { node: "192.168.101.1", dpu: "192.168.101.2" };
/// Name under which a node sees the namespace of its DPU.
pub const DPU_NETNS: &str = "dpu";

/// Addresses of both ends.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub node: &'static str,
    pub dpu: &'static str,
}

/// A server and its DPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host {
    /// 1 or 2.
    pub number: u8,
}

/// All of them.
pub const HOSTS: [Host; 2] = [Host { number: 1 }, Host { number: 2 }];

impl Host {
    /// Kubernetes name of the node.
    pub fn node(self) -> String {
        format!("node{}", self.number)
    }

    /// Name of its DPU.
    pub fn dpu(self) -> String {
        format!("dpu{}", self.number)
    }

    /// The node's address in the control plane's network.
    pub fn address(self) -> String {
        format!("192.0.2.{}", 10 + self.number)
    }

    /// Address of the DPU's uplink.
    pub fn underlay(self) -> String {
        format!("192.168.90.{}", self.number)
    }

    /// Addresses of the pods of the network that was there before: a bridge on the node.
    pub fn bridge_pods(self) -> String {
        format!("10.245.{}.0/24", self.number)
    }

    /// The host of a node.
    pub fn of_node(node: &str) -> Option<Self> {
        HOSTS.into_iter().find(|host| host.node() == node)
    }
}

/// Network namespace of a machine.
pub fn netns(machine: &str) -> String {
    format!("{PREFIX}{machine}")
}

/// A file or folder below the cluster's own.
pub fn path(relative: impl AsRef<Path>) -> PathBuf {
    Path::new(FOLDER).join(relative)
}

/// The folder of all logs.
pub fn logs() -> PathBuf {
    path("logs")
}
