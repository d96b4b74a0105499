//! Network RBAC of a filter chain: the connection's facts in, the policy's verdict out.

use crate::connection::Connection;
use dpu_proxy_core::head::RequestHead;
use dpu_proxy_core::policy::rbac::{self, RbacFacts};
use std::net::IpAddr;

/// Applies every network RBAC filter of the chain. The error is Envoy's termination detail:
/// `rbac_access_denied_matched_policy[NAME]`.
pub fn network(connection: &Connection) -> Result<(), String> {
    if connection.chain.network_rbac.is_empty() {
        return Ok(());
    }
    let facts = facts(connection, None, connection.remote.ip());
    for filter in &connection.chain.network_rbac {
        let verdict = rbac::evaluate(&filter.rbac, &facts);
        if !verdict.allowed {
            return Err(verdict.details());
        }
    }
    Ok(())
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
