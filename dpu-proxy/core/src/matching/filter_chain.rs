//! Which filter chain takes a connection, as Envoy's `FilterChainMatch` defines it.
//!
//! Criteria are tried in a fixed order. At each, only the chains with the most specific value that
//! fits stay, and there is no way back: when a later criterion excludes them all, the default chain
//! takes the connection.

use crate::model::{ConnectionFacts, FilterChain, FilterChainMatch, Listener, SourceType};
use ipnet::IpNet;
use smallvec::SmallVec;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

type Candidates<'a> = SmallVec<[&'a Arc<FilterChain>; 32]>;

/// The chain for these facts, else the default chain.
pub fn choose<'a>(listener: &'a Listener, facts: &ConnectionFacts<'_>) -> Option<&'a Arc<FilterChain>> {
    most_specific(listener, facts).or(listener.default_filter_chain.as_ref())
}

fn most_specific<'a>(listener: &'a Listener, facts: &ConnectionFacts<'_>) -> Option<&'a Arc<FilterChain>> {
    let transport = if facts.tls { "tls" } else { "raw_buffer" };
    let is_local = is_same_ip_or_loopback(facts);
    let mut left: Candidates<'a> = listener.filter_chains.iter().collect();
    narrow(&mut left, |wanted| optional(wanted.destination_port, facts.destination.port()));
    narrow(&mut left, |wanted| prefix(&wanted.prefix_ranges, facts.destination.ip()));
    narrow(&mut left, |wanted| server_name(&wanted.server_names, facts.server_name));
    narrow(&mut left, |wanted| text(&wanted.transport_protocol, transport));
    narrow(&mut left, |wanted| protocol(&wanted.application_protocols, facts.application_protocols));
    narrow(&mut left, |wanted| prefix(&wanted.direct_source_prefix_ranges, facts.direct_source));
    narrow(&mut left, |wanted| source_type(wanted.source_type, is_local));
    narrow(&mut left, |wanted| prefix(&wanted.source_prefix_ranges, facts.source.ip()));
    narrow(&mut left, |wanted| port(&wanted.source_ports, facts.source.port()));
    left.first().copied()
}

/// Keeps the candidates with the highest rank; those without a rank do not fit.
fn narrow(left: &mut Candidates<'_>, rank: impl Fn(&FilterChainMatch) -> Option<usize>) {
    let best = left.iter().filter_map(|chain| rank(&chain.matches)).max();
    left.retain(|chain| best.is_some() && rank(&chain.matches) == best);
}

/// 0 for what matches anything, more for what is more specific.
fn optional(wanted: Option<u16>, actual: u16) -> Option<usize> {
    match wanted {
        None => Some(0),
        Some(wanted) => (wanted == actual).then_some(1),
    }
}

fn prefix(ranges: &[IpNet], address: IpAddr) -> Option<usize> {
    if ranges.is_empty() {
        return Some(0);
    }
    ranges.iter().filter(|range| range.contains(&address)).map(|range| usize::from(range.prefix_len())).max()
}

fn server_name(names: &[String], actual: &str) -> Option<usize> {
    if names.is_empty() {
        return Some(0);
    }
    names.iter().filter_map(|name| server_name_rank(name, actual)).max()
}

/// A wildcard ranks by its length; the exact name ranks above all of them.
fn server_name_rank(name: &str, actual: &str) -> Option<usize> {
    match name.strip_prefix('*') {
        Some(suffix) => (actual.len() > suffix.len() && ends_with(actual, suffix)).then_some(suffix.len()),
        None => (!actual.is_empty() && name.eq_ignore_ascii_case(actual)).then_some(usize::MAX),
    }
}

fn ends_with(text: &str, suffix: &str) -> bool {
    text.as_bytes()[text.len() - suffix.len()..].eq_ignore_ascii_case(suffix.as_bytes())
}

fn text(wanted: &str, actual: &str) -> Option<usize> {
    match wanted {
        "" => Some(0),
        _ => (wanted == actual).then_some(1),
    }
}

/// The protocol that was offered first ranks highest.
fn protocol(wanted: &[String], offered: &[String]) -> Option<usize> {
    if wanted.is_empty() {
        return Some(0);
    }
    offered.iter().position(|protocol| wanted.contains(protocol)).map(|position| offered.len() - position)
}

fn source_type(wanted: SourceType, is_local: bool) -> Option<usize> {
    match wanted {
        SourceType::Any => Some(0),
        SourceType::SameIpOrLoopback => is_local.then_some(1),
        SourceType::External => (!is_local).then_some(1),
    }
}

fn port(wanted: &[u16], actual: u16) -> Option<usize> {
    if wanted.is_empty() {
        return Some(0);
    }
    wanted.contains(&actual).then_some(1)
}

fn is_same_ip_or_loopback(facts: &ConnectionFacts<'_>) -> bool {
    let source = facts.source.ip();
    source == facts.destination.ip() || source == Ipv4Addr::LOCALHOST || source == Ipv6Addr::LOCALHOST
}

#[cfg(test)]
mod tests;
