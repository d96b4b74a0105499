//! Network RBAC of a filter chain: the connection's facts in, the policy's verdict out.
//!
//! Decided as soon as the facts are there, before anything reaches an upstream.

use crate::connection::Connection;
use crate::stats::Stats;
use dpu_proxy_core::head::RequestHead;
use dpu_proxy_core::model::NetworkRbac;
use dpu_proxy_core::policy::rbac::{self, RbacFacts};
use std::net::IpAddr;

/// Applies every network RBAC filter of the chain. The error is Envoy's termination detail:
/// `rbac_access_denied_matched_policy[NAME]`.
pub fn network(connection: &Connection, stats: &Stats) -> Result<(), String> {
    connection.chain.network_rbac.iter().try_for_each(|filter| apply(connection, filter, stats))
}

fn apply(connection: &Connection, filter: &NetworkRbac, stats: &Stats) -> Result<(), String> {
    let verdict = rbac::evaluate(&filter.rbac, &facts(connection, None, connection.remote.ip()));
    let label = [("envoy_rbac_prefix", filter.rbac.stat_prefix.as_str())];
    if let Some(shadow) = &verdict.shadow {
        let name = if shadow.allowed { "envoy_rbac_shadow_allowed" } else { "envoy_rbac_shadow_denied" };
        stats.counter(name, &label).inc();
    }
    match verdict.allowed {
        true => {
            stats.counter("envoy_rbac_allowed", &label).inc();
            Ok(())
        }
        false => {
            stats.counter("envoy_rbac_denied", &label).inc();
            Err(verdict.details())
        }
    }
}

/// What access rules may look at. `remote` is the client after `x-forwarded-for`.
pub fn facts<'a>(connection: &'a Connection, request: Option<&'a RequestHead>, remote: IpAddr) -> RbacFacts<'a> {
    let peer = connection.peer();
    RbacFacts {
        request,
        tls: connection.tls.is_some(),
        uri_sans: peer.map_or(&[], |peer| &peer.uri_sans),
        dns_sans: peer.map_or(&[], |peer| &peer.dns_sans),
        subject: peer.map_or("", |peer| &peer.subject),
        destination: connection.original_destination,
        source: connection.remote.ip(),
        direct_remote: connection.direct_remote.ip(),
        remote,
        server_name: &connection.sni,
    }
}
