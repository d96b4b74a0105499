//! The HTTP connection manager, its filters, and the TCP proxy.

use super::{AccessLog, HttpRbac, RouteConfig, WeightedCluster};
use std::sync::Arc;
use std::time::Duration;

/// Envoy's `HttpConnectionManager`.
#[derive(Debug)]
pub struct HttpConnectionManager {
    pub stat_prefix: String,
    pub codec: CodecType,
    pub routes: RouteSource,
    /// In order, without the router, which is last and always there.
    pub filters: Vec<HttpFilter>,
    pub router: RouterOptions,
    pub server_name: String,
    pub server_header: ServerHeader,
    pub use_remote_address: bool,
    pub xff_num_trusted_hops: u32,
    pub skip_xff_append: bool,
    pub via: String,
    pub generate_request_id: bool,
    pub preserve_external_request_id: bool,
    pub always_set_request_id_in_response: bool,
    pub forward_client_cert: ForwardClientCert,
    pub set_client_cert_details: ClientCertDetails,
    pub proxy_100_continue: bool,
    pub normalize_path: bool,
    pub merge_slashes: bool,
    pub escaped_slashes: EscapedSlashes,
    pub strip_matching_host_port: bool,
    pub strip_any_host_port: bool,
    /// Upgrade types that are allowed, lower case, e.g. "websocket".
    pub upgrades: Vec<String>,
    pub access_logs: Vec<Arc<AccessLog>>,
    /// None: off. Envoy's default is 5 minutes.
    pub stream_idle_timeout: Option<Duration>,
    pub request_timeout: Option<Duration>,
    pub request_headers_timeout: Option<Duration>,
    /// Of a connection without requests. Envoy's default is 1 hour.
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    pub max_requests_per_connection: Option<u32>,
    pub delayed_close_timeout: Duration,
    /// KiB; Envoy's default is 60.
    pub max_request_headers_kb: u32,
    /// Envoy's default is 100.
    pub max_headers_count: u32,
    pub underscores_in_headers: UnderscoresInHeaders,
    pub http1: Http1Options,
    pub http2: Http2Options,
}

impl HttpConnectionManager {
    /// As Envoy does where nothing but these is given.
    pub fn new(stat_prefix: &str, routes: RouteSource) -> Self {
        Self {
            stat_prefix: stat_prefix.to_owned(),
            codec: CodecType::Auto,
            routes,
            filters: Vec::new(),
            router: RouterOptions::default(),
            server_name: "envoy".into(),
            server_header: ServerHeader::Overwrite,
            use_remote_address: false,
            xff_num_trusted_hops: 0,
            skip_xff_append: false,
            via: String::new(),
            generate_request_id: true,
            preserve_external_request_id: false,
            always_set_request_id_in_response: false,
            forward_client_cert: ForwardClientCert::Sanitize,
            set_client_cert_details: ClientCertDetails::default(),
            proxy_100_continue: false,
            normalize_path: false,
            merge_slashes: false,
            escaped_slashes: EscapedSlashes::KeepUnchanged,
            strip_matching_host_port: false,
            strip_any_host_port: false,
            upgrades: Vec::new(),
            access_logs: Vec::new(),
            stream_idle_timeout: Some(Duration::from_secs(300)),
            request_timeout: None,
            request_headers_timeout: None,
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_requests_per_connection: None,
            delayed_close_timeout: Duration::from_secs(1),
            max_request_headers_kb: 60,
            max_headers_count: 100,
            underscores_in_headers: UnderscoresInHeaders::Allow,
            http1: Http1Options { allow_absolute_url: true, ..Http1Options::default() },
            http2: Http2Options::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CodecType {
    #[default]
    Auto,
    Http1,
    Http2,
}

#[derive(Debug)]
pub enum RouteSource {
    Inline(Arc<RouteConfig>),
    /// Looked up in the scope by this name at every request.
    Rds(String),
}

/// The filters that are carried out. What is asked for beyond these is refused or reported as
/// unsupported by `config`, never dropped silently.
#[derive(Debug)]
pub enum HttpFilter {
    Rbac(Arc<HttpRbac>),
    Fault(Arc<Fault>),
    /// Active only where a route or virtual host has a `CorsPolicy`.
    Cors,
    /// Sets the ALPN of the upstream connection by the upstream's protocol (istio.alpn).
    IstioAlpn(Arc<AlpnOverride>),
    /// Counts gRPC messages (stats only).
    GrpcStats,
}

/// `istio.alpn`: lists of ALPN protocols by upstream protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AlpnOverride {
    pub http10: Vec<String>,
    pub http11: Vec<String>,
    pub http2: Vec<String>,
}

/// Envoy's `HTTPFault`, from the filter or from a route.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fault {
    pub delay: Option<FaultDelay>,
    pub abort: Option<FaultAbort>,
    pub headers: Vec<super::HeaderMatcher>,
    pub upstream_cluster: String,
    pub max_active_faults: Option<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct FaultDelay {
    pub fixed: Duration,
    pub percentage: Fraction,
}

#[derive(Clone, Debug, PartialEq)]
pub struct FaultAbort {
    pub status: FaultStatus,
    pub percentage: Fraction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultStatus {
    Http(u16),
    Grpc(u32),
}

/// A share of `numerator` in `denominator`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    pub numerator: u32,
    /// 100, 10 000 or 1 000 000.
    pub denominator: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouterOptions {
    pub suppress_envoy_headers: bool,
    pub respect_expected_rq_timeout: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerHeader {
    #[default]
    Overwrite,
    AppendIfAbsent,
    PassThrough,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardClientCert {
    #[default]
    Sanitize,
    ForwardOnly,
    AppendForward,
    SanitizeSet,
    AlwaysForwardOnly,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCertDetails {
    pub subject: bool,
    pub cert: bool,
    pub chain: bool,
    pub dns: bool,
    pub uri: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EscapedSlashes {
    #[default]
    KeepUnchanged,
    RejectRequest,
    UnescapeAndRedirect,
    UnescapeAndForward,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnderscoresInHeaders {
    #[default]
    Allow,
    RejectRequest,
    DropHeader,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Http1Options {
    pub accept_http_10: bool,
    pub default_host_for_http_10: String,
    pub allow_absolute_url: bool,
    pub allow_chunked_length: bool,
    pub enable_trailers: bool,
    pub proper_case_headers: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Http2Options {
    pub max_concurrent_streams: Option<u32>,
    /// Bytes.
    pub initial_stream_window_size: Option<u32>,
    /// Bytes.
    pub initial_connection_window_size: Option<u32>,
}

/// Envoy's `TcpProxy`.
#[derive(Debug)]
pub struct TcpProxy {
    pub stat_prefix: String,
    pub clusters: TcpCluster,
    /// None: off. Envoy's default is 1 hour.
    pub idle_timeout: Option<Duration>,
    pub max_connect_attempts: u32,
    pub max_downstream_connection_duration: Option<Duration>,
    pub access_logs: Vec<Arc<AccessLog>>,
}

#[derive(Debug)]
pub enum TcpCluster {
    Single(String),
    Weighted { clusters: Vec<WeightedCluster>, total: u32 },
}
