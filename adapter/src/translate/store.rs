//! Each distinct resource once, counted by the scopes that use it; each scope once, counted by its
//! holders.
//!
//! In: `retain` and `release`. Out: `Changes` to what the proxy sees. Retain the new scope before
//! the old one is released, and what both use stays untouched.

use super::assembly::Assembly;
use super::content::{Content, Kind};
use mesh_api::type_url;
use std::collections::BTreeMap;
use std::sync::Arc;
use xds::Resource;
use xds::server::Transaction;

/// What a step changes for the proxy: the last word on each resource. `None`: removed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    resources: BTreeMap<(&'static str, String), Option<Resource>>,
}

impl Changes {
    /// Adds or replaces.
    pub fn put(&mut self, type_url: &'static str, resource: Resource) {
        self.resources.insert((type_url, resource.name.clone()), Some(resource));
    }

    /// Removes.
    pub fn remove(&mut self, type_url: &'static str, name: &str) {
        self.resources.insert((type_url, name.to_owned()), None);
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// Each change: type, name, and the resource unless it is removed.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str, Option<&Resource>)> {
        self.resources.iter().map(|((type_url, name), resource)| (*type_url, name.as_str(), resource.as_ref()))
    }

    /// For the server: makes in order, removes in the reverse order.
    pub fn into_transaction(self) -> Transaction {
        let mut transaction = Transaction::new();
        for ((type_url, name), resource) in self.resources {
            match resource {
                Some(resource) => transaction.put(type_url, resource),
                None => transaction.remove(type_url, &name),
            };
        }
        transaction
    }
}

#[derive(Debug)]
struct Counted<T> {
    value: Arc<T>,
    users: usize,
}

/// What is served.
#[derive(Debug, Default)]
pub struct Store {
    resources: BTreeMap<(Kind, String), Counted<Content>>,
    scopes: BTreeMap<String, Counted<Assembly>>,
}

impl Store {
    /// One more holder of a scope.
    pub fn retain(&mut self, assembly: &Arc<Assembly>, changes: &mut Changes) {
        if let Some(scope) = self.scopes.get_mut(assembly.name()) {
            scope.users += 1;
            return;
        }
        for content in assembly.contents() {
            self.retain_resource(content, changes);
        }
        changes.put(type_url::SCOPE, assembly.resource());
        self.scopes.insert(assembly.name().to_owned(), Counted { value: Arc::clone(assembly), users: 1 });
    }

    /// One holder less; with the last, the scope goes, and what only it used.
    pub fn release(&mut self, name: &str, changes: &mut Changes) {
        let Some(scope) = self.scopes.get_mut(name) else { return };
        scope.users -= 1;
        if scope.users > 0 {
            return;
        }
        changes.remove(type_url::SCOPE, name);
        let scope = self.scopes.remove(name).expect("looked up above");
        for content in scope.value.contents() {
            self.release_resource(content, changes);
        }
    }

    /// Distinct resources that are served.
    pub fn resources(&self) -> impl Iterator<Item = &Arc<Content>> {
        self.resources.values().map(|counted| &counted.value)
    }

    /// Names of the scopes that are served, with the number of their holders.
    pub fn scopes(&self) -> impl Iterator<Item = (&str, usize)> {
        self.scopes.iter().map(|(name, counted)| (name.as_str(), counted.users))
    }

    fn retain_resource(&mut self, content: &Arc<Content>, changes: &mut Changes) {
        let fresh = || Counted { value: Arc::clone(content), users: 0 };
        let counted = self.resources.entry((content.kind, content.name.clone())).or_insert_with(fresh);
        counted.users += 1;
        if counted.users == 1 {
            changes.put(content.kind.type_url(), content.resource());
        }
    }

    fn release_resource(&mut self, content: &Arc<Content>, changes: &mut Changes) {
        let key = (content.kind, content.name.clone());
        let Some(counted) = self.resources.get_mut(&key) else { return };
        counted.users -= 1;
        if counted.users == 0 {
            self.resources.remove(&key);
            changes.remove(content.kind.type_url(), &content.name);
        }
    }
}
