//! Kubernetes objects to typed, versioned tables, and each node's view of them over xDS.
//!
//! In: a folder of manifests. Out: for each node its own `Workload`s, and all `Node`s, `Service`s
//! and `Network`s. The pure core goes `manifest` → `folder` → `tables` → `derive` → `publish`;
//! `watch`, `authorize` and `metrics` are the shell around it.

#![forbid(unsafe_code)]

pub mod authorize;
pub mod derive;
pub mod folder;
pub mod kubernetes;
pub mod manifest;
pub mod metrics;
pub mod object;
pub mod publish;
pub mod tables;
pub mod watch;

use folder::{Folder, Refusal};
use object::Kind;
use publish::Publisher;
use std::collections::{BTreeMap, BTreeSet};
use tables::{Changes, Tables};
use xds::server::Store;

/// The core as one: files in, views out.
#[derive(Debug)]
pub struct Controller {
    folder: Folder,
    tables: Tables,
    publisher: Publisher,
}

impl Controller {
    /// Publishes into `store`.
    pub fn new(store: Store) -> Self {
        Self { folder: Folder::default(), tables: Tables::default(), publisher: Publisher::new(store) }
    }

    /// The folder holds exactly these files now.
    pub fn load(&mut self, files: BTreeMap<String, String>) -> Changes {
        if !self.folder.replace(files) {
            return Changes::default();
        }
        let changes = self.tables.replace(self.folder.objects());
        self.publisher.publish(&self.tables);
        changes
    }

    /// What is not in force as it is written.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.folder.refusals()
    }

    /// Number of objects of a kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.tables.count(kind)
    }

    /// Number of files.
    pub fn files(&self) -> usize {
        self.folder.len()
    }

    /// Version of the tables.
    pub fn version(&self) -> u64 {
        self.tables.version()
    }

    /// Nodes that have a view.
    pub fn nodes(&self) -> BTreeSet<String> {
        self.publisher.nodes().clone()
    }
}
