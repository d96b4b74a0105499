//! Kubernetes objects to typed, versioned tables, and each node's view of them over xDS.
//!
//! In: a folder of manifests, or the API server. Out: for each node its own `Workload`s, and all
//! `Node`s, `Service`s and `Network`s. The pure core goes `manifest` → `folder`, or `watchers` →
//! `cluster`, to `tables` → `derive` → `publish`; `program` and `keeper` are the shell around it.
//! Beside the views: `enrollment` gives programs their certificates, `reports` writes down what nodes
//! tell, `leader` does what one replica must do.

#![forbid(unsafe_code)]

pub mod api_server;
pub mod args;
pub mod authorize;
pub mod cluster;
pub mod derive;
pub mod enrollment;
pub mod folder;
pub mod keeper;
pub mod kubernetes;
pub mod leader;
pub mod manifest;
pub mod metrics;
pub mod object;
mod probes;
pub mod program;
pub mod publish;
pub mod reports;
pub mod tables;
pub mod watch;
pub mod watchers;

/// Our own kinds.
pub use kube_api as crd;

use cluster::{Cluster, Seen};
use folder::{Folder, Refusal};
use object::{Key, Kind};
use publish::Publisher;
use std::collections::{BTreeMap, BTreeSet};
use tables::{Changes, Tables};
use xds::server::Store;

/// The core as one: files or objects in, views out.
#[derive(Debug)]
pub struct Controller {
    source: Source,
    tables: Tables,
    publisher: Publisher,
}

#[derive(Debug)]
enum Source {
    Folder(Folder),
    Cluster(Cluster),
}

impl Controller {
    /// Of a folder; publishes into `store`.
    pub fn new(store: Store) -> Self {
        Self::of(Source::Folder(Folder::default()), store)
    }

    /// Of an API server; publishes into `store` once everything was listed.
    pub fn of_cluster(store: Store) -> Self {
        Self::of(Source::Cluster(Cluster::default()), store)
    }

    fn of(source: Source, store: Store) -> Self {
        Self { source, tables: Tables::default(), publisher: Publisher::new(store) }
    }

    /// The folder holds exactly these files now.
    pub fn load(&mut self, files: BTreeMap<String, String>) -> Changes {
        let Source::Folder(folder) = &mut self.source else { return Changes::default() };
        if !folder.replace(files) {
            return Changes::default();
        }
        let changes = self.tables.replace(folder.objects());
        self.publish();
        changes
    }

    /// This was seen of the API server.
    pub fn see(&mut self, seen: Vec<Seen>) -> Changes {
        let Source::Cluster(cluster) = &mut self.source else { return Changes::default() };
        let mut changes = Changes::default();
        for seen in seen {
            changes += cluster.take(seen, &mut self.tables);
        }
        if cluster.is_complete() {
            self.publish();
        }
        changes
    }

    fn publish(&mut self) {
        self.publisher.publish(&self.tables);
        self.tables.forget_removals(self.tables.version());
    }

    /// What is not in force as it is written.
    pub fn refusals(&self) -> Vec<Refusal> {
        match &self.source {
            Source::Folder(folder) => folder.refusals(),
            Source::Cluster(cluster) => cluster.refusals(),
        }
    }

    /// Why that object is not in force as it is written.
    pub fn refusal(&self, key: &Key) -> Option<&Refusal> {
        match &self.source {
            Source::Folder(_) => None,
            Source::Cluster(cluster) => cluster.refusal(key),
        }
    }

    /// Objects of a kind that are refused.
    pub fn refused(&self, kind: Kind) -> Vec<Key> {
        match &self.source {
            Source::Folder(_) => Vec::new(),
            Source::Cluster(cluster) => cluster.refused(kind),
        }
    }

    /// Whether the source is read, and goes on to be; else why not.
    pub fn state(&self) -> Result<(), String> {
        match &self.source {
            Source::Cluster(cluster) => cluster.state(),
            Source::Folder(folder) => folder.in_force(),
        }
    }

    /// Number of objects of a kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.tables.count(kind)
    }

    /// The tables.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Version of the tables.
    pub fn version(&self) -> u64 {
        self.tables.version()
    }

    /// Nodes that have a view; `None` until everything is known.
    pub fn nodes(&self) -> Option<BTreeSet<String>> {
        let is_complete = match &self.source {
            Source::Cluster(cluster) => cluster.is_complete(),
            Source::Folder(_) => true,
        };
        is_complete.then(|| self.publisher.nodes().clone())
    }
}
