//! From a TCP connection's configuration to an open upstream: cluster by weight, host, attempts.

use super::relay::Passed;
use crate::connection::Connection;
use crate::io::Stream;
use crate::listener::accept;
use crate::local;
use crate::stats::Gauge;
use crate::stream_info::{ResponseFlags, StreamInfo, UpstreamInfo};
use crate::upstream::cluster::Permit;
use crate::upstream::{
    ActiveRequest, ClusterRuntime, ConnectError, ConnectErrorKind, Host, Outcome, PickContext, Target, TargetOptions,
    connect, target,
};
use crate::worker::Worker;
use crate::{authorize, upstream};
use dpu_proxy_core::model::{TcpCluster, TcpProxy, TerminalFilter};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

/// An open upstream with what must live as long.
pub(super) struct Upstream {
    pub stream: Stream,
    /// The callee's side of a call within this DPU.
    pub callee: Option<Callee>,
    pub guards: Guards,
}

/// The callee's side of a call within this DPU: its own access log and metrics.
pub(super) struct Callee {
    connection: Connection,
    proxy: Arc<TcpProxy>,
    info: StreamInfo,
}

impl Callee {
    pub fn tell(mut self, worker: &Rc<Worker>, passed: &Passed) {
        (self.info.bytes_received, self.info.bytes_sent) = (passed.forward, passed.backward);
        self.info.end();
        super::tell(worker, &self.connection, &self.proxy, &self.info);
    }
}

/// Counted while the upstream connection lives.
pub(super) struct Guards {
    cluster: Rc<ClusterRuntime>,
    active: Rc<Gauge>,
    _permit: Permit,
    _request: ActiveRequest,
}

impl Guards {
    /// Adds what was passed to the cluster's statistics.
    pub fn count(&self, passed: &Passed) {
        self.cluster.stats.bytes_sent.add(passed.forward);
        self.cluster.stats.bytes_received.add(passed.backward);
    }
}

impl Drop for Guards {
    fn drop(&mut self) {
        self.active.add(-1);
    }
}

/// Opens the upstream, or says in `info` why there is none.
pub(super) async fn open(
    worker: &Rc<Worker>,
    connection: &Connection,
    proxy: &TcpProxy,
    info: &mut StreamInfo,
) -> Option<Upstream> {
    let name = cluster_name(&proxy.clusters, worker.random());
    let Some(cluster) = worker.cluster(&connection.scope, name) else {
        info.flags.insert(ResponseFlags::NO_CLUSTER);
        return None;
    };
    let mut tried = Vec::new();
    for _ in 0..proxy.max_connect_attempts.max(1) {
        info.attempts += 1;
        match attempt(worker, connection, &cluster, &mut tried, info).await {
            Ok(upstream) => return Some(upstream),
            Err(Failure::Final) => return None,
            Err(Failure::Retriable) => {}
        }
    }
    info.flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
    None
}

fn cluster_name(clusters: &TcpCluster, random: u64) -> &str {
    match clusters {
        TcpCluster::Single(name) => name,
        TcpCluster::Weighted { clusters, total } => {
            let mut point = random % u64::from((*total).max(1));
            for weighted in clusters {
                match point.checked_sub(u64::from(weighted.weight)) {
                    Some(rest) => point = rest,
                    None => return &weighted.name,
                }
            }
            clusters.last().map_or("", |last| &last.name)
        }
    }
}

enum Failure {
    Final,
    Retriable,
}

async fn attempt(
    worker: &Rc<Worker>,
    connection: &Connection,
    cluster: &Rc<ClusterRuntime>,
    tried: &mut Vec<SocketAddr>,
    info: &mut StreamInfo,
) -> Result<Upstream, Failure> {
    let picked = cluster.pick(&PickContext {
        hash: None,
        original_destination: Some(connection.original_destination),
        avoid: tried,
    });
    info.upstream = Some(upstream_info(cluster, picked.as_deref().ok()));
    let Ok(host) = picked else {
        info.flags.insert(ResponseFlags::NO_HEALTHY_UPSTREAM);
        return Err(Failure::Final);
    };
    tried.push(host.address());
    let Some(permit) = cluster.connection_permit() else {
        info.flags.insert(ResponseFlags::UPSTREAM_OVERFLOW);
        cluster.stats.pending_overflow.inc();
        return Err(Failure::Final);
    };
    let scoped = cluster.scoped();
    let result = match local::enter(worker, connection, &scoped.cluster, &host, None) {
        None => remote(worker, connection, cluster, &host, info).await.map(|stream| (stream, None)),
        Some(Ok(callee)) => inside(worker, callee, info).await,
        Some(Err(error)) => Err(ConnectError::new(ConnectErrorKind::Tls, error.to_string())),
    };
    match result {
        Ok((stream, callee)) => {
            let active = Rc::clone(&cluster.stats.connections_active);
            active.add(1);
            let guards = Guards { cluster: Rc::clone(cluster), active, _permit: permit, _request: host.begin() };
            Ok(Upstream { stream, callee, guards })
        }
        Err(error) => {
            failed(cluster, &host, &error, info);
            Err(Failure::Retriable)
        }
    }
}

fn upstream_info(cluster: &ClusterRuntime, host: Option<&Host>) -> UpstreamInfo {
    UpstreamInfo {
        cluster: cluster.scoped(),
        endpoint: host.map(|host| Arc::clone(&host.endpoint)),
        local_address: None,
        own_identity: None,
        peer: None,
        is_local: false,
        transport_failure: String::new(),
    }
}

fn failed(cluster: &ClusterRuntime, host: &Host, error: &ConnectError, info: &mut StreamInfo) {
    cluster.stats.connect_failures.inc();
    if error.kind == ConnectErrorKind::Timeout {
        cluster.stats.connect_timeouts.inc();
    }
    cluster.report(host, Outcome::LocalOrigin);
    info.flags.insert(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
    if let Some(upstream) = &mut info.upstream {
        upstream.transport_failure = error.transport_failure_reason();
    }
}

/// What would have been reached, for the log of a connection that is denied.
pub(crate) fn intended(worker: &Rc<Worker>, connection: &Connection, proxy: &TcpProxy) -> Option<UpstreamInfo> {
    let cluster = worker.cluster(&connection.scope, cluster_name(&proxy.clusters, worker.random()))?;
    Some(upstream_info(&cluster, None))
}

/// Connects to an endpoint over the network (or to a workload through its representor).
async fn remote(
    worker: &Rc<Worker>,
    connection: &Connection,
    cluster: &Rc<ClusterRuntime>,
    host: &Host,
    info: &mut StreamInfo,
) -> Result<Stream, ConnectError> {
    let scoped = cluster.scoped();
    let target = target(worker, connection, cluster, host, &TargetOptions::default())?;
    cluster.stats.connections.inc();
    let connected = connect(&target, scoped.cluster.connect_timeout, scoped.cluster.tcp_keepalive).await?;
    if let Some(upstream) = &mut info.upstream {
        upstream.local_address = Some(connected.local_address);
        upstream.own_identity = own_identity(&target);
        upstream.peer = connected.peer;
        upstream.is_local = scoped.cluster.delivers_to_workload;
    }
    Ok(connected.stream)
}

fn own_identity(target: &Target) -> Option<Arc<str>> {
    let tls = target.tls.as_ref()?;
    tls.config.local_uri_sans.first().map(|uri| uri.as_str().into())
}

/// The callee lives on this DPU: its inbound rules apply now, in the same pass.
async fn inside(
    worker: &Rc<Worker>,
    callee: Connection,
    caller: &mut StreamInfo,
) -> Result<(Stream, Option<Callee>), ConnectError> {
    if let Some(upstream) = &mut caller.upstream {
        upstream.is_local = true;
        upstream.own_identity = callee.peer_identity().map(Into::into);
        upstream.peer = callee.tls.as_ref().map(local::shown_by_callee);
    }
    if let Err(denied) = authorize::network(&callee, &worker.stats) {
        accept::refuse_denied(worker, &callee, &denied);
        return Err(ConnectError::new(ConnectErrorKind::Connect, denied));
    }
    let chain = Arc::clone(&callee.chain);
    let TerminalFilter::Tcp(proxy) = &chain.terminal else {
        return upstream::inward::serve(worker, callee).await.map(|stream| (stream, None));
    };
    let mut info = StreamInfo::since(callee.started, callee.started_wall);
    let name = cluster_name(&proxy.clusters, worker.random());
    let missing = || ConnectError::new(ConnectErrorKind::Connect, format!("the callee has no cluster {name:?}"));
    let cluster = worker.cluster(&callee.scope, name).ok_or_else(missing)?;
    let picked = cluster
        .pick(&PickContext { original_destination: Some(callee.original_destination), ..PickContext::default() })
        .map_err(|error| ConnectError::new(ConnectErrorKind::Connect, error.to_string()))?;
    info.upstream = Some(upstream_info(&cluster, Some(&picked)));
    let stream = remote(worker, &callee, &cluster, &picked, &mut info).await?;
    Ok((stream, Some(Callee { connection: callee, proxy: Arc::clone(proxy), info })))
}
