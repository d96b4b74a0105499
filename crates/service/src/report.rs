//! Tells the controller what this program knows of its pods and its node, for people to see.
//!
//! In: the newest report of each pod and of the node, whenever there is one. Out: a stream to the
//! controller that begins with all of them and goes on with what changed. `Outbox` decides what is
//! to be sent and is pure; the task around it connects, sends and waits for the answer. One message
//! is under way at a time, so a slow controller is told less often, and always the newest.

use crate::backoff::Backoff;
use crate::grpc::{Endpoint, GrpcError, TlsArgs, endpoint};
use mesh_api::report::reports_client::ReportsClient;
use mesh_api::report::{NodeReport, Report, ReportAck, WorkloadReport};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Reports that come together are sent together.
const SETTLE: Duration = Duration::from_millis(50);
/// A stream that lived this long was healthy: the next wait starts small again.
const HEALTHY: Duration = Duration::from_secs(5);

/// Takes reports and never blocks; clones share one stream. It ends with the last clone.
#[derive(Clone, Debug)]
pub struct Reporter {
    outbox: Arc<Mutex<Outbox>>,
    bell: watch::Sender<()>,
}

impl Reporter {
    /// Reports to the controller at `uri`, whose certificate carries `server_name`. The stream opens
    /// with the first report of the node: a program that has restarted tells of its pods first, and
    /// so withdraws nothing that it merely does not know again.
    pub fn start(uri: &str, tls: &TlsArgs, server_name: &str) -> Result<Self, GrpcError> {
        let endpoint = endpoint(uri, tls, server_name)?;
        let outbox = Arc::<Mutex<Outbox>>::default();
        let (bell, rung) = watch::channel(());
        tokio::spawn(Sender { endpoint, outbox: Arc::clone(&outbox), rung }.run());
        Ok(Self { outbox, bell })
    }

    /// The newest of this pod.
    pub fn workload(&self, report: WorkloadReport) {
        self.change(|outbox| outbox.workload(report));
    }

    /// The pod `NAMESPACE/NAME` is gone.
    pub fn remove(&self, name: &str) {
        self.change(|outbox| outbox.remove(name));
    }

    /// The newest of the node.
    pub fn node(&self, report: NodeReport) {
        self.change(|outbox| outbox.node(report));
    }

    fn change(&self, change: impl FnOnce(&mut Outbox) -> bool) {
        if change(&mut lock(&self.outbox)) {
            // Without a sender the program is stopping.
            let _ = self.bell.send(());
        }
    }
}

fn lock(outbox: &Mutex<Outbox>) -> MutexGuard<'_, Outbox> {
    outbox.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The newest of everything, and what of it the controller has not been sent.
#[derive(Debug, Default)]
struct Outbox {
    workloads: BTreeMap<String, WorkloadReport>,
    node: Option<NodeReport>,
    /// Pods that changed or went.
    changed: BTreeSet<String>,
    node_changed: bool,
}

impl Outbox {
    fn workload(&mut self, report: WorkloadReport) -> bool {
        let name = format!("{}/{}", report.namespace, report.name);
        if self.workloads.get(&name) == Some(&report) {
            return false;
        }
        self.workloads.insert(name.clone(), report);
        self.changed.insert(name);
        true
    }

    fn remove(&mut self, name: &str) -> bool {
        let known = self.workloads.remove(name).is_some();
        if known {
            self.changed.insert(name.to_owned());
        }
        known
    }

    fn node(&mut self, report: NodeReport) -> bool {
        let changed = self.node.as_ref() != Some(&report);
        self.node = Some(report);
        self.node_changed |= changed;
        changed
    }

    /// Everything, once the node is known.
    fn snapshot(&mut self) -> Option<Report> {
        let node = self.node.clone()?;
        self.changed.clear();
        self.node_changed = false;
        let workloads = self.workloads.values().cloned().collect();
        Some(Report { workloads, removed: Vec::new(), node: Some(node), snapshot: true })
    }

    /// What changed since the last message.
    fn changes(&mut self) -> Option<Report> {
        if self.changed.is_empty() && !self.node_changed {
            return None;
        }
        let mut report = Report::default();
        for name in std::mem::take(&mut self.changed) {
            match self.workloads.get(&name) {
                Some(workload) => report.workloads.push(workload.clone()),
                None => report.removed.push(name),
            }
        }
        report.node = self.node.clone().filter(|_| std::mem::take(&mut self.node_changed));
        Some(report)
    }
}

struct Sender {
    endpoint: Endpoint,
    outbox: Arc<Mutex<Outbox>>,
    rung: watch::Receiver<()>,
}

/// Why a stream ended.
enum End {
    /// The last `Reporter` is gone.
    Finished,
    Failed(String),
}

impl Sender {
    async fn run(mut self) {
        let (mut backoff, mut told) =
            (Backoff::new(Duration::from_millis(200), Duration::from_secs(15)), String::new());
        loop {
            let started = Instant::now();
            let reason = match self.session().await {
                End::Finished => return,
                End::Failed(reason) => reason,
            };
            if started.elapsed() > HEALTHY {
                backoff.reset();
                told.clear();
            }
            if reason != told {
                tracing::warn!(controller = self.endpoint.uri(), reason, "reports are not taken; they are sent again");
                told = reason;
            }
            tokio::time::sleep(backoff.next(fastrand::f64())).await;
        }
    }

    async fn session(&mut self) -> End {
        let Some(snapshot) = self.next(Outbox::snapshot).await else { return End::Finished };
        let (messages, mut answers) = match self.open().await {
            Ok(stream) => stream,
            Err(reason) => return End::Failed(reason),
        };
        tracing::info!(controller = self.endpoint.uri(), "reports are sent");
        // What changed while it connected is told by the first message already.
        let mut message = lock(&self.outbox).snapshot().unwrap_or(snapshot);
        loop {
            if let Err(reason) = tell(&messages, &mut answers, message).await {
                return End::Failed(reason);
            }
            message = tokio::select! {
                next = self.next(Outbox::changes) => match next {
                    Some(next) => next,
                    None => return End::Finished,
                },
                ended = answers.message() => return End::Failed(ending(ended)),
            };
        }
    }

    async fn open(&self) -> Result<(mpsc::Sender<Report>, Streaming<ReportAck>), String> {
        let channel = self.endpoint.connect().await.map_err(|error| error.to_string())?;
        let (messages, outgoing) = mpsc::channel(1);
        let answers = ReportsClient::new(channel).report(ReceiverStream::new(outgoing)).await;
        Ok((messages, answers.map_err(|status| said(&status))?.into_inner()))
    }

    /// The next message, once there is one; `None` when no more can come.
    async fn next(&mut self, take: fn(&mut Outbox) -> Option<Report>) -> Option<Report> {
        loop {
            // Taken only when nothing else can interrupt it, so that a change is never lost.
            if let Some(report) = take(&mut lock(&self.outbox)) {
                return Some(report);
            }
            self.rung.changed().await.ok()?;
            tokio::time::sleep(SETTLE).await;
        }
    }
}

/// Sends one message and waits until it is written down.
async fn tell(
    messages: &mpsc::Sender<Report>,
    answers: &mut Streaming<ReportAck>,
    message: Report,
) -> Result<(), String> {
    messages.send(message).await.map_err(|_| "the stream was closed".to_owned())?;
    match answers.message().await {
        Ok(Some(ReportAck {})) => Ok(()),
        ended => Err(ending(ended)),
    }
}

fn ending(ended: Result<Option<ReportAck>, tonic::Status>) -> String {
    match ended {
        Ok(Some(_)) => "an answer came without a question".to_owned(),
        Ok(None) => "the controller closed the stream".to_owned(),
        Err(status) => said(&status),
    }
}

/// A server that does not know the call says nothing but its code.
fn said(status: &tonic::Status) -> String {
    match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    }
}

#[cfg(test)]
mod tests;
