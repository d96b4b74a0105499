//! Listeners and listener filters.

use super::access_log;
use super::any;
use super::convert::{flag, number, socket_address, timeout, unknown_enum};
use super::filter_chain::filter_chain;
use super::report::{At, ConfigError};
use crate::model::{InspectorScope, Listener, ListenerFilters, TrafficDirection};
use mesh_api::envoy::config::core::v3 as core;
use mesh_api::envoy::config::listener::v3 as listener;
use std::sync::Arc;
use std::time::Duration;

const DEFAULT_BUFFER: u32 = 1 << 20;

/// Converts a listener.
pub fn listener(at: At<'_>, proto: &listener::Listener) -> Result<Listener, ConfigError> {
    refuse_unknown(at, proto)?;
    let chain = |(index, proto)| filter_chain(at.item("filter_chains", index), proto, true).map(Arc::new);
    let filter_chains: Vec<_> = proto.filter_chains.iter().enumerate().map(chain).collect::<Result<_, _>>()?;
    let default_filter_chain = match &proto.default_filter_chain {
        Some(proto) => Some(Arc::new(filter_chain(at.field("default_filter_chain"), proto, false)?)),
        None => None,
    };
    if filter_chains.is_empty() && default_filter_chain.is_none() {
        return Err(at.field("filter_chains").refuse("at least one filter chain is required"));
    }
    refuse_same_matches(at, &filter_chains)?;
    let at_timeout = at.field("listener_filters_timeout");
    Ok(Listener {
        name: proto.name.clone(),
        address: socket_address(at.field("address"), proto.address.as_ref())?,
        bind_to_port: binds(proto),
        use_original_dst: flag(proto.use_original_dst, false),
        transparent: flag(proto.transparent, false),
        direction: direction(at, proto.traffic_direction)?,
        filters: filters(at, &proto.listener_filters)?,
        listener_filters_timeout: timeout(
            at_timeout,
            proto.listener_filters_timeout.as_ref(),
            Some(Duration::from_secs(15)),
        )?,
        continue_on_listener_filters_timeout: proto.continue_on_listener_filters_timeout,
        filter_chains,
        default_filter_chain,
        access_logs: access_log::logs(at, "access_log", &proto.access_log)?,
        per_connection_buffer_limit_bytes: number(proto.per_connection_buffer_limit_bytes).unwrap_or(DEFAULT_BUFFER),
        backlog: number(proto.tcp_backlog_size),
    })
}

fn refuse_unknown(at: At<'_>, proto: &listener::Listener) -> Result<(), ConfigError> {
    if proto.enable_reuse_port.as_ref().is_some_and(|enabled| !enabled.value) {
        at.field("enable_reuse_port").unsupported("every worker listens by itself");
    }
    let asked = [
        (
            "filter_chain_matcher",
            proto.filter_chain_matcher.is_some(),
            "matcher trees are not supported; use filter_chain_match",
        ),
        ("fcds_config", proto.fcds_config.is_some(), "filter chain discovery is not supported; list the chains"),
        ("api_listener", proto.api_listener.is_some(), "API listeners are not supported"),
        ("udp_listener_config", proto.udp_listener_config.is_some(), "UDP is not supported"),
        ("listener_specifier", proto.listener_specifier.is_some(), "internal listeners are not supported"),
    ];
    match asked.iter().find(|(_, asked, _)| *asked) {
        Some((field, _, reason)) => Err(at.field(field).refuse(*reason)),
        None => Ok(()),
    }
}

/// Two chains with the same match would leave it to chance which one governs.
fn refuse_same_matches(at: At<'_>, chains: &[Arc<crate::model::FilterChain>]) -> Result<(), ConfigError> {
    for (index, chain) in chains.iter().enumerate() {
        if let Some(other) = chains[..index].iter().position(|other| other.matches == chain.matches) {
            let at = at.item("filter_chains", index);
            return Err(at
                .field("filter_chain_match")
                .refuse(format!("the same as that of filter_chains[{other}]; make them differ")));
        }
    }
    Ok(())
}

fn binds(proto: &listener::Listener) -> bool {
    let deprecated = proto.deprecated_v1.as_ref().and_then(|old| old.bind_to_port);
    flag(proto.bind_to_port.or(deprecated), true)
}

fn direction(at: At<'_>, value: i32) -> Result<TrafficDirection, ConfigError> {
    match core::TrafficDirection::try_from(value) {
        Ok(core::TrafficDirection::Unspecified) => Ok(TrafficDirection::Unspecified),
        Ok(core::TrafficDirection::Inbound) => Ok(TrafficDirection::Inbound),
        Ok(core::TrafficDirection::Outbound) => Ok(TrafficDirection::Outbound),
        Err(_) => Err(at.field("traffic_direction").refuse(unknown_enum(value))),
    }
}

fn filters(at: At<'_>, protos: &[listener::ListenerFilter]) -> Result<ListenerFilters, ConfigError> {
    use listener::listener_filter::ConfigType;
    let mut made = ListenerFilters::default();
    for (index, proto) in protos.iter().enumerate() {
        let at = at.item("listener_filters", index);
        let type_name = match &proto.config_type {
            Some(ConfigType::TypedConfig(config)) => any::effective_type(config),
            Some(ConfigType::ConfigDiscovery(_)) => {
                return Err(at
                    .field("config_discovery")
                    .refuse("extension discovery is not supported; give typed_config"));
            }
            None => String::new(),
        };
        let scope = match &proto.filter_disabled {
            Some(predicate) => Scope::of(at.field("filter_disabled"), predicate)?,
            None => Scope::Ports(InspectorScope::default()),
        };
        let Scope::Ports(scope) = scope else { continue };
        set(at, &mut made, &type_name, &proto.name, scope)?;
    }
    Ok(made)
}

fn set(
    at: At<'_>,
    made: &mut ListenerFilters,
    type_name: &str,
    name: &str,
    scope: InspectorScope,
) -> Result<(), ConfigError> {
    let always = scope.disabled_ports.is_empty();
    match type_name {
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => made.tls_inspector = Some(scope),
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => made.http_inspector = Some(scope),
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" if always => made.original_dst = true,
        // Ignoring it would take the proxy's address for the client's.
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" => {
            return Err(at.refuse("the PROXY protocol is not supported; leave the filter out"));
        }
        // The source address is kept wherever the DPU delivers; elsewhere it cannot be.
        "envoy.extensions.filters.listener.original_src.v3.OriginalSrc" => {
            at.unsupported("source addresses are kept by the dataplane, not by this filter");
        }
        _ if !always => return Err(at.field("filter_disabled").refuse("only inspectors can be switched off by port")),
        other => {
            let shown = any::shown(other);
            return Err(
                at.refuse(format!("listener filter {name} ({shown}) is not supported; remove what asks for it"))
            );
        }
    }
    Ok(())
}

/// Where a filter is switched off.
enum Scope {
    Everywhere,
    Ports(InspectorScope),
}

impl Scope {
    fn of(at: At<'_>, proto: &listener::ListenerFilterChainMatchPredicate) -> Result<Self, ConfigError> {
        use listener::listener_filter_chain_match_predicate::Rule;
        let ports = |ports| Self::Ports(InspectorScope { disabled_ports: ports });
        match &proto.rule {
            Some(Rule::AnyMatch(true)) => Ok(Self::Everywhere),
            Some(Rule::AnyMatch(false)) => Ok(ports(Vec::new())),
            Some(Rule::DestinationPortRange(range)) => {
                let end = u16::try_from(range.end.clamp(0, 65_535)).unwrap_or(u16::MAX);
                match u16::try_from(range.start) {
                    Ok(start) => Ok(ports(vec![(start, end)])),
                    Err(_) => Err(at.field("destination_port_range").refuse(format!("{} is not a port", range.start))),
                }
            }
            Some(Rule::OrMatch(set)) => {
                let mut all = Vec::new();
                for (index, rule) in set.rules.iter().enumerate() {
                    match Self::of(at.item("or_match", index), rule)? {
                        Self::Everywhere => return Ok(Self::Everywhere),
                        Self::Ports(scope) => all.extend(scope.disabled_ports),
                    }
                }
                Ok(ports(all))
            }
            _ => Err(at.refuse("only destination_port_range, or_match of these, and any_match are supported")),
        }
    }
}
