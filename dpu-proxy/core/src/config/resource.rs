//! One xDS resource of any type → model, with its name, its reports and a hash of its content.

use super::any;
use super::census::census;
use super::report::{At, ConfigError, ReadFile, Subject, Unsupported};
use super::secret::{self, Secret};
use super::{cluster, endpoint, listener, route};
use crate::model::{Cluster, EndpointSet, Listener, Probe, ProbeKind, RouteConfig};
use mesh_api::{Any, proxy, type_url, workload as wire};
use mesh_model::{Identity, PortId, WorkloadUid};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use xxhash_rust::xxh64::xxh64;

/// What a resource means.
#[derive(Clone, Debug)]
pub enum Content {
    Cluster(Arc<Cluster>),
    Endpoints(Arc<EndpointSet>),
    Listener(Arc<Listener>),
    Routes(Arc<RouteConfig>),
    Secret(Arc<Secret>),
    Scope(Arc<proxy::Scope>),
    Workload(Arc<WorkloadSpec>),
}

/// A pod as the adapter describes it; its scope is known by name only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadSpec {
    pub uid: WorkloadUid,
    pub namespace: String,
    pub name: String,
    pub workload_name: String,
    pub labels: HashMap<String, String>,
    pub identity: Identity,
    pub addresses: Vec<IpAddr>,
    pub port: PortId,
    pub weight: u32,
    pub probes: Vec<Probe>,
    pub scope: String,
}

/// A resource that was accepted.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// Its own name, by which others refer to it.
    pub logical_name: String,
    /// Of its type and bytes.
    pub content_hash: u128,
    pub content: Content,
    pub reports: Vec<Unsupported>,
    /// Clusters that its inline routes name and that must exist (`validate_clusters`).
    pub required_clusters: Vec<String>,
}

/// 128 bits over type and content, so that equal hashes mean equal content.
pub fn content_hash(type_url: &str, bytes: &[u8]) -> u128 {
    let seed = xxh64(type_url.as_bytes(), 0);
    (u128::from(xxh64(bytes, seed)) << 64) | u128::from(xxh64(bytes, !seed))
}

/// Converts a resource that came under `name`. A name of the form `LOGICAL@HASH` says that it is of
/// workloads' scopes.
pub fn accept(type_url: &str, name: &str, body: &Any, read_file: ReadFile<'_>) -> Result<Accepted, ConfigError> {
    let subject = Subject::new(format!("{} {name}", kind(type_url)), read_file);
    let (logical_name, content) = convert(subject.root(), type_url, name, body)?;
    census(subject.root(), any::type_name(body), &body.value);
    let content_hash = content_hash(type_url, &body.value);
    let (reports, required_clusters) = subject.into_parts();
    Ok(Accepted { logical_name, content_hash, content, reports, required_clusters })
}

/// Word for a type, for people.
fn kind(type_url: &str) -> &'static str {
    match type_url {
        type_url::CLUSTER => "cluster",
        type_url::CLUSTER_LOAD_ASSIGNMENT => "endpoints",
        type_url::LISTENER => "listener",
        type_url::ROUTE_CONFIGURATION => "route configuration",
        type_url::SECRET => "secret",
        type_url::SCOPE => "scope",
        type_url::PROXY_WORKLOAD => "workload",
        _ => "resource",
    }
}

fn convert(at: At<'_>, type_url: &str, name: &str, body: &Any) -> Result<(String, Content), ConfigError> {
    if any::type_name(body) != type_url.rsplit('/').next().unwrap_or_default() {
        return Err(at.refuse(format!("it holds a {}, not what was asked for", any::shown(any::type_name(body)))));
    }
    match type_url {
        type_url::CLUSTER => {
            let proto = any::decode::<mesh_api::envoy::config::cluster::v3::Cluster>(at, body)?;
            let shared = shared_or_own(at, name, &proto.name)?;
            Ok((proto.name.clone(), Content::Cluster(Arc::new(cluster::cluster(at, &proto, shared)?))))
        }
        type_url::CLUSTER_LOAD_ASSIGNMENT => {
            let proto = any::decode::<mesh_api::envoy::config::endpoint::v3::ClusterLoadAssignment>(at, body)?;
            shared_or_own(at, name, &proto.cluster_name)?;
            Ok((proto.cluster_name.clone(), Content::Endpoints(Arc::new(endpoint::assignment(at, &proto)?))))
        }
        type_url::LISTENER => {
            let proto = any::decode::<mesh_api::envoy::config::listener::v3::Listener>(at, body)?;
            shared_or_own(at, name, &proto.name)?;
            Ok((proto.name.clone(), Content::Listener(Arc::new(listener::listener(at, &proto)?))))
        }
        type_url::ROUTE_CONFIGURATION => {
            let proto = any::decode::<mesh_api::envoy::config::route::v3::RouteConfiguration>(at, body)?;
            shared_or_own(at, name, &proto.name)?;
            Ok((proto.name.clone(), Content::Routes(Arc::new(route::route_configuration(at, &proto, false)?))))
        }
        type_url::SECRET => {
            let proto = any::decode::<mesh_api::envoy::extensions::transport_sockets::tls::v3::Secret>(at, body)?;
            shared_or_own(at, name, &proto.name)?;
            Ok((proto.name.clone(), Content::Secret(Arc::new(secret::secret(at, &proto)?))))
        }
        type_url::SCOPE => Ok((name.to_owned(), Content::Scope(Arc::new(any::decode(at, body)?)))),
        type_url::PROXY_WORKLOAD => {
            Ok((name.to_owned(), Content::Workload(Arc::new(workload(at, name, &any::decode(at, body)?)?))))
        }
        other => Err(at.refuse(format!("resources of type {other} are not used here; do not send them"))),
    }
}

/// Whether it is shared between workloads' scopes; its name must fit what is in it.
fn shared_or_own(at: At<'_>, name: &str, own: &str) -> Result<bool, ConfigError> {
    if name == own && !own.is_empty() {
        return Ok(false);
    }
    match name.rsplit_once('@') {
        Some((logical, hash)) if logical == own && !hash.is_empty() => Ok(true),
        _ => Err(at.refuse(format!("it came under this name and holds one named {own:?}; both must agree"))),
    }
}

fn workload(at: At<'_>, name: &str, proto: &proxy::Workload) -> Result<WorkloadSpec, ConfigError> {
    if proto.uid.is_empty() || proto.uid != name {
        return Err(at.field("uid").refuse(format!("{:?} is not the name that it came under", proto.uid)));
    }
    if proto.scope.is_empty() {
        return Err(at.field("scope").refuse("required"));
    }
    let identity = proto.identity.parse().map_err(|error| at.field("identity").refuse(format!("{error}")))?;
    let address = |(index, text): (usize, &String)| {
        text.parse().map_err(|_| at.item("addresses", index).refuse(format!("{text:?} is not an IP address")))
    };
    Ok(WorkloadSpec {
        uid: WorkloadUid(proto.uid.clone()),
        namespace: proto.namespace.clone(),
        name: proto.name.clone(),
        workload_name: proto.workload_name.clone(),
        labels: proto.labels.clone(),
        identity,
        addresses: proto.addresses.iter().enumerate().map(address).collect::<Result<_, _>>()?,
        port: PortId(proto.port_id.clone()),
        weight: proto.weight.max(1),
        probes: proto
            .probes
            .iter()
            .enumerate()
            .map(|(index, one)| probe(at.item("probes", index), one))
            .collect::<Result<_, _>>()?,
        scope: proto.scope.clone(),
    })
}

fn probe(at: At<'_>, proto: &wire::Probe) -> Result<Probe, ConfigError> {
    let port = u16::try_from(proto.port).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| at.field("port").refuse(format!("{} is not 1 to 65535", proto.port)))?;
    let kind = match wire::ProbeKind::try_from(proto.kind) {
        Ok(wire::ProbeKind::Tcp) => ProbeKind::Tcp,
        Ok(wire::ProbeKind::Https) => ProbeKind::Https,
        Ok(wire::ProbeKind::Grpc) => ProbeKind::Grpc,
        Ok(wire::ProbeKind::Http) if is_target(&proto.path) => ProbeKind::Http { path: proto.path.clone() },
        Ok(wire::ProbeKind::Http) => {
            return Err(at.field("path").refuse(format!("{:?} is no path of a request", proto.path)));
        }
        Err(_) => return Err(at.field("kind").refuse(format!("{} is not known here", proto.kind))),
    };
    Ok(Probe { port, kind })
}

/// Whether it can stand in a request line as it is.
fn is_target(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic())
}
