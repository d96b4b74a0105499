//! Every object by key, with the version at which it last changed, and the ordered log of changes. Pure.
//!
//! In: the complete set of objects that should be there. Out: what changed since any version, so
//! that every subscriber sees changes in one order.

use crate::object::{DpuNode, Key, Kind, Labels, Network, Node, Object, Owner, Pod, Service};
use std::collections::{BTreeMap, BTreeSet};

/// All objects. `version` grows by one with each object that changes.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    version: u64,
    entries: BTreeMap<Key, Entry>,
    /// Last change of each key, in order; removals included.
    log: BTreeMap<u64, Key>,
    /// The removals among them.
    removed: BTreeSet<u64>,
    counts: BTreeMap<Kind, usize>,
}

#[derive(Clone, Debug)]
struct Entry {
    version: u64,
    /// `None`: removed.
    object: Option<Object>,
}

/// How many objects a replacement touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub put: usize,
    pub removed: usize,
}

impl std::ops::AddAssign for Changes {
    fn add_assign(&mut self, other: Self) {
        self.put += other.put;
        self.removed += other.removed;
    }
}

impl Tables {
    /// Makes the objects be exactly these.
    pub fn replace(&mut self, objects: BTreeMap<Key, Object>) -> Changes {
        let mut changes = Changes::default();
        let gone: Vec<Key> =
            self.iter().map(|(key, _)| key).filter(|key| !objects.contains_key(*key)).cloned().collect();
        for key in gone {
            changes.removed += usize::from(self.remove(&key));
        }
        for (key, object) in objects {
            changes.put += usize::from(self.put(key, object));
        }
        changes
    }

    /// Adds or replaces one object; says whether that changed anything.
    pub fn put(&mut self, key: Key, object: Object) -> bool {
        let changes = self.get(&key) != Some(&object);
        if changes {
            self.record(key, Some(object));
        }
        changes
    }

    /// Removes one object.
    pub fn remove(&mut self, key: &Key) -> bool {
        let known = self.get(key).is_some();
        if known {
            self.record(key.clone(), None);
        }
        known
    }

    fn record(&mut self, key: Key, object: Option<Object>) {
        self.version += 1;
        let count = self.counts.entry(key.kind).or_default();
        *count += usize::from(object.is_some());
        if object.is_none() {
            self.removed.insert(self.version);
        }
        let entry = Entry { version: self.version, object };
        if let Some(previous) = self.entries.insert(key.clone(), entry) {
            *count -= usize::from(previous.object.is_some());
            self.log.remove(&previous.version);
            self.removed.remove(&previous.version);
        }
        self.log.insert(self.version, key);
    }

    /// Forgets the removals up to `version`: nobody asks for older changes any more.
    pub fn forget_removals(&mut self, version: u64) {
        let newer = self.removed.split_off(&(version + 1));
        for removal in std::mem::replace(&mut self.removed, newer) {
            if let Some(key) = self.log.remove(&removal) {
                self.entries.remove(&key);
            }
        }
    }

    /// Of the last change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Keys that changed after `version`, each once, in the order of their last change.
    pub fn changed_since(&self, version: u64) -> impl Iterator<Item = &Key> {
        self.log.range(version + 1..).map(|(_, key)| key)
    }

    /// The object of that key.
    pub fn get(&self, key: &Key) -> Option<&Object> {
        self.entries.get(key)?.object.as_ref()
    }

    /// All objects in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Object)> {
        self.entries.iter().filter_map(|(key, entry)| Some((key, entry.object.as_ref()?)))
    }

    /// Objects of a kind in a namespace, in name order.
    pub fn within<'a>(&'a self, kind: Kind, namespace: &'a str) -> impl Iterator<Item = (&'a Key, &'a Object)> {
        let range = self.entries.range(Key::new(kind, namespace, "")..);
        let inside = range.take_while(move |(key, _)| key.kind == kind && key.namespace == namespace);
        inside.filter_map(|(key, entry)| Some((key, entry.object.as_ref()?)))
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    /// Labels of a namespace; `None` when there is no such object.
    pub fn namespace(&self, name: &str) -> Option<&Labels> {
        match self.get(&Key::new(Kind::Namespace, "", name)) {
            Some(Object::Namespace(labels)) => Some(labels),
            _ => None,
        }
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<&Node> {
        match self.get(&Key::new(Kind::Node, "", name)) {
            Some(Object::Node(node)) => Some(node),
            _ => None,
        }
    }

    /// A node's DPU.
    pub fn dpu_node(&self, name: &str) -> Option<&DpuNode> {
        match self.get(&Key::new(Kind::DpuNode, "", name)) {
            Some(Object::DpuNode(node)) => Some(node),
            _ => None,
        }
    }

    /// A network.
    pub fn network(&self, name: &str) -> Option<&Network> {
        match self.get(&Key::new(Kind::Network, "", name)) {
            Some(Object::Network(network)) => Some(network),
            _ => None,
        }
    }

    /// What controls a ReplicaSet.
    pub fn replica_set_owner(&self, namespace: &str, name: &str) -> Option<&Owner> {
        match self.get(&Key::new(Kind::ReplicaSet, namespace, name)) {
            Some(Object::ReplicaSet(owner)) => owner.as_ref(),
            _ => None,
        }
    }

    /// A pod.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        match self.get(&Key::new(Kind::Pod, namespace, name)) {
            Some(Object::Pod(pod)) => Some(pod),
            _ => None,
        }
    }

    /// A service.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        match self.get(&Key::new(Kind::Service, namespace, name)) {
            Some(Object::Service(service)) => Some(service),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespaces(names: &[(&str, &str)]) -> BTreeMap<Key, Object> {
        let labels = |value: &str| Labels::from([("l".to_owned(), value.to_owned())]);
        names
            .iter()
            .map(|(name, value)| (Key::new(Kind::Namespace, "", name), Object::Namespace(labels(value))))
            .collect()
    }

    #[test]
    fn the_log_names_each_changed_object_once_in_the_order_of_change() {
        let mut tables = Tables::default();
        assert_eq!(tables.replace(namespaces(&[("a", "1"), ("b", "1")])), Changes { put: 2, removed: 0 });
        let seen = tables.version();
        assert_eq!(tables.replace(namespaces(&[("a", "1"), ("b", "1")])), Changes::default());
        assert_eq!(tables.version(), seen, "nothing changed");
        tables.replace(namespaces(&[("b", "2")]));
        tables.replace(namespaces(&[("b", "3")]));
        let changed: Vec<&str> = tables.changed_since(seen).map(|key| key.name.as_str()).collect();
        assert_eq!(changed, ["a", "b"]);
        assert_eq!(tables.namespace("a"), None);
        assert_eq!(tables.count(Kind::Namespace), 1);
        tables.forget_removals(tables.version());
        let changed: Vec<&str> = tables.changed_since(seen).map(|key| key.name.as_str()).collect();
        assert_eq!((changed, tables.entries.len()), (vec!["b"], 1), "a removal that was told takes no memory");
    }
}
