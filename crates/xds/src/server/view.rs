//! The resources that one group of clients sees, with an ordered log of what changed.
//!
//! In: puts and removals. Out: what a stream that has seen everything up to a sequence number has
//! still to look at, in time proportional to the change.

use crate::resource::Resource;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Removals that are remembered for each type; a stream that is further behind compares everything.
const TOMBSTONES: usize = 4096;

/// Everything of one view.
#[derive(Debug, Default)]
pub struct View {
    sequence: u64,
    tables: BTreeMap<String, Table>,
}

/// The resources of one type.
#[derive(Debug, Default)]
pub struct Table {
    entries: BTreeMap<String, Entry>,
    /// Last change of each name, in order.
    log: BTreeMap<u64, String>,
    tombstones: usize,
    /// Changes before this may be missing from the log.
    floor: u64,
}

#[derive(Debug)]
struct Entry {
    resource: Option<Arc<Resource>>,
    sequence: u64,
}

impl View {
    /// Adds or replaces; nothing happens when the version is the same.
    pub fn put(&mut self, type_url: &str, resource: Resource) -> bool {
        let table = self.tables.entry(type_url.to_owned()).or_default();
        let is_same = table.get(&resource.name).is_some_and(|held| held.version == resource.version);
        if is_same {
            return false;
        }
        self.sequence += 1;
        table.record(self.sequence, resource.name.clone(), Some(Arc::new(resource)));
        true
    }

    /// Removes; false if there was none.
    pub fn remove(&mut self, type_url: &str, name: &str) -> bool {
        let Some(table) = self.tables.get_mut(type_url) else { return false };
        if table.get(name).is_none() {
            return false;
        }
        self.sequence += 1;
        table.record(self.sequence, name.to_owned(), None);
        true
    }

    /// Sequence number of the last change.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The resources of a type.
    pub fn table(&self, type_url: &str) -> Option<&Table> {
        self.tables.get(type_url)
    }
}

impl Table {
    /// The resource of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.entries.get(name).and_then(|entry| entry.resource.as_ref())
    }

    /// All resources in name order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.entries.values().filter_map(|entry| entry.resource.as_ref())
    }

    /// Names that changed after `sequence`; `None` when the log does not reach back so far.
    pub fn changed_since(&self, sequence: u64) -> Option<impl Iterator<Item = &str>> {
        let is_covered = sequence >= self.floor;
        is_covered.then(|| self.log.range(sequence + 1..).map(|(_, name)| name.as_str()))
    }

    fn record(&mut self, sequence: u64, name: String, resource: Option<Arc<Resource>>) {
        let is_removal = resource.is_none();
        let previous = self.entries.insert(name.clone(), Entry { resource, sequence });
        if let Some(previous) = previous {
            self.log.remove(&previous.sequence);
            self.tombstones -= usize::from(previous.resource.is_none());
        }
        self.log.insert(sequence, name);
        self.tombstones += usize::from(is_removal);
        if self.tombstones > TOMBSTONES {
            self.compact();
        }
    }

    /// Forgets all tombstones.
    fn compact(&mut self) {
        let removed: Vec<u64> =
            self.entries.values().filter(|entry| entry.resource.is_none()).map(|entry| entry.sequence).collect();
        for sequence in removed {
            self.log.remove(&sequence);
            self.floor = self.floor.max(sequence);
        }
        self.entries.retain(|_, entry| entry.resource.is_some());
        self.tombstones = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::Any;

    fn resource(name: &str, content: u8) -> Resource {
        Resource::from_any(name, Any { type_url: "t".to_owned(), value: vec![content] })
    }

    #[test]
    fn the_log_names_each_changed_resource_once() {
        let mut view = View::default();
        assert!(view.put("t", resource("a", 1)));
        let before = view.sequence();
        assert!(!view.put("t", resource("a", 1)), "same version");
        assert!(view.put("t", resource("a", 2)) && view.put("t", resource("b", 1)) && view.put("t", resource("a", 3)));
        let table = view.table("t").expect("made");
        let changed: Vec<&str> = table.changed_since(before).expect("covered").collect();
        assert_eq!(changed, ["b", "a"]);
    }

    #[test]
    fn forgotten_removals_make_an_old_stream_compare_everything() {
        let mut view = View::default();
        for index in 0..=TOMBSTONES {
            view.put("t", resource(&index.to_string(), 1));
            view.remove("t", &index.to_string());
        }
        assert!(view.table("t").expect("made").changed_since(1).is_none());
        assert!(view.table("t").expect("made").changed_since(view.sequence()).is_some());
    }
}
