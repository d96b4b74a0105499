//! What the kernel must hold for a state, and what to change to get from one to another.

use super::{Port, Service, ServiceId, State, maglev};
use crate::sys::abi;
use ipnet::IpNet;
use mesh_model::MacAddress;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// Rules, routes, neighbours and programs of one representor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wire {
    pub name: String,
    pub ifindex: u32,
    pub slot: u32,
    pub mac: MacAddress,
    pub addresses: Vec<IpAddr>,
    /// TCP from the fabric goes up the stack.
    pub governed: bool,
}

/// Where packets for a prefix go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// As the API says, also for the proxy's own connections.
    Configured(IpAddr),
    /// As the DPU's own traffic goes: by a next hop on the fabric, or, without, to whoever has the address.
    Own(Option<IpAddr>),
    /// The same by the link to the host.
    Host(Option<IpAddr>),
    /// To the DPU itself or by another link of it: nowhere.
    Refused,
}

/// The DPU's own routes.
pub type OwnRoutes = BTreeMap<IpNet, Hop>;

/// Contents of all maps, and the wiring of all representors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    /// Where probes ask and the pod does not listen.
    pub shut: BTreeMap<abi::PodPort, u8>,
    pub wires: BTreeMap<u32, Wire>,
    pub ports: BTreeMap<u32, abi::Port>,
    pub endpoints: BTreeMap<abi::EndpointKey, u32>,
    pub backends: BTreeMap<u32, abi::Backend>,
    /// Rows of backend places, by service index.
    pub maglev: BTreeMap<u32, Vec<u32>>,
    pub services: BTreeMap<abi::ServiceKey, abi::Service>,
    pub routes: BTreeMap<IpNet, Hop>,
}

/// One entry before and after.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference<K, V> {
    pub key: K,
    pub before: Option<V>,
    pub after: Option<V>,
}

impl<K: Clone, V: Clone> Difference<K, V> {
    fn undone(&self) -> Self {
        Self { key: self.key.clone(), before: self.after.clone(), after: self.before.clone() }
    }
}

/// One step in the kernel.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Shut(Difference<abi::PodPort, u8>),
    Wire(Difference<u32, Wire>),
    Port(Difference<u32, abi::Port>),
    Endpoint(Difference<abi::EndpointKey, u32>),
    Backend(Difference<u32, abi::Backend>),
    Maglev(Difference<u32, Vec<u32>>),
    Service(Difference<abi::ServiceKey, abi::Service>),
    Route(Difference<IpNet, Hop>),
}

impl Change {
    /// The step back.
    pub fn undone(&self) -> Self {
        match self {
            Self::Shut(one) => Self::Shut(one.undone()),
            Self::Wire(one) => Self::Wire(one.undone()),
            Self::Port(one) => Self::Port(one.undone()),
            Self::Endpoint(one) => Self::Endpoint(one.undone()),
            Self::Backend(one) => Self::Backend(one.undone()),
            Self::Maglev(one) => Self::Maglev(one.undone()),
            Self::Service(one) => Self::Service(one.undone()),
            Self::Route(one) => Self::Route(one.undone()),
        }
    }
}

/// Steps in the order in which nothing points at what is not there: users go first, and come last.
pub fn difference(before: &Image, after: &Image) -> Vec<Change> {
    let mut going = Vec::new();
    let mut coming = Vec::new();
    split(&before.shut, &after.shut, Change::Shut, &mut coming, &mut going);
    split(&before.wires, &after.wires, Change::Wire, &mut coming, &mut going);
    split(&before.ports, &after.ports, Change::Port, &mut coming, &mut going);
    split(&before.endpoints, &after.endpoints, Change::Endpoint, &mut coming, &mut going);
    split(&before.backends, &after.backends, Change::Backend, &mut coming, &mut going);
    split(&before.maglev, &after.maglev, Change::Maglev, &mut coming, &mut going);
    split(&before.services, &after.services, Change::Service, &mut coming, &mut going);
    split(&before.routes, &after.routes, Change::Route, &mut coming, &mut going);
    going.reverse();
    // Ports go before others come (a slot or an address may change hands); backends and their tables
    // go when nothing chooses them any more.
    let is_balancing = |change: &Change| matches!(change, Change::Backend(_) | Change::Maglev(_));
    let (last, mut first): (Vec<_>, Vec<_>) = going.into_iter().partition(is_balancing);
    first.extend(coming);
    first.extend(last);
    first
}

fn split<K: Clone + Ord, V: Clone + PartialEq>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
    wrap: fn(Difference<K, V>) -> Change,
    coming: &mut Vec<Change>,
    going: &mut Vec<Change>,
) {
    for (key, value) in before.iter().filter(|(key, _)| !after.contains_key(key)) {
        going.push(wrap(Difference { key: key.clone(), before: Some(value.clone()), after: None }));
    }
    for (key, value) in after.iter().filter(|(key, value)| before.get(key) != Some(value)) {
        coming.push(wrap(Difference {
            key: key.clone(),
            before: before.get(key).cloned(),
            after: Some(value.clone()),
        }));
    }
}

impl State {
    /// What the kernel must hold, beside the routes that the DPU has of its own.
    pub fn image(&self, own: &OwnRoutes) -> Image {
        let mut image = Image::default();
        self.ports.values().for_each(|port| image.add_port(port));
        for (backend, place) in &self.backends {
            image.backends.insert(*place, abi_backend(*backend));
        }
        for (id, service) in &self.services {
            image.add_service(id, service, &self.backends);
        }
        image.routes.clone_from(own);
        for (prefix, route) in &self.routes {
            // No route leads to the DPU itself, whoever says so.
            if own.get(prefix) != Some(&Hop::Refused) {
                image.routes.insert(*prefix, Hop::Configured(route.next_hop));
            }
        }
        image
    }
}

impl Image {
    /// Steps that put wiring, and routes if asked, where they are already: for a kernel that forgot.
    pub fn repeated(&self, is_wanted: impl Fn(u32) -> bool, routes: bool) -> Vec<Change> {
        let wires = self.wires.values().filter(|wire| is_wanted(wire.ifindex)).map(|wire| {
            Change::Wire(Difference { key: wire.ifindex, before: Some(wire.clone()), after: Some(wire.clone()) })
        });
        let routes = self
            .routes
            .iter()
            .filter(|_| routes)
            .map(|(prefix, hop)| Change::Route(Difference { key: *prefix, before: Some(*hop), after: Some(*hop) }));
        wires.chain(routes).collect()
    }

    fn add_port(&mut self, port: &Port) {
        let ifindex = port.device.ifindex;
        self.wires.insert(
            ifindex,
            Wire {
                name: port.wire.representor.clone(),
                ifindex,
                slot: port.slot,
                mac: port.mac,
                addresses: port.addresses.clone(),
                governed: port.is_governed(),
            },
        );
        let flags = [
            (port.is_open(), abi::PORT_OPEN),
            (port.is_governed(), abi::PORT_GOVERNED),
            (port.is_bypass(), abi::PORT_BYPASS),
        ];
        let flags = flags.iter().filter(|(holds, _)| *holds).map(|(_, flag)| flag).sum();
        let (mac, gateway_mac) = (port.mac.0, port.device.mac.0);
        self.ports.insert(ifindex, abi::Port { slot: port.slot, vni: 0, flags, mac, gateway_mac });
        for place in port.probed.iter().filter(|(_, listens)| !**listens).map(|(place, _)| place) {
            let (port, ip_version) = (place.port.to_be_bytes(), place.ip_version);
            self.shut.insert(abi::PodPort { ifindex, port, ip_version, zero: 0 }, 1);
        }
        for address in &port.addresses {
            self.endpoints.insert(abi::EndpointKey { vni: 0, address: (*address).into() }, ifindex);
        }
    }

    fn add_service(&mut self, id: &ServiceId, service: &Service, places: &BTreeMap<SocketAddr, u32>) {
        let vip = abi::Address::from(id.vip);
        let marker = abi::ServiceKey { vip, ..abi::ServiceKey::default() };
        self.services.insert(marker, abi::Service::default());
        let key = abi::ServiceKey { vip, vni: 0, port: id.port.to_be_bytes(), protocol: id.protocol, zero: 0 };
        let backends = service.backends.len() as u32;
        self.services.insert(key, abi::Service { index: service.index, backends });
        let place = |index: &u32| places.get(service.backends.get(*index as usize)?).copied();
        self.maglev.insert(service.index, service.table.iter().filter_map(place).collect());
    }
}

fn abi_backend(backend: SocketAddr) -> abi::Backend {
    // The same for the same backend, also after a restart, so that its flows stay.
    let generation = maglev::hash(&backend.to_string(), 0) as u32 | 1;
    abi::Backend { address: backend.ip().into(), port: backend.port().to_be_bytes(), zero: [0; 2], generation }
}
