//! Endpoints, by priority and locality.

use std::net::SocketAddr;
use std::sync::Arc;

/// What EDS (or a static cluster) says: localities grouped by priority, 0 first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointSet {
    pub priorities: Vec<Priority>,
    /// Percent; Envoy's default is 140.
    pub overprovisioning_factor_percent: u32,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Priority {
    pub localities: Vec<LocalityEndpoints>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalityEndpoints {
    pub locality: Locality,
    /// 0 when unset.
    pub weight: u32,
    pub endpoints: Vec<Arc<Endpoint>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    pub region: String,
    pub zone: String,
    pub sub_zone: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// Host name, for `auto_host_rewrite` and SNI.
    pub hostname: String,
    /// At least 1.
    pub weight: u32,
    pub health: EndpointHealth,
    /// `envoy.transport_socket_match` metadata, sorted by key.
    pub transport_match: Vec<(String, String)>,
    /// `istio.workload`: "name;namespace;canonical service;revision;cluster".
    pub istio_workload: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointHealth {
    #[default]
    Unknown,
    Healthy,
    Unhealthy,
    Draining,
    Degraded,
}
