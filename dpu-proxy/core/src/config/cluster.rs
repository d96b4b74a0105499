//! Clusters.

use super::any;
use super::convert::{duration, duration_or, ip_and_port, number, port, struct_strings, timeout};
use super::endpoint;
use super::http::{Http1, http2_options};
use super::load_balancing;
use super::report::{At, ConfigError};
use super::tls;
use crate::model::{
    CircuitBreakers, Cluster, Discovery, DnsFamily, OutlierDetection, TcpKeepalive, TransportSocket,
    TransportSocketMatch, TransportSockets, UpstreamHttp, UpstreamProtocol,
};
use mesh_api::envoy::config::cluster::v3 as cluster;
use mesh_api::envoy::config::core::v3 as core;
use mesh_api::envoy::extensions::clusters::dns::v3 as dns;
use mesh_api::envoy::extensions::upstreams::http::v3 as upstream_http;
use mesh_api::envoy_pb::google::protobuf as wkt;
use prost::Name;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);
const DEFAULT_BUFFER: u32 = 1 << 20;

/// Converts a cluster. `in_workload_scope`: it belongs to pods of this DPU, so a sidecar's inbound
/// clusters mean the pod itself.
pub fn cluster(at: At<'_>, proto: &cluster::Cluster, in_workload_scope: bool) -> Result<Cluster, ConfigError> {
    if proto.name.is_empty() {
        return Err(at.field("name").refuse("a name is required"));
    }
    upstream_filters(at, &proto.filters)?;
    let discovery = discovery(at, proto)?;
    let balancing = load_balancing::policy(at, proto, &discovery)?;
    let (protocol, http) = protocol(at, proto)?;
    let delivers_to_workload = in_workload_scope && is_inbound(&proto.name);
    Ok(Cluster {
        name: proto.name.clone(),
        discovery,
        lb_policy: balancing.policy,
        locality_weighted: balancing.locality_weighted,
        healthy_panic_threshold_percent: balancing.panic_threshold_percent,
        connect_timeout: connect_timeout(at, proto)?,
        protocol,
        transport: transport_sockets(at, proto)?,
        circuit_breakers: circuit_breakers(at, proto.circuit_breakers.as_ref()),
        outlier_detection: proto
            .outlier_detection
            .as_ref()
            .map(|o| outlier(at.field("outlier_detection"), o))
            .transpose()?,
        http,
        per_connection_buffer_limit_bytes: number(proto.per_connection_buffer_limit_bytes).unwrap_or(DEFAULT_BUFFER),
        bind_source: if delivers_to_workload { None } else { bind_source(at, proto.upstream_bind_config.as_ref())? },
        tcp_keepalive: keepalive(proto),
        delivers_to_workload,
    })
}

/// Network filters of upstream connections: none is run.
fn upstream_filters(at: At<'_>, protos: &[cluster::Filter]) -> Result<(), ConfigError> {
    for (index, proto) in protos.iter().enumerate() {
        let at = at.item("filters", index);
        let type_name = proto.typed_config.as_ref().map(any::effective_type).unwrap_or_default();
        if type_name != "envoy.tcp.metadataexchange.config.MetadataExchange" {
            let shown = any::shown(&type_name);
            return Err(at.refuse(format!("upstream filter {} ({shown}) is not supported; leave it out", proto.name)));
        }
        at.unsupported("peer metadata is not exchanged over TCP; a peer is known by its certificate");
    }
    Ok(())
}

/// A sidecar's clusters that lead to its own application.
fn is_inbound(name: &str) -> bool {
    name.starts_with("inbound|") || name.starts_with("InboundPassthroughCluster")
}

fn connect_timeout(at: At<'_>, proto: &cluster::Cluster) -> Result<Duration, ConfigError> {
    let at = at.field("connect_timeout");
    match duration_or(at, proto.connect_timeout.as_ref(), Duration::from_secs(5))? {
        Duration::ZERO => Err(at.refuse("must be more than 0; the default is 5s")),
        value => Ok(value),
    }
}

fn discovery(at: At<'_>, proto: &cluster::Cluster) -> Result<Discovery, ConfigError> {
    use cluster::cluster::ClusterDiscoveryType as Kind;
    use cluster::cluster::DiscoveryType as Type;
    let kind = match &proto.cluster_discovery_type {
        None => Type::Static,
        Some(Kind::Type(value)) => {
            Type::try_from(*value).map_err(|_| at.field("type").refuse(super::convert::unknown_enum(*value)))?
        }
        Some(Kind::ClusterType(custom)) => return custom_discovery(at.field("cluster_type"), at, proto, custom),
    };
    match kind {
        Type::Static => Ok(Discovery::Static(Arc::new(assignment(at, proto)?))),
        Type::Eds => eds(at, proto),
        Type::StrictDns | Type::LogicalDns => {
            let settings = Dns::of_cluster(at, proto)?;
            dns_discovery(at, proto, settings, kind == Type::LogicalDns)
        }
        Type::OriginalDst => original_dst(at, proto),
    }
}

fn assignment(at: At<'_>, proto: &cluster::Cluster) -> Result<crate::model::EndpointSet, ConfigError> {
    let empty = Default::default();
    endpoint::assignment(at.field("load_assignment"), proto.load_assignment.as_ref().unwrap_or(&empty))
}

fn eds(at: At<'_>, proto: &cluster::Cluster) -> Result<Discovery, ConfigError> {
    let at = at.field("eds_cluster_config");
    let config = proto.eds_cluster_config.as_ref().ok_or_else(|| at.refuse("a cluster of type EDS needs it"))?;
    config_source(at.field("eds_config"), config.eds_config.as_ref())?;
    let named = if config.service_name.is_empty() { &proto.name } else { &config.service_name };
    Ok(Discovery::Eds { service_name: named.clone() })
}

/// Resources come over the aggregated stream (or the same server); files and REST are not followed.
pub fn config_source(at: At<'_>, proto: Option<&core::ConfigSource>) -> Result<(), ConfigError> {
    use core::config_source::ConfigSourceSpecifier as Source;
    match proto.and_then(|source| source.config_source_specifier.as_ref()) {
        Some(Source::Ads(_) | Source::Self_(_)) => Ok(()),
        Some(Source::ApiConfigSource(_)) => {
            at.unsupported("a stream of its own is not opened: the resource is asked for on the aggregated stream");
            Ok(())
        }
        _ => Err(at.refuse("only the aggregated stream is supported; give ads: {}")),
    }
}

/// What DNS clusters say of resolving.
struct Dns {
    refresh_rate: Duration,
    respect_ttl: bool,
    family: DnsFamily,
}

impl Dns {
    fn of_cluster(at: At<'_>, proto: &cluster::Cluster) -> Result<Self, ConfigError> {
        use cluster::cluster::DnsLookupFamily as Family;
        let family = match Family::try_from(proto.dns_lookup_family) {
            Ok(Family::Auto) => DnsFamily::Auto,
            Ok(Family::V4Only) => DnsFamily::V4Only,
            Ok(Family::V6Only) => DnsFamily::V6Only,
            Ok(Family::V4Preferred) => DnsFamily::V4Preferred,
            Ok(Family::All) => DnsFamily::All,
            Err(_) => {
                return Err(at
                    .field("dns_lookup_family")
                    .refuse(super::convert::unknown_enum(proto.dns_lookup_family)));
            }
        };
        let refresh_rate = refresh_rate(at.field("dns_refresh_rate"), proto.dns_refresh_rate.as_ref())?;
        Ok(Self { refresh_rate, respect_ttl: proto.respect_dns_ttl, family })
    }

    fn of_extension(at: At<'_>, proto: &dns::DnsCluster) -> Result<Self, ConfigError> {
        use mesh_api::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily as Family;
        let family = match Family::try_from(proto.dns_lookup_family) {
            Ok(Family::Unspecified | Family::Auto) => DnsFamily::Auto,
            Ok(Family::V4Only) => DnsFamily::V4Only,
            Ok(Family::V6Only) => DnsFamily::V6Only,
            Ok(Family::V4Preferred) => DnsFamily::V4Preferred,
            Ok(Family::All) => DnsFamily::All,
            Err(_) => {
                return Err(at
                    .field("dns_lookup_family")
                    .refuse(super::convert::unknown_enum(proto.dns_lookup_family)));
            }
        };
        let refresh_rate = refresh_rate(at.field("dns_refresh_rate"), proto.dns_refresh_rate.as_ref())?;
        Ok(Self { refresh_rate, respect_ttl: proto.respect_dns_ttl, family })
    }
}

fn refresh_rate(at: At<'_>, proto: Option<&wkt::Duration>) -> Result<Duration, ConfigError> {
    match duration_or(at, proto, Duration::from_secs(5))? {
        rate if rate < Duration::from_millis(1) => Err(at.refuse("must be at least 1ms; the default is 5s")),
        rate => Ok(rate),
    }
}

fn dns_discovery(at: At<'_>, proto: &cluster::Cluster, dns: Dns, logical: bool) -> Result<Discovery, ConfigError> {
    let at = at.field("load_assignment");
    let empty = Default::default();
    let mut hosts = endpoint::dns_hosts(at, proto.load_assignment.as_ref().unwrap_or(&empty))?;
    let Dns { refresh_rate, respect_ttl, family } = dns;
    if !logical {
        return Ok(Discovery::StrictDns { hosts, refresh_rate, respect_ttl, family });
    }
    match (hosts.pop(), hosts.is_empty()) {
        (Some(host), true) => Ok(Discovery::LogicalDns { host, refresh_rate, respect_ttl, family }),
        _ => Err(at.refuse("a cluster of type LOGICAL_DNS must have exactly one endpoint")),
    }
}

fn custom_discovery(
    at: At<'_>,
    cluster_at: At<'_>,
    proto: &cluster::Cluster,
    custom: &cluster::cluster::CustomClusterType,
) -> Result<Discovery, ConfigError> {
    let at = at.field("typed_config");
    let config = custom.typed_config.as_ref().ok_or_else(|| at.refuse("required"))?;
    let Some(dns) = any::decode_if::<dns::DnsCluster>(at, config)? else {
        return Err(
            at.refuse(format!("clusters of type {} are not supported", any::shown(&any::effective_type(config))))
        );
    };
    let settings = Dns::of_extension(at, &dns)?;
    dns_discovery(cluster_at, proto, settings, dns.all_addresses_in_single_endpoint)
}

fn original_dst(at: At<'_>, proto: &cluster::Cluster) -> Result<Discovery, ConfigError> {
    use cluster::cluster::LbConfig;
    let Some(LbConfig::OriginalDstLbConfig(config)) = &proto.lb_config else {
        return Ok(Discovery::OriginalDst { port_override: None });
    };
    let at = at.field("original_dst_lb_config");
    if !config.http_header_name.is_empty() && config.http_header_name != "x-envoy-original-dst-host" {
        return Err(at.field("http_header_name").refuse("only x-envoy-original-dst-host is supported"));
    }
    if config.metadata_key.is_some() {
        return Err(at.field("metadata_key").refuse("not supported; leave it out"));
    }
    let port_override =
        number(config.upstream_port_override).map(|value| port(at.field("upstream_port_override"), value));
    if config.use_http_header {
        at.field("use_http_header").unsupported("requests go to their original destination, whatever a header says");
    }
    Ok(Discovery::OriginalDst { port_override: port_override.transpose()? })
}

fn transport_sockets(at: At<'_>, proto: &cluster::Cluster) -> Result<TransportSockets, ConfigError> {
    if proto.transport_socket_matcher.is_some() {
        return Err(at.field("transport_socket_matcher").refuse("not supported; use transport_socket_matches"));
    }
    let one = |(index, proto): (usize, &cluster::cluster::TransportSocketMatch)| {
        let at = at.item("transport_socket_matches", index);
        Ok(TransportSocketMatch {
            name: proto.name.clone(),
            criteria: proto.r#match.as_ref().map(struct_strings).unwrap_or_default(),
            socket: transport_socket(at.field("transport_socket"), proto.transport_socket.as_ref())?,
        })
    };
    Ok(TransportSockets {
        matches: proto.transport_socket_matches.iter().enumerate().map(one).collect::<Result<_, _>>()?,
        default: transport_socket(at.field("transport_socket"), proto.transport_socket.as_ref())?,
    })
}

fn transport_socket(at: At<'_>, proto: Option<&core::TransportSocket>) -> Result<TransportSocket, ConfigError> {
    Ok(tls::upstream(at, proto)?.map_or(TransportSocket::RawBuffer, |tls| TransportSocket::Tls(Arc::new(tls))))
}

fn circuit_breakers(at: At<'_>, proto: Option<&cluster::CircuitBreakers>) -> CircuitBreakers {
    let defaults = CircuitBreakers::default();
    let Some(proto) = proto else { return defaults };
    let at = at.field("circuit_breakers");
    for (index, thresholds) in proto.thresholds.iter().enumerate() {
        if thresholds.priority != core::RoutingPriority::Default as i32 {
            at.item("thresholds", index).unsupported("all requests are of the default priority: its limits apply");
        }
    }
    let default_priority = proto.thresholds.iter().find(|t| t.priority == core::RoutingPriority::Default as i32);
    let Some(limits) = default_priority else { return defaults };
    CircuitBreakers {
        max_connections: number(limits.max_connections).unwrap_or(defaults.max_connections),
        max_pending_requests: number(limits.max_pending_requests).unwrap_or(defaults.max_pending_requests),
        max_requests: number(limits.max_requests).unwrap_or(defaults.max_requests),
        max_retries: number(limits.max_retries).unwrap_or(defaults.max_retries),
    }
}

fn outlier(at: At<'_>, proto: &cluster::OutlierDetection) -> Result<OutlierDetection, ConfigError> {
    let base = duration_or(at.field("base_ejection_time"), proto.base_ejection_time.as_ref(), Duration::from_secs(30))?;
    let max = duration_or(at.field("max_ejection_time"), proto.max_ejection_time.as_ref(), Duration::from_secs(300))?;
    let percent = |field, value: Option<wkt::UInt32Value>, default| match number(value).unwrap_or(default) {
        value if value > 100 => Err(at.field(field).refuse(format!("{value} is more than 100 percent"))),
        value => Ok(value),
    };
    // On by default in Envoy; Istio switches it off.
    if percent("enforcing_success_rate", proto.enforcing_success_rate, 100)? > 0 {
        at.field("enforcing_success_rate").unsupported("hosts are not ejected by their success rate; give 0");
    }
    Ok(OutlierDetection {
        consecutive_5xx: number(proto.consecutive_5xx).unwrap_or(5),
        consecutive_gateway_failure: number(proto.consecutive_gateway_failure).unwrap_or(5),
        interval: duration_or(at.field("interval"), proto.interval.as_ref(), Duration::from_secs(10))?,
        base_ejection_time: base,
        max_ejection_time: max.max(base),
        max_ejection_percent: percent("max_ejection_percent", proto.max_ejection_percent, 10)?,
        enforcing_consecutive_5xx_percent: percent("enforcing_consecutive_5xx", proto.enforcing_consecutive_5xx, 100)?,
        enforcing_consecutive_gateway_failure_percent: percent(
            "enforcing_consecutive_gateway_failure",
            proto.enforcing_consecutive_gateway_failure,
            0,
        )?,
    })
}

fn bind_source(at: At<'_>, proto: Option<&core::BindConfig>) -> Result<Option<SocketAddr>, ConfigError> {
    let at = at.field("upstream_bind_config");
    let at = at.field("source_address");
    proto.and_then(|bind| bind.source_address.as_ref()).map(|address| ip_and_port(at, address)).transpose()
}

fn keepalive(proto: &cluster::Cluster) -> Option<TcpKeepalive> {
    let keepalive = proto.upstream_connection_options.as_ref()?.tcp_keepalive.as_ref()?;
    let seconds = |value| number(value).map(|seconds| Duration::from_secs(seconds.into()));
    Some(TcpKeepalive {
        probes: number(keepalive.keepalive_probes),
        time: seconds(keepalive.keepalive_time),
        interval: seconds(keepalive.keepalive_interval),
    })
}

/// From `HttpProtocolOptions`, else from the deprecated fields of the cluster itself.
fn protocol(at: At<'_>, proto: &cluster::Cluster) -> Result<(UpstreamProtocol, UpstreamHttp), ConfigError> {
    let field = "typed_extension_protocol_options";
    for (key, config) in &proto.typed_extension_protocol_options {
        let at = at.entry(field, key);
        if any::type_name(config) == upstream_http::HttpProtocolOptions::full_name() {
            return typed_protocol(at, &any::decode(at, config)?);
        }
        at.unsupported(format!("options of type {} are not used", any::shown(any::type_name(config))));
    }
    auto_sni(at.field("upstream_http_protocol_options"), proto.upstream_http_protocol_options.as_ref())?;
    let mut http = common_http(at, proto.common_http_protocol_options.as_ref())?;
    http.max_requests_per_connection = http.max_requests_per_connection.or(number(proto.max_requests_per_connection));
    let downstream =
        proto.protocol_selection == cluster::cluster::ClusterProtocolSelection::UseDownstreamProtocol as i32;
    let protocol = match (&proto.http2_protocol_options, downstream) {
        (_, true) => UpstreamProtocol::Downstream,
        (Some(_), false) => UpstreamProtocol::Http2,
        (None, false) => UpstreamProtocol::Http1,
    };
    http1(at.field("http_protocol_options"), proto.http_protocol_options.as_ref(), &mut http)?;
    http.http2 = http2_options(at.field("http2_protocol_options"), proto.http2_protocol_options.as_ref());
    Ok((protocol, http))
}

fn typed_protocol(
    at: At<'_>,
    proto: &upstream_http::HttpProtocolOptions,
) -> Result<(UpstreamProtocol, UpstreamHttp), ConfigError> {
    use upstream_http::http_protocol_options::UpstreamProtocolOptions as Options;
    use upstream_http::http_protocol_options::explicit_http_config::ProtocolConfig;
    if let Some(filter) = proto.http_filters.iter().find(|filter| !filter.name.ends_with("upstream_codec")) {
        return Err(at
            .field("http_filters")
            .refuse(format!("upstream filter {} is not supported; leave it out", filter.name)));
    }
    auto_sni(at.field("upstream_http_protocol_options"), proto.upstream_http_protocol_options.as_ref())?;
    let mut http = common_http(at, proto.common_http_protocol_options.as_ref())?;
    let (protocol, one, two) = match &proto.upstream_protocol_options {
        Some(Options::ExplicitHttpConfig(explicit)) => match &explicit.protocol_config {
            Some(ProtocolConfig::HttpProtocolOptions(one)) => (UpstreamProtocol::Http1, Some(one), None),
            Some(ProtocolConfig::Http2ProtocolOptions(two)) => (UpstreamProtocol::Http2, None, Some(two)),
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                return Err(at.field("explicit_http_config").refuse("HTTP/3 is not supported; use HTTP/2"));
            }
            None => {
                return Err(at
                    .field("explicit_http_config")
                    .refuse("give http_protocol_options or http2_protocol_options"));
            }
        },
        Some(Options::UseDownstreamProtocolConfig(both)) => {
            (UpstreamProtocol::Downstream, both.http_protocol_options.as_ref(), both.http2_protocol_options.as_ref())
        }
        Some(Options::AutoConfig(both)) => {
            (UpstreamProtocol::Auto, both.http_protocol_options.as_ref(), both.http2_protocol_options.as_ref())
        }
        None => return Err(at.refuse("give explicit_http_config, use_downstream_protocol_config or auto_config")),
    };
    http1(at, one, &mut http)?;
    http.http2 = http2_options(at, two);
    Ok((protocol, http))
}

/// Names of the upstream that follow the request.
fn auto_sni(at: At<'_>, proto: Option<&core::UpstreamHttpProtocolOptions>) -> Result<(), ConfigError> {
    let Some(proto) = proto else { return Ok(()) };
    if proto.auto_san_validation {
        let instead = "not supported; name the accepted SANs in match_typed_subject_alt_names";
        return Err(at.field("auto_san_validation").refuse(instead));
    }
    if proto.auto_sni {
        at.field("auto_sni").unsupported("the SNI does not follow the host header; give sni or auto_host_sni");
    }
    Ok(())
}

fn http1(at: At<'_>, proto: Option<&core::Http1ProtocolOptions>, http: &mut UpstreamHttp) -> Result<(), ConfigError> {
    let options = Http1::of(at, proto)?;
    http.preserve_header_case = options.preserve_case;
    if options.options.proper_case_headers {
        at.unsupported("header names are sent in lower case to upstreams");
    }
    Ok(())
}

fn common_http(at: At<'_>, proto: Option<&core::HttpProtocolOptions>) -> Result<UpstreamHttp, ConfigError> {
    let at = at.field("common_http_protocol_options");
    let Some(proto) = proto else { return Ok(UpstreamHttp { idle_timeout: Some(HOUR), ..UpstreamHttp::default() }) };
    let max_duration = proto.max_connection_duration.as_ref().map(|d| duration(at.field("max_connection_duration"), d));
    Ok(UpstreamHttp {
        idle_timeout: timeout(at.field("idle_timeout"), proto.idle_timeout.as_ref(), Some(HOUR))?,
        max_requests_per_connection: number(proto.max_requests_per_connection).filter(|count| *count > 0),
        max_connection_duration: max_duration.transpose()?.filter(|duration| !duration.is_zero()),
        ..UpstreamHttp::default()
    })
}
