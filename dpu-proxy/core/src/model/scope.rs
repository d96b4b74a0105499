//! Scopes: the resources that apply together. A decision loads one `Snapshot` and reads only that.
//!
//! Standalone (an Envoy bootstrap, any xDS server) there is one scope, the root. On a DPU each
//! workload has one, shared by all workloads with the same configuration.

use super::{Cluster, EndpointSet, Listener, Probe, RouteConfig};
use mesh_model::{Identity, PortId, WorkloadUid};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Everything in force at one moment. Swapped whole.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Increases with every change.
    pub version: u64,
    /// Resources of the bootstrap and of plain xDS; listeners here bind their own sockets.
    pub root: Arc<Scope>,
    /// Pods of this DPU whose scope is complete.
    pub workloads: HashMap<WorkloadUid, Arc<Workload>>,
    /// The same, by address on the underlay network.
    pub by_address: HashMap<IpAddr, Arc<Workload>>,
    /// The same, by the dataplane port that their packets enter by.
    pub by_port: HashMap<PortId, Arc<Workload>>,
}

/// A pod of this DPU's server, with its scope resolved.
#[derive(Debug)]
pub struct Workload {
    pub uid: WorkloadUid,
    pub namespace: String,
    pub name: String,
    pub workload_name: String,
    /// The pod's labels, for telemetry.
    pub labels: HashMap<String, String>,
    pub identity: Identity,
    pub addresses: Vec<IpAddr>,
    pub port: PortId,
    /// Share under contention, at least 1.
    pub weight: u32,
    /// What the kubelet asks it.
    pub probes: Vec<Probe>,
    pub scope: Arc<Scope>,
}

/// Resources that find one another by logical name.
#[derive(Debug, Default)]
pub struct Scope {
    /// xDS resource name of the scope; empty for the root.
    pub name: String,
    pub listeners: Vec<Arc<Listener>>,
    pub routes: HashMap<String, Arc<RouteConfig>>,
    pub clusters: HashMap<String, Arc<ScopedCluster>>,
}

/// A cluster with the endpoints that it has in a scope. Interned: two scopes with the same cluster
/// content and endpoint content share one `Arc`, so pools and balancer state are shared too.
#[derive(Debug)]
pub struct ScopedCluster {
    /// Unique in this process for (cluster content, endpoint resource name); survives endpoint updates.
    pub id: u64,
    pub cluster: Arc<Cluster>,
    /// For EDS and STATIC; empty for STRICT_DNS and ORIGINAL_DST (the shell resolves those).
    pub endpoints: Arc<EndpointSet>,
}
