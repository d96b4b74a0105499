//! What a route does with a request: forward, redirect, answer.

use super::convert::{
    data_source, duration, flag, header_name, optional_duration, port, runtime_fraction, timeout, unknown_enum,
};
use super::header_edit::{self, header_lists};
use super::matcher;
use super::report::{At, ConfigError};
use super::retry::retry_policy;
use super::route::overrides;
use crate::model::{
    ClusterSpecifier, Fraction, HashPolicy, HostRewrite, Mirror, Redirect, RedirectPath, RegexRewrite, RouteAction,
    RouteActionKind, WeightedCluster,
};
use mesh_api::envoy::config::route::v3 as route;
use mesh_api::envoy::r#type::matcher::v3 as envoy_matcher;
use std::sync::Arc;
use std::time::Duration;

/// What a level above a route decides for it.
#[derive(Clone, Copy, Debug)]
pub struct Inherited<'p> {
    pub mirrors: &'p [route::route_action::RequestMirrorPolicy],
    /// Bytes of a direct response.
    pub max_body: usize,
    /// Whether clusters that are named must exist.
    pub validate_clusters: bool,
}

/// The action of a route.
pub fn kind(at: At<'_>, proto: &route::Route, inherited: Inherited<'_>) -> Result<RouteActionKind, ConfigError> {
    use route::route::Action;
    match &proto.action {
        Some(Action::Route(action)) => {
            Ok(RouteActionKind::Forward(Box::new(forward(at.field("route"), action, inherited)?)))
        }
        Some(Action::Redirect(action)) => {
            Ok(RouteActionKind::Redirect(Box::new(redirect(at.field("redirect"), action)?)))
        }
        Some(Action::DirectResponse(action)) => {
            direct_response(at.field("direct_response"), action, inherited.max_body)
        }
        Some(Action::NonForwardingAction(_)) => Ok(RouteActionKind::NonForwarding),
        Some(Action::FilterAction(_)) => Err(at.field("filter_action").refuse("not supported; use route")),
        None => Err(at.refuse("give route, redirect or direct_response")),
    }
}

fn direct_response(
    at: At<'_>,
    proto: &route::DirectResponseAction,
    max_body: usize,
) -> Result<RouteActionKind, ConfigError> {
    let status = u16::try_from(proto.status).ok().filter(|status| (200..600).contains(status));
    let status =
        status.ok_or_else(|| at.field("status").refuse(format!("{} is not between 200 and 599", proto.status)))?;
    let body = proto.body.as_ref().map(|source| data_source(at.field("body"), source)).transpose()?.unwrap_or_default();
    match body.len() <= max_body {
        true => Ok(RouteActionKind::DirectResponse { status, body }),
        false => Err(at.field("body").refuse(format!(
            "{} bytes are more than {max_body}; raise max_direct_response_body_size_bytes",
            body.len()
        ))),
    }
}

fn redirect(at: At<'_>, proto: &route::RedirectAction) -> Result<Redirect, ConfigError> {
    use route::redirect_action::{
        PathRewriteSpecifier as Path, RedirectResponseCode as Code, SchemeRewriteSpecifier as Scheme,
    };
    let status = match Code::try_from(proto.response_code) {
        Ok(Code::MovedPermanently) => 301,
        Ok(Code::Found) => 302,
        Ok(Code::SeeOther) => 303,
        Ok(Code::TemporaryRedirect) => 307,
        Ok(Code::PermanentRedirect) => 308,
        Err(_) => return Err(at.field("response_code").refuse(unknown_enum(proto.response_code))),
    };
    let path = match &proto.path_rewrite_specifier {
        None => RedirectPath::Keep,
        Some(Path::PathRedirect(path)) => RedirectPath::Path(path.clone()),
        Some(Path::PrefixRewrite(prefix)) => RedirectPath::PrefixRewrite(prefix.clone()),
        Some(Path::RegexRewrite(rewrite)) => {
            RedirectPath::Regex(Arc::new(regex_rewrite(at.field("regex_rewrite"), rewrite)?))
        }
        Some(Path::PathRewrite(_)) => {
            return Err(at.field("path_rewrite").refuse("not supported; use prefix_rewrite or regex_rewrite"));
        }
    };
    let set = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    Ok(Redirect {
        https: matches!(proto.scheme_rewrite_specifier, Some(Scheme::HttpsRedirect(true))),
        scheme: match &proto.scheme_rewrite_specifier {
            Some(Scheme::SchemeRedirect(scheme)) => set(scheme),
            _ => None,
        },
        host: set(&proto.host_redirect),
        port: Some(port(at.field("port_redirect"), proto.port_redirect)?).filter(|port| *port != 0),
        path,
        status,
        strip_query: proto.strip_query,
    })
}

fn regex_rewrite(at: At<'_>, proto: &envoy_matcher::RegexMatchAndSubstitute) -> Result<RegexRewrite, ConfigError> {
    let pattern = proto.pattern.as_ref().ok_or_else(|| at.field("pattern").refuse("required"))?;
    let pattern = matcher::partial_regex(at.field("pattern"), pattern)?;
    let groups = pattern.captures_len();
    let mut escapes = proto.substitution.split('\\').skip(1);
    let mut valid = true;
    while let Some(escape) = escapes.next() {
        match escape.chars().next() {
            None => valid &= escapes.next().is_some(),
            Some(digit) => valid &= digit.to_digit(10).is_some_and(|group| (group as usize) < groups),
        }
    }
    match valid {
        true => Ok(RegexRewrite { pattern, substitution: proto.substitution.clone() }),
        false => Err(at.field("substitution").refuse("refers to a group that the pattern does not have")),
    }
}

/// `RouteAction`.
fn forward(at: At<'_>, proto: &route::RouteAction, inherited: Inherited<'_>) -> Result<RouteAction, ConfigError> {
    if proto.path_rewrite_policy.is_some() || !proto.path_rewrite.is_empty() {
        return Err(at.field("path_rewrite_policy").refuse("not supported; use prefix_rewrite or regex_rewrite"));
    }
    let durations = durations(at, proto)?;
    let rewrite = proto.regex_rewrite.as_ref().map(|rewrite| regex_rewrite(at.field("regex_rewrite"), rewrite));
    let retry = proto.retry_policy.as_ref().map(|retry| retry_policy(at.field("retry_policy"), retry)).transpose()?;
    let cluster = cluster(at, proto)?;
    if inherited.validate_clusters {
        require(at, &cluster);
    }
    let mirrors =
        if proto.request_mirror_policies.is_empty() { inherited.mirrors } else { &proto.request_mirror_policies };
    Ok(RouteAction {
        cluster,
        cluster_not_found_status: not_found_status(at, proto.cluster_not_found_response_code)?,
        prefix_rewrite: Some(proto.prefix_rewrite.clone()).filter(|prefix| !prefix.is_empty()),
        regex_rewrite: rewrite.transpose()?,
        host_rewrite: host_rewrite(at, proto)?,
        append_x_forwarded_host: proto.append_x_forwarded_host,
        timeout: whole_timeout(at, proto)?,
        idle_timeout: idle_timeout(at.field("idle_timeout"), proto)?,
        grpc_timeout_header_max: durations.grpc_max,
        grpc_timeout_header_offset: durations.grpc_offset,
        grpc_timeout_is_of_stream: proto.max_stream_duration.is_some(),
        max_stream_duration: durations.max_stream,
        retry: retry.map(Arc::new),
        hash_policy: hash_policies(at, &proto.hash_policy)?,
        upgrades: upgrades(at, &proto.upgrade_configs),
        mirrors: mirror_policies(at, mirrors)?,
    })
}

/// Where `max_stream_duration` is given, `timeout` is not in force.
fn whole_timeout(at: At<'_>, proto: &route::RouteAction) -> Result<Option<Duration>, ConfigError> {
    let of_route = timeout(at.field("timeout"), proto.timeout.as_ref(), Some(Duration::from_secs(15)))?;
    Ok(of_route.filter(|_| proto.max_stream_duration.is_none()))
}

fn require(at: At<'_>, cluster: &ClusterSpecifier) {
    match cluster {
        ClusterSpecifier::Single(name) => at.require_cluster(name),
        ClusterSpecifier::Weighted { clusters, .. } => {
            clusters.iter().for_each(|cluster| at.require_cluster(&cluster.name))
        }
        ClusterSpecifier::Header(_) => {}
    }
}

/// Unset: the connection manager's applies. Zero switches it off, which no duration can say: a very long one does.
fn idle_timeout(at: At<'_>, proto: &route::RouteAction) -> Result<Option<Duration>, ConfigError> {
    const OFF: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    let value = optional_duration(at, proto.idle_timeout.as_ref())?;
    Ok(value.map(|value| if value.is_zero() { OFF } else { value }))
}

struct Durations {
    grpc_max: Option<Duration>,
    grpc_offset: Duration,
    max_stream: Option<Duration>,
}

/// `max_stream_duration`, or the deprecated fields that it took the place of.
fn durations(at: At<'_>, proto: &route::RouteAction) -> Result<Durations, ConfigError> {
    let Some(limits) = &proto.max_stream_duration else {
        let offset = optional_duration(at.field("grpc_timeout_offset"), proto.grpc_timeout_offset.as_ref())?;
        return Ok(Durations {
            grpc_max: optional_duration(at.field("max_grpc_timeout"), proto.max_grpc_timeout.as_ref())?,
            grpc_offset: offset.unwrap_or_default(),
            max_stream: None,
        });
    };
    let at = at.field("max_stream_duration");
    let header_max = limits.grpc_timeout_header_max.as_ref();
    let offset = optional_duration(at.field("grpc_timeout_header_offset"), limits.grpc_timeout_header_offset.as_ref())?;
    Ok(Durations {
        grpc_max: optional_duration(at.field("grpc_timeout_header_max"), header_max)?,
        grpc_offset: offset.unwrap_or_default(),
        max_stream: timeout(at.field("max_stream_duration"), limits.max_stream_duration.as_ref(), None)?,
    })
}

fn not_found_status(at: At<'_>, code: i32) -> Result<u16, ConfigError> {
    use route::route_action::ClusterNotFoundResponseCode as Code;
    match Code::try_from(code) {
        Ok(Code::ServiceUnavailable) => Ok(503),
        Ok(Code::NotFound) => Ok(404),
        Ok(Code::InternalServerError) => Ok(500),
        Err(_) => Err(at.field("cluster_not_found_response_code").refuse(unknown_enum(code))),
    }
}

fn cluster(at: At<'_>, proto: &route::RouteAction) -> Result<ClusterSpecifier, ConfigError> {
    use route::route_action::ClusterSpecifier as Specifier;
    match &proto.cluster_specifier {
        Some(Specifier::Cluster(name)) if !name.is_empty() => Ok(ClusterSpecifier::Single(name.clone())),
        Some(Specifier::ClusterHeader(name)) => {
            Ok(ClusterSpecifier::Header(header_name(at.field("cluster_header"), name)?))
        }
        Some(Specifier::WeightedClusters(weighted)) => weighted_clusters(at.field("weighted_clusters"), weighted),
        Some(Specifier::ClusterSpecifierPlugin(_) | Specifier::InlineClusterSpecifierPlugin(_)) => {
            Err(at.refuse("cluster specifier plugins are not supported; use cluster or weighted_clusters"))
        }
        _ => Err(at.refuse("give cluster, cluster_header or weighted_clusters")),
    }
}

fn weighted_clusters(at: At<'_>, proto: &route::WeightedCluster) -> Result<ClusterSpecifier, ConfigError> {
    let one = |(index, proto): (usize, &route::weighted_cluster::ClusterWeight)| {
        weighted_cluster(at.item("clusters", index), proto)
    };
    let clusters: Vec<_> = proto.clusters.iter().enumerate().map(one).collect::<Result<_, _>>()?;
    Ok(ClusterSpecifier::Weighted { total: total_weight(at, &clusters)?, clusters })
}

/// The sum of the weights, which must be a number from 1 to 2^32-1.
pub fn total_weight(at: At<'_>, clusters: &[WeightedCluster]) -> Result<u32, ConfigError> {
    let total: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
    match u32::try_from(total) {
        Ok(total) if total > 0 => Ok(total),
        _ => Err(at.refuse(format!("the sum of the weights is {total}; it must be from 1 to 4294967295"))),
    }
}

fn weighted_cluster(
    at: At<'_>,
    proto: &route::weighted_cluster::ClusterWeight,
) -> Result<WeightedCluster, ConfigError> {
    use route::weighted_cluster::cluster_weight::HostRewriteSpecifier;
    if !proto.cluster_header.is_empty() || proto.name.is_empty() {
        return Err(at.field("name").refuse("a cluster name is required; cluster_header is not supported here"));
    }
    Ok(WeightedCluster {
        name: proto.name.clone(),
        weight: proto.weight.as_ref().map_or(0, |weight| weight.value),
        headers: header_edit::edits(at, header_lists!(proto))?,
        host_rewrite: proto
            .host_rewrite_specifier
            .as_ref()
            .map(|HostRewriteSpecifier::HostRewriteLiteral(host)| host.clone()),
        overrides: overrides(at, &proto.typed_per_filter_config)?.filters,
    })
}

fn host_rewrite(at: At<'_>, proto: &route::RouteAction) -> Result<HostRewrite, ConfigError> {
    use route::route_action::HostRewriteSpecifier as Rewrite;
    Ok(match &proto.host_rewrite_specifier {
        None => HostRewrite::Keep,
        Some(Rewrite::HostRewriteLiteral(host)) => HostRewrite::Literal(host.clone()),
        Some(Rewrite::AutoHostRewrite(auto)) => {
            if auto.value {
                HostRewrite::Auto
            } else {
                HostRewrite::Keep
            }
        }
        Some(Rewrite::HostRewriteHeader(name)) => {
            HostRewrite::Header(header_name(at.field("host_rewrite_header"), name)?)
        }
        Some(Rewrite::HostRewritePathRegex(rewrite)) => {
            HostRewrite::PathRegex(regex_rewrite(at.field("host_rewrite_path_regex"), rewrite)?)
        }
        Some(Rewrite::HostRewrite(_)) => {
            return Err(at
                .field("host_rewrite")
                .refuse("not supported; use host_rewrite_literal or host_rewrite_header"));
        }
    })
}

fn hash_policies(at: At<'_>, protos: &[route::route_action::HashPolicy]) -> Result<Vec<HashPolicy>, ConfigError> {
    let mut policies = Vec::new();
    for (index, proto) in protos.iter().enumerate() {
        policies.extend(hash_policy(at.item("hash_policy", index), proto)?);
    }
    Ok(policies)
}

/// None: one that is not done, reported; requests are then balanced by the others, or at random.
fn hash_policy(at: At<'_>, proto: &route::route_action::HashPolicy) -> Result<Option<HashPolicy>, ConfigError> {
    use route::route_action::hash_policy::PolicySpecifier as Policy;
    let terminal = proto.terminal;
    Ok(match &proto.policy_specifier {
        Some(Policy::Header(header)) => {
            let at = at.field("header");
            if header.regex_rewrite.is_some() {
                at.field("regex_rewrite").unsupported("the header's whole value is hashed");
            }
            Some(HashPolicy::Header { name: header_name(at.field("header_name"), &header.header_name)?, terminal })
        }
        Some(Policy::Cookie(cookie)) => {
            let at = at.field("cookie");
            let ttl = cookie.ttl.as_ref().map(|ttl| duration(at.field("ttl"), ttl)).transpose()?;
            if !cookie.attributes.is_empty() {
                at.field("attributes").unsupported("the cookie is set without these attributes");
            }
            Some(HashPolicy::Cookie { name: cookie.name.clone(), ttl, path: cookie.path.clone(), terminal })
        }
        Some(Policy::ConnectionProperties(properties)) if properties.source_ip => {
            Some(HashPolicy::SourceIp { terminal })
        }
        Some(Policy::ConnectionProperties(_)) => None,
        Some(Policy::QueryParameter(query)) => Some(HashPolicy::QueryParameter { name: query.name.clone(), terminal }),
        Some(Policy::FilterState(_)) => {
            at.field("filter_state").unsupported("this policy is left out of the hash");
            None
        }
        None => return Err(at.refuse("give header, cookie, connection_properties or query_parameter")),
    })
}

fn upgrades(at: At<'_>, protos: &[route::route_action::UpgradeConfig]) -> Vec<(String, bool)> {
    let one = |(index, proto): (usize, &route::route_action::UpgradeConfig)| {
        if proto.connect_config.is_some() {
            let at = at.item("upgrade_configs", index);
            at.field("connect_config").unsupported("CONNECT is passed on, not terminated");
        }
        (proto.upgrade_type.to_ascii_lowercase(), flag(proto.enabled, true))
    };
    protos.iter().enumerate().map(one).collect()
}

fn mirror_policies(
    at: At<'_>,
    protos: &[route::route_action::RequestMirrorPolicy],
) -> Result<Vec<Mirror>, ConfigError> {
    let mut mirrors = Vec::new();
    for (index, proto) in protos.iter().enumerate() {
        let at = at.item("request_mirror_policies", index);
        if proto.cluster.is_empty() {
            at.field("cluster_header").unsupported("requests are mirrored to named clusters only; give cluster");
            continue;
        }
        let fraction = match &proto.runtime_fraction {
            Some(fraction) => runtime_fraction(at.field("runtime_fraction"), fraction)?,
            None => Fraction { numerator: 100, denominator: 100 },
        };
        mirrors.push(Mirror { cluster: proto.cluster.clone(), fraction });
    }
    Ok(mirrors)
}
