//! What a connection manager does to every request and response: hop-by-hop headers go, `x-envoy-*`
//! headers of clients that are not trusted go, `x-forwarded-*`, `x-request-id`, `via` and `server` come.

use crate::head::{HeaderBlock, RequestHead, ResponseHead};
use crate::model::{HttpConnectionManager, ServerHeader};
use ipnet::IpNet;
use std::net::IpAddr;

/// Headers that only callers inside the mesh may send.
const INTERNAL: [&[u8]; 14] = [
    b"x-envoy-retriable-status-codes",
    b"x-envoy-retriable-header-names",
    b"x-envoy-retry-on",
    b"x-envoy-retry-grpc-on",
    b"x-envoy-max-retries",
    b"x-envoy-upstream-alt-stat-name",
    b"x-envoy-upstream-rq-timeout-ms",
    b"x-envoy-upstream-rq-per-try-timeout-ms",
    b"x-envoy-upstream-rq-timeout-alt-response",
    b"x-envoy-expected-rq-timeout-ms",
    b"x-envoy-force-trace",
    b"x-envoy-ip-tags",
    b"x-envoy-original-url",
    b"x-envoy-hedge-on-per-try-timeout",
];
/// Headers that a client at the edge may not send.
const EDGE: [&[u8]; 5] = [
    b"x-envoy-decorator-operation",
    b"x-envoy-downstream-service-cluster",
    b"x-envoy-downstream-service-node",
    b"x-envoy-original-path",
    b"x-envoy-original-host",
];
const FORWARDED_FOR: &[u8] = b"x-forwarded-for";
const FORWARDED_PROTO: &[u8] = b"x-forwarded-proto";
const REQUEST_ID: &[u8] = b"x-request-id";
const MAX_NOMINATED: usize = 10;

/// What is known of the connection that a request came by.
#[derive(Clone, Copy, Debug)]
pub struct ClientFacts<'a> {
    pub remote: IpAddr,
    pub is_tls: bool,
    /// Written to `x-forwarded-for` in place of a loopback client.
    pub own_address: IpAddr,
    /// Clients that count as internal (`internal_address_config`); none where it is not configured.
    pub internal_networks: &'a [IpNet],
    /// `RouteConfig::internal_only_headers`.
    pub internal_only: &'a [String],
}

/// What sanitizing found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The client after `x-forwarded-for` was taken into account.
    pub address: IpAddr,
    pub is_internal: bool,
    /// Generate `x-request-id` (with `set_request_id`).
    pub needs_request_id: bool,
}

/// A `connection` header that nominates what may not be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("http1.connection_header_rejected")]
pub struct ConnectionHeaderRejected;

/// Removes the hop-by-hop headers of a request, with those that `connection` names. `upgrade` and
/// `connection` stay when the request is an upgrade that is allowed.
pub fn hop_by_hop(headers: &mut HeaderBlock, is_upgrade: bool) -> Result<(), ConnectionHeaderRejected> {
    remove_nominated(headers)?;
    keep_te_trailers(headers);
    if !is_upgrade {
        headers.remove(b"connection");
        headers.remove(b"upgrade");
    }
    for name in [&b"keep-alive"[..], b"proxy-connection", b"transfer-encoding"] {
        headers.remove(name);
    }
    Ok(())
}

fn remove_nominated(headers: &mut HeaderBlock) -> Result<(), ConnectionHeaderRejected> {
    let Some(connection) = headers.get(b"connection") else { return Ok(()) };
    let connection = connection.to_ascii_lowercase();
    let names: Vec<&[u8]> = connection.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).collect();
    if names.len() >= MAX_NOMINATED {
        return Err(ConnectionHeaderRejected);
    }
    for name in names {
        match name {
            b"" | b"close" | b"keep-alive" | b"upgrade" | b"http2-settings" | b"connection" | b"te" => {}
            b"x-forwarded-for" | b"x-forwarded-host" | b"x-forwarded-proto" => return Err(ConnectionHeaderRejected),
            [b':', ..] => return Err(ConnectionHeaderRejected),
            name => {
                headers.remove(name);
            }
        }
    }
    Ok(())
}

/// `te` may only say "trailers".
fn keep_te_trailers(headers: &mut HeaderBlock) {
    let Some(value) = headers.get(b"te") else { return };
    let has_trailers =
        value.split(|byte| *byte == b',').any(|word| word.trim_ascii().eq_ignore_ascii_case(b"trailers"));
    match has_trailers {
        true => headers.set(b"te", b"trailers"),
        false => {
            headers.remove(b"te");
        }
    }
}

/// Sets what the request says of its client, and removes what the client may not say.
pub fn request(manager: &HttpConnectionManager, facts: &ClientFacts<'_>, head: &mut RequestHead) -> Client {
    head.headers.remove(b"x-envoy-internal");
    let (forwarded, is_single) = forwarded_for(manager, facts, head);
    let proto = if facts.is_tls { &b"https"[..] } else { b"http" };
    if manager.use_remote_address && manager.xff_num_trusted_hops == 0 {
        head.headers.set(FORWARDED_PROTO, proto);
    } else if head.headers.get(FORWARDED_PROTO).is_none() {
        head.headers.append(FORWARDED_PROTO, proto);
    }
    let is_internal = is_single && forwarded.is_some_and(|address| is_in(facts.internal_networks, address));
    let is_edge = !is_internal && manager.use_remote_address;
    let address = forwarded.unwrap_or(facts.remote);
    if is_internal {
        head.headers.set(b"x-envoy-internal", b"true");
    } else {
        remove_internal(is_edge, facts.internal_only, &mut head.headers);
    }
    if is_edge {
        head.headers.set(b"x-envoy-external-address", address.to_string().as_bytes());
    }
    append_via(&manager.via, &mut head.headers);
    let replaces = is_edge && !manager.preserve_external_request_id;
    let is_missing = head.headers.get(REQUEST_ID).is_none();
    Client { address, is_internal, needs_request_id: manager.generate_request_id && (replaces || is_missing) }
}

/// Writes a generated request id: 128 random bits as a version 4 UUID.
pub fn set_request_id(random: [u64; 2], head: &mut RequestHead) {
    head.headers.set(REQUEST_ID, &uuid(random));
}

/// 8-4-4-4-12 digits.
fn uuid([high, low]: [u64; 2]) -> [u8; 36] {
    let high = (high & !0xf000) | 0x4000;
    let low = (low & !(0b11 << 62)) | (0b10 << 62);
    let mut text = [b'-'; 36];
    let mut left = (u128::from(high) << 64) | u128::from(low);
    for at in (0..text.len()).rev().filter(|at| !matches!(at, 8 | 13 | 18 | 23)) {
        text[at] = b"0123456789abcdef"[(left & 0xf) as usize];
        left >>= 4;
    }
    text
}

/// The trusted client address, and whether the header names a single one.
fn forwarded_for(
    manager: &HttpConnectionManager,
    facts: &ClientFacts<'_>,
    head: &mut RequestHead,
) -> (Option<IpAddr>, bool) {
    let hops = manager.xff_num_trusted_hops as usize;
    if !manager.use_remote_address {
        return last_forwarded(&head.headers, hops);
    }
    let is_single = head.headers.get(FORWARDED_FOR).is_none();
    let trusted = if hops > 0 { last_forwarded(&head.headers, hops - 1).0 } else { None };
    if !manager.skip_xff_append {
        let client = if is_loopback(facts.remote) { facts.own_address } else { facts.remote };
        append_forwarded(client, &mut head.headers);
    }
    (trusted.or(Some(facts.remote)), is_single)
}

/// The address `skip` places from the end, and whether it is the only one.
fn last_forwarded(headers: &HeaderBlock, skip: usize) -> (Option<IpAddr>, bool) {
    let Some(list) = headers.get_str("x-forwarded-for") else { return (None, false) };
    let address = list.rsplit(',').nth(skip).map(str::trim).and_then(|text| text.parse().ok());
    (address, !list.contains(','))
}

fn append_forwarded(address: IpAddr, headers: &mut HeaderBlock) {
    let mut list: Vec<u8> = headers.get(FORWARDED_FOR).map(|list| [list, b","].concat()).unwrap_or_default();
    list.extend_from_slice(address.to_string().as_bytes());
    headers.set(FORWARDED_FOR, &list);
}

fn is_loopback(address: IpAddr) -> bool {
    address == std::net::Ipv4Addr::LOCALHOST || address == std::net::Ipv6Addr::LOCALHOST
}

fn is_in(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address))
}

fn remove_internal(is_edge: bool, internal_only: &[String], headers: &mut HeaderBlock) {
    let is_removed = |name: &[u8]| {
        (name.starts_with(b"x-envoy-") && (INTERNAL.contains(&name) || (is_edge && EDGE.contains(&name))))
            || internal_only.iter().any(|other| other.as_bytes().eq_ignore_ascii_case(name))
    };
    headers.retain(|name, _| !is_removed(name));
}

fn append_via(via: &str, headers: &mut HeaderBlock) {
    if via.is_empty() {
        return;
    }
    let mut list: Vec<u8> = headers.get(b"via").map(|list| [list, b", "].concat()).unwrap_or_default();
    list.extend_from_slice(via.as_bytes());
    headers.set(b"via", &list);
}

/// Removes a response's hop-by-hop headers and sets `via`, `server` and, where asked, `x-request-id`.
/// `is_upgrade`: the upstream switched protocols; `date` is the shell's.
pub fn response(manager: &HttpConnectionManager, request: &RequestHead, is_upgrade: bool, head: &mut ResponseHead) {
    if !is_upgrade {
        head.headers.remove(b"connection");
        head.headers.remove(b"upgrade");
    }
    for name in [&b"keep-alive"[..], b"proxy-connection", b"transfer-encoding"] {
        head.headers.remove(name);
    }
    let forced = request.headers.get(b"x-envoy-force-trace").is_some();
    if let Some(id) = request.headers.get(REQUEST_ID).filter(|_| forced || manager.always_set_request_id_in_response) {
        head.headers.set(REQUEST_ID, id);
    }
    append_via(&manager.via, &mut head.headers);
    set_server(manager, &mut head.headers);
}

fn set_server(manager: &HttpConnectionManager, headers: &mut HeaderBlock) {
    let name = manager.server_name.as_bytes();
    match manager.server_header {
        ServerHeader::Overwrite => headers.set(b"server", name),
        ServerHeader::AppendIfAbsent if headers.get(b"server").is_none() => headers.append(b"server", name),
        ServerHeader::AppendIfAbsent | ServerHeader::PassThrough => {}
    }
}

#[cfg(test)]
mod tests;
