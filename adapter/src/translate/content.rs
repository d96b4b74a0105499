//! A resource by what is in it: one name for one content.
//!
//! In: a resource as a sidecar would see it. Out: a `Content`, named `LOGICAL@HASH`, of which equal
//! ones share one allocation over all workloads of the node.

use super::origin::{self, Origin};
use mesh_api::{Any, type_url};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, OnceLock, Weak};
use xds::Resource;

/// Hexadecimal digits of a hash in a name.
const SHORT: usize = 16;

/// The types of a sidecar's configuration, in the order in which they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Cluster,
    Endpoints,
    Extension,
    Listener,
    Route,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Cluster, Self::Endpoints, Self::Extension, Self::Listener, Self::Route];

    /// The kind with that type URL.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// Its type URL.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => type_url::CLUSTER,
            Self::Endpoints => type_url::CLUSTER_LOAD_ASSIGNMENT,
            Self::Extension => type_url::EXTENSION_CONFIG,
            Self::Listener => type_url::LISTENER,
            Self::Route => type_url::ROUTE_CONFIGURATION,
        }
    }

    /// For logs and metric labels.
    pub fn label(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Endpoints => "endpoints",
            Self::Extension => "extension",
            Self::Listener => "listener",
            Self::Route => "route",
        }
    }
}

/// A distinct resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    pub kind: Kind,
    /// The name by which other resources of a scope refer to it.
    pub logical: String,
    /// `LOGICAL@HASH`.
    pub name: String,
    pub body: Any,
    /// Found out when somebody asks.
    origin: OnceLock<Origin>,
}

impl Content {
    fn new(kind: Kind, logical: &str, name: String, body: Any) -> Self {
        Self { kind, logical: logical.to_owned(), name, body, origin: OnceLock::new() }
    }

    /// The Istio objects that it was made from.
    pub fn origin(&self) -> &Origin {
        self.origin.get_or_init(|| origin::of(self.kind, &self.logical, &self.body))
    }

    /// For the stream to the proxy. Name and version carry the same hash.
    pub fn resource(&self) -> Resource {
        let version = self.name.rsplit('@').next().unwrap_or_default().to_owned();
        Resource { name: self.name.clone(), version, body: self.body.clone() }
    }

    /// Encoded size in bytes.
    pub fn size(&self) -> usize {
        self.body.value.len()
    }
}

/// Keeps one allocation for each distinct content while somebody uses it.
#[derive(Debug, Default)]
pub struct Contents {
    held: HashMap<(Kind, String), Weak<Content>>,
    /// Contents at the last sweep.
    swept: usize,
}

impl Contents {
    /// The one content that is equal to this.
    pub fn intern(&mut self, kind: Kind, logical: &str, body: Any) -> Arc<Content> {
        let digest = digest(&[body.type_url.as_bytes(), logical.as_bytes(), &body.value]);
        // Two contents with one short name are told apart by the whole hash.
        for length in [SHORT, digest.len()] {
            let name = format!("{logical}@{}", &digest[..length]);
            match self.held.get(&(kind, name.clone())).and_then(Weak::upgrade) {
                Some(content) if content.body == body => return content,
                Some(_) => {}
                None => return self.hold(Content::new(kind, logical, name, body)),
            }
        }
        Arc::new(Content::new(kind, logical, format!("{logical}@{digest}"), body))
    }

    fn hold(&mut self, content: Content) -> Arc<Content> {
        if self.held.len() > 2 * self.swept + 64 {
            self.held.retain(|_, content| content.strong_count() > 0);
            self.swept = self.held.len();
        }
        let content = Arc::new(content);
        self.held.insert((content.kind, content.name.clone()), Arc::downgrade(&content));
        content
    }
}

/// The first digits of the hash of some parts.
pub(super) fn short_digest(parts: &[&[u8]]) -> String {
    let mut whole = digest(parts);
    whole.truncate(SHORT);
    whole
}

/// SHA-256 over the parts, each with its length, in hexadecimal.
fn digest(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(value: u8) -> Any {
        Any { type_url: type_url::CLUSTER.to_owned(), value: vec![value] }
    }

    #[test]
    fn equal_contents_are_one_and_the_name_follows_the_content() {
        let mut contents = Contents::default();
        let first = contents.intern(Kind::Cluster, "a", body(1));
        assert!(Arc::ptr_eq(&first, &contents.intern(Kind::Cluster, "a", body(1))));
        let other = contents.intern(Kind::Cluster, "a", body(2));
        assert_ne!(first.name, other.name);
        assert_eq!(first.name.len(), "a@".len() + SHORT);
        assert_eq!(first.resource().version.len(), SHORT);
    }

    #[test]
    fn what_nobody_uses_is_forgotten() {
        let mut contents = Contents::default();
        for value in 0..255 {
            contents.intern(Kind::Cluster, "a", body(value));
        }
        assert!(contents.held.len() < 100, "{}", contents.held.len());
    }
}
