//! Sidecar resources made fit for a proxy that is not in the pod.
//!
//! In: one resource as istiod sent it. Out: its body for the DPU, or that it is of no use there, or
//! why it cannot be served. Three things differ from a sidecar:
//!
//! - inbound clusters of a sidecar connect from 127.0.0.6 to the pod's own ports: here the original
//!   destination is the pod's address behind its representor, and the source address stays the client's;
//! - a `Sidecar` ingress listener may name an endpoint on the pod's loopback: it becomes the pod's own
//!   address, with the port overridden;
//! - listeners and clusters that serve the agent beside a sidecar have nobody to serve.

use super::content::Kind;
use super::wire;
use mesh_api::Any;
use mesh_api::envoy::config::cluster::v3::{Cluster, cluster};
use mesh_api::envoy::config::core::v3::{Address, address, socket_address};
use mesh_api::envoy::config::listener::v3::Listener;
use mesh_api::envoy_pb::google::protobuf::UInt32Value;
use prost::Message;
use std::net::IpAddr;

/// Ports of a sidecar's agent: merged metrics, health, Envoy's metrics.
const AGENT_PORTS: [u32; 3] = [15020, 15021, 15090];
/// Clusters by which a sidecar reaches its agent.
const AGENT_CLUSTERS: [&str; 5] = ["agent", "prometheus_stats", "sds-grpc", "xds-grpc", "zipkin"];

/// Fields of `envoy.config.cluster.v3.Cluster`.
mod field {
    pub const TYPE: u64 = 2;
    pub const EDS_CLUSTER_CONFIG: u64 = 3;
    pub const LB_POLICY: u64 = 6;
    pub const UPSTREAM_BIND_CONFIG: u64 = 21;
    pub const LOAD_ASSIGNMENT: u64 = 33;
    pub const ORIGINAL_DST_LB_CONFIG: u64 = 34;
}

/// What becomes of a resource.
#[derive(Clone, Debug, PartialEq)]
pub enum Rewritten {
    /// Served with this body.
    Kept(Any),
    /// Of no use on the DPU.
    Dropped,
}

/// Why a resource cannot be served; for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("it does not decode ({0}); the last good one stays in force")]
    Undecodable(String),
    #[error(
        "it delivers to {endpoint}, which only a proxy inside the pod can reach: give the Sidecar ingress listener a port as its endpoint"
    )]
    Unreachable { endpoint: String },
}

/// A cluster for the DPU.
pub fn cluster(body: Any, cluster: &Cluster) -> Result<Rewritten, Unfit> {
    if AGENT_CLUSTERS.contains(&cluster.name.as_str()) {
        return Ok(Rewritten::Dropped);
    }
    if !delivers_to_workload(&cluster.name) {
        return match is_bound_to_loopback(cluster) {
            true => edit(body, &[field::UPSTREAM_BIND_CONFIG], &[]),
            false => Ok(Rewritten::Kept(body)),
        };
    }
    match cluster.load_assignment {
        Some(_) => redirect(body, cluster),
        None => edit(body, &[field::UPSTREAM_BIND_CONFIG], &[]),
    }
}

/// A listener for the DPU.
pub fn listener(body: Any, listener: &Listener) -> Rewritten {
    match listener.address.as_ref().and_then(socket) {
        Some((_, port)) if AGENT_PORTS.contains(&port) => Rewritten::Dropped,
        Some((address, _)) if is_loopback(&address) => Rewritten::Dropped,
        _ => Rewritten::Kept(body),
    }
}

/// Whether a cluster leads to the workload itself.
pub fn delivers_to_workload(cluster: &str) -> bool {
    cluster.starts_with("inbound|") || cluster.starts_with("InboundPassthroughCluster")
}

/// Decodes the body of a resource of that kind.
pub fn decode<M: Message + Default>(kind: Kind, body: &Any) -> Result<M, Unfit> {
    if body.type_url != kind.type_url() {
        return Err(Unfit::Undecodable(format!("its type is {:?}, expected {:?}", body.type_url, kind.type_url())));
    }
    M::decode(body.value.as_slice()).map_err(|error| Unfit::Undecodable(error.to_string()))
}

/// An inbound cluster with an endpoint of its own: to the original destination, at that port.
fn redirect(body: Any, cluster: &Cluster) -> Result<Rewritten, Unfit> {
    let endpoint = only_endpoint(cluster)?;
    let port = match socket(&endpoint) {
        Some((address, port)) if is_own(&address) => port,
        Some((address, port)) => return Err(Unfit::Unreachable { endpoint: format!("{address}:{port}") }),
        None => return Err(Unfit::Unreachable { endpoint: "a Unix socket".to_owned() }),
    };
    let config = cluster::OriginalDstLbConfig {
        upstream_port_override: Some(UInt32Value { value: port }),
        ..Default::default()
    };
    let added = Cluster {
        lb_policy: cluster::LbPolicy::ClusterProvided.into(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::OriginalDst.into())),
        lb_config: Some(cluster::LbConfig::OriginalDstLbConfig(config)),
        ..Cluster::default()
    };
    let replaced = [
        field::TYPE,
        field::EDS_CLUSTER_CONFIG,
        field::LB_POLICY,
        field::UPSTREAM_BIND_CONFIG,
        field::LOAD_ASSIGNMENT,
        field::ORIGINAL_DST_LB_CONFIG,
    ];
    edit(body, &replaced, &added.encode_to_vec())
}

fn only_endpoint(cluster: &Cluster) -> Result<Address, Unfit> {
    use mesh_api::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
    let localities = cluster.load_assignment.iter().flat_map(|assignment| &assignment.endpoints);
    let mut addresses = localities.flat_map(|locality| &locality.lb_endpoints).filter_map(|one| {
        match one.host_identifier.as_ref()? {
            HostIdentifier::Endpoint(endpoint) => endpoint.address.clone(),
            HostIdentifier::EndpointName(_) => None,
        }
    });
    match (addresses.next(), addresses.next()) {
        (Some(address), None) => Ok(address),
        (None, _) => Err(Unfit::Unreachable { endpoint: "no address".to_owned() }),
        (Some(_), Some(_)) => Err(Unfit::Unreachable { endpoint: "several addresses".to_owned() }),
    }
}

/// Removes fields and appends encoded ones, which protobuf reads as one message.
fn edit(body: Any, removed: &[u64], added: &[u8]) -> Result<Rewritten, Unfit> {
    let mut value = wire::without(&body.value, removed).map_err(|error| Unfit::Undecodable(error.to_string()))?;
    value.extend_from_slice(added);
    Ok(Rewritten::Kept(Any { value, ..body }))
}

fn is_bound_to_loopback(cluster: &Cluster) -> bool {
    let bind = cluster.upstream_bind_config.as_ref().and_then(|bind| bind.source_address.as_ref());
    // ::6 is what 127.0.0.6 is for IPv6.
    bind.is_some_and(|source| is_loopback(&source.address) || source.address == "::6")
}

fn socket(address: &Address) -> Option<(String, u32)> {
    let address::Address::SocketAddress(socket) = address.address.as_ref()? else { return None };
    let socket_address::PortSpecifier::PortValue(port) = socket.port_specifier.as_ref()? else { return None };
    Some((socket.address.clone(), *port))
}

fn is_loopback(address: &str) -> bool {
    address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Addresses by which a pod means itself.
fn is_own(address: &str) -> bool {
    address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback() || address.is_unspecified())
}

#[cfg(test)]
mod tests;
