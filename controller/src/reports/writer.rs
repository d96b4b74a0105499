//! Writes what the board says: soon, together, and until it is written.

use super::board::{Board, Wanted};
use super::event::event;
use super::node;
use super::peer_authentication::PeerAuthentications;
use super::recorder::{Recorder, Regarding};
use super::workload;
use super::write::{Failure, Writes};
use super::{Part, Target};
use crate::crd::mesh::TLS_MODE;
use crate::crd::{DpuNodeStatus, DpuWorkloadStatus};
use crate::keeper::Keeper;
use crate::metrics::Metrics;
use crate::object::{Key, Kind};
use futures_util::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use mesh_api::report::workload_report::Part as Wire;
use mesh_api::report::{NodeReport, WorkloadReport};
use service::backoff::Backoff;
use service::signal::CancellationToken;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// What comes together is written together, and what changes meanwhile once.
const SETTLE: Duration = Duration::from_millis(200);
/// So many writes are under way at once.
const CONCURRENCY: usize = 8;
/// Nodes, and what was forbidden, are written again so often; the API server does nothing when it is as it is.
const REFRESH_INTERVAL: Duration = Duration::from_secs(20);
/// What was written of so many pods is remembered; of others the API server is asked.
const REMEMBERED: usize = 20_000;

/// The board, shared by all streams, and how far it is written.
#[derive(Clone, Debug)]
pub struct Shared {
    board: Arc<Mutex<Board>>,
    peer_authentications: Arc<Mutex<PeerAuthentications>>,
    bell: Arc<Notify>,
    done: Arc<watch::Sender<u64>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self::of_mesh(PeerAuthentications::default())
    }
}

impl Shared {
    /// With these of Istio's objects, which are not told by nodes.
    pub fn of_mesh(peer_authentications: PeerAuthentications) -> Self {
        Self {
            board: Arc::default(),
            peer_authentications: Arc::new(Mutex::new(peer_authentications)),
            bell: Arc::default(),
            done: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Changes them, and looks at all configurations again if the change says so, which is returned.
    pub fn change_peer_authentications(&self, change: impl FnOnce(&mut PeerAuthentications) -> bool) -> bool {
        let is_change = change(&mut lock(&self.peer_authentications));
        if is_change {
            self.change(Board::configurations_changed);
        }
        is_change
    }

    /// Changes the board, and rings.
    pub fn change<T>(&self, change: impl FnOnce(&mut Board) -> T) -> T {
        let changed = change(&mut self.board());
        self.bell.notify_one();
        changed
    }

    /// Waits until that message is written.
    pub async fn written(&self, message: u64) {
        // The sender lives as long as `self`.
        let _ = self.done.subscribe().wait_for(|done| *done >= message).await;
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        lock(&self.board)
    }
}

type Place = (Part, String, String);

/// The one task that writes.
#[allow(missing_debug_implementations)]
pub struct Writer {
    shared: Shared,
    writes: Writes,
    recorder: Recorder,
    keeper: Keeper,
    replica: String,
    metrics: Metrics,
    /// Parts as they are written.
    workloads: Mutex<HashMap<Place, DpuWorkloadStatus>>,
    nodes: Mutex<HashMap<(Part, String), DpuNodeStatus>>,
}

impl Writer {
    /// Of the replica of that name.
    pub fn new(shared: Shared, client: Client, keeper: Keeper, replica: &str, metrics: Metrics) -> Self {
        Self {
            shared,
            writes: Writes { client: client.clone() },
            recorder: Recorder::new(client, replica),
            keeper,
            replica: replica.to_owned(),
            metrics,
            workloads: Mutex::default(),
            nodes: Mutex::default(),
        }
    }

    /// Until the stop.
    pub async fn run(self, shutdown: CancellationToken) {
        let (mut tables, mut seen) = (self.keeper.version(), 0);
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
        let mut refresh = tokio::time::interval(REFRESH_INTERVAL);
        loop {
            tokio::select! {
                _ = refresh.tick() => self.refresh(),
                () = self.shared.bell.notified() => {}
                // The keeper lives as long as `self`.
                _ = tables.changed() => seen = self.tables_changed(seen),
                () = shutdown.cancelled() => return,
            }
            if !self.shared.board().is_dirty() {
                self.tell();
                continue;
            }
            tokio::time::sleep(SETTLE).await;
            if self.write_all().await {
                backoff.reset();
            } else {
                tokio::time::sleep(backoff.next(fastrand::f64())).await;
                self.shared.bell.notify_one();
            }
        }
    }

    /// What waited for an object may be written now, and other labels may select a pod. Returns the version of the tables.
    fn tables_changed(&self, seen: u64) -> u64 {
        let controller = self.keeper.controller();
        let tables = controller.tables();
        let pods = tables.changed_since(seen).filter(|key| key.kind == Kind::Pod);
        let node = |key: &Key| tables.pod(&key.namespace, &key.name).map(|pod| pod.node.clone());
        let pods: Vec<(String, &Key)> = pods.filter_map(|key| Some((node(key)?, key))).collect();
        let mut board = self.shared.board();
        board.tables_changed();
        pods.iter().for_each(|(node, key)| board.configuration_changed(node, &key.namespace, &key.name));
        tables.version()
    }

    fn refresh(&self) {
        lock(&self.nodes).clear();
        self.shared.board().refresh();
    }

    /// Whether nothing has to be tried again.
    async fn write_all(&self) -> bool {
        let targets = self.shared.board().start_writing();
        let writes = targets.into_iter().map(|target| async move {
            let written = self.write(&target).await;
            self.note(target, written)
        });
        let all: Vec<bool> = futures_util::stream::iter(writes).buffer_unordered(CONCURRENCY).collect().await;
        all.into_iter().all(|is_settled| is_settled)
    }

    fn note(&self, target: Target, written: Result<(), Failure>) -> bool {
        let outcome = match &written {
            Ok(()) => "written",
            Err(Failure::Unknown) => "postponed",
            Err(Failure::Retry(_)) => "failed",
            Err(Failure::Forbidden(_)) => "forbidden",
            Err(Failure::Final(_)) => "refused",
        };
        self.metrics.report_written(outcome);
        let mut board = self.shared.board();
        let is_settled = !matches!(written, Err(Failure::Retry(_)));
        match written {
            Ok(()) => board.written(&target),
            Err(Failure::Unknown) => board.postponed(target),
            Err(Failure::Retry(reason)) => {
                tracing::warn!(object = %target, reason, "status is not written yet");
                board.failed(target);
            }
            Err(Failure::Forbidden(reason)) => {
                tracing::error!(object = %target, reason, "status may not be written; it is tried again later");
                board.forbidden(target);
            }
            Err(Failure::Final(reason)) => {
                tracing::error!(object = %target, reason, "status cannot be written");
                board.written(&target);
            }
        }
        drop(board);
        self.tell();
        is_settled
    }

    fn tell(&self) {
        let done = self.shared.board().done();
        self.shared.done.send_if_modified(|told| std::mem::replace(told, done) != done);
    }

    async fn write(&self, target: &Target) -> Result<(), Failure> {
        let wanted = self.shared.board().wanted(target);
        match (target, wanted) {
            (Target::Workload { part, node, .. }, Wanted::Workload(report)) => {
                self.put_workload(*part, node, &report).await
            }
            (Target::Workload { part, node, namespace, name }, _) => {
                self.clear_workload(*part, node, namespace, name).await
            }
            (Target::Node { part, node }, Wanted::Node { report, connected: true, again }) => {
                self.put_node(*part, node, &report, again).await
            }
            (Target::Node { part, node }, Wanted::Node { connected: false, .. }) => self.leave_node(*part, node).await,
            (Target::Node { .. }, _) => Ok(()),
        }
    }

    async fn put_workload(&self, part: Part, node: &str, report: &WorkloadReport) -> Result<(), Failure> {
        if !self.runs_there(node, report) {
            return Err(Failure::Unknown);
        }
        let place = (part, report.namespace.clone(), report.name.clone());
        let known = lock(&self.workloads).get(&place).cloned();
        let before = match known {
            Some(known) => known,
            None => self.writes.workload(part, report).await?,
        };
        let mut now = workload::status(node, report, &before, Timestamp::now());
        if part == Part::Proxy {
            self.add_peer_authentications(report, &mut now, &before);
        }
        if now == before {
            return Ok(());
        }
        if self.hides_mutual_tls(report) {
            self.writes.tell_mutual_tls(report).await?;
        }
        self.writes.put_workload(part, report, &now).await?;
        self.remember(place, now.clone());
        if let Some(event) = event(part, &before, &now) {
            let (namespace, name, uid) = (report.namespace.clone(), report.name.clone(), report.uid.clone());
            self.recorder.publish(&Regarding { namespace, name, uid }, &event).await;
        }
        Ok(())
    }

    /// What istiod leaves no trace of in what it sends.
    fn add_peer_authentications(
        &self,
        report: &WorkloadReport,
        now: &mut DpuWorkloadStatus,
        before: &DpuWorkloadStatus,
    ) {
        let controller = self.keeper.controller();
        let Some(pod) = controller.tables().pod(&report.namespace, &report.name) else { return };
        lock(&self.shared.peer_authentications).add_to(now, before, &report.namespace, &pod.labels);
    }

    /// Whether the pod takes mutual TLS, since its port is governed, and its labels say nothing of it.
    fn hides_mutual_tls(&self, report: &WorkloadReport) -> bool {
        let Some(Wire::Attachment(attachment)) = &report.part else { return false };
        let controller = self.keeper.controller();
        let pod = controller.tables().pod(&report.namespace, &report.name);
        attachment.governed && pod.is_some_and(|pod| !pod.labels.contains_key(TLS_MODE))
    }

    /// A node tells of its own pods only.
    fn runs_there(&self, node: &str, report: &WorkloadReport) -> bool {
        let controller = self.keeper.controller();
        let pod = controller.tables().pod(&report.namespace, &report.name);
        pod.is_some_and(|pod| pod.node == node && pod.uid == report.uid)
    }

    fn remember(&self, place: Place, status: DpuWorkloadStatus) {
        let mut known = lock(&self.workloads);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(place, status);
    }

    async fn clear_workload(&self, part: Part, node: &str, namespace: &str, name: &str) -> Result<(), Failure> {
        let place = (part, namespace.to_owned(), name.to_owned());
        let known = lock(&self.workloads).get(&place).cloned();
        let before = match known {
            Some(known) => known,
            None => self.writes.workload_named(part, namespace, name).await?,
        };
        // Another node has a pod of that name by now.
        if before.node.as_deref() != Some(node) {
            return Ok(());
        }
        self.writes.clear_workload(part, namespace, name).await?;
        lock(&self.workloads).remove(&place);
        Ok(())
    }

    async fn put_node(&self, part: Part, node: &str, report: &NodeReport, again: bool) -> Result<(), Failure> {
        let place = (part, node.to_owned());
        let known = lock(&self.nodes).get(&place).cloned();
        let before = match &known {
            Some(known) => known.clone(),
            None => self.writes.node(node).await?,
        };
        // Its stream here may be dead without a sign, and the program report to another replica.
        if again && node::told_to_another(&before, part, &self.replica) {
            return Ok(());
        }
        let now = node::status(report, &self.replica, &before, Timestamp::now());
        if known.as_ref() == Some(&now) {
            return Ok(());
        }
        self.writes.put_node_part(part, node, &now).await?;
        lock(&self.nodes).insert(place, now);
        Ok(())
    }

    /// The program left, and did not come back here. It may report to another replica by now.
    async fn leave_node(&self, part: Part, node: &str) -> Result<(), Failure> {
        lock(&self.nodes).remove(&(part, node.to_owned()));
        let before = self.writes.node(node).await?;
        let Some(now) = node::away(&before, part, &self.replica, Timestamp::now()) else { return Ok(()) };
        self.writes.put_node_part(part, node, &now).await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
