//! Which Istio objects a resource was made from, and how a workload's ports take connections.
//!
//! In: a resource as istiod made it. Out: `Kind NAMESPACE/NAME` texts. istiod writes the object into the
//! metadata of the clusters and routes that it shapes (`istio.config`), and names the rules of a
//! policy after it. Objects that leave no such trace show by their effect; the controller adds `PeerAuthentication`s,
//! which it reads itself.

use super::content::Kind;
use mesh_api::Any;
use mesh_api::envoy::config::cluster::v3::Cluster;
use mesh_api::envoy::config::core::v3::Metadata;
use mesh_api::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use mesh_api::envoy::config::rbac::v3::Rbac;
use mesh_api::envoy::config::route::v3::RouteConfiguration;
use mesh_api::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use mesh_api::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use mesh_api::envoy::extensions::filters::network::rbac::v3 as network_rbac;
use mesh_api::envoy_pb::google::protobuf::{Struct, value};
use mesh_api::report::MutualTls;
use prost::{Message, Name};
use std::collections::BTreeSet;

/// The listener that takes what others send to the workload.
const INBOUND: &str = "virtualInbound";
/// Its chain for connections to the proxy itself, which it drops.
const BLACKHOLE: &str = "virtualInbound-blackhole";
/// What ECDS names of extensions begin with, and how those end that were a `WasmPlugin`.
const EXTENSION: &str = "extensions.istio.io/trafficextension/";
const WASM_PLUGIN: &str = "~istio-translated-wasmplugin";

/// Where a resource comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// `VirtualService default/reviews`.
    pub objects: BTreeSet<String>,
    /// Of the inbound listener.
    pub mutual_tls: Option<MutualTls>,
}

/// The origin of a resource; nothing where it does not decode.
pub fn of(kind: Kind, logical: &str, body: &Any) -> Origin {
    let mut objects = BTreeSet::new();
    let mut mutual_tls = None;
    match kind {
        Kind::Cluster => {
            let cluster = Cluster::decode(body.value.as_slice()).unwrap_or_default();
            objects.extend(named(cluster.metadata.as_ref()));
        }
        Kind::Route => routes(&RouteConfiguration::decode(body.value.as_slice()).unwrap_or_default(), &mut objects),
        Kind::Listener => {
            let listener = Listener::decode(body.value.as_slice()).unwrap_or_default();
            objects.extend(named(listener.metadata.as_ref()));
            chains(&listener).for_each(|chain| of_chain(chain, &mut objects));
            mutual_tls = (listener.name == INBOUND).then(|| of_inbound(&listener));
        }
        Kind::Extension => objects.extend(extension(logical)),
        Kind::Endpoints => {}
    }
    Origin { objects, mutual_tls }
}

fn chains(listener: &Listener) -> impl Iterator<Item = &FilterChain> {
    listener.filter_chains.iter().chain(&listener.default_filter_chain)
}

/// Ports of a workload take mutual TLS only, both, or plaintext only.
fn of_inbound(listener: &Listener) -> MutualTls {
    let own = || chains(listener).filter(|chain| chain.name != BLACKHOLE);
    let takes_tls = own().any(|chain| chain.transport_socket.is_some());
    let takes_plaintext = own().any(|chain| chain.transport_socket.is_none());
    match (takes_tls, takes_plaintext) {
        (true, true) => MutualTls::Permissive,
        (true, false) => MutualTls::Strict,
        (false, true) => MutualTls::Disabled,
        (false, false) => MutualTls::Unspecified,
    }
}

fn of_chain(chain: &FilterChain, objects: &mut BTreeSet<String>) {
    objects.extend(named(chain.metadata.as_ref()));
    chain.filters.iter().for_each(|filter| of_filter(filter, objects));
}

fn of_filter(filter: &Filter, objects: &mut BTreeSet<String>) {
    let Some(filter::ConfigType::TypedConfig(config)) = &filter.config_type else { return };
    if let Some(manager) = decoded::<hcm::HttpConnectionManager>(config) {
        of_http(&manager, objects);
    } else if let Some(rbac) = decoded::<network_rbac::Rbac>(config) {
        rbac.rules.iter().chain(&rbac.shadow_rules).for_each(|rules| policies(rules, objects));
    }
}

fn of_http(manager: &hcm::HttpConnectionManager, objects: &mut BTreeSet<String>) {
    if let Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(table)) = &manager.route_specifier {
        routes(table, objects);
    }
    for filter in &manager.http_filters {
        let Some(hcm::http_filter::ConfigType::TypedConfig(config)) = &filter.config_type else { continue };
        if let Some(rbac) = decoded::<http_rbac::Rbac>(config) {
            rbac.rules.iter().chain(&rbac.shadow_rules).for_each(|rules| policies(rules, objects));
        }
    }
}

fn routes(table: &RouteConfiguration, objects: &mut BTreeSet<String>) {
    for host in &table.virtual_hosts {
        objects.extend(named(host.metadata.as_ref()));
        objects.extend(host.routes.iter().filter_map(|route| named(route.metadata.as_ref())));
    }
}

fn policies(rules: &Rbac, objects: &mut BTreeSet<String>) {
    objects.extend(rules.policies.keys().filter_map(|name| policy(name)));
}

fn decoded<M: Message + Name + Default>(config: &Any) -> Option<M> {
    let is_it = config.type_url.rsplit('/').next() == Some(M::full_name().as_str());
    is_it.then(|| M::decode(config.value.as_slice()).ok()).flatten()
}

/// The object that `istio.config` of a metadata names.
fn named(metadata: Option<&Metadata>) -> Option<String> {
    object(text(metadata?.filter_metadata.get("istio")?, "config")?)
}

fn text<'a>(fields: &'a Struct, name: &str) -> Option<&'a str> {
    match fields.fields.get(name)?.kind.as_ref()? {
        value::Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

/// `/apis/GROUP/VERSION/namespaces/NAMESPACE/virtual-service/NAME` → `VirtualService NAMESPACE/NAME`.
fn object(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').collect();
    let ["", "apis", _, _, "namespaces", namespace, kind, name] = parts.as_slice() else { return None };
    let kind: String = kind.split('-').map(capitalized).collect();
    Some(format!("{kind} {namespace}/{name}"))
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}

/// `ns[NAMESPACE]-policy[NAME]-rule[0]`, also after a prefix (`istio-ext-authz-`).
fn policy(rule: &str) -> Option<String> {
    let (_, rest) = rule.split_once("ns[")?;
    let (namespace, rest) = rest.split_once("]-policy[")?;
    let (name, _) = rest.split_once("]-rule[")?;
    Some(format!("AuthorizationPolicy {namespace}/{name}"))
}

/// `extensions.istio.io/trafficextension/NAMESPACE.NAME`, maybe translated from another kind.
fn extension(resource: &str) -> Option<String> {
    let (namespace, name) = resource.strip_prefix(EXTENSION)?.split_once('.')?;
    Some(match name.strip_suffix(WASM_PLUGIN) {
        Some(name) => format!("WasmPlugin {namespace}/{name}"),
        None => format!("TrafficExtension {namespace}/{name}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_read_from_the_names_that_istiod_gives() {
        let config = "/apis/networking.istio.io/v1/namespaces/default/virtual-service/reviews";
        assert_eq!(object(config).as_deref(), Some("VirtualService default/reviews"));
        assert_eq!(object("/apis/networking.istio.io/v1/virtual-service/reviews"), None);
        for rule in ["ns[a]-policy[b-c]-rule[1]", "istio-ext-authz-ns[a]-policy[b-c]-rule[0]"] {
            assert_eq!(policy(rule).as_deref(), Some("AuthorizationPolicy a/b-c"));
        }
        assert_eq!(policy("ns[a]-policy[b"), None);
        let plugin = "extensions.istio.io/trafficextension/a.b.c~istio-translated-wasmplugin";
        assert_eq!(extension(plugin).as_deref(), Some("WasmPlugin a/b.c"));
        assert_eq!(extension("extensions.istio.io/trafficextension/a.b").as_deref(), Some("TrafficExtension a/b"));
    }

    #[test]
    fn what_does_not_decode_comes_from_nowhere() {
        let garbage = Any { type_url: String::new(), value: vec![0xff] };
        assert_eq!(of(Kind::Cluster, "a", &garbage), Origin::default());
    }
}
