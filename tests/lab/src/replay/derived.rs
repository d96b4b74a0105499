//! Configurations that were not recorded, made from those that were.

use super::BROKEN_LISTENER;
use super::recordings::Tables;
use anyhow::{Context, Result};
use mesh_api::Any;
use mesh_api::envoy::config::core::v3::address::Address;
use mesh_api::envoy::config::endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier};
use mesh_api::envoy::config::listener::v3::Listener;
use mesh_api::type_url;
use prost::Message;
use std::collections::BTreeMap;

const DETAILS: &str = "outbound|9080||details.bookinfo.svc.cluster.local";
const PRODUCTPAGE: &str = "outbound|9080||productpage.bookinfo.svc.cluster.local";
const MONGODB: &str = "outbound|27017||mongodb.bookinfo.svc.cluster.local";

/// Both authorization policies are deleted.
pub fn open(demo: &Tables) -> Result<Tables> {
    let mut open = demo.clone();
    for listener in open.get_mut(type_url::LISTENER).into_iter().flat_map(BTreeMap::values_mut) {
        *listener = without_authorization(listener)?;
    }
    Ok(open)
}

/// One listener more, that does not parse.
pub fn broken(demo: &Tables) -> Tables {
    let mut broken = demo.clone();
    let garbage = Any { type_url: type_url::LISTENER.to_owned(), value: vec![0xff; 16] };
    broken.entry(type_url::LISTENER).or_default().insert(BROKEN_LISTENER.to_owned(), garbage);
    broken
}

/// The clusters that the listener of mongodb and the route to details name are missing.
pub fn dangling(demo: &Tables) -> Tables {
    let mut dangling = demo.clone();
    if let Some(clusters) = dangling.get_mut(type_url::CLUSTER) {
        clusters.retain(|name, _| name != DETAILS && name != MONGODB);
    }
    dangling
}

/// Details is said to be where reviews-v2 is (host2), and the product page where ratings is (host1): as when
/// the address of a pod that ended was given to another one.
pub fn misplaced(demo: &Tables) -> Result<Tables> {
    let mut misplaced = demo.clone();
    let endpoints = misplaced.get_mut(type_url::CLUSTER_LOAD_ASSIGNMENT).context("no endpoints were recorded")?;
    for (cluster, address) in [(DETAILS, "10.244.2.11"), (PRODUCTPAGE, "10.244.1.12")] {
        if let Some(resource) = endpoints.get_mut(cluster) {
            resource.value = moved(&resource.value, address)?;
        }
    }
    Ok(misplaced)
}

/// The same endpoints at another address.
fn moved(bytes: &[u8], to: &str) -> Result<Vec<u8>> {
    let mut assignment = ClusterLoadAssignment::decode(bytes)?;
    let endpoints = assignment.endpoints.iter_mut().flat_map(|locality| &mut locality.lb_endpoints);
    for endpoint in endpoints {
        let Some(HostIdentifier::Endpoint(endpoint)) = &mut endpoint.host_identifier else { continue };
        let address = endpoint.address.as_mut().and_then(|address| address.address.as_mut());
        if let Some(Address::SocketAddress(socket)) = address {
            to.clone_into(&mut socket.address);
        }
    }
    Ok(assignment.encode_to_vec())
}

/// The listener as istiod makes it when no AuthorizationPolicy applies.
fn without_authorization(resource: &Any) -> Result<Any> {
    use mesh_api::envoy::config::listener::v3::filter::ConfigType;
    use mesh_api::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
    let mut listener = Listener::decode(resource.value.as_slice())?;
    let chains = listener.filter_chains.iter_mut().chain(listener.default_filter_chain.iter_mut());
    for chain in chains {
        chain.filters.retain(|filter| filter.name != "envoy.filters.network.rbac");
        for filter in &mut chain.filters {
            let Some(ConfigType::TypedConfig(config)) = &mut filter.config_type else { continue };
            if config.type_url.ends_with("HttpConnectionManager") {
                let mut manager = HttpConnectionManager::decode(config.value.as_slice())?;
                manager.http_filters.retain(|filter| filter.name != "envoy.filters.http.rbac");
                config.value = manager.encode_to_vec();
            }
        }
    }
    Ok(Any { type_url: resource.type_url.clone(), value: listener.encode_to_vec() })
}
