//! Views by name, shared by all streams of a server.

use super::view::View;
use crate::resource::Resource;
use mesh_api::type_url::MAKE_ORDER;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use tokio::sync::watch;

/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Store {
    views: Arc<RwLock<HashMap<String, Arc<Cell>>>>,
    closed: watch::Sender<bool>,
}

/// A view, and a bell that rings when it changes.
#[derive(Debug)]
pub(super) struct Cell {
    view: RwLock<View>,
    /// Streams are told nothing meanwhile.
    is_held: AtomicBool,
    bell: watch::Sender<u64>,
}

impl Cell {
    pub(super) fn read(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Acquire)
    }

    pub(super) fn listen(&self) -> watch::Receiver<u64> {
        self.bell.subscribe()
    }
}

/// Changes of several types that belong together: made in `MAKE_ORDER`, removed in the reverse.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    puts: Vec<(String, Resource)>,
    removals: Vec<(String, String)>,
    replacements: BTreeMap<String, BTreeSet<String>>,
}

impl Transaction {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces a resource.
    pub fn put(&mut self, type_url: &str, resource: Resource) -> &mut Self {
        self.puts.push((type_url.to_owned(), resource));
        self
    }

    /// Removes a resource.
    pub fn remove(&mut self, type_url: &str, name: &str) -> &mut Self {
        self.removals.push((type_url.to_owned(), name.to_owned()));
        self
    }

    /// Makes the resources of a type be exactly these.
    pub fn replace(&mut self, type_url: &str, resources: Vec<Resource>) -> &mut Self {
        let names = resources.iter().map(|resource| resource.name.clone()).collect();
        self.replacements.insert(type_url.to_owned(), names);
        self.puts.extend(resources.into_iter().map(|resource| (type_url.to_owned(), resource)));
        self
    }

    fn apply(mut self, view: &mut View) -> bool {
        for (type_url, keep) in &self.replacements {
            let present = view.table(type_url).into_iter().flat_map(|table| table.iter());
            let gone = present.filter(|resource| !keep.contains(&resource.name));
            self.removals.extend(gone.map(|resource| (type_url.clone(), resource.name.clone())));
        }
        self.puts.sort_by_key(|(type_url, _)| make_rank(type_url));
        self.removals.sort_by_key(|(type_url, _)| std::cmp::Reverse(make_rank(type_url)));
        let mut changed = false;
        for (type_url, resource) in self.puts {
            changed |= view.put(&type_url, resource);
        }
        for (type_url, name) in self.removals {
            changed |= view.remove(&type_url, &name);
        }
        changed
    }
}

/// Place of a type in the order in which types are made; unknown types come last.
pub(super) fn make_rank(type_url: &str) -> usize {
    MAKE_ORDER.iter().position(|other| *other == type_url).unwrap_or(MAKE_ORDER.len())
}

impl Store {
    /// Without views; a view comes into being when it is first used.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies a transaction to a view and rings its streams.
    pub fn commit(&self, view: &str, transaction: Transaction) {
        let cell = self.cell(view);
        let mut held = cell.view.write().unwrap_or_else(PoisonError::into_inner);
        if transaction.apply(&mut held) {
            let sequence = held.sequence();
            drop(held);
            cell.bell.send_replace(sequence);
        }
    }

    /// Tells the streams of a view nothing until `release`; what they say is taken meanwhile. For a
    /// server that has just started and does not know everything yet: answering a client that comes
    /// back with what it holds would withdraw what is merely not known again.
    pub fn hold(&self, view: &str) {
        self.cell(view).is_held.store(true, Ordering::Release);
    }

    /// Answers the streams of a held view.
    pub fn release(&self, view: &str) {
        let cell = self.cell(view);
        cell.is_held.store(false, Ordering::Release);
        let sequence = cell.read().sequence();
        cell.bell.send_replace(sequence);
    }

    /// Whether a view is held.
    pub fn is_held(&self, view: &str) -> bool {
        self.cell(view).is_held()
    }

    /// Ends every stream, now and later: a server that stops gracefully waits for its streams, and
    /// they would never end by themselves. Call it together with the server's shutdown.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Waits for `close`.
    pub(super) async fn closed(&self) {
        let mut closed = self.closed.subscribe();
        // The store itself holds a sender: waiting cannot fail.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// Forgets a view. Streams that are on it keep what they have.
    pub fn remove_view(&self, view: &str) {
        self.views.write().unwrap_or_else(PoisonError::into_inner).remove(view);
    }

    /// The resources of a type in a view, in name order.
    pub fn get(&self, view: &str, type_url: &str) -> Vec<Resource> {
        let cell = self.cell(view);
        let held = cell.read();
        held.table(type_url).map(|table| table.iter().map(|one| Resource::clone(one)).collect()).unwrap_or_default()
    }

    pub(super) fn cell(&self, view: &str) -> Arc<Cell> {
        if let Some(cell) = self.views.read().unwrap_or_else(PoisonError::into_inner).get(view) {
            return Arc::clone(cell);
        }
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        let fresh =
            || Arc::new(Cell { view: RwLock::default(), is_held: AtomicBool::new(false), bell: watch::Sender::new(0) });
        Arc::clone(views.entry(view.to_owned()).or_insert_with(fresh))
    }
}
