//! Role-based access control: facts of a request or connection in, a verdict out.

use crate::head::{HeaderBlock, RequestHead};
use crate::matching::{header, string};
use crate::model::{HeaderMatcher, HttpRbac, Permission, Principal, RbacAction, RbacPolicy, RbacRules, StringMatcher};
use std::net::{IpAddr, SocketAddr};

/// Filter-state key under which Istio keeps the peer's identity.
const PEER_PRINCIPAL: &str = "io.istio.peer_principal";

/// What rules may look at.
#[derive(Clone, Copy, Debug)]
pub struct RbacFacts<'a> {
    /// None for a TCP connection.
    pub request: Option<&'a RequestHead>,
    /// True on a TLS connection (or the same-host pass in its stead).
    pub tls: bool,
    pub uri_sans: &'a [String],
    pub dns_sans: &'a [String],
    pub subject: &'a str,
    pub destination: SocketAddr,
    /// The connection's client.
    pub source: IpAddr,
    /// The peer of the socket.
    pub direct_remote: IpAddr,
    /// The client after `x-forwarded-for`.
    pub remote: IpAddr,
    pub server_name: &'a str,
}

/// What the rules say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict<'a> {
    pub allowed: bool,
    /// The policy that matched.
    pub policy: Option<&'a str>,
    /// What the shadow rules would say; only told, never enforced.
    pub shadow: Option<Shadow<'a>>,
}

/// Verdict of shadow rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shadow<'a> {
    pub allowed: bool,
    pub policy: Option<&'a str>,
}

/// Body of the 403.
pub const DENIED_BODY: &str = "RBAC: access denied";

impl Verdict<'_> {
    /// `%RESPONSE_CODE_DETAILS%` (or the connection's termination details) of a denial.
    pub fn details(&self) -> String {
        let name = self.policy.unwrap_or("none");
        let name: String = name.chars().map(|letter| if letter.is_whitespace() { '_' } else { letter }).collect();
        format!("rbac_access_denied_matched_policy[{name}]")
    }
}

/// Evaluates rules and shadow rules.
pub fn evaluate<'a>(rbac: &'a HttpRbac, facts: &RbacFacts<'_>) -> Verdict<'a> {
    let shadow = rbac.shadow_rules.as_ref().map(|rules| {
        let (allowed, policy) = decide(rules, facts);
        Shadow { allowed, policy }
    });
    let (allowed, policy) = rbac.rules.as_ref().map_or((true, None), |rules| decide(rules, facts));
    Verdict { allowed, policy, shadow }
}

fn decide<'a>(rules: &'a RbacRules, facts: &RbacFacts<'_>) -> (bool, Option<&'a str>) {
    let policy = rules.policies.iter().find(|policy| holds(policy, facts)).map(|policy| policy.name.as_str());
    let allowed = match rules.action {
        RbacAction::Allow => policy.is_some(),
        RbacAction::Deny => policy.is_none(),
        RbacAction::Log => true,
    };
    (allowed, policy)
}

fn holds(policy: &RbacPolicy, facts: &RbacFacts<'_>) -> bool {
    policy.permissions.iter().any(|permission| permits(permission, facts))
        && policy.principals.iter().any(|principal| is_principal(principal, facts))
}

fn permits(permission: &Permission, facts: &RbacFacts<'_>) -> bool {
    let port = facts.destination.port();
    match permission {
        Permission::Any => true,
        Permission::And(all) => all.iter().all(|one| permits(one, facts)),
        Permission::Or(any) => any.iter().any(|one| permits(one, facts)),
        Permission::Not(one) => !permits(one, facts),
        Permission::Header(matcher) => header_matches(matcher, facts),
        Permission::UrlPath(matcher) => path_matches(matcher, facts),
        Permission::DestinationIp(net) => net.contains(&facts.destination.ip()),
        Permission::DestinationPort(wanted) => port == *wanted,
        Permission::DestinationPortRange(start, end) => (*start..*end).contains(&port),
        Permission::RequestedServerName(matcher) => string::matches(matcher, facts.server_name.as_bytes()),
        Permission::Metadata { invert } => *invert,
    }
}

fn is_principal(principal: &Principal, facts: &RbacFacts<'_>) -> bool {
    match principal {
        Principal::Any => true,
        Principal::And(all) => all.iter().all(|one| is_principal(one, facts)),
        Principal::Or(any) => any.iter().any(|one| is_principal(one, facts)),
        Principal::Not(one) => !is_principal(one, facts),
        Principal::Authenticated(matcher) => facts.tls && matcher.as_ref().is_none_or(|name| is_named(name, facts)),
        Principal::SourceIp(net) => net.contains(&facts.source),
        Principal::DirectRemoteIp(net) => net.contains(&facts.direct_remote),
        Principal::RemoteIp(net) => net.contains(&facts.remote),
        Principal::Header(matcher) => header_matches(matcher, facts),
        Principal::UrlPath(matcher) => path_matches(matcher, facts),
        Principal::FilterState { key, matcher } => filter_state(key, matcher, facts),
        Principal::Metadata { invert } => *invert,
    }
}

/// URI SANs, then DNS SANs, then the subject.
fn is_named(matcher: &StringMatcher, facts: &RbacFacts<'_>) -> bool {
    let sans = facts.uri_sans.iter().chain(facts.dns_sans).map(String::as_str);
    sans.chain([facts.subject]).any(|name| string::matches(matcher, name.as_bytes()))
}

fn filter_state(key: &str, matcher: &StringMatcher, facts: &RbacFacts<'_>) -> bool {
    let identity = facts.uri_sans.first().filter(|_| key == PEER_PRINCIPAL);
    identity.is_some_and(|identity| string::matches(matcher, identity.as_bytes()))
}

fn header_matches(matcher: &HeaderMatcher, facts: &RbacFacts<'_>) -> bool {
    match facts.request {
        Some(head) => header::matches(matcher, head),
        None => header::matches(matcher, &HeaderBlock::default()),
    }
}

fn path_matches(matcher: &StringMatcher, facts: &RbacFacts<'_>) -> bool {
    facts.request.is_some_and(|head| string::matches(matcher, head.path_only()))
}

#[cfg(test)]
mod tests;
