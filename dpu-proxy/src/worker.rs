//! `Worker`: what one core has for itself. It lives on its own thread and is never shared (`Rc`).
//!
//! In: snapshots and devices, from the `state` watch. Out: the current snapshot, cluster runtimes,
//! statistics, random numbers and the drain signal, to the data paths of this core.

use crate::fairness::{self, Shares, Slot};
use crate::http;
use crate::listener::probe;
use crate::shared::{Devices, Phase, Shared, State};
use crate::stats::Stats;
use crate::telemetry::Telemetry;
use crate::tls::TlsCache;
use crate::upstream::ClusterRuntime;
use dpu_proxy_core::model::{Scope, ScopedCluster, Snapshot, Workload};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long an idle connection stays once the proxy drains: what its client has just sent may be on its way.
pub const DRAIN_GRACE: Duration = Duration::from_millis(500);

/// What one core has for itself.
pub struct Worker {
    /// From 0.
    pub index: usize,
    /// What the process has once: secrets, DNS, settings. Not for the hot path.
    pub shared: Arc<Shared>,
    pub stats: Stats,
    pub telemetry: Telemetry,
    /// What the HTTP path keeps per worker.
    pub http: http::WorkerState,
    pub(crate) tls: TlsCache,
    /// Ports with `tcpSocket` probes.
    pub(crate) watch: probe::Watch,
    state: RefCell<Rc<State>>,
    clusters: RefCell<HashMap<u64, Rc<ClusterRuntime>>>,
    phase: watch::Receiver<Phase>,
    shares: Rc<Shares>,
    weights: Cell<u64>,
    connections: Cell<u64>,
    last_connection: Cell<u64>,
    me: Weak<Worker>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("index", &self.index).field("connections", &self.connections).finish()
    }
}

/// Counts a connection of this worker while it lives.
#[derive(Debug)]
pub struct Held(Rc<Worker>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
    }
}

impl Worker {
    /// A worker that starts with the state of `shared`.
    pub fn new(index: usize, shared: Arc<Shared>) -> Rc<Self> {
        let state = Rc::new(shared.state.borrow().clone());
        let stats = Stats::default();
        let worker = Rc::new_cyclic(|me| Self {
            index,
            telemetry: Telemetry::new(&shared),
            http: http::WorkerState::default(),
            tls: TlsCache::default(),
            watch: probe::Watch::default(),
            state: RefCell::new(state),
            clusters: RefCell::default(),
            phase: shared.phase.subscribe(),
            shares: Shares::new(fairness::capacity(descriptors(), shared.settings.workers)),
            weights: Cell::new(1),
            connections: Cell::new(0),
            last_connection: Cell::new(0),
            stats,
            me: Weak::clone(me),
            shared,
        });
        worker.start_discovered_clusters();
        worker
    }

    /// Snapshot, devices and secrets in force. Load it once per decision.
    pub fn state(&self) -> Rc<State> {
        Rc::clone(&self.state.borrow())
    }

    /// The snapshot in force. Load it once per decision.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.state.borrow().snapshot)
    }

    /// Network devices by dataplane port.
    pub fn devices(&self) -> Arc<Devices> {
        Arc::clone(&self.state.borrow().devices)
    }

    /// Puts a new state in force on this worker.
    pub fn apply(self: &Rc<Self>, state: State) {
        self.update_clusters(&state.snapshot);
        self.weights.set(state.snapshot.workloads.values().map(|workload| u64::from(workload.weight)).sum());
        *self.state.borrow_mut() = Rc::new(state);
        self.tls.sweep();
        self.start_discovered_clusters();
        probe::follow(self);
    }

    /// The runtime of a cluster of `scope`; `None` when the scope has no cluster of that name.
    pub fn cluster(self: &Rc<Self>, scope: &Scope, name: &str) -> Option<Rc<ClusterRuntime>> {
        scope.clusters.get(name).map(|scoped| self.cluster_of(scoped))
    }

    /// The runtime of a cluster, made when it is first asked for.
    pub fn cluster_of(self: &Rc<Self>, scoped: &Arc<ScopedCluster>) -> Rc<ClusterRuntime> {
        if let Some(runtime) = self.clusters.borrow().get(&scoped.id) {
            return Rc::clone(runtime);
        }
        let runtime = ClusterRuntime::start(self, scoped);
        self.clusters.borrow_mut().insert(scoped.id, Rc::clone(&runtime));
        runtime
    }

    /// All cluster runtimes of this worker.
    pub fn clusters(&self) -> Vec<Rc<ClusterRuntime>> {
        self.clusters.borrow().values().cloned().collect()
    }

    /// This worker, for what it owns itself.
    pub fn weak(&self) -> Weak<Self> {
        Weak::clone(&self.me)
    }

    /// A random number.
    pub fn random(&self) -> u64 {
        fastrand::u64(..)
    }

    /// A connection id that is unique in this process.
    pub fn next_connection_id(&self) -> u64 {
        let count = self.last_connection.get() + 1;
        self.last_connection.set(count);
        count * self.shared.settings.workers as u64 + self.index as u64
    }

    /// Counts a connection until the guard is dropped.
    pub fn hold(self: &Rc<Self>) -> Held {
        self.connections.set(self.connections.get() + 1);
        Held(Rc::clone(self))
    }

    /// A slot for a connection of this workload (of the root scope, without one), if its share allows it.
    pub fn admit(&self, workload: Option<&Workload>) -> Option<Slot> {
        let weight = workload.map_or(1, |workload| u64::from(workload.weight));
        self.shares.admit(workload.map(|workload| &workload.uid), weight, self.weights.get())
    }

    /// Downstream connections that live on this worker.
    pub fn connections(&self) -> u64 {
        self.connections.get()
    }

    /// True once the proxy drains: answer `connection: close` and GOAWAY, take no new request on idle connections.
    pub fn is_draining(&self) -> bool {
        *self.phase.borrow() != Phase::Serving
    }

    /// Waits until the proxy has drained for so long that who has said nothing by now is idle.
    pub async fn patience(&self) {
        self.draining().await;
        tokio::time::sleep(DRAIN_GRACE).await;
    }

    /// Waits until the proxy drains.
    pub async fn draining(&self) {
        let mut phase = self.phase.clone();
        // The sender lives as long as the process.
        let _ = phase.wait_for(|phase| *phase != Phase::Serving).await;
    }

    fn update_clusters(&self, snapshot: &Snapshot) {
        let mut alive: HashMap<u64, &Arc<ScopedCluster>> = HashMap::new();
        let scopes = snapshot.workloads.values().map(|workload| &workload.scope).chain([&snapshot.root]);
        for scope in scopes {
            alive.extend(scope.clusters.values().map(|scoped| (scoped.id, scoped)));
        }
        self.clusters.borrow_mut().retain(|id, runtime| match alive.get(id) {
            Some(scoped) => {
                runtime.update(scoped);
                true
            }
            None => false,
        });
    }

    /// Clusters whose endpoints come from DNS start at once, so that they are there when they are needed.
    fn start_discovered_clusters(self: &Rc<Self>) {
        use dpu_proxy_core::model::Discovery;
        let snapshot = self.snapshot();
        let scopes = snapshot.workloads.values().map(|workload| &workload.scope).chain([&snapshot.root]);
        for scoped in scopes.flat_map(|scope| scope.clusters.values()) {
            if matches!(scoped.cluster.discovery, Discovery::StrictDns { .. } | Discovery::LogicalDns { .. }) {
                self.cluster_of(scoped);
            }
        }
    }
}

/// How many file descriptors this process may have.
fn descriptors() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX / 4)
}
