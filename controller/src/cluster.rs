//! What was seen of the API server's objects. Pure.
//!
//! In: what the watches tell, kind by kind. Out: the tables as they should be. A list replaces what
//! was known of its kind when it is complete. An object that is wrong is refused alone; the last
//! good state of the same object stays in force.

use crate::folder::Refusal;
use crate::kubernetes::FieldError;
use crate::object::{Key, Kind, Object};
use crate::tables::{Changes, Tables};
use std::collections::{BTreeMap, BTreeSet};

/// One thing that a watch tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// A list of that kind begins.
    ListBegins(Kind),
    /// An object is there, in a list or by a change.
    Put(Key, Result<Object, FieldError>),
    /// The list is complete.
    ListEnds(Kind),
    Gone(Key),
    /// The watch does not work; it is tried again.
    Failed(Kind, String),
    /// It works again, though nothing changed.
    Recovered(Kind),
}

/// What the tables do not tell.
#[derive(Debug)]
pub struct Cluster {
    /// Kinds whose first list is awaited.
    awaited: BTreeSet<Kind>,
    /// Lists under way, with what they named so far.
    lists: BTreeMap<Kind, BTreeSet<Key>>,
    refusals: BTreeMap<Key, Refusal>,
    failures: BTreeMap<Kind, String>,
}

impl Default for Cluster {
    fn default() -> Self {
        Self { awaited: Kind::ALL.into(), lists: BTreeMap::new(), refusals: BTreeMap::new(), failures: BTreeMap::new() }
    }
}

impl Cluster {
    /// Takes one thing over into the tables.
    pub fn take(&mut self, seen: Seen, tables: &mut Tables) -> Changes {
        match seen {
            Seen::Failed(kind, reason) => drop(self.failures.insert(kind, reason)),
            Seen::Recovered(kind) => drop(self.failures.remove(&kind)),
            Seen::ListBegins(kind) => drop(self.lists.insert(kind, BTreeSet::new())),
            Seen::ListEnds(kind) => return self.list_ends(kind, tables),
            Seen::Put(key, object) => return self.put(key, object, tables),
            Seen::Gone(key) => {
                self.failures.remove(&key.kind);
                return self.gone(&key, tables);
            }
        }
        Changes::default()
    }

    fn put(&mut self, key: Key, object: Result<Object, FieldError>, tables: &mut Tables) -> Changes {
        self.failures.remove(&key.kind);
        if let Some(list) = self.lists.get_mut(&key.kind) {
            list.insert(key.clone());
        }
        match object {
            Ok(object) => {
                self.refusals.remove(&key);
                Changes { put: tables.put(key, object).into(), removed: 0 }
            }
            Err(error) => {
                self.refuse(key, &error, tables);
                Changes::default()
            }
        }
    }

    fn refuse(&mut self, key: Key, error: &FieldError, tables: &Tables) {
        let last_good = tables.get(&key).is_some();
        let refusal = Refusal { file: key.to_string(), reason: error.to_string(), last_good };
        if self.refusals.get(&key) != Some(&refusal) {
            tracing::error!(object = %key, %error, last_good, "object refused; its last good state stays in force");
            self.refusals.insert(key, refusal);
        }
    }

    fn gone(&mut self, key: &Key, tables: &mut Tables) -> Changes {
        self.refusals.remove(key);
        Changes { put: 0, removed: tables.remove(key).into() }
    }

    fn list_ends(&mut self, kind: Kind, tables: &mut Tables) -> Changes {
        self.failures.remove(&kind);
        self.awaited.remove(&kind);
        let Some(named) = self.lists.remove(&kind) else { return Changes::default() };
        let known = tables.iter().map(|(key, _)| key).chain(self.refusals.keys());
        let gone: BTreeSet<Key> = known.filter(|key| key.kind == kind && !named.contains(*key)).cloned().collect();
        let mut changes = Changes::default();
        for key in gone {
            changes.removed += self.gone(&key, tables).removed;
        }
        changes
    }

    /// Whether everything was listed once: before that, views would withdraw what is merely not known yet.
    pub fn is_complete(&self) -> bool {
        self.awaited.is_empty()
    }

    /// What is still awaited or does not work, for a person.
    pub fn state(&self) -> Result<(), String> {
        if !self.failures.is_empty() {
            return Err(self.failing());
        }
        match self.is_complete() {
            true => Ok(()),
            false => {
                let kinds: Vec<&str> = self.awaited.iter().map(|kind| kind.as_str()).collect();
                Err(format!("the lists of {} are awaited", kinds.join(", ")))
            }
        }
    }

    /// Kinds by the reason that they share.
    fn failing(&self) -> String {
        let mut kinds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (kind, reason) in &self.failures {
            kinds.entry(reason).or_default().push(kind.as_str());
        }
        let each = kinds.into_iter().map(|(reason, kinds)| format!("{}: {reason}", kinds.join(", ")));
        each.collect::<Vec<_>>().join("; ")
    }

    /// Objects that are not in force as they are written.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.refusals.values().cloned().collect()
    }

    /// Objects of a kind that are refused.
    pub fn refused(&self, kind: Kind) -> Vec<Key> {
        self.refusals.keys().filter(|key| key.kind == kind).cloned().collect()
    }

    /// Why that object is refused.
    pub fn refusal(&self, key: &Key) -> Option<&Refusal> {
        self.refusals.get(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Network;

    fn key(name: &str) -> Key {
        Key::new(Kind::Network, "", name)
    }

    fn put(name: &str, vni: u32) -> Seen {
        Seen::Put(key(name), Ok(Object::Network(Network { vni, mtu: 0 })))
    }

    fn bad(name: &str) -> Seen {
        Seen::Put(key(name), Err(FieldError { field: "spec.vni".to_owned(), reason: "is wrong".to_owned() }))
    }

    fn world(seen: impl IntoIterator<Item = Seen>) -> (Cluster, Tables) {
        let (mut cluster, mut tables) = (Cluster::default(), Tables::default());
        for seen in seen {
            cluster.take(seen, &mut tables);
        }
        (cluster, tables)
    }

    #[test]
    fn it_is_complete_when_every_kind_was_listed() {
        let (mut cluster, mut tables) = (Cluster::default(), Tables::default());
        for kind in Kind::ALL {
            assert!(!cluster.is_complete() && cluster.state().expect_err("awaited").contains(kind.as_str()));
            cluster.take(Seen::ListBegins(kind), &mut tables);
            cluster.take(Seen::ListEnds(kind), &mut tables);
        }
        assert_eq!((cluster.is_complete(), cluster.state()), (true, Ok(())));
        cluster.take(Seen::Failed(Kind::Pod, "connection refused".to_owned()), &mut tables);
        cluster.take(Seen::Failed(Kind::Node, "connection refused".to_owned()), &mut tables);
        assert_eq!(cluster.state(), Err("Node, Pod: connection refused".to_owned()));
        assert!(cluster.is_complete(), "what was known stays in force");
    }

    #[test]
    fn a_second_list_removes_what_it_does_not_name_and_only_at_its_end() {
        let list = |names: &[&str]| {
            let begins = std::iter::once(Seen::ListBegins(Kind::Network));
            begins.chain(names.iter().map(|name| put(name, 1))).collect::<Vec<_>>()
        };
        let ends = Seen::ListEnds(Kind::Network);
        let first = [list(&["a", "b"]), vec![bad("c"), ends.clone()]].concat();
        let (mut cluster, mut tables) = world(first);
        for seen in list(&["b"]) {
            cluster.take(seen, &mut tables);
        }
        assert_eq!((tables.count(Kind::Network), cluster.refusals().len()), (2, 1), "the list is not complete");
        assert_eq!(cluster.take(ends, &mut tables), Changes { put: 0, removed: 1 });
        assert_eq!((tables.count(Kind::Network), cluster.refusals().len()), (1, 0));
    }

    #[test]
    fn a_bad_object_is_refused_alone_and_its_last_good_state_stays() {
        let (mut cluster, mut tables) = world([put("a", 1), bad("a"), bad("b"), put("c", 3)]);
        assert_eq!(tables.network("a").map(|network| network.vni), Some(1));
        assert_eq!((tables.network("b"), tables.count(Kind::Network)), (None, 2));
        let last_good: Vec<bool> = cluster.refusals().iter().map(|refusal| refusal.last_good).collect();
        assert_eq!(last_good, [true, false]);
        cluster.take(put("a", 2), &mut tables);
        cluster.take(Seen::Gone(key("b")), &mut tables);
        assert_eq!(cluster.refusals(), []);
    }
}
