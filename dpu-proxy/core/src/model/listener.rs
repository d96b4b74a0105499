//! Listeners, listener filters, filter chains and network filters.

use super::{AccessLog, DownstreamTls, HttpConnectionManager, NetworkRbac, TcpProxy};
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Envoy's `Listener`.
#[derive(Debug)]
pub struct Listener {
    pub name: String,
    /// Where it listens, and in a workload's scope also what original destination it stands for
    /// (`0.0.0.0` is any address).
    pub address: SocketAddr,
    /// False: it only takes connections that an original-destination listener hands over.
    pub bind_to_port: bool,
    /// Hands connections over to the listener of their original destination.
    pub use_original_dst: bool,
    pub transparent: bool,
    pub direction: TrafficDirection,
    pub filters: ListenerFilters,
    /// None: no limit. After it, go on (true) or close (false).
    pub listener_filters_timeout: Option<Duration>,
    pub continue_on_listener_filters_timeout: bool,
    pub filter_chains: Vec<Arc<FilterChain>>,
    pub default_filter_chain: Option<Arc<FilterChain>>,
    /// For connections that no chain takes.
    pub access_logs: Vec<Arc<AccessLog>>,
    /// Bytes; read buffer limit per connection. Envoy's default: 1 MiB.
    pub per_connection_buffer_limit_bytes: u32,
    pub backlog: Option<u32>,
}

impl Listener {
    /// Listens there and has no filter chain yet.
    pub fn new(name: &str, address: SocketAddr) -> Self {
        Self {
            name: name.to_owned(),
            address,
            bind_to_port: true,
            use_original_dst: false,
            transparent: false,
            direction: TrafficDirection::Unspecified,
            filters: ListenerFilters::default(),
            listener_filters_timeout: None,
            continue_on_listener_filters_timeout: false,
            filter_chains: Vec::new(),
            default_filter_chain: None,
            access_logs: Vec::new(),
            per_connection_buffer_limit_bytes: 1 << 20,
            backlog: None,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficDirection {
    #[default]
    Unspecified,
    Inbound,
    Outbound,
}

/// Which of the listener filters are on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerFilters {
    pub original_dst: bool,
    pub tls_inspector: Option<InspectorScope>,
    pub http_inspector: Option<InspectorScope>,
}

/// Destination ports for which an inspector is switched off (`filter_disabled`): `[start, end)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InspectorScope {
    pub disabled_ports: Vec<(u16, u16)>,
}

/// Envoy's `FilterChain`.
#[derive(Debug)]
pub struct FilterChain {
    pub name: String,
    pub matches: FilterChainMatch,
    pub tls: Option<Arc<DownstreamTls>>,
    /// In order: any number of these, then the terminal filter.
    pub network_rbac: Vec<Arc<NetworkRbac>>,
    pub terminal: TerminalFilter,
    pub transport_socket_connect_timeout: Option<Duration>,
}

impl FilterChain {
    /// Takes every plain connection.
    pub fn new(name: &str, terminal: TerminalFilter) -> Self {
        Self {
            name: name.to_owned(),
            matches: FilterChainMatch::default(),
            tls: None,
            network_rbac: Vec::new(),
            terminal,
            transport_socket_connect_timeout: None,
        }
    }
}

#[derive(Debug)]
pub enum TerminalFilter {
    Http(Arc<HttpConnectionManager>),
    Tcp(Arc<TcpProxy>),
    /// No filters at all: the connection is closed.
    None,
}

/// Envoy's `FilterChainMatch`. Empty lists match anything; the most specific match wins, in Envoy's
/// order: destination port, destination address, server name, transport protocol, application
/// protocol, directly connected source, source type, source address, source port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterChainMatch {
    pub destination_port: Option<u16>,
    pub prefix_ranges: Vec<IpNet>,
    pub server_names: Vec<String>,
    /// "raw_buffer" or "tls"; empty for any.
    pub transport_protocol: String,
    pub application_protocols: Vec<String>,
    pub direct_source_prefix_ranges: Vec<IpNet>,
    pub source_type: SourceType,
    pub source_prefix_ranges: Vec<IpNet>,
    pub source_ports: Vec<u16>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceType {
    #[default]
    Any,
    SameIpOrLoopback,
    External,
}

/// What a filter-chain match looks at.
#[derive(Clone, Debug)]
pub struct ConnectionFacts<'a> {
    pub destination: SocketAddr,
    pub source: SocketAddr,
    pub direct_source: IpAddr,
    /// Lower case, from the TLS inspector; empty when none.
    pub server_name: &'a str,
    /// True when the TLS inspector saw a ClientHello.
    pub tls: bool,
    /// From the ClientHello, or what the HTTP inspector saw ("http/1.0", "http/1.1", "h2c").
    pub application_protocols: &'a [String],
}
