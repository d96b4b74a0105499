//! Which resources others name: endpoint sets by clusters, route tables and extension
//! configurations by listeners. Secrets are not among them: `default` and `ROOTCA` are the
//! identity's own, made on the DPU.

use super::content::Kind;
use mesh_api::envoy::config::cluster::v3::{Cluster, cluster};
use mesh_api::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter, listener_filter};
use mesh_api::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use prost::Message;

/// A resource that is asked for by name.
pub type Reference = (Kind, String);

const HTTP_CONNECTION_MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// The endpoint set of a cluster that has it from discovery.
pub fn of_cluster(cluster: &Cluster) -> Vec<Reference> {
    let eds = cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Eds.into());
    if cluster.cluster_discovery_type != Some(eds) {
        return Vec::new();
    }
    let service = cluster.eds_cluster_config.as_ref().map(|config| config.service_name.as_str());
    let name = service.filter(|name| !name.is_empty()).unwrap_or(&cluster.name);
    vec![(Kind::Endpoints, name.to_owned())]
}

/// Route tables and extension configurations of a listener.
pub fn of_listener(listener: &Listener) -> Result<Vec<Reference>, prost::DecodeError> {
    let mut found = Vec::new();
    for one in &listener.listener_filters {
        if let Some(listener_filter::ConfigType::ConfigDiscovery(_)) = one.config_type {
            found.push((Kind::Extension, one.name.clone()));
        }
    }
    for chain in listener.filter_chains.iter().chain(&listener.default_filter_chain) {
        of_chain(chain, &mut found)?;
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn of_chain(chain: &FilterChain, found: &mut Vec<Reference>) -> Result<(), prost::DecodeError> {
    chain.filters.iter().try_for_each(|filter| of_filter(filter, found))
}

fn of_filter(filter: &Filter, found: &mut Vec<Reference>) -> Result<(), prost::DecodeError> {
    match &filter.config_type {
        Some(filter::ConfigType::ConfigDiscovery(_)) => found.push((Kind::Extension, filter.name.clone())),
        Some(filter::ConfigType::TypedConfig(config)) if config.type_url == HTTP_CONNECTION_MANAGER => {
            of_http(&hcm::HttpConnectionManager::decode(config.value.as_slice())?, found);
        }
        Some(filter::ConfigType::TypedConfig(_)) | None => {}
    }
    Ok(())
}

fn of_http(manager: &hcm::HttpConnectionManager, found: &mut Vec<Reference>) {
    use hcm::http_connection_manager::RouteSpecifier;
    if let Some(RouteSpecifier::Rds(rds)) = &manager.route_specifier {
        found.push((Kind::Route, rds.route_config_name.clone()));
    }
    for one in &manager.http_filters {
        if let Some(hcm::http_filter::ConfigType::ConfigDiscovery(_)) = one.config_type {
            found.push((Kind::Extension, one.name.clone()));
        }
    }
}
