//! What changes while the process runs, in one place and one order.
//!
//! In: resources from the control plane, ports from the dataplane, signed certificates, orders to
//! stop. Out: a state for the workers, listening sockets, answers to all of them, and a report.
//! `plan` says what a state asks for; `configuration` holds the resources.

mod configuration;
mod plan;

pub use configuration::{Configuration, ControlPlane, InterestChange, LoadError};

use crate::admin::Order;
use crate::connection::Gate;
use crate::listener::manager::ListenerManager;
use crate::listener::socket::Place;
use crate::shared::{Phase, Report, Shared, State};
use crate::steering::{self, Ports, Readiness, Registration};
use crate::tls::identity;
use crate::tls::secrets::Secrets;
use crate::workers::Workers;
use mesh_model::{Identity, PortId};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use xds::Rejected;
use xds::client::Event as AdsEvent;

/// Like Envoy: what the control plane has not said by then is not waited for.
const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// Parties that the process talks to; `None` where the bootstrap or the command line has none.
#[derive(Debug, Default)]
pub struct Parties {
    pub ads: Option<(xds::client::Handle, mpsc::Receiver<AdsEvent>)>,
    pub steering: Option<(steering::Client, mpsc::Receiver<steering::Event>)>,
    pub identities: Option<(identity::Identities, mpsc::Receiver<identity::Event>)>,
    /// Whose keys the adapter needs before their workloads are complete.
    pub attached: Option<mpsc::Receiver<BTreeSet<Identity>>>,
}

/// The one owner of everything that changes.
pub struct Control {
    shared: Arc<Shared>,
    workers: Workers,
    configuration: Configuration,
    listeners: ListenerManager,
    ports: Ports,
    secrets: Secrets,
    report: Report,
    ads: Option<xds::client::Handle>,
    steering: Option<steering::Client>,
    identities: Option<identity::Identities>,
    /// Identities of attached pods, complete or not; what the adapter told last.
    attached: BTreeSet<Identity>,
    /// A socket for steering by what it takes; kept so that it is passed on once only.
    passed: BTreeMap<Registration, Arc<OwnedFd>>,
    is_draining: bool,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("ports", &self.ports).finish_non_exhaustive()
    }
}

enum Input {
    Ads(AdsEvent),
    Steering(steering::Event),
    Identity(identity::Event),
    Attached(BTreeSet<Identity>),
    FetchTimeout,
    Stop,
    DrainListeners,
}

/// The next event of a party; never, without it.
async fn next<T>(receiver: &mut Option<mpsc::Receiver<T>>) -> T {
    if let Some(receiver) = receiver
        && let Some(event) = receiver.recv().await
    {
        return event;
    }
    std::future::pending().await
}

impl Control {
    /// For a configuration that was loaded from a bootstrap.
    pub fn new(shared: Arc<Shared>, workers: Workers, configuration: Configuration) -> Self {
        Self {
            shared,
            workers,
            configuration,
            listeners: ListenerManager::default(),
            ports: Ports::default(),
            secrets: Secrets::default(),
            report: Report::default(),
            ads: None,
            steering: None,
            identities: None,
            attached: BTreeSet::new(),
            passed: BTreeMap::new(),
            is_draining: false,
        }
    }

    /// Runs until `stop`, or an order to end.
    pub async fn run(&mut self, parties: Parties, mut orders: mpsc::Receiver<Order>, stop: CancellationToken) {
        let (ads, mut ads_events) = parties.ads.unzip();
        let (steering, mut steering_events) = parties.steering.unzip();
        let (identities, mut identity_events) = parties.identities.unzip();
        let mut attached = parties.attached;
        self.report.control_plane = ads.as_ref().map(|_| Err("not connected yet".to_owned()));
        self.report.dataplane = steering.as_ref().map(|_| Err("not connected yet".to_owned()));
        (self.ads, self.steering, self.identities) = (ads, steering, identities);
        let fetched = tokio::time::sleep(INITIAL_FETCH_TIMEOUT);
        tokio::pin!(fetched);
        self.publish();
        loop {
            let waits = !self.configuration.is_complete();
            let input = tokio::select! {
                () = stop.cancelled() => Input::Stop,
                Some(order) = orders.recv() => match order {
                    Order::Quit => Input::Stop,
                    Order::DrainListeners => Input::DrainListeners,
                },
                event = next(&mut ads_events) => Input::Ads(event),
                event = next(&mut steering_events) => Input::Steering(event),
                event = next(&mut identity_events) => Input::Identity(event),
                identities = next(&mut attached) => Input::Attached(identities),
                () = &mut fetched, if waits => Input::FetchTimeout,
            };
            match input {
                Input::Stop => return,
                Input::DrainListeners => self.drain_listeners(),
                Input::FetchTimeout => self.configuration.wait_no_longer(),
                Input::Ads(event) => self.ads_event(event),
                Input::Steering(event) => self.steering_event(event),
                Input::Identity(event) => self.identity_event(event),
                Input::Attached(identities) => self.attached = identities,
            }
            // What is there already is taken together: one state for a burst of updates.
            while let Some(Ok(event)) = ads_events.as_mut().map(mpsc::Receiver::try_recv) {
                self.ads_event(event);
            }
            self.publish();
        }
    }

    fn ads_event(&mut self, event: AdsEvent) {
        match event {
            AdsEvent::Connected => {
                tracing::info!("connected to the control plane");
                self.configuration.connected();
                self.report.control_plane = Some(Ok(()));
            }
            AdsEvent::Disconnected { reason, .. } => {
                tracing::warn!(reason, "no control plane; trying again. What is in force stays");
                self.report.control_plane = Some(Err(reason));
            }
            AdsEvent::Update(update) => {
                let rejected = self.configuration.update(&update);
                for one in &rejected {
                    tracing::warn!(kind = update.type_url, name = one.name, reason = one.reason, "resource refused");
                }
                self.answer(update, rejected);
            }
        }
    }

    fn answer(&mut self, update: xds::client::Update, rejected: Vec<Rejected>) {
        let Some(ads) = &self.ads else { return };
        ads.reply(update.token, if rejected.is_empty() { Ok(()) } else { Err(rejected) });
        for change in self.configuration.changes_of_interest() {
            ads.subscribe(change.type_url, change.added);
            ads.unsubscribe(change.type_url, change.removed);
        }
    }

    fn steering_event(&mut self, event: steering::Event) {
        match event {
            steering::Event::Ports(ports) => {
                self.report.dataplane = Some(Ok(()));
                self.ports = ports;
            }
            steering::Event::Disconnected { reason } => self.report.dataplane = Some(Err(reason)),
        }
    }

    fn identity_event(&mut self, event: identity::Event) {
        match event {
            identity::Event::Signed(identity, secret) => {
                self.secrets.identities.insert(identity, secret);
            }
            // The keeper has logged it and tries again; the last certificate stays.
            identity::Event::Failed(..) => {}
        }
    }

    fn drain_listeners(&mut self) {
        self.is_draining = true;
        self.listeners.close();
        // A socket lives as long as anybody has a handle of it, and nobody would accept from it.
        self.passed.clear();
        if let Some(steering) = &self.steering {
            steering.offer(BTreeMap::new(), Readiness::new());
        }
    }

    /// Brings everybody up to date.
    fn publish(&mut self) {
        let snapshot = self.configuration.snapshot();
        let wanted = plan::identities(&snapshot, &self.attached);
        self.take_secrets(&wanted);
        if let Some(identities) = &self.identities {
            identities.want(wanted);
        }
        let sockets = plan::sockets(&snapshot, &self.ports);
        self.send_state(&snapshot);
        if !self.is_draining {
            let failed = self.listeners.reconcile(&self.workers, sockets);
            self.report.not_listening = failed.iter().map(ToString::to_string).collect();
        }
        self.offer_to_dataplane(&snapshot);
        self.send_report();
    }

    /// SDS secrets of the root scope, and identities of workloads that are still here.
    fn take_secrets(&mut self, wanted: &BTreeSet<Identity>) {
        let (key_pairs, roots) = self.configuration.secrets();
        (self.secrets.key_pairs, self.secrets.roots) = (key_pairs, roots);
        self.secrets.identities.retain(|identity, _| wanted.contains(identity));
    }

    fn send_state(&self, snapshot: &Arc<dpu_proxy_core::model::Snapshot>) {
        let devices = plan::devices(&self.ports);
        let ids = self.secrets.ids();
        self.shared.state.send_if_modified(|state| {
            let same =
                state.snapshot.version == snapshot.version && *state.devices == devices && state.secrets.ids() == ids;
            if !same {
                *state = State {
                    snapshot: Arc::clone(snapshot),
                    devices: Arc::new(devices),
                    secrets: Arc::new(self.secrets.clone()),
                };
            }
            !same
        });
    }

    fn offer_to_dataplane(&mut self, snapshot: &dpu_proxy_core::model::Snapshot) {
        let Some(steering) = self.steering.as_ref().filter(|_| !self.is_draining) else { return };
        let mut sockets = BTreeMap::new();
        for registration in registrations(&self.ports) {
            if let Some(socket) = self.socket(&registration) {
                sockets.insert(registration, socket);
            }
        }
        self.passed = sockets.clone();
        let is_listening = |port: &PortId| {
            let has = |wanted: Option<&PortId>| sockets.keys().any(|one| one.port.as_ref() == wanted && !one.is_host);
            has(Some(port)) && has(None)
        };
        let readiness: Readiness = plan::readiness(snapshot, &self.secrets, &self.ports, is_listening);
        self.report.readiness = readiness.clone();
        steering.offer(sockets, readiness);
    }

    fn socket(&self, registration: &Registration) -> Option<Arc<OwnedFd>> {
        if let Some(known) = self.passed.get(registration) {
            return Some(Arc::clone(known));
        }
        let from_outside = if registration.is_host { Gate::Host } else { Gate::Inbound };
        let gate = registration.port.clone().map_or(from_outside, Gate::Outbound);
        let member = self.listeners.member(&gate, registration.is_ipv4)?;
        member.try_clone().ok().map(|socket| Arc::new(OwnedFd::from(socket)))
    }

    fn send_report(&mut self) {
        let report = &mut self.report;
        report.live = self.configuration.is_complete() && report.not_listening.is_empty();
        self.configuration.describe(report);
        report.listening = self.listeners.open().map(|(gate, address)| (name(gate), address)).collect();
        report.listening.sort();
        self.shared.report.send_replace(Arc::new(report.clone()));
    }

    /// Stops accepting, lets connections finish, then ends the workers.
    pub async fn drain(&mut self) {
        let limit = self.shared.settings.drain_time;
        tracing::info!(limit_s = limit.as_secs(), "draining");
        self.drain_listeners();
        self.shared.phase.send_replace(Phase::Draining);
        let finished = async {
            while self.workers.gather(|worker| worker.connections()).await.iter().sum::<u64>() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(limit, finished).await.is_err() {
            tracing::warn!("connections that are left after the drain time are cut");
        }
        self.shared.phase.send_replace(Phase::Ending);
    }
}

/// What the dataplane should have a socket of.
fn registrations(ports: &Ports) -> Vec<Registration> {
    let sockets = plan::sockets(&dpu_proxy_core::model::Snapshot::default(), ports);
    let registration = |wanted: crate::listener::manager::Wanted| {
        let is_host = wanted.gate == Gate::Host;
        let port = match wanted.gate {
            Gate::Outbound(port) => Some(port),
            Gate::Inbound | Gate::Host => None,
            Gate::Bound(_) | Gate::Local => return None,
        };
        let Place { address, device, ifindex, .. } = wanted.place;
        Some(Registration { port, is_host, device: device?, ifindex, is_ipv4: address.is_ipv4() })
    };
    sockets.into_iter().filter_map(registration).collect()
}

fn name(gate: &Gate) -> String {
    match gate {
        Gate::Bound(name) => name.to_string(),
        Gate::Outbound(port) => format!("outbound of port {port}"),
        Gate::Inbound => "inbound".to_owned(),
        Gate::Host => "inbound of the host".to_owned(),
        Gate::Local => "local".to_owned(),
    }
}
