//! Role-based access control. What cannot be decided is refused: a rule that is left out opens a door.

use super::convert::{cidr, port, unknown_enum};
use super::matcher;
use super::report::{At, ConfigError};
use crate::model::{HttpRbac, NetworkRbac, Permission, Principal, RbacAction, RbacPolicy, RbacRules, StringMatcher};
use mesh_api::envoy::config::rbac::v3 as rbac;
use mesh_api::envoy::extensions::filters::http::rbac::v3 as http;
use mesh_api::envoy::extensions::filters::network::rbac::v3 as network;
use mesh_api::envoy::r#type::matcher::v3 as envoy_matcher;

/// The HTTP filter.
pub fn http_filter(at: At<'_>, proto: &http::Rbac) -> Result<HttpRbac, ConfigError> {
    if proto.matcher.is_some() {
        return Err(at.field("matcher").refuse("matcher trees are not supported; use rules"));
    }
    if proto.shadow_matcher.is_some() {
        at.field("shadow_matcher").unsupported("matcher trees are not evaluated; use shadow_rules");
    }
    Ok(HttpRbac {
        rules: rules(at.field("rules"), proto.rules.as_ref())?,
        shadow_rules: rules(at.field("shadow_rules"), proto.shadow_rules.as_ref())?,
        stat_prefix: proto.rules_stat_prefix.clone(),
        shadow_stat_prefix: proto.shadow_rules_stat_prefix.clone(),
    })
}

/// The network filter.
pub fn network_filter(at: At<'_>, proto: &network::Rbac) -> Result<NetworkRbac, ConfigError> {
    if proto.matcher.is_some() {
        return Err(at.field("matcher").refuse("matcher trees are not supported; use rules"));
    }
    if proto.shadow_matcher.is_some() {
        at.field("shadow_matcher").unsupported("matcher trees are not evaluated; use shadow_rules");
    }
    let rbac = HttpRbac {
        rules: rules(at.field("rules"), proto.rules.as_ref())?,
        shadow_rules: rules(at.field("shadow_rules"), proto.shadow_rules.as_ref())?,
        stat_prefix: proto.stat_prefix.clone(),
        shadow_stat_prefix: proto.shadow_rules_stat_prefix.clone(),
    };
    // `enforcement_type` makes no difference: what rules look at does not change while a connection lasts.
    Ok(NetworkRbac { rbac })
}

/// Unset rules are no rules; empty ALLOW rules allow nobody.
pub fn rules(at: At<'_>, proto: Option<&rbac::Rbac>) -> Result<Option<RbacRules>, ConfigError> {
    use rbac::rbac::Action;
    let Some(proto) = proto else { return Ok(None) };
    let action = match Action::try_from(proto.action) {
        Ok(Action::Allow) => RbacAction::Allow,
        Ok(Action::Deny) => RbacAction::Deny,
        Ok(Action::Log) => RbacAction::Log,
        Err(_) => return Err(at.field("action").refuse(unknown_enum(proto.action))),
    };
    let mut named: Vec<_> = proto.policies.iter().collect();
    named.sort_by_key(|(name, _)| *name);
    let policies = named.into_iter().map(|(name, proto)| policy(at.entry("policies", name), name, proto));
    Ok(Some(RbacRules { action, policies: policies.collect::<Result<_, _>>()? }))
}

fn policy(at: At<'_>, name: &str, proto: &rbac::Policy) -> Result<RbacPolicy, ConfigError> {
    if proto.condition.is_some() || proto.checked_condition.is_some() {
        return Err(at
            .field("condition")
            .refuse("CEL conditions are not supported; express it in permissions and principals"));
    }
    if proto.permissions.is_empty() || proto.principals.is_empty() {
        return Err(at.refuse("a policy needs at least one permission and one principal; use any: true"));
    }
    Ok(RbacPolicy {
        name: name.to_owned(),
        permissions: permissions(at, "permissions", &proto.permissions)?,
        principals: principals(at, "principals", &proto.principals)?,
    })
}

fn permissions(at: At<'_>, field: &str, protos: &[rbac::Permission]) -> Result<Vec<Permission>, ConfigError> {
    protos.iter().enumerate().map(|(index, proto)| permission(at.item(field, index), proto)).collect()
}

fn permission(at: At<'_>, proto: &rbac::Permission) -> Result<Permission, ConfigError> {
    use rbac::permission::Rule;
    Ok(match proto.rule.as_ref().ok_or_else(|| at.refuse("a rule is required"))? {
        Rule::Any(true) => Permission::Any,
        Rule::Any(false) => return Err(at.field("any").refuse("must be true")),
        Rule::AndRules(set) => Permission::And(permissions(at.field("and_rules"), "rules", &set.rules)?),
        Rule::OrRules(set) => Permission::Or(permissions(at.field("or_rules"), "rules", &set.rules)?),
        Rule::NotRule(inner) => Permission::Not(Box::new(permission(at.field("not_rule"), inner)?)),
        Rule::Header(header) => Permission::Header(matcher::header(at.field("header"), header)?),
        Rule::UrlPath(path) => Permission::UrlPath(url_path(at.field("url_path"), path)?),
        Rule::DestinationIp(range) => Permission::DestinationIp(cidr(at.field("destination_ip"), range)?),
        Rule::DestinationPort(value) => Permission::DestinationPort(port(at.field("destination_port"), *value)?),
        Rule::DestinationPortRange(range) => port_range(at.field("destination_port_range"), range.start, range.end)?,
        Rule::RequestedServerName(name) => {
            Permission::RequestedServerName(matcher::string(at.field("requested_server_name"), name)?)
        }
        Rule::Metadata(metadata) => Permission::Metadata { invert: metadata_invert(at.field("metadata"), metadata) },
        Rule::Matcher(config) => return Err(unsupported_rule(at.field("matcher"), &config.name)),
        Rule::UriTemplate(config) => return Err(unsupported_rule(at.field("uri_template"), &config.name)),
        Rule::SourcedMetadata(_) => return Err(unsupported_rule(at, "sourced_metadata")),
    })
}

/// `[start, end)`. An end of 65536 takes in the last port, which the exclusive end of a u16 cannot say.
fn port_range(at: At<'_>, start: i32, end: i32) -> Result<Permission, ConfigError> {
    let port = |value: i32| u16::try_from(value).map_err(|_| at.refuse(format!("{value} is not a port")));
    if end != 65_536 {
        return Ok(Permission::DestinationPortRange(port(start)?, port(end)?));
    }
    let below = Permission::DestinationPortRange(port(start)?, u16::MAX);
    Ok(Permission::Or(vec![below, Permission::DestinationPort(u16::MAX)]))
}

fn unsupported_rule(at: At<'_>, name: &str) -> ConfigError {
    at.refuse(format!("{name} is not supported in authorization rules; use header, url_path, IP or identity rules"))
}

fn url_path(at: At<'_>, proto: &envoy_matcher::PathMatcher) -> Result<StringMatcher, ConfigError> {
    match &proto.rule {
        Some(envoy_matcher::path_matcher::Rule::Path(path)) => matcher::string(at.field("path"), path),
        None => Err(at.field("path").refuse("required")),
    }
}

/// Nothing here sets dynamic metadata: a rule on it matches only when inverted, and so it is reported.
fn metadata_invert(at: At<'_>, proto: &envoy_matcher::MetadataMatcher) -> bool {
    at.unsupported(format!("no filter here sets metadata of {}: it is taken as absent", proto.filter));
    proto.invert
}

fn principals(at: At<'_>, field: &str, protos: &[rbac::Principal]) -> Result<Vec<Principal>, ConfigError> {
    protos.iter().enumerate().map(|(index, proto)| principal(at.item(field, index), proto)).collect()
}

fn principal(at: At<'_>, proto: &rbac::Principal) -> Result<Principal, ConfigError> {
    use rbac::principal::Identifier;
    Ok(match proto.identifier.as_ref().ok_or_else(|| at.refuse("an identifier is required"))? {
        Identifier::Any(true) => Principal::Any,
        Identifier::Any(false) => return Err(at.field("any").refuse("must be true")),
        Identifier::AndIds(set) => Principal::And(principals(at.field("and_ids"), "ids", &set.ids)?),
        Identifier::OrIds(set) => Principal::Or(principals(at.field("or_ids"), "ids", &set.ids)?),
        Identifier::NotId(inner) => Principal::Not(Box::new(principal(at.field("not_id"), inner)?)),
        Identifier::Authenticated(peer) => {
            let at = at.field("authenticated");
            let name = peer.principal_name.as_ref().map(|name| matcher::string(at.field("principal_name"), name));
            Principal::Authenticated(name.transpose()?)
        }
        Identifier::SourceIp(range) => Principal::SourceIp(cidr(at.field("source_ip"), range)?),
        Identifier::DirectRemoteIp(range) => Principal::DirectRemoteIp(cidr(at.field("direct_remote_ip"), range)?),
        Identifier::RemoteIp(range) => Principal::RemoteIp(cidr(at.field("remote_ip"), range)?),
        Identifier::Header(header) => Principal::Header(matcher::header(at.field("header"), header)?),
        Identifier::UrlPath(path) => Principal::UrlPath(url_path(at.field("url_path"), path)?),
        Identifier::FilterState(state) => filter_state(at.field("filter_state"), state)?,
        Identifier::Metadata(metadata) => {
            Principal::Metadata { invert: metadata_invert(at.field("metadata"), metadata) }
        }
        Identifier::SourcedMetadata(_) => return Err(unsupported_rule(at, "sourced_metadata")),
        Identifier::Custom(config) => return Err(unsupported_rule(at.field("custom"), &config.name)),
    })
}

fn filter_state(at: At<'_>, proto: &envoy_matcher::FilterStateMatcher) -> Result<Principal, ConfigError> {
    use envoy_matcher::filter_state_matcher::Matcher;
    match &proto.matcher {
        Some(Matcher::StringMatch(text)) => {
            let matcher = matcher::string(at.field("string_match"), text)?;
            Ok(Principal::FilterState { key: proto.key.clone(), matcher })
        }
        Some(Matcher::AddressMatch(_)) => Err(unsupported_rule(at, "address_match")),
        None => Err(at.refuse("give string_match")),
    }
}
