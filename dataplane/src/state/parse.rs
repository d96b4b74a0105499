//! Operations of the wire, checked field by field.

use super::{Route, ServiceId};
use ipnet::IpNet;
use mesh_api::dataplane as wire;
use mesh_model::MacAddress;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};

/// Addresses that one port may have.
const ADDRESS_LIMIT: usize = 8;

/// Kind of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The operation is wrong in itself.
    Invalid,
    /// It does not fit what there is.
    Precondition,
    NotSupported,
    Full,
}

/// Why an Apply changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("operation {operation}: {field}: {reason}")]
pub struct ApplyError {
    /// Index in the request.
    pub operation: usize,
    pub field: &'static str,
    pub reason: String,
    pub code: Code,
}

/// The same, before its index is known.
#[derive(Debug)]
pub(super) struct Refusal {
    field: &'static str,
    reason: String,
    code: Code,
}

impl Refusal {
    pub(super) fn invalid(field: &'static str, reason: impl Display) -> Self {
        Self { field, reason: reason.to_string(), code: Code::Invalid }
    }

    pub(super) fn missing(field: &'static str, reason: impl Display) -> Self {
        Self { field, reason: reason.to_string(), code: Code::Precondition }
    }

    pub(super) fn full(field: &'static str, limit: u32, what: &str) -> Self {
        Self { field, reason: format!("there are {limit} {what} already: no room for more"), code: Code::Full }
    }

    pub(super) fn at(self, operation: usize) -> ApplyError {
        ApplyError { operation, field: self.field, reason: self.reason, code: self.code }
    }
}

fn underlay_only(field: &'static str, vni: u32) -> Result<(), Refusal> {
    match vni {
        0 => Ok(()),
        _ => Err(Refusal { field, reason: format!("not supported yet: vni {vni}; use 0"), code: Code::NotSupported }),
    }
}

fn address(field: &'static str, text: &str) -> Result<IpAddr, Refusal> {
    let error =
        || Refusal::invalid(field, format!("{text:?} is not an IP address: expected e.g. 10.244.1.10 or fd00::1"));
    let address: IpAddr = text.parse().map_err(|_| error())?;
    let is_embedded = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let is_link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    match address.is_unspecified() || address.is_multicast() || address.is_loopback() || is_embedded || is_link_local {
        true => Err(Refusal::invalid(field, format!("{text} cannot be routed"))),
        false => Ok(address),
    }
}

pub(super) fn port(wire: &wire::Port) -> Result<(MacAddress, Vec<IpAddr>), Refusal> {
    if wire.id.is_empty() {
        return Err(Refusal::invalid("put_port.id", "is empty"));
    }
    underlay_only("put_port.vni", wire.vni)?;
    wire::Steering::try_from(wire.steering).map_err(|_| Refusal::invalid("put_port.steering", "is unknown here"))?;
    wire::OnFailure::try_from(wire.on_failure)
        .map_err(|_| Refusal::invalid("put_port.on_failure", "is unknown here"))?;
    let mac: MacAddress = wire.mac.parse().map_err(|error| Refusal::invalid("put_port.mac", error))?;
    if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
        return Err(Refusal::invalid("put_port.mac", format!("{mac} is not the address of one station")));
    }
    if wire.addresses.is_empty() || wire.addresses.len() > ADDRESS_LIMIT {
        let reason = format!("has {} entries: expected 1 to {ADDRESS_LIMIT}", wire.addresses.len());
        return Err(Refusal::invalid("put_port.addresses", reason));
    }
    let addresses: Result<Vec<_>, _> = wire.addresses.iter().map(|text| address("put_port.addresses", text)).collect();
    Ok((mac, addresses?))
}

pub(super) fn prefix(field: &'static str, text: &str) -> Result<IpNet, Refusal> {
    let error = |_| Refusal::invalid(field, format!("{text:?} is not a prefix: expected e.g. 10.244.2.0/24"));
    text.parse::<IpNet>().map(|net| net.trunc()).map_err(error)
}

pub(super) fn route(wire: &wire::Route) -> Result<(IpNet, Route), Refusal> {
    underlay_only("put_route.vni", wire.vni)?;
    let prefix = prefix("put_route.prefix", &wire.prefix)?;
    let next_hop = address("put_route.next_hop", &wire.next_hop)?;
    if next_hop.is_ipv4() != prefix.addr().is_ipv4() {
        return Err(Refusal::invalid("put_route.next_hop", format!("{next_hop} is of another family than {prefix}")));
    }
    Ok((prefix, Route { wire: wire.clone(), next_hop }))
}

pub(super) fn service_id(field: &'static str, key: &wire::ServiceKey) -> Result<ServiceId, Refusal> {
    underlay_only(field, key.vni)?;
    let vip = address(field, &key.vip)?;
    let port = number(field, key.port)?;
    match key.protocol {
        6 | 17 => Ok(ServiceId { vip, port, protocol: key.protocol as u8 }),
        other => Err(Refusal::invalid(field, format!("protocol {other}: expected 6 (TCP) or 17 (UDP)"))),
    }
}

fn number(field: &'static str, port: u32) -> Result<u16, Refusal> {
    u16::try_from(port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| Refusal::invalid(field, format!("port {port}: expected 1 to 65535")))
}

pub(super) fn service(wire: &wire::Service) -> Result<(ServiceId, Vec<SocketAddr>), Refusal> {
    let key = wire.key.as_ref().ok_or_else(|| Refusal::invalid("put_service.key", "is missing"))?;
    let id = service_id("put_service.key", key)?;
    let mut backends = Vec::new();
    for backend in &wire.backends {
        let address = address("put_service.backends", &backend.address)?;
        if address.is_ipv4() != id.vip.is_ipv4() {
            return Err(Refusal::invalid(
                "put_service.backends",
                format!("{address} is of another family than {}", id.vip),
            ));
        }
        backends.push(SocketAddr::new(address, number("put_service.backends", backend.port)?));
    }
    // Order and repetition mean nothing, and the table must not depend on them.
    backends.sort_unstable();
    backends.dedup();
    Ok((id, backends))
}
