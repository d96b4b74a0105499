//! `ClusterRuntime`: a cluster on one worker.
//!
//! In: the scoped cluster of each snapshot, endpoints from DNS. Out: a host per pick, circuit-breaker
//! guards, statistics.

use super::host::{Host, HostState, Outcome};
use crate::stats::{Counter, Gauge, Stats};
use crate::worker::Worker;
use dpu_proxy_core::balance::{Balancer, HostLoad};
use dpu_proxy_core::model::{Cluster, Discovery, Endpoint, EndpointSet, ScopedCluster};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// What a pick may depend on.
#[derive(Clone, Copy, Debug, Default)]
pub struct PickContext<'a> {
    /// Of the route's hash policy.
    pub hash: Option<u64>,
    /// Where the client wanted to go, for ORIGINAL_DST.
    pub original_destination: Option<SocketAddr>,
    /// Hosts that were tried already; avoided when there are others.
    pub avoid: &'a [SocketAddr],
}

/// Why there is no host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoEndpoint {
    #[error("no_healthy_upstream")]
    NoHealthyUpstream,
    #[error("no_original_destination")]
    NoOriginalDestination,
}

/// Handles of a cluster's metrics.
#[derive(Debug)]
pub struct ClusterStats {
    pub requests: Rc<Counter>,
    pub requests_by_class: [Rc<Counter>; 5],
    pub requests_active: Rc<Gauge>,
    pub request_retries: Rc<Counter>,
    pub request_timeouts: Rc<Counter>,
    pub request_resets: Rc<Counter>,
    pub pending_overflow: Rc<Counter>,
    pub connections: Rc<Counter>,
    pub connections_active: Rc<Gauge>,
    pub connect_failures: Rc<Counter>,
    pub connect_timeouts: Rc<Counter>,
    pub bytes_sent: Rc<Counter>,
    pub bytes_received: Rc<Counter>,
    pub none_healthy: Rc<Counter>,
    pub ejections: Rc<Counter>,
}

/// A cluster on one worker.
#[derive(Debug)]
pub struct ClusterRuntime {
    /// `ScopedCluster::id`.
    pub id: u64,
    pub stats: ClusterStats,
    scoped: RefCell<Arc<ScopedCluster>>,
    members: RefCell<Rc<Members>>,
    states: RefCell<HashMap<SocketAddr, Rc<HostState>>>,
    limits: Limits,
}

/// Hosts by the endpoint set that they were made of.
#[derive(Debug)]
struct Members {
    set: Arc<EndpointSet>,
    hosts: Vec<Rc<Host>>,
    balancer: RefCell<Balancer>,
    /// When the next ejection ends: the balancer is built again then.
    stale_at: Cell<Option<Instant>>,
}

impl Members {
    fn new(cluster: &Cluster, set: &Arc<EndpointSet>, hosts: Vec<Rc<Host>>) -> Self {
        let now = Instant::now();
        let balancer = RefCell::new(balancer(cluster, set, &hosts, now));
        let stale_at = Cell::new(next_return(&hosts, now));
        Self { set: Arc::clone(set), hosts, balancer, stale_at }
    }

    /// Takes ejections as they are at `now` into account.
    fn rebalance(&self, cluster: &Cluster, now: Instant) {
        self.balancer.replace(balancer(cluster, &self.set, &self.hosts, now));
        self.stale_at.set(next_return(&self.hosts, now));
    }
}

fn balancer(cluster: &Cluster, set: &EndpointSet, hosts: &[Rc<Host>], now: Instant) -> Balancer {
    let is_ejected = |index: usize| hosts.get(index).is_some_and(|host| host.is_ejected(now));
    Balancer::new(cluster, set, is_ejected, fastrand::u64(..))
}

fn next_return(hosts: &[Rc<Host>], now: Instant) -> Option<Instant> {
    hosts.iter().filter_map(|host| host.ejected_until(now)).min()
}

/// What the balancer asks of hosts.
struct Load<'a> {
    hosts: &'a [Rc<Host>],
    avoid: &'a [SocketAddr],
}

impl HostLoad for Load<'_> {
    fn active(&self, index: usize) -> u32 {
        self.hosts.get(index).map_or(0, |host| host.active())
    }

    fn is_avoided(&self, index: usize) -> bool {
        !self.avoid.is_empty() && self.hosts.get(index).is_some_and(|host| self.avoid.contains(&host.address()))
    }
}

/// What circuit breakers count.
#[derive(Debug, Default)]
pub struct Limits {
    connections: Rc<Cell<u32>>,
    pending: Rc<Cell<u32>>,
    requests: Rc<Cell<u32>>,
    retries: Rc<Cell<u32>>,
}

/// One unit of a limit while it lives.
#[derive(Debug)]
pub struct Permit(Rc<Cell<u32>>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

fn permit(used: &Rc<Cell<u32>>, limit: u32) -> Option<Permit> {
    (used.get() < limit).then(|| {
        used.set(used.get() + 1);
        Permit(Rc::clone(used))
    })
}

impl ClusterRuntime {
    /// Starts a cluster on a worker; endpoints of DNS clusters follow as they are resolved.
    pub fn start(worker: &Rc<Worker>, scoped: &Arc<ScopedCluster>) -> Rc<Self> {
        let runtime = Rc::new(Self::new(&worker.stats, scoped));
        if let Some(mut resolved) = worker.shared.names.follow(scoped) {
            let weak = Rc::downgrade(&runtime);
            tokio::task::spawn_local(async move {
                loop {
                    let set = resolved.borrow_and_update().clone();
                    match weak.upgrade() {
                        Some(runtime) => runtime.set_endpoints(&set),
                        None => return,
                    }
                    if resolved.changed().await.is_err() {
                        return;
                    }
                }
            });
        }
        runtime
    }

    fn new(stats: &Stats, scoped: &Arc<ScopedCluster>) -> Self {
        let runtime = Self {
            id: scoped.id,
            stats: ClusterStats::new(stats, &scoped.cluster.name),
            scoped: RefCell::new(Arc::clone(scoped)),
            members: RefCell::new(Rc::new(Members::new(&scoped.cluster, &Arc::default(), Vec::new()))),
            states: RefCell::default(),
            limits: Limits::default(),
        };
        runtime.set_endpoints(&scoped.endpoints);
        runtime
    }

    /// The cluster as configured now.
    pub fn scoped(&self) -> Arc<ScopedCluster> {
        Arc::clone(&self.scoped.borrow())
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.scoped.borrow().cluster.name.clone()
    }

    /// Takes the cluster of a new snapshot.
    pub fn update(&self, scoped: &Arc<ScopedCluster>) {
        let is_resolved = matches!(
            scoped.cluster.discovery,
            Discovery::StrictDns { .. } | Discovery::LogicalDns { .. } | Discovery::OriginalDst { .. }
        );
        *self.scoped.borrow_mut() = Arc::clone(scoped);
        if !is_resolved {
            self.set_endpoints(&scoped.endpoints);
        }
    }

    /// Chooses a host.
    pub fn pick(&self, context: &PickContext<'_>) -> Result<Rc<Host>, NoEndpoint> {
        let scoped = self.scoped();
        if let Discovery::OriginalDst { port_override, .. } = scoped.cluster.discovery {
            return self.original_destination(context.original_destination, port_override);
        }
        let picked = self.balance(context);
        if picked.is_none() {
            self.stats.none_healthy.inc();
        }
        picked.ok_or(NoEndpoint::NoHealthyUpstream)
    }

    /// Hosts as they are now.
    pub fn hosts(&self) -> Vec<Rc<Host>> {
        self.members.borrow().hosts.clone()
    }

    /// Reports how a request to `host` ended; ejects it where outlier detection says so.
    pub fn report(&self, host: &Host, outcome: Outcome) {
        let scoped = self.scoped.borrow();
        let detection = scoped.cluster.outlier_detection.as_ref();
        if !host.state.count(outcome, detection) {
            return;
        }
        let Some(detection) = detection else { return };
        let now = Instant::now();
        let members = self.members.borrow();
        let ejected = members.hosts.iter().filter(|host| host.is_ejected(now)).count();
        // Envoy ejects at least one host whatever the percentage.
        if ejected == 0 || (ejected + 1) * 100 <= detection.max_ejection_percent as usize * members.hosts.len() {
            host.state.eject(detection, now);
            members.rebalance(&scoped.cluster, now);
            self.stats.ejections.inc();
        }
    }

    /// A connection slot; `None` when `max_connections` are in use.
    pub fn connection_permit(&self) -> Option<Permit> {
        permit(&self.limits.connections, self.scoped.borrow().cluster.circuit_breakers.max_connections)
    }

    /// A slot to wait for a connection.
    pub fn pending_permit(&self) -> Option<Permit> {
        permit(&self.limits.pending, self.scoped.borrow().cluster.circuit_breakers.max_pending_requests)
    }

    /// A slot for a request (HTTP/2).
    pub fn request_permit(&self) -> Option<Permit> {
        permit(&self.limits.requests, self.scoped.borrow().cluster.circuit_breakers.max_requests)
    }

    /// A slot for a retry.
    pub fn retry_permit(&self) -> Option<Permit> {
        permit(&self.limits.retries, self.scoped.borrow().cluster.circuit_breakers.max_retries)
    }

    fn set_endpoints(&self, set: &Arc<EndpointSet>) {
        if Arc::ptr_eq(set, &self.members.borrow().set) {
            return;
        }
        let endpoints = set.priorities.iter().flat_map(|priority| &priority.localities).flat_map(|l| &l.endpoints);
        let hosts: Vec<_> = endpoints.map(|endpoint| Rc::new(self.host(endpoint))).collect();
        self.states.borrow_mut().retain(|address, _| hosts.iter().any(|host| host.address() == *address));
        let members = Members::new(&self.scoped.borrow().cluster, set, hosts);
        *self.members.borrow_mut() = Rc::new(members);
    }

    fn host(&self, endpoint: &Arc<Endpoint>) -> Host {
        let mut states = self.states.borrow_mut();
        Host { endpoint: Arc::clone(endpoint), state: Rc::clone(states.entry(endpoint.address).or_default()) }
    }

    fn original_destination(&self, to: Option<SocketAddr>, port: Option<u16>) -> Result<Rc<Host>, NoEndpoint> {
        let mut address = to.ok_or(NoEndpoint::NoOriginalDestination)?;
        address.set_port(port.unwrap_or(address.port()));
        let known = self.members.borrow().hosts.iter().find(|host| host.address() == address).cloned();
        Ok(known.unwrap_or_else(|| Rc::new(self.host(&Arc::new(passthrough(address))))))
    }

    fn balance(&self, context: &PickContext<'_>) -> Option<Rc<Host>> {
        let members = Rc::clone(&self.members.borrow());
        if let Some(stale_at) = members.stale_at.get() {
            let now = Instant::now();
            if stale_at <= now {
                members.rebalance(&self.scoped.borrow().cluster, now);
            }
        }
        let load = Load { hosts: &members.hosts, avoid: context.avoid };
        let index = members.balancer.borrow_mut().choose(&load, context.hash, &mut || fastrand::u64(..))?;
        members.hosts.get(index).cloned()
    }
}

fn passthrough(address: SocketAddr) -> Endpoint {
    Endpoint {
        address,
        hostname: String::new(),
        weight: 1,
        health: Default::default(),
        transport_match: Vec::new(),
        istio_workload: String::new(),
    }
}

impl ClusterStats {
    fn new(stats: &Stats, name: &str) -> Self {
        let label = [("envoy_cluster_name", name)];
        let class = |class| {
            stats.counter(
                "envoy_cluster_upstream_rq_xx",
                &[("envoy_cluster_name", name), ("envoy_response_code_class", class)],
            )
        };
        Self {
            requests: stats.counter("envoy_cluster_upstream_rq_total", &label),
            requests_by_class: ["1", "2", "3", "4", "5"].map(class),
            requests_active: stats.gauge("envoy_cluster_upstream_rq_active", &label),
            request_retries: stats.counter("envoy_cluster_upstream_rq_retry", &label),
            request_timeouts: stats.counter("envoy_cluster_upstream_rq_timeout", &label),
            request_resets: stats.counter("envoy_cluster_upstream_rq_rx_reset", &label),
            pending_overflow: stats.counter("envoy_cluster_upstream_rq_pending_overflow", &label),
            connections: stats.counter("envoy_cluster_upstream_cx_total", &label),
            connections_active: stats.gauge("envoy_cluster_upstream_cx_active", &label),
            connect_failures: stats.counter("envoy_cluster_upstream_cx_connect_fail", &label),
            connect_timeouts: stats.counter("envoy_cluster_upstream_cx_connect_timeout", &label),
            bytes_sent: stats.counter("envoy_cluster_upstream_cx_tx_bytes_total", &label),
            bytes_received: stats.counter("envoy_cluster_upstream_cx_rx_bytes_total", &label),
            none_healthy: stats.counter("envoy_cluster_upstream_cx_none_healthy", &label),
            ejections: stats.counter("envoy_cluster_outlier_detection_ejections_total", &label),
        }
    }

    /// Counts a response by its class.
    pub fn count_status(&self, status: u16) {
        if let Some(counter) = self.requests_by_class.get((status / 100).wrapping_sub(1) as usize) {
            counter.inc();
        }
    }
}
