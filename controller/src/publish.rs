//! Keeps each node's view as the tables say, in work proportional to what changed. Pure but for the store.
//!
//! A node sees its own workloads, and all nodes, services and networks. Nodes that have no object
//! have no view, and are refused: an empty view would make a node forget its routes.

use crate::derive;
use crate::object::{Key, Kind, Object};
use crate::tables::Tables;
use mesh_api::type_url;
use std::collections::{BTreeMap, BTreeSet};
use xds::Resource;
use xds::server::{Store, Transaction};

/// A resource's type and name.
type Place = (&'static str, String);

/// What has been published.
#[derive(Debug, Default)]
pub struct Publisher {
    store: Store,
    /// Version of the tables that is published.
    seen: u64,
    nodes: BTreeSet<String>,
    /// What every node sees.
    common: BTreeMap<Place, Resource>,
    /// Node and resource of each scheduled pod.
    workloads: BTreeMap<String, (String, Resource)>,
}

/// Transactions by node.
type Pending = BTreeMap<String, Transaction>;

impl Publisher {
    /// Publishes into `store`.
    pub fn new(store: Store) -> Self {
        Self { store, ..Self::default() }
    }

    /// Makes the views what the tables say.
    pub fn publish(&mut self, tables: &Tables) {
        let dirty = dirty(tables, self.seen);
        self.seen = tables.version();
        let mut pending = Pending::new();
        for key in &dirty {
            match key.kind {
                Kind::Pod => self.workload(tables, key, &mut pending),
                Kind::Node => {
                    self.common(key, type_url::NODE, derived(key, derive::node(tables, &key.name)), &mut pending)
                }
                Kind::Network => {
                    self.common(key, type_url::NETWORK, derived(key, derive::network(tables, &key.name)), &mut pending);
                }
                Kind::Service => {
                    let service = derive::service(tables, &key.namespace, &key.name);
                    self.common(key, type_url::SERVICE, derived(key, service), &mut pending);
                }
                Kind::Namespace | Kind::ReplicaSet | Kind::EndpointSlice | Kind::DpuNode => {}
            }
        }
        self.follow_nodes(tables, &mut pending);
        for (node, transaction) in pending.into_iter().filter(|(node, _)| self.nodes.contains(node)) {
            self.store.commit(&node, transaction);
        }
    }

    /// Nodes that have a view.
    pub fn nodes(&self) -> &BTreeSet<String> {
        &self.nodes
    }

    fn workload(&mut self, tables: &Tables, key: &Key, pending: &mut Pending) {
        let name = key.path();
        let current = derive::workload(tables, &key.namespace, &key.name)
            .map(|workload| (workload.node.clone(), Resource::new(name.clone(), &workload)));
        let previous = match current.clone() {
            Some(current) => self.workloads.insert(name.clone(), current),
            None => self.workloads.remove(&name),
        };
        let node = current.as_ref().map(|(node, _)| node);
        if let Some((left, _)) = previous.filter(|(previous, _)| node != Some(previous)) {
            pending.entry(left).or_default().remove(type_url::WORKLOAD, &name);
        }
        if let Some((node, resource)) = current {
            pending.entry(node).or_default().put(type_url::WORKLOAD, resource);
        }
    }

    fn common(&mut self, key: &Key, kind: &'static str, resource: Option<Resource>, pending: &mut Pending) {
        let place = (kind, key.path());
        for node in &self.nodes {
            let transaction = pending.entry(node.clone()).or_default();
            match &resource {
                Some(resource) => transaction.put(kind, resource.clone()),
                None => transaction.remove(kind, &place.1),
            };
        }
        match resource {
            Some(resource) => drop(self.common.insert(place, resource)),
            None => drop(self.common.remove(&place)),
        }
    }

    /// New nodes get everything that they see. The view of a node that is gone is frozen, not
    /// emptied: its programs keep what they have, and follow again when the node comes back.
    fn follow_nodes(&mut self, tables: &Tables, pending: &mut Pending) {
        let current: BTreeSet<String> = tables.within(Kind::Node, "").map(|(key, _)| key.name.clone()).collect();
        for fresh in current.difference(&self.nodes) {
            let transaction = pending.entry(fresh.clone()).or_default();
            for kind in [type_url::NODE, type_url::SERVICE, type_url::NETWORK] {
                let resources = self.common.iter().filter(|((other, _), _)| *other == kind);
                transaction.replace(kind, resources.map(|(_, resource)| resource.clone()).collect());
            }
            let own = self.workloads.values().filter(|(node, _)| node == fresh);
            transaction.replace(type_url::WORKLOAD, own.map(|(_, resource)| resource.clone()).collect());
        }
        self.nodes = current;
    }
}

fn derived<M: prost::Message + prost::Name>(key: &Key, message: Option<M>) -> Option<Resource> {
    message.map(|message| Resource::new(key.path(), &message))
}

/// The keys whose resources may have changed: the changed objects, and those that are computed from them.
fn dirty(tables: &Tables, seen: u64) -> BTreeSet<Key> {
    let mut dirty = BTreeSet::new();
    for key in tables.changed_since(seen) {
        let namespace = key.namespace.as_str();
        match key.kind {
            Kind::Namespace => dirty.extend(pods(tables, &key.name)),
            Kind::ReplicaSet => dirty.extend(pods(tables, namespace)),
            // The slice's own service, and, were it moved or removed, the one that it had.
            Kind::Pod | Kind::EndpointSlice => dirty.extend(derive::services_of(tables, namespace).cloned()),
            Kind::DpuNode => drop(dirty.insert(Key::new(Kind::Node, "", &key.name))),
            Kind::Node | Kind::Network | Kind::Service => {}
        }
        dirty.insert(key.clone());
    }
    dirty
}

fn pods(tables: &Tables, namespace: &str) -> Vec<Key> {
    tables
        .within(Kind::Pod, namespace)
        .filter(|(_, object)| matches!(object, Object::Pod(_)))
        .map(|(key, _)| key.clone())
        .collect()
}
