//! The root scope: plain xDS and the bootstrap, with Envoy's warming.

use super::intern::{Family, Interner, Key, Triple};
use super::{Incomplete, Store, Wanted};
use crate::config::resource::{Accepted, Content};
use crate::model::{
    CaSource, CertificateSource, Cluster, Discovery, EndpointSet, FilterChain, Listener, RouteConfig, RouteSource,
    Scope, TerminalFilter, TlsContext, TransportSocket,
};
use mesh_api::type_url;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What is in force: a name keeps its last ready resource while its successor waits.
#[derive(Debug, Default)]
pub(super) struct Root {
    listeners: BTreeMap<String, Arc<Listener>>,
    clusters: BTreeMap<String, Triple>,
    routes: BTreeMap<String, Arc<RouteConfig>>,
}

impl Root {
    /// Takes over what is ready, drops what is gone.
    pub(super) fn follow(&mut self, store: &Store) {
        self.clusters.retain(|name, _| store.get(type_url::CLUSTER, name).is_some());
        for accepted in store.root(type_url::CLUSTER) {
            if let Some(triple) = triple(store, accepted) {
                self.clusters.insert(accepted.logical_name.clone(), triple);
            }
        }
        self.listeners.retain(|name, _| store.get(type_url::LISTENER, name).is_some());
        for accepted in store.root(type_url::LISTENER) {
            if let Content::Listener(listener) = &accepted.content
                && missing_of_listener(store, listener).is_empty()
            {
                self.listeners.insert(accepted.logical_name.clone(), Arc::clone(listener));
            }
        }
        self.routes = store.root(type_url::ROUTE_CONFIGURATION).filter_map(named_routes).collect();
    }

    pub(super) fn triples(&self) -> Vec<Triple> {
        self.clusters.values().cloned().collect()
    }

    pub(super) fn scope(&self, interner: &Interner) -> Scope {
        let cluster = |(name, triple): (&String, &Triple)| Some((name.clone(), Arc::clone(interner.get(&triple.key)?)));
        Scope {
            name: String::new(),
            listeners: self.listeners.values().cloned().collect(),
            routes: self.routes.iter().map(|(name, routes)| (name.clone(), Arc::clone(routes))).collect(),
            clusters: self.clusters.iter().filter_map(cluster).collect(),
        }
    }
}

fn named_routes(accepted: &Accepted) -> Option<(String, Arc<RouteConfig>)> {
    match &accepted.content {
        Content::Routes(routes) => Some((accepted.logical_name.clone(), Arc::clone(routes))),
        _ => None,
    }
}

/// None: its endpoints have not come yet.
fn triple(store: &Store, accepted: &Accepted) -> Option<Triple> {
    let Content::Cluster(cluster) = &accepted.content else { return None };
    let endpoints = |service_name: &str| {
        let held = store.get(type_url::CLUSTER_LOAD_ASSIGNMENT, service_name)?;
        match &held.accepted.content {
            Content::Endpoints(set) => Some((held.accepted.content_hash, Arc::clone(set))),
            _ => None,
        }
    };
    make_triple(accepted.content_hash, false, cluster, endpoints)
}

/// A cluster with the endpoints that `find` knows by service name.
pub(super) fn make_triple(
    hash: u128,
    in_workload_scope: bool,
    cluster: &Arc<Cluster>,
    find: impl Fn(&str) -> Option<(u128, Arc<EndpointSet>)>,
) -> Option<Triple> {
    let (service_name, endpoints_hash, endpoints) = match &cluster.discovery {
        Discovery::Eds { service_name } => {
            let (hash, set) = find(service_name)?;
            (service_name.clone(), hash, set)
        }
        Discovery::Static(set) => (String::new(), 0, Arc::clone(set)),
        _ => (String::new(), 0, Arc::default()),
    };
    let family = Family { cluster: hash, in_workload_scope, service_name };
    Some(Triple { key: Key { family, endpoints: endpoints_hash }, cluster: Arc::clone(cluster), endpoints })
}

/// Every filter chain, the default one included.
pub(super) fn chains(listener: &Listener) -> impl Iterator<Item = &Arc<FilterChain>> {
    listener.filter_chains.iter().chain(&listener.default_filter_chain)
}

/// Names of the route configurations that come by discovery.
pub(super) fn rds_names(listener: &Listener) -> impl Iterator<Item = &str> {
    chains(listener).filter_map(|chain| match &chain.terminal {
        TerminalFilter::Http(manager) => match &manager.routes {
            RouteSource::Rds(name) => Some(name.as_str()),
            RouteSource::Inline(_) => None,
        },
        _ => None,
    })
}

fn sds_names(tls: &TlsContext) -> impl Iterator<Item = &str> {
    let certificate = match &tls.certificate {
        Some(CertificateSource::Sds(name)) => Some(name.as_str()),
        _ => None,
    };
    let roots = match &tls.validation.trusted_ca {
        Some(CaSource::Sds(name)) => Some(name.as_str()),
        _ => None,
    };
    certificate.into_iter().chain(roots)
}

fn listener_secrets(listener: &Listener) -> impl Iterator<Item = &str> {
    chains(listener).filter_map(|chain| chain.tls.as_ref()).flat_map(|tls| sds_names(&tls.common))
}

fn cluster_secrets(cluster: &Cluster) -> impl Iterator<Item = &str> {
    let sockets = cluster.transport.matches.iter().map(|entry| &entry.socket).chain([&cluster.transport.default]);
    let contexts = sockets.filter_map(|socket| match socket {
        TransportSocket::Tls(tls) => Some(&tls.common),
        TransportSocket::RawBuffer => None,
    });
    contexts.flat_map(sds_names)
}

fn missing_of_listener(store: &Store, listener: &Listener) -> Vec<String> {
    let routes = rds_names(listener).filter(|name| store.get(type_url::ROUTE_CONFIGURATION, name).is_none());
    let secrets = listener_secrets(listener).filter(|name| store.get(type_url::SECRET, name).is_none());
    let routes: BTreeSet<String> = routes.map(|name| format!("route configuration {name}")).collect();
    let secrets: BTreeSet<String> = secrets.map(|name| format!("secret {name}")).collect();
    routes.into_iter().chain(secrets).collect()
}

/// What of the root scope waits, and for what.
pub(super) fn incomplete(store: &Store) -> Vec<Incomplete> {
    let mut all = Vec::new();
    for accepted in store.root(type_url::CLUSTER) {
        if let (Content::Cluster(cluster), None) = (&accepted.content, triple(store, accepted))
            && let Discovery::Eds { service_name } = &cluster.discovery
        {
            let missing = vec![format!("endpoints {service_name}")];
            all.push(Incomplete { what: format!("cluster {}", cluster.name), missing });
        }
    }
    for accepted in store.root(type_url::LISTENER) {
        if let Content::Listener(listener) = &accepted.content {
            let missing = missing_of_listener(store, listener);
            if !missing.is_empty() {
                all.push(Incomplete { what: format!("listener {}", listener.name), missing });
            }
        }
    }
    all
}

/// Names to subscribe to. Those of the bootstrap are there already.
pub(super) fn wanted(store: &Store) -> Wanted {
    let mut wanted = Wanted::default();
    for accepted in store.root(type_url::CLUSTER).chain(store.root(type_url::LISTENER)) {
        match &accepted.content {
            Content::Cluster(cluster) => {
                if let Discovery::Eds { service_name } = &cluster.discovery {
                    wanted.endpoints.insert(service_name.clone());
                }
                wanted.secrets.extend(cluster_secrets(cluster).map(str::to_owned));
            }
            Content::Listener(listener) => {
                wanted.routes.extend(rds_names(listener).map(str::to_owned));
                wanted.secrets.extend(listener_secrets(listener).map(str::to_owned));
            }
            _ => {}
        }
    }
    let is_fixed = |name: &String| store.get(type_url::SECRET, name).is_some_and(|held| held.fixed);
    wanted.secrets.retain(|name| !is_fixed(name));
    wanted
}
