//! Route configurations: virtual hosts, matches, overrides of filters.

use super::any;
use super::convert::{flag, runtime_fraction, unknown_enum};
use super::header_edit::{self, header_lists};
use super::http_filter;
use super::matcher;
use super::rbac;
use super::report::{At, ConfigError};
use super::retry::retry_policy;
use super::route_action::{self, Inherited};
use crate::model::{
    CorsPolicy, FilterOverrides, HeaderEdits, Override, PathMatch, RequireTls, Route, RouteConfig, RouteMatch,
    VirtualHost,
};
use mesh_api::Any;
use mesh_api::envoy::config::route::v3 as route;
use mesh_api::envoy::extensions::filters::http::cors::v3 as cors;
use mesh_api::envoy::extensions::filters::http::fault::v3::HttpFault;
use mesh_api::envoy::extensions::filters::http::rbac::v3::RbacPerRoute;
use std::collections::HashMap;
use std::sync::Arc;

/// Envoy's limit on direct responses.
const MAX_DIRECT_BODY: u32 = 4096;

/// `RouteConfiguration`. Inline in a listener, the clusters that it names must exist unless `validate_clusters`
/// says otherwise; by discovery only if it says so.
pub fn route_configuration(
    at: At<'_>,
    proto: &route::RouteConfiguration,
    inline: bool,
) -> Result<RouteConfig, ConfigError> {
    if proto.vhds.is_some() || !proto.vhost_header.is_empty() {
        return Err(at
            .field("vhds")
            .refuse("virtual hosts on demand or by another header are not supported; list them by domain"));
    }
    if proto.ignore_path_parameters_in_path_matching {
        return Err(at.field("ignore_path_parameters_in_path_matching").refuse("not supported; leave it out"));
    }
    for name in proto.typed_per_filter_config.keys() {
        at.entry("typed_per_filter_config", name).unsupported("overrides are taken from virtual hosts and routes only");
    }
    let max_body = proto.max_direct_response_body_size_bytes.as_ref().map_or(MAX_DIRECT_BODY, |size| size.value);
    let mut config = RouteConfig {
        name: proto.name.clone(),
        ignore_port_in_host_matching: proto.ignore_port_in_host_matching,
        headers: header_edit::edits(at, header_lists!(proto))?,
        most_specific_wins: proto.most_specific_header_mutations_wins,
        internal_only_headers: proto.internal_only_headers.iter().map(|name| name.to_ascii_lowercase()).collect(),
        ..RouteConfig::default()
    };
    let inherited = Inherited {
        mirrors: &proto.request_mirror_policies,
        max_body: max_body as usize,
        validate_clusters: flag(proto.validate_clusters, inline),
    };
    for (index, host) in proto.virtual_hosts.iter().enumerate() {
        let at = at.item("virtual_hosts", index);
        index_domains(at, &mut config, &host.domains, index)?;
        config.virtual_hosts.push(Arc::new(virtual_host(at, host, inherited)?));
    }
    let longest_first =
        |(a, _): &(String, usize), (b, _): &(String, usize)| b.len().cmp(&a.len()).then_with(|| a.cmp(b));
    config.suffix_domains.sort_by(longest_first);
    config.prefix_domains.sort_by(longest_first);
    Ok(config)
}

/// Each domain may be given once in a route configuration.
fn index_domains(at: At<'_>, config: &mut RouteConfig, domains: &[String], host: usize) -> Result<(), ConfigError> {
    if domains.is_empty() {
        return Err(at.field("domains").refuse("at least one domain is required; use \"*\" for any"));
    }
    for (index, domain) in domains.iter().enumerate() {
        let lower = domain.to_ascii_lowercase();
        let inner = lower.trim_start_matches('*').trim_end_matches('*');
        let taken = if lower == "*" {
            config.default_virtual_host.replace(host).is_some()
        } else if inner.is_empty() || inner.contains('*') || (lower.starts_with('*') && lower.ends_with('*')) {
            return Err(at.item("domains", index).refuse(format!("{domain:?}: a wildcard stands first or last, once")));
        } else if lower.starts_with('*') {
            add_wildcard(&mut config.suffix_domains, lower, host)
        } else if lower.ends_with('*') {
            add_wildcard(&mut config.prefix_domains, lower, host)
        } else {
            config.exact_domains.insert(lower, host).is_some()
        };
        if taken {
            return Err(at.item("domains", index).refuse(format!("{domain:?} is given more than once; keep one")));
        }
    }
    Ok(())
}

fn add_wildcard(domains: &mut Vec<(String, usize)>, domain: String, host: usize) -> bool {
    let taken = domains.iter().any(|(other, _)| *other == domain);
    domains.push((domain, host));
    taken
}

fn virtual_host(at: At<'_>, proto: &route::VirtualHost, inherited: Inherited<'_>) -> Result<VirtualHost, ConfigError> {
    use route::virtual_host::TlsRequirementType as Requirement;
    if proto.matcher.is_some() {
        return Err(at.field("matcher").refuse("matcher trees are not supported; use routes"));
    }
    let require_tls = match Requirement::try_from(proto.require_tls) {
        Ok(Requirement::None) => RequireTls::None,
        Ok(Requirement::ExternalOnly) => RequireTls::ExternalOnly,
        Ok(Requirement::All) => RequireTls::All,
        Err(_) => return Err(at.field("require_tls").refuse(unknown_enum(proto.require_tls))),
    };
    let inherited = match proto.request_mirror_policies.as_slice() {
        [] => inherited,
        mirrors => Inherited { mirrors, ..inherited },
    };
    let routes =
        proto.routes.iter().enumerate().map(|(index, proto)| route(at.item("routes", index), proto, inherited));
    let level = overrides(at, &proto.typed_per_filter_config)?;
    let retry = proto.retry_policy.as_ref().map(|retry| retry_policy(at.field("retry_policy"), retry)).transpose()?;
    Ok(VirtualHost {
        name: proto.name.clone(),
        routes: routes.map(|route| route.map(Arc::new)).collect::<Result<_, _>>()?,
        headers: header_edit::edits(at, header_lists!(proto))?,
        require_tls,
        include_request_attempt_count: proto.include_request_attempt_count,
        include_attempt_count_in_response: proto.include_attempt_count_in_response,
        retry: retry.map(Arc::new),
        cors: level.cors.or(old_cors(at, virtual_host_cors(proto))?),
        overrides: level.filters,
    })
}

fn route(at: At<'_>, proto: &route::Route, inherited: Inherited<'_>) -> Result<Route, ConfigError> {
    let matches = proto.r#match.as_ref().ok_or_else(|| at.field("match").refuse("required"))?;
    let level = overrides(at, &proto.typed_per_filter_config)?;
    Ok(Route {
        name: proto.name.clone(),
        matches: route_match(at.field("match"), matches)?,
        action: route_action::kind(at, proto, inherited)?,
        headers: route_headers(at, proto)?,
        cors: level.cors.or(old_cors(at, route_cors(proto))?),
        overrides: level.filters,
    })
}

fn route_headers(at: At<'_>, proto: &route::Route) -> Result<HeaderEdits, ConfigError> {
    header_edit::edits(at, header_lists!(proto))
}

/// A condition that is left out would send requests elsewhere: what is not done is refused.
fn route_match(at: At<'_>, proto: &route::RouteMatch) -> Result<RouteMatch, ConfigError> {
    let unknown = [
        ("cookies", proto.cookies.is_empty()),
        ("dynamic_metadata", proto.dynamic_metadata.is_empty()),
        ("filter_state", proto.filter_state.is_empty()),
        ("tls_context", proto.tls_context.is_none()),
    ];
    if let Some((field, _)) = unknown.iter().find(|(_, unset)| !unset) {
        return Err(at
            .field(field)
            .refuse("this condition is not supported; match on path, headers or query_parameters"));
    }
    let query = proto.query_parameters.iter().enumerate();
    let fraction = proto.runtime_fraction.as_ref().map(|share| runtime_fraction(at.field("runtime_fraction"), share));
    Ok(RouteMatch {
        path: path_match(at, proto)?,
        case_sensitive: flag(proto.case_sensitive, true),
        headers: matcher::headers(at, "headers", &proto.headers)?,
        query: query
            .map(|(index, q)| matcher::query(at.item("query_parameters", index), q))
            .collect::<Result<_, _>>()?,
        grpc_only: proto.grpc.is_some(),
        runtime_fraction: fraction.transpose()?,
    })
}

fn path_match(at: At<'_>, proto: &route::RouteMatch) -> Result<PathMatch, ConfigError> {
    use route::route_match::PathSpecifier as Path;
    match &proto.path_specifier {
        Some(Path::Prefix(prefix)) => Ok(PathMatch::Prefix(prefix.clone())),
        Some(Path::Path(path)) => Ok(PathMatch::Exact(path.clone())),
        Some(Path::SafeRegex(regex)) => Ok(PathMatch::Regex(matcher::full_regex(at.field("safe_regex"), regex)?)),
        Some(Path::ConnectMatcher(_)) => Ok(PathMatch::Connect),
        Some(Path::PathSeparatedPrefix(prefix)) => {
            let valid = prefix.starts_with('/') && !prefix.ends_with('/') && !prefix.contains(['?', '#']);
            match valid {
                true => Ok(PathMatch::PathSeparatedPrefix(prefix.clone())),
                false => Err(at
                    .field("path_separated_prefix")
                    .refuse("must begin with / and not end with it, without ? or #")),
            }
        }
        Some(Path::PathMatchPolicy(policy)) => Err(at
            .field("path_match_policy")
            .refuse(format!("{} is not supported; use prefix, path or safe_regex", policy.name))),
        None => Err(at.refuse("give prefix, path, safe_regex or path_separated_prefix")),
    }
}

/// What a level says of filters.
#[derive(Debug, Default)]
pub struct Level {
    pub filters: FilterOverrides,
    pub cors: Option<Arc<CorsPolicy>>,
}

/// `typed_per_filter_config`, by the type of each entry; a `FilterConfig` by its name too.
pub fn overrides(at: At<'_>, configs: &HashMap<String, Any>) -> Result<Level, ConfigError> {
    let mut level = Level::default();
    let mut named: Vec<_> = configs.iter().collect();
    named.sort_by_key(|(name, _)| *name);
    for (name, config) in named {
        let at = at.entry("typed_per_filter_config", name);
        match any::decode_if::<route::FilterConfig>(at, config)? {
            Some(wrapper) if wrapper.disabled => disable(at, name, &mut level),
            Some(wrapper) => override_with(at, &wrapper.config.unwrap_or_default(), wrapper.is_optional, &mut level)?,
            None => override_with(at, config, false, &mut level)?,
        }
    }
    Ok(level)
}

fn disable(at: At<'_>, name: &str, level: &mut Level) {
    match name.rsplit('.').next() {
        Some("rbac") => level.filters.rbac = Some(Override::Disabled),
        Some("fault") => level.filters.fault = Some(Override::Disabled),
        _ => at.unsupported("only rbac and fault can be switched off for a route"),
    }
}

fn override_with(at: At<'_>, config: &Any, optional: bool, level: &mut Level) -> Result<(), ConfigError> {
    let config = &*any::unwrapped(at, config)?;
    if let Some(proto) = any::decode_if::<HttpFault>(at, config)? {
        level.filters.fault = Some(Override::Config(Arc::new(http_filter::fault(at, &proto)?)));
    } else if let Some(proto) = any::decode_if::<RbacPerRoute>(at, config)? {
        level.filters.rbac = Some(match &proto.rbac {
            Some(rbac) => Override::Config(Arc::new(rbac::http_filter(at.field("rbac"), rbac)?)),
            None => Override::Disabled,
        });
    } else if let Some(proto) = any::decode_if::<cors::CorsPolicy>(at, config)? {
        level.cors = cors_policy(at, &proto)?;
    } else if !optional {
        at.unsupported(format!("{} has no effect here", any::shown(&any::effective_type(config))));
    }
    Ok(())
}

/// None: switched off.
fn cors_policy(at: At<'_>, proto: &cors::CorsPolicy) -> Result<Option<Arc<CorsPolicy>>, ConfigError> {
    if let Some(enabled) = &proto.filter_enabled {
        let share = runtime_fraction(at.field("filter_enabled"), enabled)?;
        if share.numerator == 0 {
            return Ok(None);
        }
        if share.numerator < share.denominator {
            at.field("filter_enabled").unsupported("a share of requests is not possible: the policy applies to all");
        }
    }
    Ok(Some(Arc::new(CorsPolicy {
        allow_origins: matcher::strings(at, "allow_origin_string_match", &proto.allow_origin_string_match)?,
        allow_methods: proto.allow_methods.clone(),
        allow_headers: proto.allow_headers.clone(),
        expose_headers: proto.expose_headers.clone(),
        max_age: proto.max_age.clone(),
        allow_credentials: proto.allow_credentials.map(|allow| allow.value),
        forward_not_matching_preflights: flag(proto.forward_not_matching_preflights, true),
    })))
}

fn virtual_host_cors(proto: &route::VirtualHost) -> Option<&route::CorsPolicy> {
    proto.cors.as_ref()
}

fn route_cors(proto: &route::Route) -> Option<&route::CorsPolicy> {
    match &proto.action {
        Some(route::route::Action::Route(action)) => action.cors.as_ref(),
        _ => None,
    }
}

/// The deprecated field: the same message but for the name of its package.
fn old_cors(at: At<'_>, proto: Option<&route::CorsPolicy>) -> Result<Option<Arc<CorsPolicy>>, ConfigError> {
    use route::cors_policy::EnabledSpecifier;
    let Some(proto) = proto else { return Ok(None) };
    let filter_enabled = proto.enabled_specifier.clone().map(|EnabledSpecifier::FilterEnabled(enabled)| enabled);
    let moved = cors::CorsPolicy {
        allow_origin_string_match: proto.allow_origin_string_match.clone(),
        allow_methods: proto.allow_methods.clone(),
        allow_headers: proto.allow_headers.clone(),
        expose_headers: proto.expose_headers.clone(),
        max_age: proto.max_age.clone(),
        allow_credentials: proto.allow_credentials,
        filter_enabled,
        shadow_enabled: proto.shadow_enabled.clone(),
        allow_private_network_access: proto.allow_private_network_access,
        forward_not_matching_preflights: proto.forward_not_matching_preflights,
    };
    cors_policy(at.field("cors"), &moved)
}
