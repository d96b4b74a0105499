//! What every call works with, and the dispatch of a call.

use crate::call::Asked;
use crate::controller;
use crate::forwarding::Forwarding;
use crate::locks::Locks;
use crate::mesh::Mesh;
use crate::metrics::{self, Metrics};
use crate::pod_routes::PodRoutes;
use crate::publish::Publisher;
use crate::record::{Pod, Records};
use crate::report::Failures;
use crate::sys::Namespace;
use crate::vf::VfProvider;
use istio_dpu_cni::environment::Command;
use istio_dpu_cni::error::{CniError, code};
use istio_dpu_cni::version;
use istio_dpu_cni::wire::{Answer, Request};
use serde_json::Value;
use service::health::Health;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// Time that a call gets beyond waiting for the port. The plugin waits a little longer still.
const CALL_MARGIN: Duration = Duration::from_secs(25);

/// The daemon. Share it in an `Arc`.
#[derive(Debug)]
pub struct Daemon {
    /// Kubernetes name of this node.
    pub node: String,
    pub records: Arc<Records>,
    pub forwarding: Arc<Forwarding>,
    pub provider: Box<dyn VfProvider>,
    /// The host's namespace.
    pub host: Namespace,
    pub mesh: watch::Receiver<Mesh>,
    pub publisher: Publisher,
    pub locks: Locks,
    pub metrics: Metrics,
    pub health: Health,
    pub pod_routes: PodRoutes,
    /// ADDs that failed, to be reported.
    pub failures: Failures,
    /// There is something to report.
    pub news: Notify,
    /// Something is left to undo.
    pub leftover: Notify,
}

impl Daemon {
    /// Acts on a request. The work goes on when the caller goes away: what is half done is worse.
    pub async fn handle(self: &Arc<Self>, request: Request) -> Answer {
        let (command, started) = (request.environment.command, Instant::now());
        let pod = format!("{}/{}", request.environment.args.pod_namespace, request.environment.args.pod_name);
        let container = request.environment.container_id.clone();
        let asker = Pod::from(&request.environment.args);
        let daemon = Arc::clone(self);
        let work = tokio::spawn(async move { daemon.act(request).await });
        let outcome =
            work.await.unwrap_or_else(|error| Err(CniError::new(code::IO, format!("the call panicked: {error}"))));
        let took = started.elapsed();
        self.metrics.called(command, took, outcome.as_ref().err());
        if command == Command::Add {
            self.failures.note(&asker, outcome.as_ref().err());
        }
        self.changed();
        let (command, took_ms) = (metrics::name(command), took.as_millis() as u64);
        match outcome {
            Ok(result) => {
                tracing::info!(command, pod, container, took_ms, "done");
                Answer::Done(result)
            }
            Err(error) => {
                tracing::warn!(command, pod, container, took_ms, %error, "failed");
                Answer::Failed(error)
            }
        }
    }

    async fn act(self: &Arc<Self>, request: Request) -> Result<Option<Value>, CniError> {
        let asked = Asked::try_from(request)?;
        let limit = asked.conf.ready_timeout + CALL_MARGIN;
        let work = self.dispatch(&asked);
        match tokio::time::timeout(limit, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(CniError::new(code::TRY_AGAIN_LATER, format!("not done within {} s", limit.as_secs()))
                .hint("what was done is being undone; see the log of istio-dpu-cni-node")),
        }
    }

    async fn dispatch(self: &Arc<Self>, asked: &Asked) -> Result<Option<Value>, CniError> {
        match asked.command {
            Command::Add => Ok(Some(self.add(asked).await?.to_json(asked.conf.version))),
            Command::Del => self.delete(&asked.key).await.map(|()| None),
            Command::Check => self.check(asked).await.map(|()| None),
            Command::Gc => self.collect(&asked.conf.name, &asked.conf.valid_attachments).await.map(|()| None),
            Command::Status => self.status().await.map(|()| None),
            Command::Version => Ok(Some(version::answer(Some(asked.conf.version.as_str())))),
        }
    }

    /// The records changed: tells the adapter and the dataplane.
    pub fn changed(&self) {
        self.publisher.refresh();
        self.forwarding.nudge();
        self.news.notify_one();
    }

    /// Whether the dataplane answers, or why not.
    pub fn dataplane(&self) -> Result<(), String> {
        self.forwarding.ports().borrow().connected.clone()
    }

    /// Whether the controller has told of everything once.
    pub fn controller(&self) -> Result<(), String> {
        match self.mesh.borrow().is_complete() {
            true => Ok(()),
            false => {
                Err(format!("the {} has not told of this node's pods, nodes and services yet", controller::CONDITION))
            }
        }
    }
}
