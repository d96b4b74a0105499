//! Load assignments: endpoints by priority and locality.

use super::convert::{host_and_port, socket_address, struct_strings};
use super::report::{At, ConfigError};
use crate::model::{DnsHost, Endpoint, EndpointHealth, EndpointSet, Locality, LocalityEndpoints, Priority};
use mesh_api::envoy::config::core::v3 as core;
use mesh_api::envoy::config::endpoint::v3 as endpoint;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

const TRANSPORT_MATCH: &str = "envoy.transport_socket_match";
/// Envoy's limit.
const MAX_PRIORITY: u32 = 128;

/// A `ClusterLoadAssignment` whose endpoints are IP addresses.
pub fn assignment(at: At<'_>, proto: &endpoint::ClusterLoadAssignment) -> Result<EndpointSet, ConfigError> {
    let mut set = EndpointSet { priorities: Vec::new(), overprovisioning_factor_percent: overprovisioning(at, proto)? };
    for (index, group) in proto.endpoints.iter().enumerate() {
        let at = at.item("endpoints", index);
        let locality = locality_endpoints(at, group)?;
        priority_of(at, &mut set, group.priority)?.localities.push(locality);
    }
    Ok(set)
}

fn priority_of<'s>(at: At<'_>, set: &'s mut EndpointSet, priority: u32) -> Result<&'s mut Priority, ConfigError> {
    if priority > MAX_PRIORITY {
        return Err(at.field("priority").refuse(format!("{priority} is more than {MAX_PRIORITY}")));
    }
    let priority = priority as usize;
    if set.priorities.len() <= priority {
        set.priorities.resize_with(priority + 1, Priority::default);
    }
    Ok(&mut set.priorities[priority])
}

fn overprovisioning(at: At<'_>, proto: &endpoint::ClusterLoadAssignment) -> Result<u32, ConfigError> {
    let Some(policy) = &proto.policy else { return Ok(140) };
    let at = at.field("policy");
    if !policy.drop_overloads.is_empty() {
        at.field("drop_overloads").unsupported("no requests are dropped");
    }
    match policy.overprovisioning_factor.as_ref().map_or(140, |factor| factor.value) {
        0 => Err(at.field("overprovisioning_factor").refuse("must be more than 0; the default is 140")),
        factor => Ok(factor),
    }
}

fn members(group: &endpoint::LocalityLbEndpoints) -> &[endpoint::LbEndpoint] {
    use endpoint::locality_lb_endpoints::LbConfig;
    match &group.lb_config {
        Some(LbConfig::LoadBalancerEndpoints(list)) => &list.lb_endpoints,
        _ => &group.lb_endpoints,
    }
}

fn locality_endpoints(at: At<'_>, group: &endpoint::LocalityLbEndpoints) -> Result<LocalityEndpoints, ConfigError> {
    if let Some(endpoint::locality_lb_endpoints::LbConfig::LedsClusterLocalityConfig(_)) = &group.lb_config {
        return Err(at.field("leds_cluster_locality_config").refuse("not supported; list the endpoints"));
    }
    let one = |(index, proto): (usize, &endpoint::LbEndpoint)| {
        let at = at.item("lb_endpoints", index);
        let inner = inner(at, proto)?;
        let address = socket_address(at.field("endpoint").field("address"), inner.address.as_ref())?;
        template(at, proto, inner, address).map(Arc::new)
    };
    Ok(LocalityEndpoints {
        locality: locality(group.locality.as_ref()),
        weight: group.load_balancing_weight.as_ref().map_or(0, |weight| weight.value),
        endpoints: members(group).iter().enumerate().map(one).collect::<Result<_, _>>()?,
    })
}

fn inner<'p>(at: At<'_>, proto: &'p endpoint::LbEndpoint) -> Result<&'p endpoint::Endpoint, ConfigError> {
    use endpoint::lb_endpoint::HostIdentifier;
    match &proto.host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => Ok(endpoint),
        Some(HostIdentifier::EndpointName(_)) => {
            Err(at.field("endpoint_name").refuse("named endpoints are not supported; give endpoint"))
        }
        None => Err(at.field("endpoint").refuse("required")),
    }
}

fn template(
    at: At<'_>,
    proto: &endpoint::LbEndpoint,
    inner: &endpoint::Endpoint,
    address: SocketAddr,
) -> Result<Endpoint, ConfigError> {
    let weight = proto.load_balancing_weight.as_ref().map_or(1, |weight| weight.value);
    if weight == 0 {
        return Err(at.field("load_balancing_weight").refuse("must be at least 1; leave the endpoint out instead"));
    }
    Ok(Endpoint {
        address,
        hostname: inner.hostname.clone(),
        weight,
        health: health(at, proto.health_status)?,
        transport_match: filter_metadata(proto.metadata.as_ref(), TRANSPORT_MATCH),
        istio_workload: istio_workload(proto.metadata.as_ref()),
    })
}

fn health(at: At<'_>, value: i32) -> Result<EndpointHealth, ConfigError> {
    match core::HealthStatus::try_from(value) {
        Ok(core::HealthStatus::Unknown) => Ok(EndpointHealth::Unknown),
        Ok(core::HealthStatus::Healthy) => Ok(EndpointHealth::Healthy),
        Ok(core::HealthStatus::Unhealthy | core::HealthStatus::Timeout) => Ok(EndpointHealth::Unhealthy),
        Ok(core::HealthStatus::Draining) => Ok(EndpointHealth::Draining),
        Ok(core::HealthStatus::Degraded) => Ok(EndpointHealth::Degraded),
        Err(_) => Err(at.field("health_status").refuse(super::convert::unknown_enum(value))),
    }
}

fn filter_metadata(metadata: Option<&core::Metadata>, key: &str) -> Vec<(String, String)> {
    metadata.and_then(|metadata| metadata.filter_metadata.get(key)).map(struct_strings).unwrap_or_default()
}

fn istio_workload(metadata: Option<&core::Metadata>) -> String {
    let istio = filter_metadata(metadata, "istio");
    istio.into_iter().find(|(key, _)| key == "workload").map(|(_, value)| value).unwrap_or_default()
}

/// An unset locality is the empty one.
pub fn locality(proto: Option<&core::Locality>) -> Locality {
    proto.map_or_else(Locality::default, |proto| Locality {
        region: proto.region.clone(),
        zone: proto.zone.clone(),
        sub_zone: proto.sub_zone.clone(),
    })
}

/// The hosts of a DNS cluster, which are resolved later.
pub fn dns_hosts(at: At<'_>, proto: &endpoint::ClusterLoadAssignment) -> Result<Vec<DnsHost>, ConfigError> {
    let mut hosts = Vec::new();
    for (group_index, group) in proto.endpoints.iter().enumerate() {
        let at = at.item("endpoints", group_index);
        if group.priority > MAX_PRIORITY {
            return Err(at.field("priority").refuse(format!("{} is more than {MAX_PRIORITY}", group.priority)));
        }
        for (index, member) in members(group).iter().enumerate() {
            let (host, port, template) = dns_host(at.item("lb_endpoints", index), member)?;
            let locality = locality(group.locality.as_ref());
            hosts.push(DnsHost { host, port, template, locality, priority: group.priority });
        }
    }
    Ok(hosts)
}

fn dns_host(at: At<'_>, proto: &endpoint::LbEndpoint) -> Result<(String, u16, Endpoint), ConfigError> {
    use core::address::Address;
    let inner = inner(at, proto)?;
    let at_address = at.field("endpoint");
    let at_address = at_address.field("address");
    let Some(Address::SocketAddress(address)) = inner.address.as_ref().and_then(|address| address.address.as_ref())
    else {
        return Err(at_address.refuse("a socket_address with a host name is required"));
    };
    let (host, port) = host_and_port(at_address.field("socket_address"), address)?;
    if host.is_empty() {
        return Err(at_address.refuse("the host name must not be empty"));
    }
    let ip = host.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let mut template = template(at, proto, inner, SocketAddr::new(ip, port))?;
    if template.hostname.is_empty() {
        template.hostname = host.to_owned();
    }
    Ok((host.to_owned(), port, template))
}
