//! The loop: events in, one step of the core, changes out.

use super::Shared;
use super::args::Args;
use super::clients::{self, ControlPlane};
use super::metrics::Metrics;
use super::reporting::{Facts, Reporting};
use super::standing;
use crate::membership::Membership;
use crate::node::{self, MeshSettings};
use crate::pod::Pod;
use crate::quiet::Quiet;
use crate::translate::references::Reference;
use crate::translate::{Changes, Interests, Kind};
use mesh_api::envoy::config::core::v3::Node;
use mesh_model::Identity;
use service::health::Health;
use service::signal::CancellationToken;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use xds::client::{Event, Handle, Update};
use xds::server::{Event as Verdict, Store};

/// One workload's open stream.
struct Stream {
    handle: Handle,
    /// What it was opened with: another node needs another stream.
    node: Node,
    /// Events of an earlier stream of the same workload are told apart by this.
    generation: u64,
}

/// An event of a workload's stream.
struct Tagged {
    uid: String,
    generation: u64,
    event: Event,
}

/// Everything that the loop owns.
pub(super) struct Driver {
    args: Args,
    settings: MeshSettings,
    shared: Shared,
    store: Store,
    control_plane: ControlPlane,
    reporting: Reporting,
    metrics: Metrics,
    health: Health,
    membership: Membership,
    streams: BTreeMap<String, Stream>,
    generation: u64,
    quiet: Quiet,
    tagged: mpsc::Sender<Tagged>,
    inbox: Option<mpsc::Receiver<Tagged>>,
    /// When the first workload was complete after the start.
    first_synced: Option<Instant>,
    /// Attached pods that the controller has not told of.
    unknown: usize,
    /// Streams that proxies have open.
    proxies: BTreeSet<u64>,
}

impl Driver {
    pub(super) fn new(
        args: Args,
        shared: Shared,
        store: Store,
        control_plane: ControlPlane,
        reporting: Reporting,
        metrics: Metrics,
        health: Health,
    ) -> Self {
        let (tagged, inbox) = mpsc::channel(256);
        Self {
            settings: args.settings(),
            args,
            shared,
            store,
            control_plane,
            reporting,
            metrics,
            health,
            membership: Membership::default(),
            streams: BTreeMap::new(),
            generation: 0,
            quiet: Quiet::default(),
            tagged,
            inbox: Some(inbox),
            first_synced: None,
            unknown: 0,
            proxies: BTreeSet::new(),
        }
    }

    pub(super) async fn run(mut self, mut verdicts: mpsc::UnboundedReceiver<Verdict>, stop: CancellationToken) {
        let (controller, mut from_controller) = clients::controller(&self.args);
        let (attachments, mut from_attachments) = clients::attachments(&self.args);
        let (troubles, mut keys) = (self.shared.troubles.clone(), self.shared.keys.changes());
        let mut inbox = self.inbox.take().expect("run is called once");
        loop {
            let mut is_news = true;
            tokio::select! {
                Some(event) = from_controller.recv() => self.on_view("controller", &controller, event),
                Some(event) = from_attachments.recv() => self.on_view("attachments", &attachments, event),
                Some(tagged) = inbox.recv() => self.on_stream(tagged),
                Some(verdict) = verdicts.recv() => self.on_verdict(verdict),
                () = troubles.changed() => self.tell_control_plane_health(),
                Ok(()) = keys.changed() => self.tell_control_plane_health(),
                () = wait_until(self.wake()) => is_news = false,
                () = stop.cancelled() => return,
            }
            self.publish_due();
            self.release_when_synced();
            self.tell(is_news);
        }
    }

    /// When to look again without an event.
    fn wake(&self) -> Option<Instant> {
        let grace = self.first_synced.filter(|_| self.store.is_held(&self.args.node)).map(|first| first + self.grace());
        self.quiet.next().into_iter().chain(grace).chain(self.reporting.next()).min()
    }

    fn grace(&self) -> Duration {
        Duration::from_secs(self.args.sync_grace_s)
    }

    /// Tells people how things are, a little later.
    fn tell(&mut self, is_news: bool) {
        let now = Instant::now();
        if is_news {
            self.reporting.touch(now);
        }
        if self.reporting.is_due(now) {
            let facts = self.facts();
            self.reporting.look(now, &self.shared, facts);
        }
    }

    fn facts(&self) -> Facts {
        Facts {
            proxy_connected: !self.proxies.is_empty(),
            is_complete: self.membership.is_complete(),
            is_settled: !self.store.is_held(&self.args.node),
            problems: self.health.problems(),
        }
    }

    /// The controller or the node daemon speaks.
    fn on_view(&mut self, condition: &str, handle: &Handle, event: Event) {
        match event {
            Event::Connected => self.health.set(condition, Ok(())),
            Event::Disconnected { reason, .. } => self.health.set(condition, Err(reason)),
            Event::Update(update) => {
                let result = self.membership.apply(&update.type_url, &update.changed, &update.removed);
                if let Err(rejected) = &result {
                    tracing::warn!(from = condition, ?rejected, "resources were refused");
                }
                handle.reply(update.token, result);
                self.refresh_members();
            }
        }
    }

    /// Makes the streams be those of the attached, governed pods.
    fn refresh_members(&mut self) {
        let members = self.membership.members(&self.args.trust_domain);
        self.unknown = members.unknown;
        self.follow_identities(members.pods.values().map(|pod| pod.identity.clone()).collect());
        *self.shared.ungoverned.lock().unwrap_or_else(PoisonError::into_inner) = members.ungoverned;
        let gone: Vec<String> = self.streams.keys().filter(|uid| !members.pods.contains_key(*uid)).cloned().collect();
        for uid in gone {
            self.close(&uid);
        }
        for pod in members.pods.into_values() {
            self.refresh_member(pod);
        }
        self.tell_control_plane_health();
    }

    /// Certificates are asked for, and keys used, of identities that are attached.
    fn follow_identities(&mut self, identities: BTreeSet<Identity>) {
        self.control_plane.retain(&identities);
        self.shared.troubles.retain(&identities);
        self.shared.identities.write().unwrap_or_else(PoisonError::into_inner).clone_from(&identities);
        // Before both views are known, an identity that is missing is not gone.
        if self.membership.is_complete() {
            self.shared.keys.want(&identities);
        }
    }

    fn refresh_member(&mut self, pod: Pod) {
        let node = node::node(&pod, &self.settings, self.membership.server(&self.args.node));
        match self.streams.get(pod.uid()) {
            Some(stream) if stream.node == node => {
                self.quiet.touch(pod.uid(), Instant::now());
                self.shared.aggregate().replace_pod(pod);
            }
            _ => self.open(pod, node),
        }
    }

    fn open(&mut self, pod: Pod, node: Node) {
        tracing::info!(workload = pod.name(), node = node.id, "asking the control plane for a workload");
        self.generation += 1;
        let (generation, uid, sender) = (self.generation, pod.uid().to_owned(), self.tagged.clone());
        let (handle, mut events) = self.control_plane.open(&pod, node.clone());
        self.streams.insert(uid.clone(), Stream { handle, node, generation });
        self.shared.aggregate().join(pod);
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if sender.send(Tagged { uid: uid.clone(), generation, event }).await.is_err() {
                    return;
                }
            }
        });
    }

    fn close(&mut self, uid: &str) {
        tracing::info!(workload = uid, "workload is gone");
        self.streams.remove(uid);
        let changes = self.shared.aggregate().leave(uid);
        self.commit(changes);
    }

    /// The control plane speaks to one workload.
    fn on_stream(&mut self, Tagged { uid, generation, event }: Tagged) {
        let Some(handle) =
            self.streams.get(&uid).filter(|one| one.generation == generation).map(|one| one.handle.clone())
        else {
            return;
        };
        match event {
            Event::Connected => self.set_stream(&uid, Ok(())),
            Event::Disconnected { reason, is_denied } => self.set_stream(&uid, Err((reason, is_denied))),
            Event::Update(update) => self.on_update(&uid, &handle, update),
        }
    }

    fn set_stream(&mut self, uid: &str, state: Result<(), (String, bool)>) {
        if let Some(stream) = self.shared.aggregate().stream(uid) {
            stream.is_connected = state.is_ok();
            stream.connections += u64::from(state.is_ok());
            let (error, is_denied) = state.err().unwrap_or_default();
            if !is_denied {
                stream.denied_since = None;
            } else if stream.denied_since.is_none() || stream.error != error {
                // What keeps all of them away is told by health, once.
                tracing::warn!(workload = uid, reason = error, "the control plane refuses the workload");
                stream.denied_since = Some(Instant::now());
            }
            stream.error = error;
        }
        self.tell_control_plane_health();
    }

    fn on_update(&mut self, uid: &str, handle: &Handle, update: Update) {
        let outcome = self.shared.aggregate().update(uid, &update);
        self.metrics.received(&update.type_url, outcome.received);
        for one in &outcome.rejected {
            tracing::warn!(
                workload = uid,
                resource = one.name,
                reason = one.reason,
                "the control plane's resource is unfit"
            );
        }
        let result = if outcome.rejected.is_empty() { Ok(()) } else { Err(outcome.rejected) };
        handle.reply(update.token, result);
        ask(handle, &outcome.interests);
        self.quiet.touch(uid, Instant::now());
    }

    fn tell_control_plane_health(&self) {
        self.health.set("control_plane", standing::control_plane(&self.shared));
    }

    /// The proxy speaks.
    fn on_verdict(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Connected { stream, .. } => self.proxy_connected(stream),
            Verdict::Disconnected { stream, .. } => self.proxy_disconnected(stream),
            Verdict::Acked { type_url, resources, .. } => {
                let changes = self.shared.aggregate().acked(&type_url, &resources, unix_ms());
                self.commit(changes);
            }
            Verdict::Nacked { type_url, rejected, message, .. } => {
                let (changes, workloads) = self.shared.aggregate().nacked(&type_url, &rejected);
                self.metrics.rejected(&type_url, rejected.len().max(1));
                tracing::warn!(type_url, message, ?workloads, "the proxy refused resources; see /rejections");
                self.commit(changes);
            }
        }
    }

    fn proxy_connected(&mut self, stream: u64) {
        self.proxies.insert(stream);
        self.health.set("proxy", Ok(()));
        let changes = self.shared.aggregate().proxy_connected();
        self.commit(changes);
    }

    fn proxy_disconnected(&mut self, stream: u64) {
        self.proxies.remove(&stream);
        if self.proxies.is_empty() {
            self.health.set("proxy", Err("no dpu-proxy is connected".to_owned()));
        }
    }

    fn publish_due(&mut self) {
        for uid in self.quiet.take_due(Instant::now()) {
            let changes = self.shared.aggregate().publish(&uid);
            self.commit(changes);
        }
    }

    fn commit(&self, changes: Changes) {
        if !changes.is_empty() {
            self.store.commit(&self.args.node, changes.into_transaction());
        }
    }

    /// After a start the proxy is told nothing until everything attached is complete, or the grace
    /// is over: it would take what is merely not known again for withdrawn.
    fn release_when_synced(&mut self) {
        if !self.store.is_held(&self.args.node) || !self.membership.is_complete() {
            return;
        }
        let aggregate = self.shared.aggregate();
        let (all, synced) = (aggregate.members(), aggregate.synced());
        drop(aggregate);
        if synced > 0 {
            self.first_synced.get_or_insert_with(Instant::now);
        }
        let is_over = self.first_synced.is_some_and(|first| first.elapsed() >= self.grace());
        if (synced == all && self.unknown == 0) || is_over {
            tracing::info!(workloads = all, synced, "answering the proxy");
            self.store.release(&self.args.node);
        }
    }
}

/// Tells the control plane what is wanted, in the order in which types are made.
fn ask(handle: &Handle, interests: &Interests) {
    let of = |names: &BTreeSet<Reference>, kind: Kind| -> Vec<String> {
        names.iter().filter(|(other, _)| *other == kind).map(|(_, name)| name.clone()).collect()
    };
    for kind in [Kind::Endpoints, Kind::Extension, Kind::Route] {
        let (more, less) = (of(&interests.subscribe, kind), of(&interests.unsubscribe, kind));
        if !more.is_empty() {
            handle.subscribe(kind.type_url(), more);
        }
        if !less.is_empty() {
            handle.unsubscribe(kind.type_url(), less);
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

async fn wait_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}
