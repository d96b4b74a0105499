//! All workloads of the node: what each was told, what is served for it, what the proxy said of it.
//!
//! In: pods, updates of their streams, verdicts of the proxy. Out: `Changes` for the proxy. A
//! workload's new scope replaces the old one only when it is complete. The last scope that the proxy
//! accepted is kept until a later one is accepted, and is what the workload falls back to when the
//! proxy refuses a resource of the new one: only workloads that use that resource are touched.

use super::assembly::Assembly;
use super::content::{Contents, Kind};
use super::sidecar::{Interests, Received, Sidecar};
use super::status::{self, Obstacles};
use super::store::{Changes, Store};
use crate::pod::Pod;
use mesh_api::report::Configuration;
use mesh_api::type_url;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use xds::client::Update;
use xds::{Rejected, Resource};

/// What the proxy refuses, by type and name, with its reason.
pub type Rejections = BTreeMap<(String, String), String>;

/// The state of the whole translation.
#[derive(Debug, Default)]
pub struct Aggregate {
    contents: Contents,
    pub(crate) store: Store,
    pub(crate) members: BTreeMap<String, Member>,
    pub(crate) rejections: Rejections,
}

/// A workload's stream, for a person.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamState {
    pub is_connected: bool,
    /// Why it is not, or what went wrong last.
    pub error: String,
    /// Since when the control plane does not accept the workload, for that reason.
    pub denied_since: Option<Instant>,
    /// The control plane's last version.
    pub version: String,
    pub connections: u64,
}

/// One workload.
#[derive(Debug)]
pub struct Member {
    pub(crate) pod: Pod,
    pub(crate) sidecar: Sidecar,
    pub(crate) stream: StreamState,
    pub(crate) received: Received,
    /// What of the control plane's resources was refused here, by name.
    pub(crate) unfit: BTreeMap<(Kind, String), String>,
    /// The last complete set.
    pub(crate) desired: Option<Arc<Assembly>>,
    /// What is served, and the version of the Workload resource that says so.
    pub(crate) served: Option<(Arc<Assembly>, String)>,
    /// What the proxy last accepted.
    pub(crate) accepted: Option<Arc<Assembly>>,
    /// When it did so first, Unix time in milliseconds; 0: never.
    pub(crate) accepted_unix_ms: u64,
}

/// What an update leads to.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// Refused towards the control plane.
    pub rejected: Vec<Rejected>,
    pub interests: Interests,
    pub received: Received,
}

impl Aggregate {
    /// A workload appears, or presents itself differently: what its stream said before is forgotten,
    /// what is served stays until the new set is complete.
    pub fn join(&mut self, pod: Pod) {
        let uid = pod.uid().to_owned();
        let member = match self.members.remove(&uid) {
            Some(previous) => Member { pod, sidecar: Sidecar::default(), stream: StreamState::default(), ..previous },
            None => Member::new(pod),
        };
        self.members.insert(uid, member);
    }

    /// Facts changed that its stream does not depend on, e.g. the port. Call `publish` after it.
    pub fn replace_pod(&mut self, pod: Pod) {
        if let Some(member) = self.members.get_mut(pod.uid()) {
            member.pod = pod;
        }
    }

    /// A workload is gone.
    pub fn leave(&mut self, uid: &str) -> Changes {
        let mut changes = Changes::default();
        let Some(member) = self.members.remove(uid) else { return changes };
        if let Some((served, _)) = member.served {
            changes.remove(Pod::TYPE_URL, uid);
            self.store.release(served.name(), &mut changes);
        }
        if let Some(accepted) = member.accepted {
            self.store.release(accepted.name(), &mut changes);
        }
        self.forget_rejections();
        changes
    }

    /// The state of a workload's stream, to be set.
    pub fn stream(&mut self, uid: &str) -> Option<&mut StreamState> {
        self.members.get_mut(uid).map(|member| &mut member.stream)
    }

    /// Takes an update of a workload's stream over. Call `publish` when the control plane pauses.
    pub fn update(&mut self, uid: &str, update: &Update) -> Outcome {
        let Some(member) = self.members.get_mut(uid) else { return Outcome::default() };
        member.stream.version.clone_from(&update.system_version);
        let Some(kind) = Kind::of(&update.type_url) else { return Outcome::default() };
        let rejected = member.sidecar.apply(&mut self.contents, kind, &update.changed, &update.removed);
        let received = received(&update.changed);
        member.received.resources += received.resources;
        member.received.bytes += received.bytes;
        member.note_unfit(kind, update, &rejected);
        Outcome { rejected, interests: member.sidecar.interests(), received }
    }

    /// Serves what a workload was told, if it is complete.
    pub fn publish(&mut self, uid: &str) -> Changes {
        let mut changes = Changes::default();
        if let Some(member) = self.members.get_mut(uid) {
            if let Some(assembly) = member.sidecar.assembly() {
                member.desired = Some(Arc::new(assembly));
            }
            member.serve(&mut self.store, &self.rejections, &mut changes);
        }
        self.forget_rejections();
        changes
    }

    /// The proxy took resources over, at that time.
    pub fn acked(&mut self, type_url: &str, resources: &[(String, String)], now_unix_ms: u64) -> Changes {
        let mut changes = Changes::default();
        for (name, version) in resources {
            self.rejections.remove(&(type_url.to_owned(), name.clone()));
            let member = self.members.get_mut(name).filter(|_| type_url == Pod::TYPE_URL);
            if let Some(member) = member
                && member.accept(version, &mut self.store, &self.rejections, &mut changes)
            {
                member.accepted_unix_ms = now_unix_ms;
            }
        }
        changes
    }

    /// The proxy refused resources. Workloads that use them fall back; their names are returned too.
    pub fn nacked(&mut self, type_url: &str, rejected: &[Rejected]) -> (Changes, Vec<String>) {
        let mut changes = Changes::default();
        for one in rejected {
            self.rejections.insert((type_url.to_owned(), one.name.clone()), one.reason.clone());
        }
        let mut touched = Vec::new();
        for member in self.members.values_mut().filter(|member| member.uses(type_url, rejected)) {
            member.serve(&mut self.store, &self.rejections, &mut changes);
            touched.push(member.pod.name());
        }
        (changes, touched)
    }

    /// A proxy connected: it may accept what another refused.
    pub fn proxy_connected(&mut self) -> Changes {
        let mut changes = Changes::default();
        self.rejections.clear();
        for member in self.members.values_mut() {
            member.serve(&mut self.store, &self.rejections, &mut changes);
        }
        changes
    }

    /// How each workload's configuration stands; `obstacles` says what stands in the way of it.
    pub fn configurations(
        &self,
        obstacles: impl Fn(&Member) -> Obstacles,
    ) -> impl Iterator<Item = (&Pod, Configuration)> {
        let one = move |member| status::configuration(member, &self.rejections, &obstacles(member));
        self.members.values().map(move |member| (&member.pod, one(member)))
    }

    /// Workloads whose configuration was complete once.
    pub fn synced(&self) -> usize {
        self.members.values().filter(|member| member.served.is_some()).count()
    }

    /// All workloads.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// Workloads whose stream is open.
    pub fn connected(&self) -> usize {
        self.members.values().filter(|member| member.stream.is_connected).count()
    }

    fn forget_rejections(&mut self) {
        let members = &self.members;
        self.rejections.retain(|(type_url, name), _| members.values().any(|member| member.names(type_url, name)));
    }
}

impl Member {
    fn new(pod: Pod) -> Self {
        Self {
            pod,
            sidecar: Sidecar::default(),
            stream: StreamState::default(),
            received: Received::default(),
            unfit: BTreeMap::new(),
            desired: None,
            served: None,
            accepted: None,
            accepted_unix_ms: 0,
        }
    }

    /// Makes what is served be what should be.
    fn serve(&mut self, store: &mut Store, rejections: &Rejections, changes: &mut Changes) {
        let Some(target) = self.target(rejections) else { return };
        let resource = self.pod.resource(target.name());
        if self.served.as_ref().is_some_and(|(_, version)| *version == resource.version) {
            return;
        }
        let version = resource.version.clone();
        store.retain(&target, changes);
        changes.put(Pod::TYPE_URL, resource);
        if let Some((old, _)) = self.served.replace((target, version)) {
            store.release(old.name(), changes);
        }
    }

    /// The desired set, unless the proxy refused some of it and accepted an earlier one.
    fn target(&self, rejections: &Rejections) -> Option<Arc<Assembly>> {
        let desired = self.desired.as_ref()?;
        match &self.accepted {
            Some(accepted) if is_refused(desired, rejections) => Some(Arc::clone(accepted)),
            _ => Some(Arc::clone(desired)),
        }
    }

    /// The proxy has the Workload of that version in force. True when its scope is another one.
    fn accept(&mut self, version: &str, store: &mut Store, rejections: &Rejections, changes: &mut Changes) -> bool {
        let Some((served, current)) = &self.served else { return false };
        let is_same = self.accepted.as_ref().is_some_and(|accepted| accepted.name() == served.name());
        if current != version || is_same || is_refused(served, rejections) {
            return false;
        }
        store.retain(served, changes);
        if let Some(old) = self.accepted.replace(Arc::clone(served)) {
            store.release(old.name(), changes);
        }
        true
    }

    fn uses(&self, type_url: &str, rejected: &[Rejected]) -> bool {
        rejected.iter().any(|one| self.names(type_url, &one.name))
    }

    /// Whether a resource of the proxy's stream belongs to this workload.
    pub(crate) fn names(&self, type_url: &str, name: &str) -> bool {
        let served = self.served.as_ref().map(|(served, _)| served);
        let mut sets = self.desired.iter().chain(served);
        match type_url {
            Pod::TYPE_URL => self.pod.uid() == name,
            type_url::SCOPE => sets.any(|set| set.name() == name),
            _ => sets.any(|set| set.contains(type_url, name)),
        }
    }

    fn note_unfit(&mut self, kind: Kind, update: &Update, rejected: &[Rejected]) {
        for name in update.changed.iter().map(|resource| &resource.name).chain(&update.removed) {
            self.unfit.remove(&(kind, name.clone()));
        }
        for one in rejected {
            self.unfit.insert((kind, one.name.clone()), one.reason.clone());
        }
    }
}

pub(super) fn is_refused(assembly: &Assembly, rejections: &Rejections) -> bool {
    rejections.keys().any(|(type_url, name)| match type_url.as_str() {
        type_url::SCOPE => assembly.name() == name,
        type_url => assembly.contains(type_url, name),
    })
}

fn received(changed: &[Resource]) -> Received {
    let bytes = changed.iter().map(|resource| resource.body.value.len() as u64).sum();
    Received { resources: changed.len() as u64, bytes }
}
