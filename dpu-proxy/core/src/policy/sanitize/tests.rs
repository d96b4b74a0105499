//! What a connection manager adds to and takes from requests and responses.

use super::*;
use crate::model::RouteSource;

fn manager() -> HttpConnectionManager {
    HttpConnectionManager::new("", RouteSource::Rds("r".into()))
}

fn head(headers: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead::default();
    for (name, value) in headers {
        head.headers.append(name.as_bytes(), value.as_bytes());
    }
    head
}

fn facts(remote: &str) -> ClientFacts<'static> {
    ClientFacts {
        remote: remote.parse().expect("address"),
        is_tls: false,
        own_address: "10.9.9.9".parse().expect("address"),
        internal_networks: &[],
        internal_only: &[],
    }
}

#[test]
fn hop_by_hop_headers_and_those_that_connection_names_go_no_further() {
    let mut block = head(&[
        ("connection", "x-hop, keep-alive"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("te", "gzip, trailers"),
        ("transfer-encoding", "chunked"),
        ("x-kept", "1"),
    ])
    .headers;
    assert_eq!(hop_by_hop(&mut block, false), Ok(()));
    let left: Vec<_> = block.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
    assert_eq!(left, ["te", "x-kept"]);
    assert_eq!(block.get_str("te"), Some("trailers"));
}

#[test]
fn an_upgrade_keeps_its_headers() {
    let mut block = head(&[("connection", "Upgrade"), ("upgrade", "websocket")]).headers;
    assert_eq!(hop_by_hop(&mut block, true), Ok(()));
    assert_eq!(block.get_str("upgrade"), Some("websocket"));
}

#[test]
fn the_origin_of_a_request_cannot_be_nominated_away() {
    for value in ["x-forwarded-for", "close, :path", "a,b,c,d,e,f,g,h,i,j"] {
        let mut block = head(&[("connection", value)]).headers;
        assert_eq!(hop_by_hop(&mut block, false), Err(ConnectionHeaderRejected), "{value}");
    }
}

#[test]
fn inside_the_mesh_the_callers_headers_are_kept_but_not_those_of_internal_clients() {
    let mut head = head(&[
        ("x-forwarded-for", "10.1.2.3, 8.8.8.8"),
        ("x-forwarded-proto", "https"),
        ("x-envoy-original-path", "/fake"),
        ("x-envoy-internal", "true"),
        ("x-envoy-max-retries", "9"),
        ("x-request-id", "own"),
    ]);
    let client = request(&manager(), &facts("127.0.0.1"), &mut head);
    let expected = Client { address: "8.8.8.8".parse().expect("address"), is_internal: false, needs_request_id: false };
    assert_eq!(client, expected);
    assert_eq!(head.headers.get_str("x-forwarded-proto"), Some("https"));
    assert_eq!(head.headers.get_str("x-envoy-original-path"), Some("/fake"));
    assert_eq!(head.headers.get(b"x-envoy-internal"), None);
    assert_eq!(head.headers.get(b"x-envoy-max-retries"), None);
}

#[test]
fn a_single_client_of_a_configured_network_is_internal_and_may_ask_for_retries() {
    let networks = ["10.0.0.0/8".parse().expect("network")];
    let facts = ClientFacts { internal_networks: &networks, ..facts("127.0.0.1") };
    let mut head = head(&[("x-forwarded-for", "10.1.2.3"), ("x-envoy-retry-on", "5xx")]);
    assert!(request(&manager(), &facts, &mut head).is_internal);
    assert_eq!(head.headers.get_str("x-envoy-internal"), Some("true"));
    assert_eq!(head.headers.get_str("x-envoy-retry-on"), Some("5xx"));
}

#[test]
fn at_the_edge_the_client_is_appended_and_its_claims_are_replaced() {
    let manager = HttpConnectionManager { use_remote_address: true, via: "edge".into(), ..manager() };
    let mut head = head(&[
        ("x-forwarded-for", "10.1.2.3"),
        ("x-forwarded-proto", "https"),
        ("x-envoy-original-path", "/fake"),
        ("x-request-id", "own"),
    ]);
    let client = request(&manager, &facts("127.0.0.1"), &mut head);
    assert!(client.needs_request_id && !client.is_internal);
    for (name, value) in [
        ("x-forwarded-for", "10.1.2.3,10.9.9.9"),
        ("x-forwarded-proto", "http"),
        ("x-envoy-external-address", "127.0.0.1"),
        ("via", "edge"),
    ] {
        assert_eq!(head.headers.get_str(name), Some(value), "{name}");
    }
    assert_eq!(head.headers.get(b"x-envoy-original-path"), None);
}

#[test]
fn trusted_hops_name_the_client() {
    let manager = HttpConnectionManager { use_remote_address: true, xff_num_trusted_hops: 2, ..manager() };
    let mut head = head(&[("x-forwarded-for", "1.1.1.1, 2.2.2.2, 3.3.3.3")]);
    let client = request(&manager, &facts("9.9.9.9"), &mut head);
    assert_eq!(client.address.to_string(), "2.2.2.2");
    assert_eq!(head.headers.get_str("x-forwarded-for"), Some("1.1.1.1, 2.2.2.2, 3.3.3.3,9.9.9.9"));
}

#[test]
fn a_request_id_is_a_version_4_uuid() {
    let mut head = head(&[]);
    set_request_id([u64::MAX, u64::MAX], &mut head);
    assert_eq!(head.headers.get_str("x-request-id"), Some("ffffffff-ffff-4fff-bfff-ffffffffffff"));
    set_request_id([0x0123_4567_89ab_cdef, 0x0123_4567_89ab_cdef], &mut head);
    assert_eq!(head.headers.get_str("x-request-id"), Some("01234567-89ab-4def-8123-456789abcdef"));
}

#[test]
fn a_response_gets_the_servers_name_as_told() {
    for (mode, before, expected) in [
        (ServerHeader::Overwrite, Some("own"), Some("envoy")),
        (ServerHeader::AppendIfAbsent, Some("own"), Some("own")),
        (ServerHeader::AppendIfAbsent, None, Some("envoy")),
        (ServerHeader::PassThrough, None, None),
    ] {
        let manager = HttpConnectionManager { server_header: mode, via: "edge".into(), ..manager() };
        let mut answer = ResponseHead::default();
        answer.headers.append(b"via", b"inner");
        answer.headers.append(b"connection", b"close");
        if let Some(before) = before {
            answer.headers.append(b"server", before.as_bytes());
        }
        response(&manager, &head(&[]), false, &mut answer);
        assert_eq!(answer.headers.get_str("server"), expected);
        assert_eq!(answer.headers.get_str("via"), Some("inner, edge"));
        assert_eq!(answer.headers.get(b"connection"), None);
    }
}
