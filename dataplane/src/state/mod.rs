//! What is configured: ports, routes and services. Pure: operations in, a new state or an error out;
//! `Image` is what the kernel must hold for a state, and the difference of two images is what to do.

mod image;
mod maglev;
mod parse;
pub mod saved;

pub use image::{Change, Difference, Hop, Image, OwnRoutes, Wire, difference};
pub use parse::{ApplyError, Code};

use crate::sys::abi::{MAX_BACKENDS, MAX_PORTS, MAX_SERVICES};
use ipnet::IpNet;
use mesh_api::dataplane as wire;
use mesh_api::dataplane::operation::Operation as Kind;
use mesh_model::MacAddress;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// A link of this network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    pub ifindex: u32,
    pub mac: MacAddress,
}

/// Links by name, as they are when an operation is applied.
pub type Devices = BTreeMap<String, Device>;

/// A port.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    pub wire: wire::Port,
    pub device: Device,
    pub mac: MacAddress,
    pub addresses: Vec<IpAddr>,
    /// Index of its counters; 0 is the uplink's.
    pub slot: u32,
    /// The proxy has said that it is ready.
    pub ready: bool,
    /// Why it is not, for a person.
    pub reason: String,
    /// Where probes ask, and whether the pod listens there.
    pub probed: BTreeMap<Probed, bool>,
}

/// A TCP port of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probed {
    /// 4 or 6.
    pub ip_version: u8,
    pub port: u16,
}

impl Port {
    /// Whether TCP goes to the proxy.
    pub fn is_governed(&self) -> bool {
        self.wire.steering() == wire::Steering::Tcp
    }

    /// Whether TCP is forwarded as it is when the proxy does not listen.
    pub fn is_bypass(&self) -> bool {
        self.wire.on_failure() == wire::OnFailure::Bypass
    }

    /// Whether anything passes. A port that may be bypassed, or is not governed, waits for nobody.
    pub fn is_open(&self) -> bool {
        self.ready || !self.is_governed() || self.is_bypass()
    }

    /// As the API tells it.
    pub fn status(&self) -> wire::PortStatus {
        let state = if self.is_open() { wire::PortState::Open } else { wire::PortState::Closed };
        wire::PortStatus {
            id: self.wire.id.clone(),
            state: state.into(),
            reason: if self.is_open() { String::new() } else { self.reason.clone() },
            workload_uid: self.wire.workload_uid.clone(),
        }
    }
}

/// A route of the underlay.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub wire: wire::Route,
    pub next_hop: IpAddr,
}

/// Key of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceId {
    pub vip: IpAddr,
    pub port: u16,
    pub protocol: u8,
}

/// A service with the table of its backends.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub wire: wire::Service,
    /// Row of the Maglev map.
    pub index: u32,
    pub backends: Vec<SocketAddr>,
    /// Indices into `backends`.
    pub table: Arc<Vec<u32>>,
}

/// Everything that is configured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub epoch: u64,
    pub ports: BTreeMap<String, Port>,
    pub routes: BTreeMap<IpNet, Route>,
    pub services: BTreeMap<ServiceId, Service>,
    /// Place of each backend that a service uses.
    pub backends: BTreeMap<SocketAddr, u32>,
}

const NOT_READY_YET: &str = "the proxy has not taken over this workload yet";

impl State {
    /// The state after all operations, or the first that is wrong.
    pub fn applied(&self, operations: &[wire::Operation], devices: &Devices) -> Result<Self, ApplyError> {
        let mut next = self.clone();
        for (index, operation) in operations.iter().enumerate() {
            next.operate(operation, devices).map_err(|refusal| refusal.at(index))?;
        }
        next.check_addresses().map_err(|refusal| refusal.at(operations.len().saturating_sub(1)))?;
        next.place_backends().map_err(|refusal| refusal.at(operations.len().saturating_sub(1)))?;
        if next != *self {
            next.epoch += 1;
        }
        Ok(next)
    }

    fn operate(&mut self, operation: &wire::Operation, devices: &Devices) -> Result<(), parse::Refusal> {
        match operation.operation.as_ref() {
            Some(Kind::PutPort(port)) => self.put_port(port, devices),
            Some(Kind::DeletePortId(id)) => removed(self.ports.remove(id), "delete_port_id", id),
            Some(Kind::PutRoute(route)) => {
                let (prefix, route) = parse::route(route)?;
                self.routes.insert(prefix, route);
                Ok(())
            }
            Some(Kind::DeleteRoutePrefix(text)) => {
                removed(self.routes.remove(&parse::prefix("delete_route_prefix", text)?), "delete_route_prefix", text)
            }
            Some(Kind::PutService(service)) => self.put_service(service),
            Some(Kind::DeleteService(key)) => {
                let id = parse::service_id("delete_service", key)?;
                removed(self.services.remove(&id), "delete_service", &format!("{}:{}", key.vip, key.port))
            }
            None => Err(parse::Refusal::invalid("operation", "is empty: this dataplane does not know its kind")),
        }
    }

    fn put_port(&mut self, wire: &wire::Port, devices: &Devices) -> Result<(), parse::Refusal> {
        let (mac, addresses) = parse::port(wire)?;
        let device = *devices.get(&wire.representor).ok_or_else(|| {
            parse::Refusal::missing(
                "put_port.representor",
                format!("there is no interface {:?} on this DPU", wire.representor),
            )
        })?;
        if let Some(other) =
            self.ports.values().find(|port| port.wire.id != wire.id && port.device.ifindex == device.ifindex)
        {
            let reason = format!("{} is port {:?} already: delete that port first", wire.representor, other.wire.id);
            return Err(parse::Refusal::missing("put_port.representor", reason));
        }
        let before = self.ports.get(&wire.id);
        // Another workload, or another interface, is another port: it starts closed, with new counters.
        let same = before.filter(|port| port.wire.workload_uid == wire.workload_uid && port.device == device);
        let slot = match same {
            Some(port) => port.slot,
            None => free(1..MAX_PORTS, self.ports.values().map(|port| port.slot))
                .ok_or_else(|| parse::Refusal::full("put_port", MAX_PORTS - 1, "ports"))?,
        };
        let ready = same.is_some_and(|port| port.ready);
        let reason = same.map_or_else(|| NOT_READY_YET.to_owned(), |port| port.reason.clone());
        let probed = same.map(|port| port.probed.clone()).unwrap_or_default();
        let port = Port { wire: wire.clone(), device, mac, addresses, slot, ready, reason, probed };
        self.ports.insert(wire.id.clone(), port);
        Ok(())
    }

    fn put_service(&mut self, wire: &wire::Service) -> Result<(), parse::Refusal> {
        let (id, backends) = parse::service(wire)?;
        let index = match self.services.get(&id) {
            Some(service) => service.index,
            None => free(0..MAX_SERVICES, self.services.values().map(|service| service.index))
                .ok_or_else(|| parse::Refusal::full("put_service", MAX_SERVICES, "services"))?,
        };
        let names: Vec<String> = backends.iter().map(ToString::to_string).collect();
        let table = Arc::new(maglev::table(&names));
        self.services.insert(id, Service { wire: wire.clone(), index, backends, table });
        Ok(())
    }

    /// An address has one owner, or packets would go to either.
    fn check_addresses(&self) -> Result<(), parse::Refusal> {
        let mut owners = BTreeMap::new();
        for port in self.ports.values() {
            for address in &port.addresses {
                if let Some(other) = owners.insert(address, &port.wire.id) {
                    let reason =
                        format!("{address} would be on ports {other:?} and {:?}: delete one first", port.wire.id);
                    return Err(parse::Refusal::missing("put_port.addresses", reason));
                }
            }
        }
        Ok(())
    }

    /// Gives places to new backends and takes them from those that no service uses.
    fn place_backends(&mut self) -> Result<(), parse::Refusal> {
        let used: std::collections::BTreeSet<_> =
            self.services.values().flat_map(|service| service.backends.iter().copied()).collect();
        self.backends.retain(|backend, _| used.contains(backend));
        let taken: std::collections::BTreeSet<u32> = self.backends.values().copied().collect();
        let mut places = (0..MAX_BACKENDS).filter(|place| !taken.contains(place));
        for backend in used {
            if let Entry::Vacant(entry) = self.backends.entry(backend) {
                let place = places.next();
                entry.insert(
                    place.ok_or_else(|| parse::Refusal::full("put_service.backends", MAX_BACKENDS, "backends"))?,
                );
            }
        }
        Ok(())
    }

    /// The state with interfaces that were made again. A port whose interface is gone stays as it is.
    pub fn with_devices(&self, devices: &Devices) -> Self {
        let mut next = self.clone();
        for port in next.ports.values_mut() {
            if let Some(device) = devices.get(&port.wire.representor) {
                port.device = *device;
            }
        }
        next
    }

    /// The state after the proxy said whether it governs a port. `None`: there is no such port, or it
    /// has another workload by now.
    pub fn with_readiness(&self, id: &str, workload_uid: Option<&str>, readiness: Result<(), String>) -> Option<Self> {
        let mut next = self.clone();
        let port = next.ports.get_mut(id)?;
        if workload_uid.is_some_and(|uid| uid != port.wire.workload_uid) {
            return None;
        }
        port.ready = readiness.is_ok();
        port.reason = readiness.err().unwrap_or_default();
        Some(next)
    }

    /// The state after the proxy said where probes ask, and whether the pod listens there. Where it does not know, what
    /// was known stays, and without that the pod does not listen.
    pub fn with_probed(mut self, id: &str, probed: &BTreeMap<Probed, Option<bool>>) -> Self {
        if let Some(port) = self.ports.get_mut(id) {
            let before = std::mem::take(&mut port.probed);
            let known = |place: &Probed| before.get(place).copied().unwrap_or(false);
            port.probed = probed.iter().map(|(place, says)| (*place, says.unwrap_or_else(|| known(place)))).collect();
        }
        self
    }
}

fn removed<T>(removed: Option<T>, field: &'static str, key: &str) -> Result<(), parse::Refusal> {
    removed.map(drop).ok_or_else(|| parse::Refusal::missing(field, format!("there is no {key:?}")))
}

/// The lowest number of the range that is not used.
fn free(range: std::ops::Range<u32>, used: impl Iterator<Item = u32>) -> Option<u32> {
    let mut is_used = vec![false; range.len()];
    for place in used.filter_map(|number| number.checked_sub(range.start)) {
        if let Some(place) = is_used.get_mut(place as usize) {
            *place = true;
        }
    }
    range.zip(is_used).find(|(_, is_used)| !is_used).map(|(number, _)| number)
}

#[cfg(test)]
mod tests;
