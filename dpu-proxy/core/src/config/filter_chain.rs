//! Filter chains and their network filters.

use super::access_log;
use super::any;
use super::convert::{cidrs, number, optional_duration, port, timeout, unknown_enum};
use super::http;
use super::rbac;
use super::report::{At, ConfigError};
use super::route_action::total_weight;
use super::tls;
use crate::model::{
    FilterChain, FilterChainMatch, HeaderEdits, NetworkRbac, SourceType, TcpCluster, TcpProxy, TerminalFilter,
    WeightedCluster,
};
use mesh_api::Any;
use mesh_api::envoy::config::listener::v3 as listener;
use mesh_api::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use std::sync::Arc;
use std::time::Duration;

/// A filter chain. `matched`: false for the default chain, whose match means nothing.
pub fn filter_chain(at: At<'_>, proto: &listener::FilterChain, matched: bool) -> Result<FilterChain, ConfigError> {
    if proto.use_proxy_proto.is_some_and(|flag| flag.value) {
        return Err(at.field("use_proxy_proto").refuse("the PROXY protocol is not supported; leave it out"));
    }
    let matches = match &proto.filter_chain_match {
        Some(proto) if matched => chain_match(at.field("filter_chain_match"), proto)?,
        _ => FilterChainMatch::default(),
    };
    let (network_rbac, terminal) = filters(at, &proto.filters)?;
    let connect_timeout = at.field("transport_socket_connect_timeout");
    Ok(FilterChain {
        name: proto.name.clone(),
        matches,
        tls: tls::downstream(at.field("transport_socket"), proto.transport_socket.as_ref())?.map(Arc::new),
        network_rbac,
        terminal,
        transport_socket_connect_timeout: timeout(
            connect_timeout,
            proto.transport_socket_connect_timeout.as_ref(),
            None,
        )?,
    })
}

fn chain_match(at: At<'_>, proto: &listener::FilterChainMatch) -> Result<FilterChainMatch, ConfigError> {
    use listener::filter_chain_match::ConnectionSourceType as Source;
    if !proto.address_suffix.is_empty() || proto.suffix_len.is_some() {
        return Err(at.field("address_suffix").refuse("not supported, in Envoy neither; use prefix_ranges"));
    }
    let source_type = match Source::try_from(proto.source_type) {
        Ok(Source::Any) => SourceType::Any,
        Ok(Source::SameIpOrLoopback) => SourceType::SameIpOrLoopback,
        Ok(Source::External) => SourceType::External,
        Err(_) => return Err(at.field("source_type").refuse(unknown_enum(proto.source_type))),
    };
    let destination_port = number(proto.destination_port).map(|value| port(at.field("destination_port"), value));
    let source_ports =
        proto.source_ports.iter().enumerate().map(|(index, value)| port(at.item("source_ports", index), *value));
    Ok(FilterChainMatch {
        destination_port: destination_port.transpose()?,
        prefix_ranges: cidrs(at, "prefix_ranges", &proto.prefix_ranges)?,
        server_names: server_names(at, &proto.server_names)?,
        transport_protocol: proto.transport_protocol.clone(),
        application_protocols: proto.application_protocols.clone(),
        direct_source_prefix_ranges: cidrs(at, "direct_source_prefix_ranges", &proto.direct_source_prefix_ranges)?,
        source_type,
        source_prefix_ranges: cidrs(at, "source_prefix_ranges", &proto.source_prefix_ranges)?,
        source_ports: source_ports.collect::<Result<_, _>>()?,
    })
}

/// Lower case; a wildcard is a whole first label.
fn server_names(at: At<'_>, names: &[String]) -> Result<Vec<String>, ConfigError> {
    let one = |(index, name): (usize, &String)| {
        let wildcard = name.strip_prefix("*.").unwrap_or(name);
        match wildcard.contains('*') {
            true => Err(at
                .item("server_names", index)
                .refuse(format!("{name:?}: a wildcard must be a whole first label, as *.example.com"))),
            false => Ok(name.to_ascii_lowercase()),
        }
    };
    names.iter().enumerate().map(one).collect()
}

enum Kind {
    Rbac(NetworkRbac),
    Terminal(TerminalFilter),
    /// Carried out elsewhere, or reported.
    Nothing,
}

type Filters = (Vec<Arc<NetworkRbac>>, TerminalFilter);

fn filters(at: At<'_>, protos: &[listener::Filter]) -> Result<Filters, ConfigError> {
    let mut network_rbac = Vec::new();
    for (index, proto) in protos.iter().enumerate() {
        let at = at.item("filters", index);
        let is_last = index + 1 == protos.len();
        match (kind(at, proto)?, is_last) {
            (Kind::Terminal(terminal), true) => return Ok((network_rbac, terminal)),
            (Kind::Terminal(_), false) => return Err(at.refuse("a terminal filter must be the last")),
            (Kind::Rbac(rbac), _) => network_rbac.push(Arc::new(rbac)),
            (Kind::Nothing, _) => {}
        }
    }
    match protos.is_empty() {
        true => Ok((network_rbac, TerminalFilter::None)),
        false => Err(at.field("filters").refuse("the last filter must be a tcp_proxy or http_connection_manager")),
    }
}

fn kind(at: At<'_>, proto: &listener::Filter) -> Result<Kind, ConfigError> {
    use listener::filter::ConfigType;
    match &proto.config_type {
        Some(ConfigType::TypedConfig(config)) => typed(at.field("typed_config"), &proto.name, config),
        Some(ConfigType::ConfigDiscovery(_)) => Err(at
            .field("config_discovery")
            .refuse(format!("network filter {}: extension discovery is not supported", proto.name))),
        None => Err(at.field("typed_config").refuse(format!("network filter {:?} needs a configuration", proto.name))),
    }
}

fn typed(at: At<'_>, name: &str, config: &Any) -> Result<Kind, ConfigError> {
    const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let config = &*any::unwrapped(at, config)?;
    let type_name = any::effective_type(config);
    Ok(match type_name.as_str() {
        HCM => {
            let manager = http::connection_manager(at, &any::decode(at, config)?)?;
            Kind::Terminal(TerminalFilter::Http(Arc::new(manager)))
        }
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
            Kind::Terminal(TerminalFilter::Tcp(Arc::new(tcp_proxy(at, &any::decode(at, config)?)?)))
        }
        "envoy.extensions.filters.network.rbac.v3.RBAC" => {
            Kind::Rbac(rbac::network_filter(at, &any::decode(at, config)?)?)
        }
        // Istio's metrics are counted by the proxy's own telemetry.
        "stats.PluginConfig" => Kind::Nothing,
        "envoy.tcp.metadataexchange.config.MetadataExchange" => {
            at.unsupported("peer metadata is not exchanged over TCP; a peer is known by its certificate");
            Kind::Nothing
        }
        other => {
            let shown = any::shown(other);
            return Err(at.refuse(format!("network filter {name} ({shown}) is not supported; remove what asks for it")));
        }
    })
}

/// `TcpProxy`.
fn tcp_proxy(at: At<'_>, proto: &tcp::TcpProxy) -> Result<TcpProxy, ConfigError> {
    if proto.tunneling_config.is_some() {
        return Err(at.field("tunneling_config").refuse("tunnels over HTTP are not supported"));
    }
    let attempts = number(proto.max_connect_attempts).unwrap_or(1).max(1);
    let max_duration = at.field("max_downstream_connection_duration");
    let max_duration = optional_duration(max_duration, proto.max_downstream_connection_duration.as_ref())?;
    Ok(TcpProxy {
        stat_prefix: proto.stat_prefix.clone(),
        clusters: tcp_cluster(at, proto)?,
        idle_timeout: timeout(at.field("idle_timeout"), proto.idle_timeout.as_ref(), Some(Duration::from_secs(3600)))?,
        max_connect_attempts: attempts,
        max_downstream_connection_duration: max_duration.filter(|duration| !duration.is_zero()),
        access_logs: access_log::logs(at, "access_log", &proto.access_log)?,
    })
}

fn tcp_cluster(at: At<'_>, proto: &tcp::TcpProxy) -> Result<TcpCluster, ConfigError> {
    use tcp::tcp_proxy::ClusterSpecifier;
    match &proto.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => Ok(TcpCluster::Single(name.clone())),
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            let one = |proto: &tcp::tcp_proxy::weighted_cluster::ClusterWeight| WeightedCluster {
                name: proto.name.clone(),
                weight: proto.weight,
                headers: HeaderEdits::default(),
                host_rewrite: None,
                overrides: Default::default(),
            };
            let clusters: Vec<_> = weighted.clusters.iter().map(one).collect();
            Ok(TcpCluster::Weighted { total: total_weight(at.field("weighted_clusters"), &clusters)?, clusters })
        }
        _ => Err(at.refuse("give cluster or weighted_clusters")),
    }
}
