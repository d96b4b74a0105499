//! HTTP filters. One that we don't have is refused by name, unless it is optional and harmless.

use super::any::{self, IstioAlpn};
use super::convert::{duration, fraction, number};
use super::matcher;
use super::rbac;
use super::report::{At, ConfigError};
use crate::model::{AlpnOverride, Fault, FaultAbort, FaultDelay, FaultStatus, Fraction, HttpFilter, RouterOptions};
use mesh_api::Any;
use mesh_api::envoy::extensions::filters::common::fault::v3 as common_fault;
use mesh_api::envoy::extensions::filters::http as filters;
use mesh_api::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use mesh_api::envoy::r#type::v3::FractionalPercent;
use std::sync::Arc;

/// What one entry of the list is for us.
enum Kind {
    Filter(HttpFilter),
    Router(RouterOptions),
    /// Carried out elsewhere, or reported.
    Nothing,
}

/// The filters of a connection manager; the router must be last.
pub fn filters(at: At<'_>, protos: &[hcm::HttpFilter]) -> Result<(Vec<HttpFilter>, RouterOptions), ConfigError> {
    let mut made = Vec::new();
    for (index, proto) in protos.iter().enumerate() {
        let at = at.item("http_filters", index);
        let is_last = index + 1 == protos.len();
        match (kind(at, proto)?, is_last) {
            (Kind::Router(router), true) => return Ok((made, router)),
            (Kind::Router(_), false) => return Err(at.refuse("the router must be the last filter")),
            (Kind::Filter(filter), _) => made.push(filter),
            (Kind::Nothing, _) => {}
        }
    }
    Err(at.field("http_filters").refuse("the last filter must be envoy.filters.http.router"))
}

fn kind(at: At<'_>, proto: &hcm::HttpFilter) -> Result<Kind, ConfigError> {
    use hcm::http_filter::ConfigType;
    if proto.disabled {
        return Err(at
            .field("disabled")
            .refuse("filters that only routes switch on are not supported; enable it or leave it out"));
    }
    match &proto.config_type {
        Some(ConfigType::TypedConfig(config)) => typed(at.field("typed_config"), proto, config),
        Some(ConfigType::ConfigDiscovery(_)) => Err(at.field("config_discovery").refuse(format!(
            "filter {} is configured by extension discovery, which is not supported; give typed_config",
            proto.name
        ))),
        None => Err(at.field("typed_config").refuse(format!("filter {:?} needs a configuration", proto.name))),
    }
}

fn typed(at: At<'_>, proto: &hcm::HttpFilter, config: &Any) -> Result<Kind, ConfigError> {
    let config = &*any::unwrapped(at, config)?;
    let type_name = any::effective_type(config);
    Ok(match type_name.as_str() {
        "envoy.extensions.filters.http.router.v3.Router" => Kind::Router(router(at, &any::decode(at, config)?)?),
        "envoy.extensions.filters.http.rbac.v3.RBAC" => {
            Kind::Filter(HttpFilter::Rbac(Arc::new(rbac::http_filter(at, &any::decode(at, config)?)?)))
        }
        "envoy.extensions.filters.http.fault.v3.HTTPFault" => {
            Kind::Filter(HttpFilter::Fault(Arc::new(fault(at, &any::decode(at, config)?)?)))
        }
        "envoy.extensions.filters.http.cors.v3.Cors" => Kind::Filter(HttpFilter::Cors),
        "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig" => Kind::Filter(HttpFilter::GrpcStats),
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig" => {
            Kind::Filter(HttpFilter::IstioAlpn(Arc::new(alpn(at, &any::decode(at, config)?)?)))
        }
        // Istio's metrics are counted by the proxy's own telemetry.
        "stats.PluginConfig" => Kind::Nothing,
        "io.istio.http.peer_metadata.Config" | "envoy.extensions.filters.http.peer_metadata.v3.Config" => {
            at.unsupported("peer metadata does not travel in headers; a peer is known by its certificate");
            Kind::Nothing
        }
        other => {
            unknown(at, proto, other)?;
            Kind::Nothing
        }
    })
}

/// Filters that let requests in are never left out, even where they are marked optional.
fn unknown(at: At<'_>, proto: &hcm::HttpFilter, type_name: &str) -> Result<(), ConfigError> {
    const GUARDS: &[&str] = &["ext_authz", "jwt_authn", "oauth2", "basic_auth", "api_key_auth", "csrf", "rbac", "wasm"];
    let guards = GUARDS.iter().any(|guard| type_name.contains(guard) || proto.name.contains(guard));
    if !proto.is_optional || guards {
        return Err(at.refuse(format!(
            "HTTP filter {} ({}) is not supported; remove what asks for it",
            proto.name,
            any::shown(type_name)
        )));
    }
    at.unsupported(format!("optional HTTP filter {} is left out", proto.name));
    Ok(())
}

fn router(at: At<'_>, proto: &filters::router::v3::Router) -> Result<RouterOptions, ConfigError> {
    if let Some(filter) = proto.upstream_http_filters.iter().find(|filter| !filter.name.ends_with("upstream_codec")) {
        return Err(at
            .field("upstream_http_filters")
            .refuse(format!("upstream filter {} is not supported", filter.name)));
    }
    if !proto.strict_check_headers.is_empty() {
        return Err(at.field("strict_check_headers").refuse("not supported; leave it out"));
    }
    Ok(RouterOptions {
        suppress_envoy_headers: proto.suppress_envoy_headers,
        respect_expected_rq_timeout: proto.respect_expected_rq_timeout,
    })
}

fn alpn(at: At<'_>, proto: &IstioAlpn) -> Result<AlpnOverride, ConfigError> {
    let mut made = AlpnOverride::default();
    for entry in &proto.alpn_override {
        let list = match entry.upstream_protocol {
            0 => &mut made.http10,
            1 => &mut made.http11,
            2 => &mut made.http2,
            other => return Err(at.field("alpn_override").refuse(super::convert::unknown_enum(other))),
        };
        list.clone_from(&entry.alpn_override);
    }
    Ok(made)
}

/// `HTTPFault`, of the filter or of a route.
pub fn fault(at: At<'_>, proto: &filters::fault::v3::HttpFault) -> Result<Fault, ConfigError> {
    if !proto.downstream_nodes.is_empty() {
        return Err(at.field("downstream_nodes").refuse("not supported; match on headers instead"));
    }
    Ok(Fault {
        delay: proto.delay.as_ref().map(|delay| fault_delay(at.field("delay"), delay)).transpose()?.flatten(),
        abort: proto.abort.as_ref().map(|abort| fault_abort(at.field("abort"), abort)).transpose()?.flatten(),
        headers: matcher::headers(at, "headers", &proto.headers)?,
        upstream_cluster: proto.upstream_cluster.clone(),
        max_active_faults: number(proto.max_active_faults),
    })
}

fn fault_delay(at: At<'_>, proto: &common_fault::FaultDelay) -> Result<Option<FaultDelay>, ConfigError> {
    use common_fault::fault_delay::FaultDelaySecifier as Kind;
    match &proto.fault_delay_secifier {
        Some(Kind::FixedDelay(fixed)) => Ok(Some(FaultDelay {
            fixed: duration(at.field("fixed_delay"), fixed)?,
            percentage: percentage(at, proto.percentage.as_ref())?,
        })),
        Some(Kind::HeaderDelay(_)) => {
            at.field("header_delay").unsupported("delays that a header asks for are not made; use fixed_delay");
            Ok(None)
        }
        None => Err(at.refuse("give fixed_delay")),
    }
}

fn fault_abort(at: At<'_>, proto: &filters::fault::v3::FaultAbort) -> Result<Option<FaultAbort>, ConfigError> {
    use filters::fault::v3::fault_abort::ErrorType;
    let status = match &proto.error_type {
        Some(ErrorType::HttpStatus(status)) if (200..600).contains(status) => FaultStatus::Http(*status as u16),
        Some(ErrorType::HttpStatus(status)) => {
            return Err(at.field("http_status").refuse(format!("{status} is not between 200 and 599")));
        }
        Some(ErrorType::GrpcStatus(status)) => FaultStatus::Grpc(*status),
        Some(ErrorType::HeaderAbort(_)) => {
            at.field("header_abort").unsupported("aborts that a header asks for are not made; use http_status");
            return Ok(None);
        }
        None => return Err(at.refuse("give http_status or grpc_status")),
    };
    Ok(Some(FaultAbort { status, percentage: percentage(at, proto.percentage.as_ref())? }))
}

/// An unset percentage is none at all, as in Envoy.
fn percentage(at: At<'_>, proto: Option<&FractionalPercent>) -> Result<Fraction, ConfigError> {
    proto.map_or(Ok(Fraction { numerator: 0, denominator: 100 }), |proto| fraction(at.field("percentage"), proto))
}
