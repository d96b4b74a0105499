//! Route configurations: virtual hosts, matches, actions, header edits, retries.

use super::{Fault, Fraction, HeaderMatcher, HttpRbac, QueryMatcher, StringMatcher};
use regex::Regex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Envoy's `RouteConfiguration`.
#[derive(Debug, Default)]
pub struct RouteConfig {
    pub name: String,
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
    /// Domain index: exact (lower case), suffix wildcards (`*.x`) longest first, prefix wildcards
    /// (`x.*`) longest first, then `*`. Values index `virtual_hosts`.
    pub exact_domains: HashMap<String, usize>,
    pub suffix_domains: Vec<(String, usize)>,
    pub prefix_domains: Vec<(String, usize)>,
    pub default_virtual_host: Option<usize>,
    pub ignore_port_in_host_matching: bool,
    pub headers: HeaderEdits,
    /// `most_specific_header_mutations_wins`.
    pub most_specific_wins: bool,
    pub internal_only_headers: Vec<String>,
}

#[derive(Debug, Default)]
pub struct VirtualHost {
    pub name: String,
    pub routes: Vec<Arc<Route>>,
    pub headers: HeaderEdits,
    pub require_tls: RequireTls,
    pub include_request_attempt_count: bool,
    pub include_attempt_count_in_response: bool,
    pub retry: Option<Arc<RetryPolicy>>,
    pub cors: Option<Arc<CorsPolicy>>,
    pub overrides: FilterOverrides,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequireTls {
    #[default]
    None,
    ExternalOnly,
    All,
}

#[derive(Debug)]
pub struct Route {
    pub name: String,
    pub matches: RouteMatch,
    pub action: RouteActionKind,
    pub headers: HeaderEdits,
    pub cors: Option<Arc<CorsPolicy>>,
    pub overrides: FilterOverrides,
}

#[derive(Debug)]
pub struct RouteMatch {
    pub path: PathMatch,
    pub case_sensitive: bool,
    pub headers: Vec<HeaderMatcher>,
    pub query: Vec<QueryMatcher>,
    pub grpc_only: bool,
    pub runtime_fraction: Option<Fraction>,
}

impl RouteMatch {
    /// Any request of that path.
    pub fn new(path: PathMatch) -> Self {
        Self {
            path,
            case_sensitive: true,
            headers: Vec::new(),
            query: Vec::new(),
            grpc_only: false,
            runtime_fraction: None,
        }
    }
}

#[derive(Debug)]
pub enum PathMatch {
    Prefix(String),
    Exact(String),
    /// Whole path, without the query.
    Regex(Regex),
    /// `/a` matches `/a` and `/a/b`, not `/ab`.
    PathSeparatedPrefix(String),
    /// CONNECT requests only.
    Connect,
}

#[derive(Debug)]
pub enum RouteActionKind {
    Forward(Box<RouteAction>),
    Redirect(Box<Redirect>),
    DirectResponse {
        status: u16,
        body: Vec<u8>,
    },
    /// `non_forwarding_action`.
    NonForwarding,
}

#[derive(Debug)]
pub struct RouteAction {
    pub cluster: ClusterSpecifier,
    /// Status when the cluster is unknown: 503 (default) or 404, 500.
    pub cluster_not_found_status: u16,
    pub prefix_rewrite: Option<String>,
    pub regex_rewrite: Option<RegexRewrite>,
    pub host_rewrite: HostRewrite,
    pub append_x_forwarded_host: bool,
    /// None: off. Envoy's default is 15 s.
    pub timeout: Option<Duration>,
    /// Takes the place of the connection manager's `stream_idle_timeout`; a hundred years when it is switched off.
    pub idle_timeout: Option<Duration>,
    /// `max_stream_duration.grpc_timeout_header_max` or `max_grpc_timeout`: None ignores the header;
    /// zero means that the header's value is taken without limit.
    pub grpc_timeout_header_max: Option<Duration>,
    pub grpc_timeout_header_offset: Duration,
    /// `max_stream_duration` is given: the header limits the stream, as that does, and not the upstream's time.
    pub grpc_timeout_is_of_stream: bool,
    pub max_stream_duration: Option<Duration>,
    pub retry: Option<Arc<RetryPolicy>>,
    pub hash_policy: Vec<HashPolicy>,
    /// Upgrade types set by the route, lower case → enabled.
    pub upgrades: Vec<(String, bool)>,
    pub mirrors: Vec<Mirror>,
}

impl RouteAction {
    /// Forwards as Envoy does where a route names a cluster and no more.
    pub fn new(cluster: ClusterSpecifier) -> Self {
        Self {
            cluster,
            cluster_not_found_status: 503,
            prefix_rewrite: None,
            regex_rewrite: None,
            host_rewrite: HostRewrite::Keep,
            append_x_forwarded_host: false,
            timeout: Some(Duration::from_secs(15)),
            idle_timeout: None,
            grpc_timeout_header_max: None,
            grpc_timeout_header_offset: Duration::ZERO,
            grpc_timeout_is_of_stream: false,
            max_stream_duration: None,
            retry: None,
            hash_policy: Vec::new(),
            upgrades: Vec::new(),
            mirrors: Vec::new(),
        }
    }
}

#[derive(Debug)]
pub enum ClusterSpecifier {
    Single(String),
    /// Name of the request header that names the cluster.
    Header(String),
    Weighted {
        clusters: Vec<WeightedCluster>,
        total: u32,
    },
}

#[derive(Debug)]
pub struct WeightedCluster {
    pub name: String,
    pub weight: u32,
    pub headers: HeaderEdits,
    pub host_rewrite: Option<String>,
    pub overrides: FilterOverrides,
}

#[derive(Debug)]
pub struct Mirror {
    pub cluster: String,
    pub fraction: Fraction,
}

#[derive(Debug)]
pub struct RegexRewrite {
    pub pattern: Regex,
    /// RE2 syntax: `\1`.
    pub substitution: String,
}

#[derive(Debug, Default)]
pub enum HostRewrite {
    #[default]
    Keep,
    Literal(String),
    /// The endpoint's DNS name.
    Auto,
    Header(String),
    PathRegex(RegexRewrite),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashPolicy {
    Header { name: String, terminal: bool },
    Cookie { name: String, ttl: Option<Duration>, path: String, terminal: bool },
    SourceIp { terminal: bool },
    QueryParameter { name: String, terminal: bool },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redirect {
    pub https: bool,
    pub scheme: Option<String>,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub path: RedirectPath,
    pub status: u16,
    pub strip_query: bool,
}

#[derive(Clone, Debug, Default)]
pub enum RedirectPath {
    #[default]
    Keep,
    /// May carry a query.
    Path(String),
    PrefixRewrite(String),
    Regex(Arc<RegexRewrite>),
}

impl PartialEq for RedirectPath {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Keep, Self::Keep) => true,
            (Self::Path(a), Self::Path(b)) | (Self::PrefixRewrite(a), Self::PrefixRewrite(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}
impl Eq for RedirectPath {}

/// Header edits of one level (route, virtual host, route configuration, weighted cluster).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderEdits {
    pub request_add: Vec<HeaderEdit>,
    pub request_remove: Vec<String>,
    pub response_add: Vec<HeaderEdit>,
    pub response_remove: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct HeaderEdit {
    /// Lower case.
    pub name: String,
    /// With `%COMMAND%`s compiled.
    pub value: super::FormatTemplate,
    pub action: AppendAction,
    pub keep_empty_value: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppendAction {
    #[default]
    AppendIfExistsOrAdd,
    AddIfAbsent,
    OverwriteIfExistsOrAdd,
    OverwriteIfExists,
}

/// Envoy's `RetryPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    pub on: RetryOn,
    pub num_retries: u32,
    pub per_try_timeout: Option<Duration>,
    pub per_try_idle_timeout: Option<Duration>,
    pub retriable_status_codes: Vec<u16>,
    pub retriable_headers: Vec<HeaderMatcher>,
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// `previous_hosts` predicate.
    pub avoid_previous_hosts: bool,
    /// Envoy's defaults: 25 ms, ten times that.
    pub backoff_base: Duration,
    pub backoff_max: Duration,
}

/// Set of `retry_on` conditions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryOn {
    pub server_error_5xx: bool,
    pub gateway_error: bool,
    pub reset: bool,
    pub reset_before_request: bool,
    pub connect_failure: bool,
    pub envoy_ratelimited: bool,
    pub retriable_4xx: bool,
    pub refused_stream: bool,
    pub retriable_status_codes: bool,
    pub retriable_headers: bool,
    pub grpc_cancelled: bool,
    pub grpc_deadline_exceeded: bool,
    pub grpc_internal: bool,
    pub grpc_resource_exhausted: bool,
    pub grpc_unavailable: bool,
}

/// Envoy's `CorsPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct CorsPolicy {
    pub allow_origins: Vec<StringMatcher>,
    pub allow_methods: String,
    pub allow_headers: String,
    pub expose_headers: String,
    pub max_age: String,
    pub allow_credentials: Option<bool>,
    pub forward_not_matching_preflights: bool,
}

/// `typed_per_filter_config` of a route, virtual host or weighted cluster.
#[derive(Clone, Debug, Default)]
pub struct FilterOverrides {
    pub fault: Option<Override<Arc<Fault>>>,
    pub rbac: Option<Override<Arc<HttpRbac>>>,
}

#[derive(Clone, Debug)]
pub enum Override<T> {
    Disabled,
    Config(T),
}
