//! A resource of any type: its name, its version and its content.

use mesh_api::Any;
use mesh_api::envoy::service::discovery::v3 as discovery;
use prost::{DecodeError, Message, Name};

/// What travels: `version` is the server's own, or a hash of the content.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    pub name: String,
    pub version: String,
    pub body: Any,
}

/// A resource that was refused, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    pub name: String,
    /// For a person: what is wrong and what to do.
    pub reason: String,
}

const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

impl Resource {
    /// A resource of a message; the version is a hash of its content.
    pub fn new<M: Message + Name>(name: impl Into<String>, message: &M) -> Self {
        Self::from_any(name, Any { type_url: M::type_url(), value: message.encode_to_vec() })
    }

    /// A resource of encoded content; the version is a hash of it.
    pub fn from_any(name: impl Into<String>, body: Any) -> Self {
        let version = format!("{:016x}", content_hash(&body));
        Self { name: name.into(), version, body }
    }

    /// The message in it.
    pub fn decode<M: Message + Default>(&self) -> Result<M, DecodeError> {
        M::decode(self.body.value.as_slice())
    }

    /// From a state-of-the-world response, where the name is in the content, or in a wrapper.
    pub(crate) fn from_sotw(body: Any) -> Result<Self, DecodeError> {
        if body.type_url == WRAPPER {
            let wrapped = discovery::Resource::decode(body.value.as_slice())?;
            let body = wrapped.resource.unwrap_or_default();
            return Ok(Self { name: wrapped.name, ..Self::from_any("", body) });
        }
        let name = first_string(&body.value).unwrap_or_default();
        Ok(Self::from_any(name, body))
    }

    /// For a state-of-the-world response: wrapped where the content does not carry the name.
    pub(crate) fn to_sotw(&self) -> Any {
        if first_string(&self.body.value).as_deref() == Some(self.name.as_str()) {
            return self.body.clone();
        }
        let wrapped = discovery::Resource {
            name: self.name.clone(),
            version: self.version.clone(),
            resource: Some(self.body.clone()),
            ..discovery::Resource::default()
        };
        Any { type_url: WRAPPER.to_owned(), value: wrapped.encode_to_vec() }
    }
}

/// FNV-1a over type and content: stable over processes and builds.
pub(crate) fn content_hash(body: &Any) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in body.type_url.bytes().chain(body.value.iter().copied()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

/// Field 1, where Envoy's discovery types all carry their name.
fn first_string(message: &[u8]) -> Option<String> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    Named::decode(message).ok().map(|named| named.name).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::envoy::config::cluster::v3::Cluster;
    use mesh_api::proxy::Workload;

    #[test]
    fn state_of_the_world_keeps_the_name_of_every_type() {
        let cluster = Cluster { name: "a".to_owned(), ..Cluster::default() };
        let workload = Workload { uid: "other".to_owned(), ..Workload::default() };
        for resource in [Resource::new("a", &cluster), Resource::new("a@1", &cluster), Resource::new("w", &workload)] {
            assert_eq!(Resource::from_sotw(resource.to_sotw()).expect("own encoding"), resource);
        }
    }

    #[test]
    fn the_version_follows_the_content() {
        let named = |name: &str| Cluster { name: name.to_owned(), ..Cluster::default() };
        assert_eq!(Resource::new("x", &named("a")).version, Resource::new("y", &named("a")).version);
        assert_ne!(Resource::new("x", &named("a")).version, Resource::new("x", &named("b")).version);
    }
}
