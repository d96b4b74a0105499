//! The Kubernetes objects that matter here, reduced to what is used and checked at the edge.
//!
//! In: `kubernetes` makes them from manifests. Out: plain values that `tables` keeps.

use crate::reports::Part;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// Kinds that are kept, in the order of their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Namespace,
    Node,
    Network,
    ReplicaSet,
    Pod,
    Service,
    EndpointSlice,
    DpuNode,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Namespace,
        Self::Node,
        Self::Network,
        Self::ReplicaSet,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::DpuNode,
    ];

    /// As in a manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Network => "Network",
            Self::ReplicaSet => "ReplicaSet",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::DpuNode => "DpuNode",
        }
    }
}

/// Names one object; ordered by kind, then namespace (empty for cluster-wide kinds), then name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl Key {
    /// A key of its parts.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// `namespace/name`, or the name alone: the xDS resource name.
    pub fn path(&self) -> String {
        match self.namespace.is_empty() {
            true => self.name.clone(),
            false => format!("{}/{}", self.namespace, self.name),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.path())
    }
}

pub type Labels = BTreeMap<String, String>;

/// Any object that is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Namespace(Labels),
    Node(Node),
    Network(Network),
    /// Its own controller.
    ReplicaSet(Option<Owner>),
    Pod(Box<Pod>),
    Service(Service),
    EndpointSlice(EndpointSlice),
    DpuNode(DpuNode),
}

/// A server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Kubernetes UID; empty in a manifest of a person.
    pub uid: String,
    pub pod_cidrs: Vec<IpNet>,
    /// Of its DPU's uplink.
    pub underlay_address: Option<IpAddr>,
    pub region: String,
    pub zone: String,
    pub subzone: String,
}

/// A server's DPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DpuNode {
    /// Of its uplink, as a person wants it.
    pub wanted_underlay_address: Option<IpAddr>,
    /// The same, as the dataplane tells it.
    pub told_underlay_address: Option<IpAddr>,
    /// UID of the Node that it goes with.
    pub owner_uid: String,
    /// Replicas of the controller that its programs report to.
    pub told_to: Vec<(Part, String)>,
}

/// A network that pods may join.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Network {
    /// At most 24 bits.
    pub vni: u32,
    /// Bytes; 0: the uplink's own.
    pub mtu: u32,
}

/// The controlling owner of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub api_version: String,
    pub kind: String,
    pub name: String,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pod {
    pub uid: String,
    pub labels: Labels,
    pub annotations: Labels,
    pub service_account: String,
    /// Empty until it is scheduled.
    pub node: String,
    pub host_network: bool,
    pub addresses: Vec<IpAddr>,
    pub network: String,
    pub owner: Option<Owner>,
    pub containers: Vec<String>,
    pub ports: Vec<ContainerPort>,
    pub probes: Vec<Probe>,
    pub bypass_on_failure: bool,
    pub ready: bool,
    /// Succeeded or failed: it runs no more.
    pub finished: bool,
}

/// A port that a container declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    pub name: String,
    pub port: u16,
    pub protocol: String,
}

/// What the kubelet asks a pod over the network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    pub port: u16,
    pub kind: ProbeKind,
}

/// How it asks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    Tcp,
    /// As it stands in the request line.
    Http(String),
    Https,
    Grpc,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Service {
    pub vips: Vec<IpAddr>,
    /// Empty: its endpoints are made by somebody else.
    pub selector: Labels,
    pub ports: Vec<ServicePort>,
    pub publish_not_ready: bool,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: String,
    pub port: u16,
    pub protocol: String,
    pub target: Target,
}

/// Where a service port leads to in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Number(u16),
    /// The container port of that name.
    Name(String),
}

/// Endpoints of a service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointSlice {
    /// In the same namespace.
    pub service: String,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
}

/// A port that all endpoints of a slice have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: String,
    pub port: u16,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub addresses: Vec<IpAddr>,
    pub node: String,
    pub ready: bool,
}
