//! The daemon's client of the dataplane: applies ports, routes and services, and follows the ports' state.
//!
//! One task keeps the connection: on each (re)connect it reads what the dataplane has and makes it
//! what it should be, then watches the ports. All changes go through one lock, so that a
//! reconciliation never works on a state that a call is changing.

use crate::desired::{Actual, Desired, operation, operations, subject};
use mesh_api::dataplane::dataplane_client::DataplaneClient;
use mesh_api::dataplane::operation::Operation as Kind;
use mesh_api::dataplane::{
    ApplyRequest, GetStateRequest, Operation, Port, PortState, PortStatus, PortStatuses, State, WatchPortsRequest,
};
use service::grpc::Endpoint;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;
use xds::Backoff;

/// Longest wait for one answer of the dataplane.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Between looks at what the dataplane does not announce.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Changes that come together are applied together.
const SETTLE: Duration = Duration::from_millis(10);

/// Why the dataplane did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardingError {
    /// Trying again may help.
    #[error("the dataplane at {address} does not answer: {reason}")]
    Unreachable { address: String, reason: String },
    #[error("the dataplane refused it: {reason}")]
    Refused { reason: String },
    #[error("port {id} did not open within {:.1} s: {reason}", waited.as_secs_f64())]
    NotOpen { id: String, waited: Duration, reason: String },
}

/// State of the ports as the dataplane last told it.
#[derive(Clone, Debug)]
pub struct Ports {
    /// Or why it is not known.
    pub connected: Result<(), String>,
    pub statuses: BTreeMap<String, PortStatus>,
    /// Address of the DPU on the fabric; empty while it has told none.
    pub underlay_address: String,
    /// Its link to the host; empty: none. `None` before it has said so.
    pub host_interface: Option<String>,
    /// What the dataplane does not take, with its reason. It is tried again with every change.
    pub refusals: Vec<String>,
}

/// Says what should be there, at any moment.
pub trait Intent: Send + Sync + 'static {
    fn desired(&self) -> Desired;
}

/// The client. Share it in an `Arc`.
#[derive(Debug)]
pub struct Forwarding {
    address: String,
    client: DataplaneClient<Channel>,
    /// `None` until the dataplane was asked.
    actual: Mutex<Option<Actual>>,
    ports: watch::Sender<Ports>,
    changed: Notify,
}

impl Forwarding {
    /// Does not connect yet; `run` does.
    pub fn new(address: &str, endpoint: &Endpoint) -> Self {
        let ports = Ports {
            connected: Err("not connected yet".to_owned()),
            statuses: BTreeMap::new(),
            underlay_address: String::new(),
            host_interface: None,
            refusals: Vec::new(),
        };
        Self {
            address: address.to_owned(),
            client: DataplaneClient::new(endpoint.connect_lazy()),
            actual: Mutex::new(None),
            ports: watch::Sender::new(ports),
            changed: Notify::new(),
        }
    }

    /// State of the ports, followed.
    pub fn ports(&self) -> watch::Receiver<Ports> {
        self.ports.subscribe()
    }

    /// Something that `Intent` tells has changed.
    pub fn nudge(&self) {
        self.changed.notify_one();
    }

    /// Adds a port, closed.
    pub async fn put_port(&self, port: Port) -> Result<(), ForwardingError> {
        let mut actual = self.actual.lock().await;
        self.apply(actual.as_mut(), vec![operation(Kind::PutPort(port))]).await
    }

    /// Removes a port; one that is not there is no error.
    pub async fn delete_port(&self, id: &str) -> Result<(), ForwardingError> {
        let mut actual = self.actual.lock().await;
        let state = self.state().await?;
        if !state.ports.iter().any(|port| port.id == id) {
            return Ok(());
        }
        self.apply(actual.as_mut(), vec![operation(Kind::DeletePortId(id.to_owned()))]).await
    }

    /// The port as the dataplane has it now.
    pub async fn get_port(&self, id: &str) -> Result<Option<Port>, ForwardingError> {
        Ok(self.state().await?.ports.into_iter().find(|port| port.id == id))
    }

    /// Waits until the port of this workload is open.
    pub async fn wait_open(&self, id: &str, uid: &str, timeout: Duration) -> Result<(), ForwardingError> {
        let mut ports = self.ports();
        let open = ports.wait_for(|ports| {
            ports.statuses.get(id).is_some_and(|status| status.state() == PortState::Open && status.workload_uid == uid)
        });
        if tokio::time::timeout(timeout, open).await.is_ok_and(|outcome| outcome.is_ok()) {
            return Ok(());
        }
        let reason = why_not_open(&self.ports.borrow(), id);
        Err(ForwardingError::NotOpen { id: id.to_owned(), waited: timeout, reason })
    }

    /// Keeps the dataplane as `intent` says until `shutdown`.
    pub async fn run(self: Arc<Self>, intent: Arc<dyn Intent>, shutdown: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let ended = tokio::select! {
                ended = self.session(&*intent, &mut backoff) => ended,
                () = shutdown.cancelled() => return,
            };
            let reason =
                ended.err().map_or_else(|| "the dataplane ended the stream".to_owned(), |error| error.to_string());
            if self.ports.borrow().connected.is_ok() {
                tracing::warn!(reason, "lost the dataplane");
            }
            self.ports.send_modify(|ports| ports.connected = Err(reason));
            tokio::select! {
                () = tokio::time::sleep(backoff.next(fastrand::f64())) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn session(&self, intent: &dyn Intent, backoff: &mut Backoff) -> Result<(), ForwardingError> {
        self.reconcile(intent, true).await?;
        let mut stream = self
            .client
            .clone()
            .watch_ports(WatchPortsRequest {})
            .await
            .map_err(|status| self.error(&status))?
            .into_inner();
        tracing::info!(address = self.address, "connected to the dataplane");
        backoff.reset();
        loop {
            tokio::select! {
                message = stream.message() => match message.map_err(|status| self.error(&status))? {
                    Some(message) => self.take(message),
                    None => return Ok(()),
                },
                () = self.changed.notified() => {
                    tokio::time::sleep(SETTLE).await;
                    self.reconcile(intent, false).await?;
                }
                // The DPU may get its address after the dataplane has started, or another one.
                () = tokio::time::sleep(LOOK_AGAIN) => drop(self.state().await?),
            }
        }
    }

    fn take(&self, message: PortStatuses) {
        self.ports.send_modify(|ports| {
            ports.connected = Ok(());
            if message.snapshot {
                ports.statuses.clear();
            }
            ports.statuses.extend(message.changed.into_iter().map(|status| (status.id.clone(), status)));
            message.removed_ids.iter().for_each(|id| drop(ports.statuses.remove(id)));
        });
    }

    async fn reconcile(&self, intent: &dyn Intent, afresh: bool) -> Result<(), ForwardingError> {
        let mut actual = self.actual.lock().await;
        if afresh || actual.is_none() {
            *actual = Some(Actual::from(self.state().await?));
        }
        let Some(known) = actual.as_mut() else { return Ok(()) };
        let todo = operations(&intent.desired(), known);
        if todo.is_empty() {
            self.note_refusals(Vec::new());
            return Ok(());
        }
        tracing::debug!(operations = todo.len(), "making the dataplane what it should be");
        let refusals = match self.apply(Some(known), todo.clone()).await {
            Err(ForwardingError::Refused { .. }) => self.apply_each(known, todo).await?,
            other => other.map(|()| Vec::new())?,
        };
        self.note_refusals(refusals);
        Ok(())
    }

    /// One bad operation must not keep the others back. Returns what was refused.
    async fn apply_each(&self, known: &mut Actual, todo: Vec<Operation>) -> Result<Vec<String>, ForwardingError> {
        let mut refusals = Vec::new();
        for one in todo {
            let subject = subject(&one);
            match self.apply(Some(known), vec![one]).await {
                Err(ForwardingError::Refused { reason }) => refusals.push(format!("{subject}: {reason}")),
                other => other?,
            }
        }
        Ok(refusals)
    }

    fn note_refusals(&self, refusals: Vec<String>) {
        self.ports.send_if_modified(|ports| {
            for refusal in refusals.iter().filter(|refusal| !ports.refusals.contains(refusal)) {
                tracing::error!(refusal, "the dataplane refused it");
            }
            let is_news = ports.refusals != refusals;
            ports.refusals = refusals;
            is_news
        });
    }

    async fn apply(&self, actual: Option<&mut Actual>, operations: Vec<Operation>) -> Result<(), ForwardingError> {
        let request = ApplyRequest { operations: operations.clone() };
        self.call(self.client.clone().apply(request)).await?;
        if let Some(actual) = actual {
            operations.iter().for_each(|operation| actual.note(operation));
        }
        Ok(())
    }

    async fn state(&self) -> Result<State, ForwardingError> {
        let state = self.call(self.client.clone().get_state(GetStateRequest {})).await?;
        self.ports.send_if_modified(|ports| {
            let host_interface = Some(state.host.clone());
            let is_news = ports.underlay_address != state.uplink_address || ports.host_interface != host_interface;
            ports.underlay_address.clone_from(&state.uplink_address);
            ports.host_interface = host_interface;
            is_news
        });
        Ok(state)
    }

    async fn call<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, ForwardingError> {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.error(&status)),
            Err(_) => Err(self.unreachable(format!("no answer within {} s", CALL_TIMEOUT.as_secs()))),
        }
    }

    fn error(&self, status: &tonic::Status) -> ForwardingError {
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                self.unreachable(status.message().to_owned())
            }
            code => ForwardingError::Refused { reason: format!("{} ({code:?})", status.message()) },
        }
    }

    fn unreachable(&self, reason: String) -> ForwardingError {
        ForwardingError::Unreachable { address: self.address.clone(), reason }
    }
}

fn why_not_open(ports: &Ports, id: &str) -> String {
    match (&ports.connected, ports.statuses.get(id)) {
        (Err(reason), _) => reason.clone(),
        (Ok(()), None) => "the dataplane does not know the port".to_owned(),
        (Ok(()), Some(status)) if status.reason.is_empty() => "the dataplane gives no reason".to_owned(),
        (Ok(()), Some(status)) => status.reason.clone(),
    }
}
