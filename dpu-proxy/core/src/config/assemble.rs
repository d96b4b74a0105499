//! Accepted resources → `model::Snapshot`.
//!
//! In: the bootstrap's resources and updates of the discovery service. Out: one immutable snapshot at a time, the names
//! that are still to be asked for, and for the admin page what is missing, refused or not supported.
//!
//! Two kinds of resources live side by side. Those under their own name are the *root* scope's, as in Envoy: a cluster
//! takes effect when its endpoints are there, a listener when its routes and secrets are (until then the one before it
//! stays in force). Those named `NAME@HASH` belong to workloads' *scopes*: a workload takes a scope when everything that
//! the scope names is there, and keeps its last complete one until then.
//!
//! A refused resource leaves the one before it in force. A listener whose inline routes name a cluster that does not
//! exist is refused, as Envoy does (`validate_clusters`); routes that come by discovery are not checked, and answer 503.

mod intern;
mod root;
mod scopes;

use super::bootstrap::Bootstrap;
use super::report::{ReadFile, Unsupported};
use super::resource::{self, Accepted, Content};
use super::secret::Secret;
use crate::model::Snapshot;
use intern::Interner;
use mesh_api::{Any, type_url};
use root::Root;
use scopes::Scopes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A resource that was refused, and why.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Rejection {
    /// xDS resource name.
    pub name: String,
    pub reason: String,
}

/// Names that the root scope refers to and that come by discovery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub endpoints: BTreeSet<String>,
    pub routes: BTreeSet<String>,
    pub secrets: BTreeSet<String>,
}

/// What is accepted and waits for something else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Incomplete {
    /// E.g. `listener a`, `workload UID`.
    pub what: String,
    /// E.g. `route configuration 80`.
    pub missing: Vec<String>,
}

/// A resource that is held.
#[derive(Debug)]
pub(crate) struct Held {
    accepted: Accepted,
    /// Of the bootstrap: an update does not touch it.
    fixed: bool,
}

/// Resources of one type by xDS name.
type Names = BTreeMap<String, Held>;

/// Everything that is held, by type URL.
#[derive(Debug, Default)]
pub(crate) struct Store {
    by_type: BTreeMap<String, Names>,
}

impl Store {
    fn names(&self, type_url: &str) -> impl Iterator<Item = (&String, &Held)> {
        self.by_type.get(type_url).into_iter().flatten()
    }

    fn get(&self, type_url: &str, name: &str) -> Option<&Held> {
        self.by_type.get(type_url)?.get(name)
    }

    /// Under its own name, so of the root scope.
    fn root(&self, type_url: &str) -> impl Iterator<Item = &Accepted> {
        let own = |(name, held): &(&String, &Held)| **name == held.accepted.logical_name;
        self.names(type_url).filter(own).map(|(_, held)| &held.accepted)
    }
}

/// The builder of snapshots.
#[derive(Debug, Default)]
pub struct Assembler {
    store: Store,
    bootstrap_reports: Vec<Unsupported>,
    rejected: BTreeMap<(String, String), String>,
    interner: Interner,
    root: Root,
    scopes: Scopes,
    current: Arc<Snapshot>,
    dirty: bool,
}

impl Assembler {
    /// Without resources.
    pub fn new() -> Self {
        Self::default()
    }

    /// With the resources of a bootstrap. Fails when a static listener names a cluster that does not exist.
    pub fn with_bootstrap(bootstrap: &Bootstrap) -> Result<Self, Vec<Rejection>> {
        let mut assembler = Self { bootstrap_reports: bootstrap.unsupported.clone(), ..Self::default() };
        let mut rejections = Vec::new();
        // Clusters come first in the list, so that listeners find them.
        for accepted in &bootstrap.resources {
            let name = accepted.logical_name.clone();
            if let Err(reason) = assembler.hold(type_url_of(&accepted.content), name.clone(), accepted.clone(), true) {
                rejections.push(Rejection { name, reason });
            }
        }
        if rejections.is_empty() { Ok(assembler) } else { Err(rejections) }
    }

    /// Takes an update of one type. What is refused is named with its reason; everything else is taken.
    pub fn apply<'u>(
        &mut self,
        type_url: &str,
        changed: impl IntoIterator<Item = (&'u str, &'u Any)>,
        removed: impl IntoIterator<Item = &'u str>,
        read_file: ReadFile<'_>,
    ) -> Result<(), Vec<Rejection>> {
        let mut rejections = Vec::new();
        for (name, body) in changed {
            if let Err(reason) = self.take(type_url, name, body, read_file) {
                self.rejected.insert((type_url.to_owned(), name.to_owned()), reason.clone());
                rejections.push(Rejection { name: name.to_owned(), reason });
            } else {
                self.rejected.remove(&(type_url.to_owned(), name.to_owned()));
            }
        }
        for name in removed {
            self.remove(type_url, name);
        }
        if rejections.is_empty() { Ok(()) } else { Err(rejections) }
    }

    /// Forgets a resource. One of the bootstrap stays.
    pub fn remove(&mut self, type_url: &str, name: &str) {
        self.rejected.remove(&(type_url.to_owned(), name.to_owned()));
        let Some(names) = self.store.by_type.get_mut(type_url) else { return };
        if names.get(name).is_some_and(|held| !held.fixed) {
            names.remove(name);
            self.dirty = true;
        }
    }

    fn take(&mut self, type_url: &str, name: &str, body: &Any, read_file: ReadFile<'_>) -> Result<(), String> {
        let held = self.store.get(type_url, name);
        if held.is_some_and(|held| held.fixed) {
            return Err(format!("{name:?} is a static resource of the bootstrap; rename one of them"));
        }
        if held.is_some_and(|held| held.accepted.content_hash == resource::content_hash(type_url, &body.value)) {
            return Ok(());
        }
        let accepted = resource::accept(type_url, name, body, read_file).map_err(|error| error.to_string())?;
        self.hold(type_url, name.to_owned(), accepted, false)
    }

    fn hold(&mut self, type_url: &str, name: String, accepted: Accepted, fixed: bool) -> Result<(), String> {
        if name == accepted.logical_name {
            self.check_clusters(&accepted)?;
        }
        let names = self.store.by_type.entry(type_url.to_owned()).or_default();
        if names.insert(name.clone(), Held { accepted, fixed }).is_some() {
            self.scopes.forget(type_url, &name);
        }
        self.dirty = true;
        Ok(())
    }

    fn check_clusters(&self, accepted: &Accepted) -> Result<(), String> {
        let missing = accepted.required_clusters.iter().find(|name| self.store.get(type_url::CLUSTER, name).is_none());
        missing.map_or(Ok(()), |name| {
            let listener = &accepted.logical_name;
            Err(format!(
                "listener {listener}: a route names cluster {name:?}, which does not exist; add it or correct the name"
            ))
        })
    }

    /// The snapshot of what is held now; the same `Arc` as before when nothing changed.
    pub fn snapshot(&mut self) -> Arc<Snapshot> {
        if std::mem::take(&mut self.dirty) {
            self.rebuild();
        }
        Arc::clone(&self.current)
    }

    fn rebuild(&mut self) {
        self.root.follow(&self.store);
        let live = self.scopes.choose(&self.store);
        let mut wanted = self.root.triples();
        wanted.extend(live.iter().flat_map(|scope| scope.triples.iter().cloned()));
        self.interner.keep(wanted);
        let root = Arc::new(self.root.scope(&self.interner));
        let workloads = self.scopes.workloads(&self.interner);
        let version = self.current.version + 1;
        self.current = Arc::new(Scopes::snapshot(version, root, workloads));
    }

    /// Names of the root scope to ask for.
    pub fn wanted(&self) -> Wanted {
        root::wanted(&self.store)
    }

    /// Secrets of the root scope by name.
    pub fn secrets(&self) -> BTreeMap<String, Arc<Secret>> {
        let secret = |accepted: &Accepted| match &accepted.content {
            Content::Secret(secret) => Some((secret.name.clone(), Arc::clone(secret))),
            _ => None,
        };
        self.store.root(type_url::SECRET).filter_map(secret).collect()
    }

    /// What waits for something else.
    pub fn incomplete(&self) -> Vec<Incomplete> {
        let mut all = root::incomplete(&self.store);
        all.extend(self.scopes.incomplete(&self.store));
        all
    }

    /// What is refused now.
    pub fn rejected(&self) -> impl Iterator<Item = Rejection> + '_ {
        self.rejected.iter().map(|((_, name), reason)| Rejection { name: name.clone(), reason: reason.clone() })
    }

    /// What the resources ask for and is not done.
    pub fn unsupported(&self) -> impl Iterator<Item = &Unsupported> {
        let held = self.store.by_type.values().flat_map(BTreeMap::values);
        self.bootstrap_reports.iter().chain(held.flat_map(|held| &held.accepted.reports))
    }
}

fn type_url_of(content: &Content) -> &'static str {
    match content {
        Content::Cluster(_) => type_url::CLUSTER,
        Content::Endpoints(_) => type_url::CLUSTER_LOAD_ASSIGNMENT,
        Content::Listener(_) => type_url::LISTENER,
        Content::Routes(_) => type_url::ROUTE_CONFIGURATION,
        Content::Secret(_) => type_url::SECRET,
        Content::Scope(_) => type_url::SCOPE,
        Content::Workload(_) => type_url::PROXY_WORKLOAD,
    }
}
