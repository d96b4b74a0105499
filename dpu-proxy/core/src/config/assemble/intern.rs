//! One `ScopedCluster` for each distinct (cluster content, endpoints), with an id that survives endpoint updates.

use crate::model::{Cluster, EndpointSet, ScopedCluster};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What makes a scoped cluster: the cluster's content and its endpoints.
#[derive(Clone, Debug)]
pub(super) struct Triple {
    pub key: Key,
    pub cluster: Arc<Cluster>,
    pub endpoints: Arc<EndpointSet>,
}

/// Equal keys mean equal content.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub family: Family,
    /// Hash of the endpoints; 0 where the cluster itself says them.
    pub endpoints: u128,
}

/// What an id stands for: it is kept when the endpoints change.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Family {
    /// Hash of the cluster.
    pub cluster: u128,
    /// Of a workload's scope.
    pub in_workload_scope: bool,
    /// Name of the endpoints; empty where the cluster itself says them.
    pub service_name: String,
}

#[derive(Debug, Default)]
pub(super) struct Interner {
    interned: HashMap<Key, Arc<ScopedCluster>>,
    last_id: u64,
}

impl Interner {
    /// Holds exactly these. A new one takes over the id of one of its family that is no longer wanted; when two scopes
    /// see different endpoints of one cluster, each has an id of its own.
    pub(super) fn keep(&mut self, wanted: Vec<Triple>) {
        let keys: HashSet<Key> = wanted.iter().map(|triple| triple.key.clone()).collect();
        let mut freed: HashMap<Family, Vec<u64>> = HashMap::new();
        self.interned.retain(|key, scoped| {
            let stays = keys.contains(key);
            if !stays {
                freed.entry(key.family.clone()).or_default().push(scoped.id);
            }
            stays
        });
        for triple in wanted {
            if self.interned.contains_key(&triple.key) {
                continue;
            }
            let inherited = freed.get_mut(&triple.key.family).and_then(Vec::pop);
            let id = inherited.unwrap_or_else(|| self.next_id());
            let scoped = ScopedCluster { id, cluster: triple.cluster, endpoints: triple.endpoints };
            self.interned.insert(triple.key, Arc::new(scoped));
        }
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// One that is kept.
    pub(super) fn get(&self, key: &Key) -> Option<&Arc<ScopedCluster>> {
        self.interned.get(key)
    }
}
