//! Role-based access control, compiled.

use super::{HeaderMatcher, StringMatcher};
use ipnet::IpNet;

/// Envoy's HTTP RBAC filter.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRbac {
    pub rules: Option<RbacRules>,
    pub shadow_rules: Option<RbacRules>,
    pub stat_prefix: String,
    pub shadow_stat_prefix: String,
}

/// Envoy's network RBAC filter: the same rules, without request.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkRbac {
    pub rbac: HttpRbac,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RbacRules {
    pub action: RbacAction,
    /// In name order, as Envoy evaluates them.
    pub policies: Vec<RbacPolicy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RbacAction {
    Allow,
    Deny,
    Log,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RbacPolicy {
    pub name: String,
    pub permissions: Vec<Permission>,
    pub principals: Vec<Principal>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Permission {
    Any,
    And(Vec<Permission>),
    Or(Vec<Permission>),
    Not(Box<Permission>),
    Header(HeaderMatcher),
    UrlPath(StringMatcher),
    DestinationIp(IpNet),
    DestinationPort(u16),
    /// `[start, end)`.
    DestinationPortRange(u16, u16),
    RequestedServerName(StringMatcher),
    /// Dynamic metadata: nothing sets it yet, so it matches only when inverted.
    Metadata {
        invert: bool,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub enum Principal {
    Any,
    And(Vec<Principal>),
    Or(Vec<Principal>),
    Not(Box<Principal>),
    /// None: any authenticated peer.
    Authenticated(Option<StringMatcher>),
    SourceIp(IpNet),
    DirectRemoteIp(IpNet),
    RemoteIp(IpNet),
    Header(HeaderMatcher),
    UrlPath(StringMatcher),
    /// `filter_state` key (Istio 1.24+ uses `io.istio.peer_principal`).
    FilterState {
        key: String,
        matcher: StringMatcher,
    },
    Metadata {
        invert: bool,
    },
}
