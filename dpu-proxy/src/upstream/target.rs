//! `Target`: where and how to connect. Two equal targets may share a connection, so it keys pools.

use super::cluster::ClusterRuntime;
use super::connect::{ConnectError, ConnectErrorKind};
use super::host::Host;
use super::inward::Inward;
use crate::connection::{Connection, Gate};
use crate::tls::ClientTls;
use crate::worker::Worker;
use dpu_proxy_core::model::{Cluster, Endpoint, TransportSocket, UpstreamTls, Workload};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

/// Where and how to connect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub address: SocketAddr,
    /// Source address to bind (IP_TRANSPARENT), port chosen by the kernel.
    pub source: Option<IpAddr>,
    /// Device to bind to: the uplink, or the callee's representor.
    pub device: Option<Arc<str>>,
    pub tls: Option<TlsTarget>,
    /// The endpoint is a workload of this DPU: its inbound rules come first.
    pub inward: Option<Inward>,
}

/// TLS of a target; equal when it is the same configuration with the same server name.
#[derive(Clone, Debug)]
pub struct TlsTarget {
    pub config: Rc<ClientTls>,
    /// Sent as SNI; empty: none.
    pub server_name: Arc<str>,
}

impl PartialEq for TlsTarget {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.config, &other.config) && self.server_name == other.server_name
    }
}

impl Eq for TlsTarget {}

impl Hash for TlsTarget {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Rc::as_ptr(&self.config).hash(state);
        self.server_name.hash(state);
    }
}

/// What the caller of `target` knows beyond the cluster and host.
#[derive(Clone, Copy, Debug, Default)]
pub struct TargetOptions<'a> {
    /// ALPN list that takes the place of the configured one (`istio.alpn`, HTTP/2 upstreams).
    pub alpn: Option<&'a [String]>,
    /// Host of the request, for `auto_sni`.
    pub request_host: Option<&'a str>,
}

/// The transport socket that applies to an endpoint: the first match on its metadata, else the default.
pub fn transport<'a>(cluster: &'a Cluster, endpoint: &Endpoint) -> &'a TransportSocket {
    let holds = |criteria: &[(String, String)]| criteria.iter().all(|pair| endpoint.transport_match.contains(pair));
    let matched = cluster.transport.matches.iter().find(|candidate| holds(&candidate.criteria));
    matched.map_or(&cluster.transport.default, |matched| &matched.socket)
}

/// True when calls to the endpoint go over mTLS as the workload (the mesh's own transport).
pub fn is_mesh_tls(cluster: &Cluster, endpoint: &Endpoint) -> bool {
    let TransportSocket::Tls(tls) = transport(cluster, endpoint) else { return false };
    matches!(&tls.common.certificate, Some(dpu_proxy_core::model::CertificateSource::Sds(name)) if name == "default")
}

/// Where and how to connect for a downstream connection to reach `host`.
pub fn target(
    worker: &Worker,
    connection: &Connection,
    cluster: &ClusterRuntime,
    host: &Host,
    options: &TargetOptions<'_>,
) -> Result<Target, ConnectError> {
    let scoped = cluster.scoped();
    let tls = match transport(&scoped.cluster, &host.endpoint) {
        TransportSocket::RawBuffer => None,
        TransportSocket::Tls(tls) => Some(tls_target(worker, connection, tls, options)?),
    };
    let Path { source, device, inward } = path(worker, connection, &scoped.cluster, host.address());
    Ok(Target { address: host.address(), source, device, tls, inward })
}

fn tls_target(
    worker: &Worker,
    connection: &Connection,
    tls: &Arc<UpstreamTls>,
    options: &TargetOptions<'_>,
) -> Result<TlsTarget, ConnectError> {
    let state = worker.state();
    let config = worker
        .tls
        .client(tls, connection.workload.as_deref(), &state.secrets, options.alpn)
        .map_err(|error| ConnectError::new(ConnectErrorKind::Secret, error.to_string()))?;
    let host = options.request_host.map(without_port).filter(|_| tls.auto_host_sni);
    let server_name = host.map_or_else(|| config.sni.clone(), Arc::from);
    Ok(TlsTarget { config, server_name })
}

fn without_port(host: &str) -> &str {
    host.rsplit_once(':').filter(|(name, _)| !name.contains(':')).map_or(host, |(name, _)| name)
}

#[derive(Default)]
struct Path {
    source: Option<IpAddr>,
    device: Option<Arc<str>>,
    inward: Option<Inward>,
}

/// Source address and device: a workload calls from its own address out of the uplink; what is
/// delivered to a workload keeps the client's address and goes to the workload's representor; a
/// call to a workload of this DPU never gets there past its inbound rules.
fn path(worker: &Worker, connection: &Connection, cluster: &Cluster, to: SocketAddr) -> Path {
    let devices = worker.devices();
    let Some(workload) = &connection.workload else {
        return Path { source: cluster.bind_source.map(|source| source.ip()), ..Path::default() };
    };
    let state = worker.state();
    match state.snapshot.by_address.get(&to.ip()) {
        Some(callee) if cluster.delivers_to_workload || is_inbound(connection) => Path {
            source: Some(connection.remote.ip()).filter(|ip| same_family(*ip, to)),
            device: devices.representors.get(&callee.port).cloned(),
            inward: None,
        },
        Some(_) => Path { inward: Some(Inward::new(worker.weak(), connection.remote.ip())), ..Path::default() },
        None => Path { source: own_address(workload, to), device: devices.uplink.clone(), inward: None },
    }
}

/// Its rules have been applied already: there is no way back to them.
fn is_inbound(connection: &Connection) -> bool {
    matches!(connection.gate, Gate::Inbound | Gate::Host | Gate::Local)
}

fn own_address(workload: &Workload, to: SocketAddr) -> Option<IpAddr> {
    workload.addresses.iter().copied().find(|address| same_family(*address, to))
}

fn same_family(address: IpAddr, to: SocketAddr) -> bool {
    address.is_ipv4() == to.is_ipv4()
}
