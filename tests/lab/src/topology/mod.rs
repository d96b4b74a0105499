//! Who is where: hosts, DPUs, the fabric between the uplinks, the control plane, and their links.
//!
//! ```text
//!   control plane (cp) ── 172.30.0.0/24 ──┬── host1 ── 172.31.1.0/24 ── dpu1 ── uplink ──┐
//!                                         │     vfK ═══════════════ pf0vfK               fabric 192.168.90.0/24
//!                                         └── host2 ── 172.31.2.0/24 ── dpu2 ── uplink ──┘
//! ```

pub mod build;

use crate::shell;

/// Every namespace of the lab begins so.
pub const PREFIX: &str = "dm-lab-";
/// Virtual functions of each host.
pub const VFS: u32 = 6;
/// Address of controller and control plane.
pub const CONTROL_PLANE: &str = "172.30.0.1";
/// Namespace of controller and control plane.
pub const CONTROL_PLANE_NAMESPACE: &str = "dm-lab-cp";
/// Namespace of the bridge between the uplinks.
pub const FABRIC_NAMESPACE: &str = "dm-lab-fabric";

/// A server and its DPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// 1 or 2.
    pub number: u8,
}

/// All of them.
pub const HOSTS: [Host; 2] = [Host { number: 1 }, Host { number: 2 }];

impl Host {
    /// The host of a Kubernetes node name.
    pub fn of_node(node: &str) -> Option<Self> {
        HOSTS.into_iter().find(|host| host.node() == node)
    }

    /// Kubernetes node name.
    pub fn node(self) -> String {
        format!("host{}", self.number)
    }

    /// Namespace of the host.
    pub fn namespace(self) -> String {
        format!("{PREFIX}host{}", self.number)
    }

    /// Namespace of its DPU.
    pub fn dpu(self) -> String {
        format!("{PREFIX}dpu{}", self.number)
    }

    /// Host's address on the management link.
    pub fn management(self) -> String {
        format!("172.31.{}.1", self.number)
    }

    /// DPU's address on the management link.
    pub fn dpu_management(self) -> String {
        format!("172.31.{}.2", self.number)
    }

    /// Address of the uplink on the fabric.
    pub fn underlay(self) -> String {
        format!("192.168.90.{}", self.number)
    }

    /// Host's address towards the control plane.
    pub fn control(self) -> String {
        format!("172.30.0.{}", 10 + self.number)
    }

    /// Port of the fabric's bridge that this host's uplink is plugged into.
    pub fn fabric_port(self) -> String {
        format!("port{}", self.number)
    }
}

/// Namespace of a pod.
pub fn pod_namespace(pod: &str) -> String {
    format!("{PREFIX}pod-{pod}")
}

/// Namespaces of a lab that exist now.
pub fn existing_namespaces() -> Vec<String> {
    let listed = shell::attempt("ip netns list").unwrap_or_default();
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.starts_with(PREFIX)).map(str::to_owned).collect()
}
