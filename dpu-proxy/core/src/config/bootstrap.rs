//! An Envoy bootstrap: who we are, where configuration comes from, static resources.

use super::convert::socket_address;
use super::json;
use super::report::{At, ConfigError, ReadFile, Subject, Unsupported};
use super::resource::{self, Accepted, Content};
use mesh_api::envoy::config::bootstrap::v3 as proto;
use mesh_api::envoy::config::core::v3 as core;
use mesh_api::{Any, type_url};
use prost::{Message, Name};
use std::collections::HashSet;
use std::net::SocketAddr;

/// A bootstrap that was understood.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// As it goes to the management server.
    pub node: core::Node,
    pub admin: Option<SocketAddr>,
    /// The aggregated stream, if there is one.
    pub ads: Option<Ads>,
    /// Listeners are asked for on the aggregated stream.
    pub dynamic_listeners: bool,
    /// Clusters are asked for on the aggregated stream.
    pub dynamic_clusters: bool,
    /// Static clusters, secrets and listeners, in this order.
    pub resources: Vec<Accepted>,
    /// What the file itself asks for and is not done; each resource has its own list.
    pub unsupported: Vec<Unsupported>,
}

/// Where the aggregated stream goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ads {
    /// A static cluster.
    pub cluster: String,
    /// Incremental, or state of the world.
    pub delta: bool,
}

/// Reads a bootstrap in YAML or JSON.
pub fn parse(text: &str, read_file: ReadFile<'_>) -> Result<Bootstrap, ConfigError> {
    let subject = Subject::new("bootstrap", read_file);
    let bootstrap = convert(subject.root(), text, read_file)?;
    let (unsupported, _) = subject.into_parts();
    Ok(Bootstrap { unsupported, ..bootstrap })
}

fn convert(at: At<'_>, text: &str, read_file: ReadFile<'_>) -> Result<Bootstrap, ConfigError> {
    let proto: proto::Bootstrap = json::message(at, text)?;
    let resources = static_resources(at.field("static_resources"), proto.static_resources.as_ref(), read_file)?;
    let dynamic = proto.dynamic_resources.clone().unwrap_or_default();
    let at_dynamic = at.field("dynamic_resources");
    let ads = ads(at_dynamic.field("ads_config"), dynamic.ads_config.as_ref(), &resources)?;
    let dynamic_listeners = follows_ads(at_dynamic.field("lds_config"), dynamic.lds_config.as_ref(), ads.is_some())?;
    let dynamic_clusters = follows_ads(at_dynamic.field("cds_config"), dynamic.cds_config.as_ref(), ads.is_some())?;
    let mut bare = proto.clone();
    bare.static_resources = None;
    super::census::census(at, &proto::Bootstrap::full_name(), &bare.encode_to_vec());
    Ok(Bootstrap {
        admin: admin(at.field("admin"), proto.admin.as_ref())?,
        node: proto.node.unwrap_or_default(),
        ads,
        dynamic_listeners,
        dynamic_clusters,
        resources,
        unsupported: Vec::new(),
    })
}

fn admin(at: At<'_>, proto: Option<&proto::Admin>) -> Result<Option<SocketAddr>, ConfigError> {
    let Some(proto) = proto else { return Ok(None) };
    if !proto.access_log.is_empty() || !proto.access_log_path.is_empty() {
        at.field("access_log").unsupported("requests to the admin address are not logged");
    }
    match &proto.address {
        Some(address) => socket_address(at.field("address"), Some(address)).map(Some),
        None => Ok(None),
    }
}

/// The stream goes over gRPC to a static cluster.
fn ads(at: At<'_>, proto: Option<&core::ApiConfigSource>, resources: &[Accepted]) -> Result<Option<Ads>, ConfigError> {
    use core::api_config_source::ApiType;
    use core::grpc_service::TargetSpecifier;
    let Some(proto) = proto else { return Ok(None) };
    let delta = match ApiType::try_from(proto.api_type) {
        Ok(ApiType::Grpc) => false,
        Ok(ApiType::DeltaGrpc) => true,
        _ => return Err(at.field("api_type").refuse("give GRPC or DELTA_GRPC")),
    };
    let at = at.item("grpc_services", 0);
    let target = proto.grpc_services.first().and_then(|service| service.target_specifier.as_ref());
    let cluster = match target {
        Some(TargetSpecifier::EnvoyGrpc(envoy)) => envoy.cluster_name.clone(),
        Some(TargetSpecifier::GoogleGrpc(_)) => {
            return Err(at.field("google_grpc").refuse("not supported; use envoy_grpc"));
        }
        None => return Err(at.refuse("give envoy_grpc with a cluster_name")),
    };
    let is_cluster = |held: &Accepted| matches!(held.content, Content::Cluster(_)) && held.logical_name == cluster;
    match resources.iter().any(is_cluster) {
        true => Ok(Some(Ads { cluster, delta })),
        false => Err(at
            .field("envoy_grpc")
            .refuse(format!("{cluster:?} is not a static cluster; add it to static_resources"))),
    }
}

fn follows_ads(at: At<'_>, proto: Option<&core::ConfigSource>, has_ads: bool) -> Result<bool, ConfigError> {
    use core::config_source::ConfigSourceSpecifier as Source;
    match proto.map(|source| source.config_source_specifier.as_ref()) {
        None => Ok(false),
        Some(Some(Source::Ads(_))) if has_ads => Ok(true),
        Some(Some(Source::Ads(_))) => Err(at.refuse("the aggregated stream needs dynamic_resources.ads_config")),
        Some(_) => Err(at.refuse("only the aggregated stream is supported; give ads: {}")),
    }
}

fn static_resources(
    at: At<'_>,
    proto: Option<&proto::bootstrap::StaticResources>,
    read_file: ReadFile<'_>,
) -> Result<Vec<Accepted>, ConfigError> {
    let Some(proto) = proto else { return Ok(Vec::new()) };
    let mut made = Vec::new();
    let mut add = |type_url: &str, field: &str, index: usize, name: String, value: Vec<u8>| {
        let body = Any { type_url: type_url.to_owned(), value };
        let accepted = resource::accept(type_url, &name, &body, read_file)
            .map_err(|error| ConfigError { path: nested(&at, field, index, &error.path), ..error })?;
        made.push(accepted);
        Ok(())
    };
    for (index, cluster) in proto.clusters.iter().enumerate() {
        add(type_url::CLUSTER, "clusters", index, cluster.name.clone(), cluster.encode_to_vec())?;
    }
    for (index, secret) in proto.secrets.iter().enumerate() {
        add(type_url::SECRET, "secrets", index, secret.name.clone(), secret.encode_to_vec())?;
    }
    for (index, listener) in proto.listeners.iter().enumerate() {
        // Envoy gives a nameless listener a name of its own as well.
        let mut listener = listener.clone();
        if listener.name.is_empty() {
            listener.name = format!("static_resources.listeners[{index}]");
        }
        add(type_url::LISTENER, "listeners", index, listener.name.clone(), listener.encode_to_vec())?;
    }
    refuse_duplicates(at, &made)?;
    Ok(made)
}

fn nested(at: &At<'_>, field: &str, index: usize, inner: &str) -> String {
    let outer = at.item(field, index).to_string();
    if inner.is_empty() { outer } else { format!("{outer}.{inner}") }
}

fn refuse_duplicates(at: At<'_>, resources: &[Accepted]) -> Result<(), ConfigError> {
    let mut seen = HashSet::new();
    for held in resources {
        if !seen.insert((std::mem::discriminant(&held.content), held.logical_name.as_str())) {
            return Err(at.refuse(format!("the name {:?} is given twice; rename one", held.logical_name)));
        }
    }
    Ok(())
}
