//! Workloads and their scopes.

use super::intern::{Interner, Key, Triple};
use super::root::{make_triple, rds_names};
use super::{Held, Incomplete, Store};
use crate::config::resource::{Content, WorkloadSpec};
use crate::model::{EndpointSet, Listener, RouteConfig, Scope, Snapshot, Workload};
use mesh_api::proxy::{self, Reference};
use mesh_api::type_url;
use mesh_model::WorkloadUid;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// A scope of which everything is there.
#[derive(Debug)]
pub(super) struct Resolved {
    name: String,
    listeners: Vec<Arc<Listener>>,
    routes: HashMap<String, Arc<RouteConfig>>,
    clusters: Vec<(String, Key)>,
    pub(super) triples: Vec<Triple>,
}

/// What a workload has now.
#[derive(Debug)]
struct Chosen {
    spec: Arc<WorkloadSpec>,
    scope: Arc<Resolved>,
}

#[derive(Debug, Default)]
pub(super) struct Scopes {
    /// Complete scopes by name. Their resources are named by content, so they never change.
    resolved: HashMap<String, Arc<Resolved>>,
    chosen: BTreeMap<String, Chosen>,
    /// Of the last snapshot, to hand out the same `Arc`s while nothing changed.
    scopes: HashMap<String, (Arc<Resolved>, Arc<Scope>)>,
    workloads: BTreeMap<String, (Arc<WorkloadSpec>, Arc<Workload>)>,
}

impl Scopes {
    /// A resource was replaced under the same name: scopes that may hold it are made anew.
    pub(super) fn forget(&mut self, type_url: &str, name: &str) {
        match type_url {
            type_url::SCOPE => drop(self.resolved.remove(name)),
            type_url::PROXY_WORKLOAD => {}
            _ if name.contains('@') => self.resolved.clear(),
            _ => {}
        }
    }

    /// For each workload its scope if that is complete, else what it had. Returns the scopes in force.
    pub(super) fn choose(&mut self, store: &Store) -> Vec<Arc<Resolved>> {
        self.chosen.retain(|name, _| store.get(type_url::PROXY_WORKLOAD, name).is_some());
        for (name, held) in store.names(type_url::PROXY_WORKLOAD) {
            let Content::Workload(spec) = &held.accepted.content else { continue };
            if let Some(scope) = self.resolve(store, &spec.scope) {
                self.chosen.insert(name.clone(), Chosen { spec: Arc::clone(spec), scope });
            }
        }
        let in_force: BTreeSet<&str> = self.chosen.values().map(|chosen| chosen.scope.name.as_str()).collect();
        self.resolved.retain(|name, _| in_force.contains(name.as_str()));
        let mut live: Vec<Arc<Resolved>> = Vec::new();
        for chosen in self.chosen.values() {
            if !live.iter().any(|scope| Arc::ptr_eq(scope, &chosen.scope)) {
                live.push(Arc::clone(&chosen.scope));
            }
        }
        live
    }

    fn resolve(&mut self, store: &Store, name: &str) -> Option<Arc<Resolved>> {
        if let Some(known) = self.resolved.get(name) {
            return Some(Arc::clone(known));
        }
        let resolved = Arc::new(resolve(store, name).ok()?);
        self.resolved.insert(name.to_owned(), Arc::clone(&resolved));
        Some(resolved)
    }

    /// The workloads that are in force, after the interner has taken their clusters.
    pub(super) fn workloads(&mut self, interner: &Interner) -> Vec<Arc<Workload>> {
        let mut scopes = HashMap::new();
        let mut workloads = BTreeMap::new();
        for (name, chosen) in &self.chosen {
            let scope = scopes
                .entry(chosen.scope.name.clone())
                .or_insert_with(|| (Arc::clone(&chosen.scope), self.scope(interner, &chosen.scope)));
            let workload = self.workload(name, &chosen.spec, &scope.1);
            workloads.insert(name.clone(), (Arc::clone(&chosen.spec), workload));
        }
        self.scopes = scopes;
        self.workloads = workloads;
        self.workloads.values().map(|(_, workload)| Arc::clone(workload)).collect()
    }

    fn scope(&self, interner: &Interner, resolved: &Arc<Resolved>) -> Arc<Scope> {
        if let Some((_, scope)) = self.scopes.get(&resolved.name).filter(|(of, _)| Arc::ptr_eq(of, resolved)) {
            return Arc::clone(scope);
        }
        let cluster = |(name, key): &(String, Key)| Some((name.clone(), Arc::clone(interner.get(key)?)));
        Arc::new(Scope {
            name: resolved.name.clone(),
            listeners: resolved.listeners.clone(),
            routes: resolved.routes.clone(),
            clusters: resolved.clusters.iter().filter_map(cluster).collect(),
        })
    }

    fn workload(&self, name: &str, spec: &Arc<WorkloadSpec>, scope: &Arc<Scope>) -> Arc<Workload> {
        let same =
            |(of, workload): &&(Arc<WorkloadSpec>, Arc<Workload>)| of == spec && Arc::ptr_eq(&workload.scope, scope);
        if let Some((_, workload)) = self.workloads.get(name).filter(same) {
            return Arc::clone(workload);
        }
        Arc::new(Workload {
            uid: spec.uid.clone(),
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            workload_name: spec.workload_name.clone(),
            labels: spec.labels.clone(),
            identity: spec.identity.clone(),
            addresses: spec.addresses.clone(),
            port: spec.port.clone(),
            weight: spec.weight,
            probes: spec.probes.clone(),
            scope: Arc::clone(scope),
        })
    }

    pub(super) fn snapshot(version: u64, root: Arc<Scope>, workloads: Vec<Arc<Workload>>) -> Snapshot {
        let mut snapshot = Snapshot { version, root, ..Snapshot::default() };
        for workload in workloads {
            for address in &workload.addresses {
                snapshot.by_address.insert(*address, Arc::clone(&workload));
            }
            snapshot.by_port.insert(workload.port.clone(), Arc::clone(&workload));
            snapshot.workloads.insert(WorkloadUid(workload.uid.0.clone()), workload);
        }
        snapshot
    }

    /// Workloads whose own scope is not complete.
    pub(super) fn incomplete(&self, store: &Store) -> Vec<Incomplete> {
        let waiting = |(name, held): (&String, &Held)| {
            let Content::Workload(spec) = &held.accepted.content else { return None };
            if self.resolved.contains_key(&spec.scope) {
                return None;
            }
            let missing = resolve(store, &spec.scope).err()?;
            Some(Incomplete { what: format!("workload {name}"), missing })
        };
        store.names(type_url::PROXY_WORKLOAD).filter_map(waiting).collect()
    }
}

/// A scope, or everything that is missing of it.
fn resolve(store: &Store, name: &str) -> Result<Resolved, Vec<String>> {
    let Some(Content::Scope(scope)) = store.get(type_url::SCOPE, name).map(|held| &held.accepted.content) else {
        return Err(vec![format!("scope {name}")]);
    };
    let mut finder = Finder { store, missing: BTreeSet::new() };
    let listeners: Vec<_> =
        finder.all(type_url::LISTENER, &scope.listeners, as_listener).into_iter().map(|(_, it)| it).collect();
    let routes: HashMap<_, _> =
        finder.all(type_url::ROUTE_CONFIGURATION, &scope.routes, as_routes).into_iter().collect();
    for route in listeners.iter().flat_map(|listener| rds_names(listener)).filter(|name| !routes.contains_key(*name)) {
        finder.missing.insert(format!("route configuration {route}"));
    }
    let triples = finder.clusters(scope);
    match finder.missing.is_empty() {
        false => Err(finder.missing.into_iter().collect()),
        true => Ok(Resolved {
            name: name.to_owned(),
            listeners,
            routes,
            clusters: triples.iter().map(|(name, triple)| (name.clone(), triple.key.clone())).collect(),
            triples: triples.into_iter().map(|(_, triple)| triple).collect(),
        }),
    }
}

fn as_listener(held: &Held) -> Option<Arc<Listener>> {
    match &held.accepted.content {
        Content::Listener(listener) => Some(Arc::clone(listener)),
        _ => None,
    }
}

fn as_routes(held: &Held) -> Option<Arc<RouteConfig>> {
    match &held.accepted.content {
        Content::Routes(routes) => Some(Arc::clone(routes)),
        _ => None,
    }
}

fn as_endpoints(held: &Held) -> Option<(u128, Arc<EndpointSet>)> {
    match &held.accepted.content {
        Content::Endpoints(set) => Some((held.accepted.content_hash, Arc::clone(set))),
        _ => None,
    }
}

/// Looks up references and notes what is not there.
struct Finder<'s> {
    store: &'s Store,
    missing: BTreeSet<String>,
}

impl Finder<'_> {
    fn all<T>(
        &mut self,
        type_url: &str,
        references: &[Reference],
        content: impl Fn(&Held) -> Option<T>,
    ) -> Vec<(String, T)> {
        let mut found = Vec::new();
        for reference in references {
            match self.store.get(type_url, &reference.resource).and_then(&content) {
                Some(item) => found.push((reference.name.clone(), item)),
                None => drop(self.missing.insert(reference.resource.clone())),
            }
        }
        found
    }

    fn clusters(&mut self, scope: &proxy::Scope) -> Vec<(String, Triple)> {
        let endpoints: HashMap<_, _> =
            self.all(type_url::CLUSTER_LOAD_ASSIGNMENT, &scope.endpoints, as_endpoints).into_iter().collect();
        let clusters = self.all(type_url::CLUSTER, &scope.clusters, |held| match &held.accepted.content {
            Content::Cluster(cluster) => Some((held.accepted.content_hash, Arc::clone(cluster))),
            _ => None,
        });
        let mut triples = Vec::new();
        for (name, (hash, cluster)) in clusters {
            match make_triple(hash, true, &cluster, |service| endpoints.get(service).cloned()) {
                Some(triple) => triples.push((name, triple)),
                None => drop(self.missing.insert(format!("endpoints of cluster {name}"))),
            }
        }
        triples
    }
}
