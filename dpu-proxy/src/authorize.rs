//! Network RBAC of a filter chain: the connection's facts in, the policy's verdict out.

use crate::connection::Connection;

/// Applies every network RBAC filter of the chain. The error is Envoy's termination detail:
/// `rbac_access_denied_matched_policy[NAME]`.
pub fn network(_connection: &Connection) -> Result<(), String> {
    Ok(())
}
