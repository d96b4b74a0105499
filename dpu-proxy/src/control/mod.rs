//! What changes while the process runs, in one place and one order.
//!
//! In: resources from the control plane, ports from the dataplane, signed certificates, orders to
//! stop. Out: a state for the workers, listening sockets, answers to all of them, and a report.
//! `plan` says what a state asks for; `configuration` holds the resources; `takeover` says when the
//! process opens its doors, closes them, and ends.

mod configuration;
mod plan;
mod takeover;

pub use configuration::{Configuration, ControlPlane, InterestChange, LoadError};

use crate::admin::Order;
use crate::connection::Gate;
use crate::listener::manager::ListenerManager;
use crate::listener::socket::Place;
use crate::shared::{Phase, Report, Shared, State};
use crate::steering::{self, Others, Ports, Readiness, Registration, Standing};
use crate::tls::identity;
use crate::tls::secrets::Secrets;
use crate::workers::Workers;
use dpu_proxy_core::model::Snapshot;
use mesh_model::{Identity, PortId};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use takeover::{Arrival, Departure, Limits, Step};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use xds::Rejected;
use xds::client::Event as AdsEvent;

/// Like Envoy: what the control plane has not said by then is not waited for.
const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);
/// How often it is looked whether the last connection has ended.
const DRAIN_CHECK: Duration = Duration::from_millis(100);
/// How often the log tells how many are left.
const DRAIN_PROGRESS: Duration = Duration::from_secs(10);

/// Parties that the process talks to; `None` where the bootstrap or the command line has none.
#[derive(Debug, Default)]
pub struct Parties {
    pub ads: Option<(xds::client::Handle, mpsc::Receiver<AdsEvent>)>,
    pub steering: Option<(steering::Client, mpsc::Receiver<steering::Event>)>,
    pub identities: Option<(identity::Identities, mpsc::Receiver<identity::Event>)>,
    /// Whose keys the adapter needs before their workloads are complete.
    pub attached: Option<mpsc::Receiver<BTreeSet<Identity>>>,
    pub belongings: Belongings,
}

/// What only one process of a DPU can have, and an older one hands over.
#[derive(Debug, Default)]
pub struct Belongings {
    /// Whether this process holds the keys for the adapter.
    pub holds_keys: watch::Sender<bool>,
    /// Cancelled to free the admin address.
    pub admin: CancellationToken,
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
    /// The other proxies of this DPU.
    others: Others,
    arrival: Arrival,
    departure: Departure,
    belongings: Belongings,
    /// Listening sockets are closed, and stay so.
    is_closed: bool,
    /// When the log last told of draining.
    told_at: Instant,
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
    Quit,
    DrainListeners,
    /// It is time to look again.
    Tick,
    /// Pods answered where they are probed.
    Answers,
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
            others: Others::default(),
            arrival: Arrival::default(),
            departure: Departure::default(),
            belongings: Belongings::default(),
            is_closed: false,
            told_at: Instant::now(),
        }
    }

    /// Runs until it was told to stop and its connections have ended.
    pub async fn run(&mut self, parties: Parties, mut orders: mpsc::Receiver<Order>, stop: CancellationToken) {
        let (ads, mut ads_events) = parties.ads.unzip();
        let (steering, mut steering_events) = parties.steering.unzip();
        let (identities, mut identity_events) = parties.identities.unzip();
        let mut attached = parties.attached;
        self.report.control_plane = ads.as_ref().map(|_| Err("not connected yet".to_owned()));
        self.report.dataplane = steering.as_ref().map(|_| Err("not connected yet".to_owned()));
        (self.ads, self.steering, self.identities) = (ads, steering, identities);
        self.belongings = parties.belongings;
        let fetched = tokio::time::sleep(INITIAL_FETCH_TIMEOUT);
        tokio::pin!(fetched);
        let mut answers = self.shared.answers.subscribe();
        self.publish();
        loop {
            let waits = !self.configuration.is_complete();
            let is_told = self.departure != Departure::None;
            let input = tokio::select! {
                () = stop.cancelled(), if !is_told => Input::Stop,
                Some(order) = orders.recv() => match order {
                    Order::Quit => Input::Quit,
                    Order::DrainListeners => Input::DrainListeners,
                },
                event = next(&mut ads_events) => Input::Ads(event),
                event = next(&mut steering_events) => Input::Steering(event),
                event = next(&mut identity_events) => Input::Identity(event),
                identities = next(&mut attached) => Input::Attached(identities),
                () = &mut fetched, if waits => Input::FetchTimeout,
                Ok(()) = answers.changed() => Input::Answers,
                () = wait_until(self.wake()) => Input::Tick,
            };
            // While connections finish, time alone changes nothing of what is in force.
            let is_news = !(matches!(input, Input::Tick) && self.is_closed);
            self.take(input);
            // What is there already is taken together: one state for a burst of updates.
            while let Some(Ok(event)) = ads_events.as_mut().map(mpsc::Receiver::try_recv) {
                self.ads_event(event);
            }
            if is_news {
                self.publish();
            }
            if self.leave().await {
                return;
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Stop => self.stop(),
            Input::Quit => {
                self.departure = Departure::Draining { since: Instant::now() };
                self.drain();
            }
            Input::DrainListeners => self.close_listeners(),
            Input::FetchTimeout => self.configuration.wait_no_longer(),
            Input::Ads(event) => self.ads_event(event),
            Input::Steering(event) => self.steering_event(event),
            Input::Identity(event) => self.identity_event(event),
            Input::Attached(identities) => self.attached = identities,
            Input::Tick | Input::Answers => {}
        }
    }

    /// When to look again without an event.
    fn wake(&self) -> Option<Instant> {
        let check = matches!(self.departure, Departure::Draining { .. }).then(|| Instant::now() + DRAIN_CHECK);
        let deadlines = [self.arrival.deadline(&self.others), self.departure.deadline(&self.others, self.limits())];
        deadlines.into_iter().chain([check]).flatten().min()
    }

    fn limits(&self) -> Limits {
        let settings = &self.shared.settings;
        // Who has no dataplane has no successor that it would hear of.
        let successor_wait = if self.steering.is_some() { settings.successor_wait } else { Duration::ZERO };
        Limits { successor_wait, drain_time: settings.drain_time }
    }

    fn stop(&mut self) {
        let limits = self.limits();
        tracing::info!(
            successor_wait_s = limits.successor_wait.as_secs(),
            drain_time_s = limits.drain_time.as_secs(),
            "told to stop"
        );
        self.departure.begin(Instant::now());
    }

    /// Goes on towards the end, if it was told to stop. True at the end.
    async fn leave(&mut self) -> bool {
        if self.departure == Departure::None {
            return false;
        }
        let connections = self.workers.gather(|worker| worker.connections()).await.iter().sum::<u64>();
        let step = self.departure.step(Instant::now(), &self.others, connections, self.limits());
        match step {
            Step::Stay => self.tell_of_progress(connections),
            Step::CloseListeners => self.drain(),
            Step::End if connections > 0 => tracing::warn!(connections, "cut after the drain time"),
            Step::End => {}
        }
        self.hand_over();
        if step == Step::End {
            self.shared.phase.send_replace(Phase::Ending);
        }
        step == Step::End
    }

    fn tell_of_progress(&mut self, connections: u64) {
        let is_draining = matches!(self.departure, Departure::Draining { .. });
        if is_draining && self.told_at.elapsed() >= DRAIN_PROGRESS {
            self.told_at = Instant::now();
            tracing::info!(connections, "draining: these have not ended yet");
        }
    }

    fn drain(&mut self) {
        self.told_at = Instant::now();
        tracing::info!(has_successor = self.others.has_newer_taken_over, "draining");
        self.close_listeners();
        self.shared.phase.send_replace(Phase::Draining);
        self.publish();
    }

    /// Gives a newer process what only one can have.
    fn hand_over(&mut self) {
        let is_draining = matches!(self.departure, Departure::Draining { .. });
        if is_draining && self.others.is_newer_here {
            self.belongings.admin.cancel();
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
                self.arrival.begin(Instant::now());
                self.ports = ports;
            }
            steering::Event::Others(others) => {
                // The adapter has one holder of keys: the newest.
                self.belongings
                    .holds_keys
                    .send_if_modified(|holds| std::mem::replace(holds, !others.is_newer_here) == others.is_newer_here);
                self.others = others;
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

    fn close_listeners(&mut self) {
        self.is_closed = true;
        self.listeners.close();
        // A socket lives as long as anybody has a handle of it, and nobody would accept from it.
        self.passed.clear();
        if let Some(steering) = &self.steering {
            steering.offer(BTreeMap::new(), Readiness::new(), Standing::Leaving);
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
        let has_arrived = self.has_arrived(&snapshot);
        self.send_state(&snapshot);
        if !self.is_closed {
            let open: HashSet<Gate> = self.listeners.open().map(|(gate, _)| gate.clone()).collect();
            // A gate that is open stays so: what is not served there is refused by whoever accepts it.
            let may_open = |gate: &Gate| open.contains(gate) || self.may_open(&snapshot, gate, has_arrived);
            let sockets = plan::sockets(&snapshot, &self.ports, may_open);
            let failed = self.listeners.reconcile(&self.workers, sockets);
            self.report.not_listening = failed.iter().map(ToString::to_string).collect();
        }
        self.offer_to_dataplane(&snapshot, has_arrived);
        self.send_report();
    }

    /// Whether this process can serve what is expected of it, or need not wait any longer.
    fn has_arrived(&mut self, snapshot: &Snapshot) -> bool {
        let expected =
            |port: &PortId| self.others.served_by_older.is_empty() || self.others.served_by_older.contains(port);
        let mut ports = self.ports.ports.values().filter(|port| expected(&port.id));
        let is_complete = ports.all(|port| plan::configured(snapshot, &self.secrets, port).is_ok());
        self.arrival.step(Instant::now(), &self.others, is_complete)
    }

    /// A pod's own connections are taken once its workload is in force; those from the fabric once all are.
    fn may_open(&self, snapshot: &Snapshot, gate: &Gate, has_arrived: bool) -> bool {
        let Gate::Outbound(id) = gate else { return has_arrived };
        let port = self.ports.ports.get(id);
        port.is_some_and(|port| plan::configured(snapshot, &self.secrets, port).is_ok())
    }

    /// SDS secrets of the root scope, and identities of workloads that are still here.
    fn take_secrets(&mut self, wanted: &BTreeSet<Identity>) {
        let (key_pairs, roots) = self.configuration.secrets();
        (self.secrets.key_pairs, self.secrets.roots) = (key_pairs, roots);
        self.secrets.identities.retain(|identity, _| wanted.contains(identity));
    }

    fn send_state(&self, snapshot: &Arc<Snapshot>) {
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

    fn offer_to_dataplane(&mut self, snapshot: &Snapshot, has_arrived: bool) {
        let Some(steering) = self.steering.as_ref().filter(|_| !self.is_closed) else { return };
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
        let answers = self.shared.answers.borrow().clone();
        let readiness: Readiness = plan::readiness(snapshot, &self.secrets, &self.ports, &answers, is_listening);
        let told = |(port, state): (&PortId, &Result<steering::Ready, String>)| {
            (port.clone(), state.clone().map(|ready| ready.workload))
        };
        self.report.readiness = readiness.iter().map(told).collect();
        steering.offer(sockets, readiness, if has_arrived { Standing::TakenOver } else { Standing::Serving });
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
}

/// What the dataplane should have a socket of.
fn registrations(ports: &Ports) -> Vec<Registration> {
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
    plan::steered(ports).into_iter().filter_map(registration).collect()
}

async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
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
