//! Which filter chain takes a connection, level by level.

use super::*;
use crate::model::TerminalFilter;
use std::net::SocketAddr;

fn chain(name: &str, matches: FilterChainMatch) -> Arc<FilterChain> {
    Arc::new(FilterChain { matches, ..FilterChain::new(name, TerminalFilter::None) })
}

fn listener(chains: Vec<Arc<FilterChain>>, default: Option<Arc<FilterChain>>) -> Listener {
    let address = "0.0.0.0:15006".parse().expect("address");
    Listener { filter_chains: chains, default_filter_chain: default, ..Listener::new("l", address) }
}

struct Call {
    destination: &'static str,
    source: &'static str,
    name: &'static str,
    tls: bool,
    offered: &'static [&'static str],
}

const CALL: Call = Call { destination: "10.0.0.2:80", source: "10.0.0.1:4000", name: "", tls: false, offered: &[] };

fn chosen(listener: &Listener, call: &Call) -> String {
    let offered: Vec<String> = call.offered.iter().map(|text| (*text).to_owned()).collect();
    let source: SocketAddr = call.source.parse().expect("address");
    let facts = ConnectionFacts {
        destination: call.destination.parse().expect("address"),
        source,
        direct_source: source.ip(),
        server_name: call.name,
        tls: call.tls,
        application_protocols: &offered,
    };
    choose(listener, &facts).map_or("-".into(), |chain| chain.name.clone())
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().expect("network")).collect()
}

fn names(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn a_port_that_is_named_excludes_the_chains_for_any_port_for_good() {
    let tls = FilterChainMatch { destination_port: Some(80), transport_protocol: "tls".into(), ..Default::default() };
    let chains = vec![chain("any", FilterChainMatch::default()), chain("tls80", tls)];
    let listener = listener(chains, Some(chain("default", FilterChainMatch::default())));
    assert_eq!(chosen(&listener, &Call { tls: true, ..CALL }), "tls80");
    assert_eq!(chosen(&listener, &CALL), "default", "no way back to the chain for any port");
    assert_eq!(chosen(&listener, &Call { destination: "10.0.0.2:81", ..CALL }), "any");
}

#[test]
fn the_longest_destination_prefix_wins() {
    let to = |ranges: &[&str]| FilterChainMatch { prefix_ranges: nets(ranges), ..Default::default() };
    let chains = vec![chain("wide", to(&["10.0.0.0/8"])), chain("host", to(&["10.0.0.2/32", "192.168.0.0/16"]))];
    let listener = listener(chains, None);
    assert_eq!(chosen(&listener, &CALL), "host");
    assert_eq!(chosen(&listener, &Call { destination: "10.9.9.9:80", ..CALL }), "wide");
    assert_eq!(chosen(&listener, &Call { destination: "11.0.0.1:80", ..CALL }), "-");
}

#[test]
fn server_names_match_exactly_then_by_the_longest_wildcard_then_any() {
    let named = |list: &[&str]| FilterChainMatch { server_names: names(list), ..Default::default() };
    let chains = vec![
        chain("any", FilterChainMatch::default()),
        chain("com", named(&["*.com"])),
        chain("example", named(&["*.example.com"])),
        chain("exact", named(&["a.example.com"])),
    ];
    let listener = listener(chains, None);
    for (name, expected) in
        [("a.example.com", "exact"), ("b.example.com", "example"), ("x.com", "com"), ("x.org", "any"), ("", "any")]
    {
        assert_eq!(chosen(&listener, &Call { name, tls: true, ..CALL }), expected, "{name}");
    }
}

#[test]
fn istio_inbound_picks_mutual_tls_by_alpn_and_plain_text_by_transport() {
    let of = |transport: &str, protocols: &[&str]| FilterChainMatch {
        destination_port: Some(80),
        transport_protocol: transport.into(),
        application_protocols: names(protocols),
        ..Default::default()
    };
    let chains = vec![
        chain("mtls-http", of("tls", &["istio", "istio-http/1.1", "istio-h2"])),
        chain("plain-http", of("raw_buffer", &["http/1.1", "h2c"])),
        chain("tls", of("tls", &[])),
        chain("tcp", of("raw_buffer", &[])),
    ];
    let listener = listener(chains, None);
    assert_eq!(chosen(&listener, &Call { tls: true, offered: &["istio-peer-exchange", "istio"], ..CALL }), "mtls-http");
    assert_eq!(chosen(&listener, &Call { tls: true, offered: &["h2"], ..CALL }), "tls");
    assert_eq!(chosen(&listener, &Call { offered: &["http/1.1"], ..CALL }), "plain-http");
    assert_eq!(chosen(&listener, &CALL), "tcp");
}

#[test]
fn the_protocol_that_the_client_prefers_decides() {
    let of = |protocol: &str| FilterChainMatch { application_protocols: names(&[protocol]), ..Default::default() };
    let listener = listener(vec![chain("one", of("http/1.1")), chain("two", of("h2"))], None);
    assert_eq!(chosen(&listener, &Call { tls: true, offered: &["h2", "http/1.1"], ..CALL }), "two");
}

#[test]
fn the_source_is_told_by_type_address_and_port() {
    let chains = vec![
        chain("local", FilterChainMatch { source_type: SourceType::SameIpOrLoopback, ..Default::default() }),
        chain("net", FilterChainMatch { source_prefix_ranges: nets(&["10.0.0.0/24"]), ..Default::default() }),
        chain(
            "port",
            FilterChainMatch {
                source_prefix_ranges: nets(&["10.0.0.0/24"]),
                source_ports: vec![9],
                ..Default::default()
            },
        ),
    ];
    let listener = listener(chains, None);
    assert_eq!(chosen(&listener, &Call { source: "127.0.0.1:5", ..CALL }), "local");
    assert_eq!(chosen(&listener, &Call { source: "10.0.0.2:5", ..CALL }), "local");
    assert_eq!(chosen(&listener, &CALL), "net");
    assert_eq!(chosen(&listener, &Call { source: "10.0.0.1:9", ..CALL }), "port");
    assert_eq!(chosen(&listener, &Call { source: "10.0.1.1:9", ..CALL }), "-");
}
