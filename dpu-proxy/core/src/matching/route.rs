//! Which route takes a request: the first of the virtual host whose match holds; which of its
//! clusters, by a random number.

use super::{header, query, string, virtual_host};
use crate::head::RequestHead;
use crate::model::{
    ClusterSpecifier, Fraction, PathMatch, RequireTls, Route, RouteAction, RouteActionKind, RouteConfig, RouteMatch,
    VirtualHost,
};
use std::borrow::Cow;
use std::sync::Arc;

/// What a route may depend on beyond the request.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteFacts {
    /// One number per request: the same at every evaluation of one request.
    pub random: u64,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug)]
pub enum RouteDecision<'a> {
    /// 404, `route_not_found`.
    NotFound,
    /// The virtual host wants TLS: 301 to the same place by https (`policy::redirect::to_https`).
    RequireTls(&'a Arc<VirtualHost>),
    Matched(Matched<'a>),
}

/// A route and where it was found.
#[derive(Clone, Copy, Debug)]
pub struct Matched<'a> {
    pub virtual_host: &'a Arc<VirtualHost>,
    pub route: &'a Arc<Route>,
    /// Index of the weighted cluster that was chosen.
    pub weighted: Option<usize>,
}

/// Routes a request.
pub fn route<'a>(config: &'a RouteConfig, head: &RequestHead, facts: &RouteFacts) -> RouteDecision<'a> {
    let Some(virtual_host) = virtual_host::choose(config, head.authority()) else { return RouteDecision::NotFound };
    if requires_tls(virtual_host.require_tls, head) {
        return RouteDecision::RequireTls(virtual_host);
    }
    let found = virtual_host.routes.iter().find(|route| matches(&route.matches, head, facts));
    let Some(route) = found else { return RouteDecision::NotFound };
    RouteDecision::Matched(Matched { virtual_host, route, weighted: weighted(route, facts.random) })
}

/// Envoy asks `x-forwarded-proto`, which the connection manager has set.
fn requires_tls(require: RequireTls, head: &RequestHead) -> bool {
    let is_plain = || head.headers.get(b"x-forwarded-proto").is_some_and(|proto| proto != b"https");
    let is_internal = || head.headers.get(b"x-envoy-internal") == Some(b"true");
    match require {
        RequireTls::None => false,
        RequireTls::All => is_plain(),
        RequireTls::ExternalOnly => is_plain() && !is_internal(),
    }
}

/// True when the match holds.
pub fn matches(wanted: &RouteMatch, head: &RequestHead, facts: &RouteFacts) -> bool {
    path_matches(wanted, head)
        // Other bits than those that choose a weighted cluster: the two must not depend on one another.
        && wanted.runtime_fraction.is_none_or(|fraction| hit(fraction, facts.random >> 32))
        && (!wanted.grpc_only || is_grpc(head))
        && header::all(&wanted.headers, head)
        && (wanted.query.is_empty() || query::all(&wanted.query, head.query()))
}

fn path_matches(wanted: &RouteMatch, head: &RequestHead) -> bool {
    let path = head.path_only();
    let fold = !wanted.case_sensitive;
    match &wanted.path {
        PathMatch::Connect => head.method() == b"CONNECT",
        // A CONNECT request without a path is for CONNECT matches only.
        _ if path.is_empty() => false,
        PathMatch::Prefix(prefix) => string::starts_with(path, prefix.as_bytes(), fold),
        PathMatch::Exact(exact) => string::equal(path, exact.as_bytes(), fold),
        PathMatch::Regex(regex) => std::str::from_utf8(path).is_ok_and(|path| regex.is_match(path)),
        PathMatch::PathSeparatedPrefix(prefix) => {
            string::starts_with(path, prefix.as_bytes(), fold) && matches!(path.get(prefix.len()), None | Some(b'/'))
        }
    }
}

/// True for gRPC, by its content type.
pub fn is_grpc(head: &RequestHead) -> bool {
    let Some(content_type) = head.headers.get(b"content-type") else { return false };
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+')))
}

/// True when a random number falls in the share.
pub fn hit(fraction: Fraction, random: u64) -> bool {
    random % u64::from(fraction.denominator.max(1)) < u64::from(fraction.numerator)
}

fn weighted(route: &Route, random: u64) -> Option<usize> {
    let RouteActionKind::Forward(action) = &route.action else { return None };
    let ClusterSpecifier::Weighted { clusters, total } = &action.cluster else { return None };
    share(clusters.iter().map(|cluster| cluster.weight), *total, random)
}

/// Which of the weights a random number falls on.
pub fn share(weights: impl Iterator<Item = u32>, total: u32, random: u64) -> Option<usize> {
    let mut left = random % u64::from(total.max(1));
    for (index, weight) in weights.enumerate() {
        match left.checked_sub(u64::from(weight)) {
            None => return Some(index),
            Some(rest) => left = rest,
        }
    }
    None
}

/// The name of the cluster to use; empty when the header that names it is missing.
pub fn cluster_name<'a>(action: &'a RouteAction, weighted: Option<usize>, head: &'a RequestHead) -> Cow<'a, str> {
    match &action.cluster {
        ClusterSpecifier::Single(name) => Cow::Borrowed(name),
        ClusterSpecifier::Header(name) => head.header(name).map_or(Cow::Borrowed(""), String::from_utf8_lossy),
        ClusterSpecifier::Weighted { clusters, .. } => {
            Cow::Borrowed(weighted.and_then(|index| clusters.get(index)).map_or("", |cluster| &cluster.name))
        }
    }
}

#[cfg(test)]
mod tests;
