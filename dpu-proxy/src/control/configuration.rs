//! The resources in force: the bootstrap's and the control plane's.
//!
//! In: a bootstrap's text, updates. Out: one snapshot at a time, refusals by name, the names that are
//! to be asked for, secrets ready for use. A refused resource leaves the last good one in force.

use crate::ads::DialError;
use crate::shared::Report;
use crate::tls::TlsError;
use crate::tls::secrets::{KeyPair, Roots, Secrets};
use dpu_proxy_core::config::assemble::{Assembler, Wanted};
use dpu_proxy_core::config::bootstrap::{self, Ads};
use dpu_proxy_core::config::secret::{Secret, SecretContent};
use dpu_proxy_core::config::{ConfigError, Unsupported};
use dpu_proxy_core::model::{CertificateSource, Cluster, Snapshot};
use mesh_api::envoy::config::core::v3::Node;
use mesh_api::envoy_pb::google::protobuf::value::Kind;
use mesh_api::type_url;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use xds::Rejected;
use xds::client::{Interest, Mode, Update};

/// Node metadata that asks the control plane for the workloads of this DPU.
const MESH_KEY: &str = "DPUMESH";

/// Why a bootstrap cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Bootstrap(#[from] ConfigError),
    #[error("{}", .0.join("\n"))]
    Resources(Vec<String>),
    #[error("secret {name}: {reason}")]
    Secret { name: String, reason: TlsError },
}

/// Names of a type that are wanted from now on, and no longer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterestChange {
    pub type_url: &'static str,
    pub added: Vec<String>,
    pub removed: Vec<String>,
}

/// How to reach the control plane.
#[derive(Debug)]
pub struct ControlPlane {
    pub cluster: Arc<Cluster>,
    pub secrets: Secrets,
    pub mode: Mode,
}

/// A secret that is ready for use, and what it was made of.
#[derive(Clone, Debug)]
struct Loaded {
    source: Arc<Secret>,
    ready: Ready,
}

#[derive(Clone, Debug)]
enum Ready {
    KeyPair(KeyPair),
    Roots(Roots),
}

/// The resources in force.
#[derive(Debug)]
pub struct Configuration {
    assembler: Assembler,
    node: Node,
    admin: Option<SocketAddr>,
    ads: Option<Ads>,
    /// Types that the bootstrap has come by wildcard.
    dynamic: BTreeSet<&'static str>,
    is_mesh: bool,
    /// Types that the control plane has said something of.
    seen: BTreeSet<String>,
    is_connected: bool,
    waits: bool,
    asked: Wanted,
    loaded: BTreeMap<String, Loaded>,
    versions: BTreeMap<(String, String), String>,
    refused: BTreeMap<(String, String), String>,
    /// Reports that were logged already.
    reported: BTreeSet<Unsupported>,
}

fn read_file(path: &str) -> std::io::Result<Vec<u8>> {
    std::fs::read(path)
}

impl Configuration {
    /// Of a bootstrap in YAML or JSON.
    pub fn load(text: &str) -> Result<Self, LoadError> {
        let bootstrap = bootstrap::parse(text, &read_file)?;
        let assembler = Assembler::with_bootstrap(&bootstrap)
            .map_err(|rejections| LoadError::Resources(rejections.into_iter().map(|one| one.reason).collect()))?;
        let dynamic =
            [(type_url::CLUSTER, bootstrap.dynamic_clusters), (type_url::LISTENER, bootstrap.dynamic_listeners)];
        let mut configuration = Self {
            assembler,
            is_mesh: is_mesh(&bootstrap.node),
            waits: bootstrap.ads.is_some(),
            node: bootstrap.node,
            admin: bootstrap.admin,
            ads: bootstrap.ads,
            dynamic: dynamic.into_iter().filter(|(_, is_on)| *is_on).map(|(kind, _)| kind).collect(),
            seen: BTreeSet::new(),
            is_connected: false,
            asked: Wanted::default(),
            loaded: BTreeMap::new(),
            versions: BTreeMap::new(),
            refused: BTreeMap::new(),
            reported: BTreeSet::new(),
        };
        match configuration.load_secrets().into_iter().next() {
            Some((name, reason)) => Err(LoadError::Secret { name, reason }),
            None => {
                configuration.log_unsupported();
                Ok(configuration)
            }
        }
    }

    /// As it goes to the control plane.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Where the admin server listens.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// True when the control plane is asked for workloads of this DPU.
    pub fn is_mesh(&self) -> bool {
        self.is_mesh
    }

    /// How to reach the control plane, if the bootstrap has one.
    pub fn control_plane(&mut self) -> Result<Option<ControlPlane>, DialError> {
        let Some(ads) = self.ads.clone() else { return Ok(None) };
        let snapshot = self.snapshot();
        let scoped = snapshot.root.clusters.get(&ads.cluster).ok_or(DialError::Missing(ads.cluster))?;
        let (key_pairs, roots) = self.secrets();
        let secrets = Secrets { key_pairs, roots, ..Secrets::default() };
        let mode = if ads.delta { Mode::Delta } else { Mode::StateOfTheWorld };
        Ok(Some(ControlPlane { cluster: Arc::clone(&scoped.cluster), secrets, mode }))
    }

    /// What to ask for from the start, in order.
    pub fn interests(&mut self) -> Vec<(String, Interest)> {
        let wildcard = |kind: &str| (kind.to_owned(), Interest::Wildcard);
        if self.is_mesh {
            return MESH_TYPES.map(wildcard).into();
        }
        self.asked = self.assembler.wanted();
        let asked = &self.asked;
        let named = |kind: &str, names: &BTreeSet<String>| (kind.to_owned(), Interest::Names(names.clone()));
        let dynamic = |kind: &'static str| self.dynamic.contains(kind).then(|| wildcard(kind));
        let all = [
            dynamic(type_url::CLUSTER),
            Some(named(type_url::CLUSTER_LOAD_ASSIGNMENT, &asked.endpoints)),
            dynamic(type_url::LISTENER),
            Some(named(type_url::ROUTE_CONFIGURATION, &asked.routes)),
            Some(named(type_url::SECRET, &asked.secrets)),
        ];
        all.into_iter().flatten().collect()
    }

    /// Takes an update; what is refused is named, everything else is taken.
    pub fn update(&mut self, update: &Update) -> Vec<Rejected> {
        self.seen.insert(update.type_url.clone());
        let changed = update.changed.iter().map(|resource| (resource.name.as_str(), &resource.body));
        let removed = update.removed.iter().map(String::as_str);
        let applied = self.assembler.apply(&update.type_url, changed, removed, &read_file);
        let refused = applied.err().unwrap_or_default().into_iter();
        let mut refused: Vec<_> = refused.map(|one| Rejected { name: one.name, reason: one.reason }).collect();
        if update.type_url == type_url::SECRET {
            let unusable = self.load_secrets().into_iter();
            refused.extend(unusable.map(|(name, reason)| Rejected { name, reason: reason.to_string() }));
        }
        self.remember(update, &refused);
        self.log_unsupported();
        refused
    }

    fn remember(&mut self, update: &Update, refused: &[Rejected]) {
        let key = |name: &String| (update.type_url.clone(), name.clone());
        for resource in &update.changed {
            let key = key(&resource.name);
            match refused.iter().find(|one| one.name == resource.name) {
                Some(one) => {
                    self.refused.insert(key, one.reason.clone());
                }
                None => {
                    self.refused.remove(&key);
                    self.versions.insert(key, resource.version.clone());
                }
            }
        }
        for name in &update.removed {
            self.refused.remove(&key(name));
            self.versions.remove(&key(name));
        }
    }

    /// What is to be asked for now that was not before, and the other way round.
    pub fn changes_of_interest(&mut self) -> Vec<InterestChange> {
        if self.is_mesh {
            return Vec::new();
        }
        let wanted = self.assembler.wanted();
        let before = std::mem::replace(&mut self.asked, wanted);
        let now = &self.asked;
        let changes = [
            (type_url::CLUSTER_LOAD_ASSIGNMENT, &before.endpoints, &now.endpoints),
            (type_url::ROUTE_CONFIGURATION, &before.routes, &now.routes),
            (type_url::SECRET, &before.secrets, &now.secrets),
        ];
        let difference = |one: &BTreeSet<String>, other| one.difference(other).cloned().collect::<Vec<_>>();
        let changes = changes.map(|(type_url, before, now)| InterestChange {
            type_url,
            added: difference(now, before),
            removed: difference(before, now),
        });
        changes.into_iter().filter(|change| !change.added.is_empty() || !change.removed.is_empty()).collect()
    }

    /// The control plane answers.
    pub fn connected(&mut self) {
        self.is_connected = true;
    }

    /// What has not come by now is not waited for.
    pub fn wait_no_longer(&mut self) {
        if self.waits {
            tracing::warn!(waiting = ?self.assembler.incomplete(), "the control plane is slow; serving what there is");
        }
        self.waits = false;
    }

    /// True when everything that was configured at the start is in force.
    pub fn is_complete(&mut self) -> bool {
        let is_first = self.waits;
        self.waits = is_first && !self.has_all();
        !self.waits
    }

    fn has_all(&self) -> bool {
        match self.is_mesh {
            // Workloads come and go: each port has a readiness of its own.
            true => self.is_connected,
            false => {
                self.is_connected
                    && self.dynamic.iter().all(|kind| self.seen.contains(*kind))
                    && self.assembler.incomplete().is_empty()
            }
        }
    }

    /// What is in force now; the same `Arc` when nothing changed.
    pub fn snapshot(&mut self) -> Arc<Snapshot> {
        self.assembler.snapshot()
    }

    /// Secrets of the root scope, by name.
    pub fn secrets(&self) -> (HashMap<String, KeyPair>, HashMap<String, Roots>) {
        let (mut key_pairs, mut roots) = (HashMap::new(), HashMap::new());
        for (name, loaded) in &self.loaded {
            match &loaded.ready {
                Ready::KeyPair(pair) => drop(key_pairs.insert(name.clone(), pair.clone())),
                Ready::Roots(one) => drop(roots.insert(name.clone(), one.clone())),
            }
        }
        (key_pairs, roots)
    }

    /// Makes secrets ready; those that can't be used are named, and the last good one stays.
    fn load_secrets(&mut self) -> Vec<(String, TlsError)> {
        let held = self.assembler.secrets();
        self.loaded.retain(|name, _| held.contains_key(name));
        let mut unusable = Vec::new();
        for (name, source) in held {
            if self.loaded.get(&name).is_some_and(|loaded| Arc::ptr_eq(&loaded.source, &source)) {
                continue;
            }
            match ready(&source.content) {
                Ok(ready) => drop(self.loaded.insert(name, Loaded { source, ready })),
                Err(error) => unusable.push((name, error)),
            }
        }
        unusable
    }

    fn log_unsupported(&mut self) {
        for one in self.assembler.unsupported() {
            if !self.reported.contains(one) {
                tracing::warn!(resource = one.resource, field = one.path, reason = one.reason, "unsupported");
                self.reported.insert(one.clone());
            }
        }
    }

    /// Fills in what the admin server tells.
    pub fn describe(&self, report: &mut Report) {
        report.unsupported = self.assembler.unsupported().cloned().collect();
        report.unsupported.sort();
        report.unsupported.dedup();
        report.refused.clone_from(&self.refused);
        report.resources.clone_from(&self.versions);
        report.incomplete = self.assembler.incomplete();
    }
}

/// In the order in which they are asked for.
const MESH_TYPES: [&str; 7] = [
    type_url::CLUSTER,
    type_url::CLUSTER_LOAD_ASSIGNMENT,
    type_url::EXTENSION_CONFIG,
    type_url::LISTENER,
    type_url::ROUTE_CONFIGURATION,
    type_url::SCOPE,
    type_url::PROXY_WORKLOAD,
];

fn is_mesh(node: &Node) -> bool {
    let value = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(MESH_KEY));
    match value.and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => text == "true",
        Some(Kind::BoolValue(is_on)) => *is_on,
        _ => false,
    }
}

fn ready(content: &SecretContent) -> Result<Ready, TlsError> {
    match content {
        SecretContent::Certificate(CertificateSource::Pem { chain, key }) => {
            KeyPair::from_pem(chain, key).map(Ready::KeyPair)
        }
        SecretContent::Certificate(CertificateSource::Sds(name)) => Err(TlsError::SecretMissing { name: name.clone() }),
        SecretContent::TrustedCa(pem) => Roots::from_pem(pem).map(Ready::Roots),
    }
}
