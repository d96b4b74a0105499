//! Clusters.

use super::{EndpointSet, UpstreamTls};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Envoy's `Cluster`.
#[derive(Debug)]
pub struct Cluster {
    pub name: String,
    pub discovery: Discovery,
    pub lb_policy: LbPolicy,
    pub connect_timeout: Duration,
    pub protocol: UpstreamProtocol,
    pub transport: TransportSockets,
    pub circuit_breakers: CircuitBreakers,
    pub outlier_detection: Option<OutlierDetection>,
    /// Percent of healthy endpoints under which all are used; Envoy's default is 50.
    pub healthy_panic_threshold_percent: f64,
    pub http: UpstreamHttp,
    pub per_connection_buffer_limit_bytes: u32,
    /// `upstream_bind_config.source_address`, where it has a meaning for us.
    pub bind_source: Option<SocketAddr>,
    pub tcp_keepalive: Option<TcpKeepalive>,
    pub locality_weighted: bool,
    /// Inbound cluster of a sidecar (name `inbound|PORT||`, or InboundPassthroughCluster):
    /// delivered to the workload's own address through its representor.
    pub delivers_to_workload: bool,
}

impl Cluster {
    /// As Envoy does where nothing but these is given.
    pub fn new(name: &str, discovery: Discovery) -> Self {
        Self {
            name: name.to_owned(),
            discovery,
            lb_policy: LbPolicy::RoundRobin,
            connect_timeout: Duration::from_secs(5),
            protocol: UpstreamProtocol::Http1,
            transport: TransportSockets::default(),
            circuit_breakers: CircuitBreakers::default(),
            outlier_detection: None,
            healthy_panic_threshold_percent: 50.0,
            http: UpstreamHttp::default(),
            per_connection_buffer_limit_bytes: 1 << 20,
            bind_source: None,
            tcp_keepalive: None,
            locality_weighted: false,
            delivers_to_workload: false,
        }
    }
}

#[derive(Debug)]
pub enum Discovery {
    Static(Arc<EndpointSet>),
    Eds {
        service_name: String,
    },
    /// Host names are resolved again at this rate (or by TTL).
    StrictDns {
        hosts: Vec<DnsHost>,
        refresh_rate: Duration,
        respect_ttl: bool,
        family: DnsFamily,
    },
    LogicalDns {
        host: DnsHost,
        refresh_rate: Duration,
        respect_ttl: bool,
        family: DnsFamily,
    },
    OriginalDst {
        port_override: Option<u16>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct DnsHost {
    pub host: String,
    pub port: u16,
    pub template: super::Endpoint,
    pub locality: super::Locality,
    pub priority: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsFamily {
    #[default]
    Auto,
    V4Only,
    V6Only,
    V4Preferred,
    All,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LbPolicy {
    RoundRobin,
    LeastRequest {
        choice_count: u32,
        active_request_bias: f64,
    },
    Random,
    RingHash {
        minimum: u64,
        maximum: u64,
    },
    Maglev {
        table_size: u64,
    },
    /// ORIGINAL_DST.
    ClusterProvided,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum UpstreamProtocol {
    #[default]
    Http1,
    Http2,
    /// The downstream's own protocol (`use_downstream_protocol_config`).
    Downstream,
    /// By ALPN (`auto_config`).
    Auto,
}

#[derive(Clone, Debug, Default)]
pub struct UpstreamHttp {
    /// None: off. Envoy's default is 1 hour.
    pub idle_timeout: Option<Duration>,
    pub max_requests_per_connection: Option<u32>,
    pub max_connection_duration: Option<Duration>,
    pub http2: super::Http2Options,
    pub preserve_header_case: bool,
}

/// The transport of each endpoint: the first match on its metadata, else the default.
#[derive(Debug, Default)]
pub struct TransportSockets {
    pub matches: Vec<TransportSocketMatch>,
    pub default: TransportSocket,
}

#[derive(Debug)]
pub struct TransportSocketMatch {
    pub name: String,
    /// All of these must be in the endpoint's `envoy.transport_socket_match` metadata.
    pub criteria: Vec<(String, String)>,
    pub socket: TransportSocket,
}

#[derive(Clone, Debug, Default)]
pub enum TransportSocket {
    #[default]
    RawBuffer,
    Tls(Arc<UpstreamTls>),
}

/// Thresholds of the default priority. Envoy's defaults: 1024, 1024, 1024, 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitBreakers {
    pub max_connections: u32,
    pub max_pending_requests: u32,
    pub max_requests: u32,
    pub max_retries: u32,
}

impl Default for CircuitBreakers {
    fn default() -> Self {
        Self { max_connections: 1024, max_pending_requests: 1024, max_requests: 1024, max_retries: 3 }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct OutlierDetection {
    pub consecutive_5xx: u32,
    pub consecutive_gateway_failure: u32,
    pub interval: Duration,
    pub base_ejection_time: Duration,
    pub max_ejection_time: Duration,
    pub max_ejection_percent: u32,
    pub enforcing_consecutive_5xx_percent: u32,
    pub enforcing_consecutive_gateway_failure_percent: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpKeepalive {
    pub probes: Option<u32>,
    pub time: Option<Duration>,
    pub interval: Option<Duration>,
}
