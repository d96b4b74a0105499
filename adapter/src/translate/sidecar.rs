//! What the control plane has told one workload.
//!
//! In: updates of the workload's own stream. Out: which names to ask for next, what of an update is
//! refused, and, once everything that is referred to has been answered, the complete set.

use super::assembly::Assembly;
use super::content::{Content, Contents, Kind};
use super::references::{self, Reference};
use super::rewrite::{self, Rewritten, Unfit};
use mesh_api::Any;
use mesh_api::envoy::config::cluster::v3::Cluster;
use mesh_api::envoy::config::core::v3::TypedExtensionConfig;
use mesh_api::envoy::config::endpoint::v3::ClusterLoadAssignment;
use mesh_api::envoy::config::listener::v3::Listener;
use mesh_api::envoy::config::route::v3::RouteConfiguration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use xds::{Rejected, Resource};

/// Names to ask for, and names that are no longer wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interests {
    pub subscribe: BTreeSet<Reference>,
    pub unsubscribe: BTreeSet<Reference>,
}

/// What was received, over all updates of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    pub resources: u64,
    pub bytes: u64,
}

/// The configuration of one workload as it stands.
#[derive(Debug, Default)]
pub struct Sidecar {
    /// CDS and LDS; what was dropped is not in it.
    roots: BTreeMap<Reference, Root>,
    /// Kinds asked for as a whole that were answered once.
    answered: BTreeSet<Kind>,
    /// EDS, RDS and ECDS by name; `None`: the control plane has none of that name.
    named: BTreeMap<Reference, Option<Arc<Content>>>,
    wanted: BTreeSet<Reference>,
}

/// A resource that refers to others.
#[derive(Debug)]
struct Root {
    content: Arc<Content>,
    references: Vec<Reference>,
}

impl Sidecar {
    /// Takes an update over. What is refused leaves the last good one in force.
    pub fn apply(
        &mut self,
        contents: &mut Contents,
        kind: Kind,
        changed: &[Resource],
        removed: &[String],
    ) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        for resource in changed {
            if let Err(unfit) = self.take(contents, kind, resource) {
                rejected.push(Rejected { name: resource.name.clone(), reason: unfit.to_string() });
            }
        }
        for name in removed {
            self.forget(kind, name);
        }
        if matches!(kind, Kind::Cluster | Kind::Listener) {
            self.answered.insert(kind);
        }
        rejected
    }

    /// What to ask for after an update. Names that are no longer referred to are forgotten.
    pub fn interests(&mut self) -> Interests {
        let wanted: BTreeSet<Reference> =
            self.roots.values().flat_map(|root| root.references.iter().cloned()).collect();
        let subscribe = wanted.difference(&self.wanted).cloned().collect();
        let unsubscribe = self.wanted.difference(&wanted).cloned().collect();
        self.named.retain(|name, _| wanted.contains(name));
        self.wanted = wanted;
        Interests { subscribe, unsubscribe }
    }

    /// What is not answered yet; for a person.
    pub fn missing(&self) -> Vec<String> {
        let kinds = [Kind::Cluster, Kind::Listener].into_iter().filter(|kind| !self.answered.contains(kind));
        let kinds = kinds.map(|kind| format!("every {}", kind.label()));
        let names = self.wanted.iter().filter(|name| !self.named.contains_key(*name));
        kinds.chain(names.map(|(kind, name)| format!("{} {name}", kind.label()))).collect()
    }

    /// The complete set, once nothing is missing.
    pub fn assembly(&self) -> Option<Assembly> {
        self.missing().is_empty().then(|| Assembly::new(self.contents().cloned().collect()))
    }

    /// Resources by kind.
    pub fn counts(&self) -> BTreeMap<Kind, usize> {
        let mut counts = BTreeMap::new();
        for content in self.contents() {
            *counts.entry(content.kind).or_default() += 1;
        }
        counts
    }

    /// Resources held, and their bytes.
    pub fn held(&self) -> Received {
        let add = |sum: Received, content: &Arc<Content>| Received {
            resources: sum.resources + 1,
            bytes: sum.bytes + content.size() as u64,
        };
        self.contents().fold(Received::default(), add)
    }

    fn contents(&self) -> impl Iterator<Item = &Arc<Content>> {
        self.roots.values().map(|root| &root.content).chain(self.named.values().flatten())
    }

    fn take(&mut self, contents: &mut Contents, kind: Kind, resource: &Resource) -> Result<(), Unfit> {
        let key = (kind, resource.name.clone());
        let (body, references) = read(kind, resource.body.clone())?;
        let Rewritten::Kept(body) = body else {
            self.roots.remove(&key);
            return Ok(());
        };
        let content = contents.intern(kind, &resource.name, body);
        match kind {
            Kind::Cluster | Kind::Listener => drop(self.roots.insert(key, Root { content, references })),
            Kind::Endpoints | Kind::Extension | Kind::Route => drop(self.named.insert(key, Some(content))),
        }
        Ok(())
    }

    fn forget(&mut self, kind: Kind, name: &str) {
        let key = (kind, name.to_owned());
        match kind {
            Kind::Cluster | Kind::Listener => drop(self.roots.remove(&key)),
            Kind::Endpoints | Kind::Extension | Kind::Route => drop(self.named.insert(key, None)),
        }
    }
}

/// What a resource becomes, and what it refers to. All are decoded, so that garbage stops here.
fn read(kind: Kind, body: Any) -> Result<(Rewritten, Vec<Reference>), Unfit> {
    match kind {
        Kind::Cluster => {
            let cluster: Cluster = rewrite::decode(kind, &body)?;
            let rewritten = rewrite::cluster(body, &cluster)?;
            Ok((rewritten, references::of_cluster(&cluster)))
        }
        Kind::Listener => {
            let listener: Listener = rewrite::decode(kind, &body)?;
            let found = references::of_listener(&listener).map_err(|error| Unfit::Undecodable(error.to_string()))?;
            Ok((rewrite::listener(body, &listener), found))
        }
        Kind::Endpoints => checked::<ClusterLoadAssignment>(kind, body),
        Kind::Extension => checked::<TypedExtensionConfig>(kind, body),
        Kind::Route => checked::<RouteConfiguration>(kind, body),
    }
}

fn checked<M: prost::Message + Default>(kind: Kind, body: Any) -> Result<(Rewritten, Vec<Reference>), Unfit> {
    rewrite::decode::<M>(kind, &body)?;
    Ok((Rewritten::Kept(body), Vec::new()))
}
