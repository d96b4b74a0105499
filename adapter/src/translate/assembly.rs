//! A complete set of resources: what a scope refers to.

use super::content::{Content, Kind, short_digest};
use mesh_api::proxy::{Reference, Scope};
use std::sync::Arc;
use xds::Resource;

/// The resources of a scope, sorted by kind and logical name. Equal ones have the same name.
#[derive(Clone, Debug, PartialEq)]
pub struct Assembly {
    name: String,
    contents: Vec<Arc<Content>>,
}

impl Assembly {
    /// The scope of these resources, in any order.
    pub fn new(mut contents: Vec<Arc<Content>>) -> Self {
        contents.sort_by(|a, b| (a.kind, &a.logical).cmp(&(b.kind, &b.logical)));
        let parts = contents.iter().flat_map(|content| [content.kind.label().as_bytes(), content.name.as_bytes()]);
        let name = format!("scope@{}", short_digest(&parts.collect::<Vec<_>>()));
        Self { name, contents }
    }

    /// `scope@HASH`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it refers to.
    pub fn contents(&self) -> &[Arc<Content>] {
        &self.contents
    }

    /// Whether it refers to that resource of the proxy's stream.
    pub fn contains(&self, type_url: &str, name: &str) -> bool {
        self.contents.iter().any(|content| content.name == name && content.kind.type_url() == type_url)
    }

    /// For the stream to the proxy.
    pub fn resource(&self) -> Resource {
        let scope = Scope {
            listeners: self.references(Kind::Listener),
            routes: self.references(Kind::Route),
            clusters: self.references(Kind::Cluster),
            endpoints: self.references(Kind::Endpoints),
            extensions: self.references(Kind::Extension),
        };
        Resource::new(self.name.clone(), &scope)
    }

    fn references(&self, kind: Kind) -> Vec<Reference> {
        let of_kind = self.contents.iter().filter(|content| content.kind == kind);
        of_kind.map(|content| Reference { name: content.logical.clone(), resource: content.name.clone() }).collect()
    }
}
