//! Carries changes into the kernel: maps, programs on interfaces, rules, routes and neighbours.
//!
//! Routing on the DPU, for the proxy's sockets (everything else is redirected before routing):
//!
//! | from | by | table |
//! |---|---|---|
//! | a pod | `iif REP` | `TABLE_UP`: everything is local |
//! | a socket bound to a representor, or a reset to its pod | `oif REP`, mark | the port's: its addresses, on the link |
//! | the fabric | `iif UPLINK` | `TABLE_INBOUND`: the governed pods' addresses are local |
//! | a socket bound to the uplink, or a reset to the fabric | `oif UPLINK`, mark | the uplink's: the routes of the API; then `main` |
//! | the host, where a link to it is named | `iif HOST` | `TABLE_INBOUND` |
//! | a socket bound to that link | – | `main`; without a route, IPv4 asks for the address on the link |

use crate::engine::Door;
use crate::state::{Change, Device, Difference, Hop, Image, OwnRoutes, Wire};
use crate::sys::network::{Network, Selector, Way};
use crate::sys::programs::{self, Hook, Maps, Programs};
use crate::sys::sysctl::{self, Sysctl};
use crate::sys::{KernelError, abi};
use crate::underlay::{self, Links};
use ipnet::IpNet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

const TABLE_UP: u32 = 0x0d9b_0001;
const TABLE_INBOUND: u32 = 0x0d9b_0002;
/// Before `main`, behind what an administrator may have put first. Packets that enter carry the mark
/// of their way back, so where they enter is looked at first.
const PRIORITY_INPUT: u32 = 15_000;
const PRIORITY_OUTPUT: u32 = 15_001;

fn priority(selector: &Selector) -> u32 {
    match selector {
        Selector::Input(_) => PRIORITY_INPUT,
        Selector::Output(_) | Selector::Mark(_) => PRIORITY_OUTPUT,
    }
}

/// What the kernel needs to know at start.
#[derive(Clone, Debug)]
pub struct KernelArgs {
    pub uplink: String,
    /// Link to the host's own function.
    pub host: Option<String>,
    pub bpf_dir: PathBuf,
    pub congestion_control: Option<String>,
    pub sysctl: Sysctl,
}

/// This network namespace.
#[allow(missing_debug_implementations)]
pub struct Kernel {
    programs: Programs,
    network: Network,
    bpf_dir: PathBuf,
    uplink: (String, Device),
    host: Option<(String, Device)>,
    sysctl: Sysctl,
}

impl Kernel {
    /// Loads the programs and wires the uplink, and the link to the host.
    pub async fn open(args: &KernelArgs) -> Result<Self, KernelError> {
        sysctl::prepare_bpf_dir(&args.bpf_dir)?;
        args.sysctl.prepare_namespace(args.congestion_control.as_deref())?;
        args.sysctl.prepare_interface(&args.uplink)?;
        let network = Network::open()?;
        let uplink = named(&network, &args.uplink).await?;
        let host = match &args.host {
            Some(name) => Some(named(&network, name).await?),
            None => None,
        };
        let programs = Programs::load_pinned(&args.bpf_dir)?;
        let (bpf_dir, sysctl) = (args.bpf_dir.clone(), args.sysctl.clone());
        let mut kernel = Self { programs, network, bpf_dir, uplink, host, sysctl };
        kernel.wire_uplink().await?;
        kernel.wire_host().await?;
        Ok(kernel)
    }

    /// Takes away everything that this program ever put into the namespace.
    pub async fn clean(args: &KernelArgs) -> Result<(), KernelError> {
        programs::unpin(&args.bpf_dir)?;
        let is_port = |table: u32| table & 0xffff_0000 == abi::MARK_PORT;
        let network = Network::open()?;
        network.sweep(|table| is_port(table) || table == TABLE_UP || table == TABLE_INBOUND).await
    }

    /// The uplink.
    pub fn uplink(&self) -> (String, Device) {
        self.uplink.clone()
    }

    /// The link to the host, where one is named.
    pub fn host(&self) -> Option<(String, Device)> {
        self.host.clone()
    }

    /// What another version of this program left. Call it when everything is in place.
    pub fn forget_other_versions(&self) -> Result<(), KernelError> {
        programs::unpin_other_layouts(&self.bpf_dir)
    }

    /// Reads counters without the lock of this value.
    pub fn counters(&self) -> programs::CounterReader {
        self.programs.counters.clone()
    }

    /// Removes what an earlier process left and `image` has not.
    pub fn forget_others(&mut self, image: &Image) -> Result<(), KernelError> {
        let maps = &mut self.programs.maps;
        for ifindex in maps.ports.keys().flatten().filter(|key| !image.ports.contains_key(key)).collect::<Vec<_>>() {
            maps.ports.remove(&ifindex).map_err(|error| KernelError::map("PORTS", "write", &error))?;
        }
        for key in maps.endpoints.keys().flatten().filter(|key| !image.endpoints.contains_key(key)).collect::<Vec<_>>()
        {
            maps.endpoints.remove(&key).map_err(|error| KernelError::map("ENDPOINTS", "write", &error))?;
        }
        for key in maps.services.keys().flatten().filter(|key| !image.services.contains_key(key)).collect::<Vec<_>>() {
            maps.services.remove(&key).map_err(|error| KernelError::map("SERVICES", "write", &error))?;
        }
        for key in maps.shut.keys().flatten().filter(|key| !image.shut.contains_key(key)).collect::<Vec<_>>() {
            maps.shut.remove(&key).map_err(|error| KernelError::map("SHUT", "write", &error))?;
        }
        let wanted: Vec<_> = image.routes.keys().map(|prefix| trie_key(*prefix)).collect();
        let is_wanted =
            |key: &TrieKey| wanted.iter().any(|one| one.prefix_len() == key.prefix_len() && one.data() == key.data());
        for key in maps.routes.keys().flatten().filter(|key| !is_wanted(key)).collect::<Vec<_>>() {
            maps.routes.remove(&key).map_err(|error| KernelError::map("ROUTES", "write", &error))?;
        }
        for ifindex in self.programs.attached(Hook::RepresentorIngress) {
            if image.wires.contains_key(&ifindex) {
                continue;
            }
            self.programs.detach(Hook::RepresentorIngress, ifindex)?;
            self.programs.detach(Hook::RepresentorEgress, ifindex)?;
        }
        Ok(())
    }

    async fn wire_uplink(&mut self) -> Result<(), KernelError> {
        let (name, device) = self.uplink.clone();
        let uplink = abi::Uplink { ifindex: device.ifindex, mac: device.mac.0, zero: [0; 2] };
        self.programs.maps.uplink.set(0, uplink, 0).map_err(|error| KernelError::map("UPLINK", "write", &error))?;
        for prefix in everything() {
            self.network.put_route(TABLE_UP, prefix, Way::Local).await?;
        }
        for (selector, table) in uplink_rules(&name) {
            self.network.add_rule(&selector, table, priority(&selector)).await?;
        }
        self.programs.attach_steering()?;
        self.programs.attach(Hook::UplinkEgress, &name, device.ifindex)?;
        self.programs.attach(Hook::UplinkIngress, &name, device.ifindex)
    }

    /// Wires the link to the host, and forgets one that an earlier process had. Its map comes last: from then on
    /// connections by it are steered.
    async fn wire_host(&mut self) -> Result<(), KernelError> {
        let host = self.host.clone();
        let ifindex = host.as_ref().map_or(0, |(_, device)| device.ifindex);
        for other in self.programs.attached(Hook::HostIngress).into_iter().filter(|other| *other != ifindex) {
            self.programs.detach(Hook::HostIngress, other)?;
        }
        let inputs = [Some(&self.uplink), host.as_ref()].into_iter().flatten().map(|(name, _)| name.clone());
        self.network.keep_inputs(TABLE_INBOUND, &inputs.collect::<Vec<_>>()).await?;
        if let Some((name, device)) = &host {
            self.sysctl.prepare_interface(name)?;
            self.network.add_rule(&Selector::Input(name.clone()), TABLE_INBOUND, PRIORITY_INPUT).await?;
            self.programs.attach(Hook::HostIngress, name, device.ifindex)?;
        }
        wrote("HOST", self.programs.maps.host.set(0, abi::Host { ifindex }, 0))
    }

    async fn wire(&mut self, wire: &Wire) -> Result<(), KernelError> {
        self.sysctl.prepare_representor(&wire.name)?;
        self.network.set_up(wire.ifindex).await?;
        self.programs.attach(Hook::RepresentorIngress, &wire.name, wire.ifindex)?;
        self.programs.attach(Hook::RepresentorEgress, &wire.name, wire.ifindex)?;
        for (selector, table) in port_rules(wire) {
            self.network.add_rule(&selector, table, priority(&selector)).await?;
        }
        for address in &wire.addresses {
            self.wire_address(wire, *address).await?;
        }
        Ok(())
    }

    async fn wire_address(&self, wire: &Wire, address: IpAddr) -> Result<(), KernelError> {
        let (prefix, uplink) = (IpNet::from(address), self.uplink.1);
        self.network.put_neighbor(wire.ifindex, address, wire.mac).await?;
        self.network.put_route(table(wire.slot), prefix, Way::Link(wire.ifindex)).await?;
        // What the proxy sends to it by the uplink is turned there (`uplink_egress`).
        self.network.put_neighbor(uplink.ifindex, address, wire.mac).await?;
        self.network.put_route(table(0), prefix, Way::Link(uplink.ifindex)).await?;
        match wire.governed {
            true => self.network.put_route(TABLE_INBOUND, prefix, Way::Local).await,
            false => self.network.delete_route(TABLE_INBOUND, prefix, Way::Local).await,
        }
    }

    async fn unwire(&mut self, wire: &Wire) -> Result<(), KernelError> {
        for address in &wire.addresses {
            self.unwire_address(wire, *address).await?;
        }
        for (selector, table) in port_rules(wire) {
            self.network.delete_rule(&selector, table, priority(&selector)).await?;
        }
        for ip_version in [4, 6] {
            // Nobody may have registered one.
            let _ = self.programs.maps.listeners.remove(&abi::ListenerKey { ifindex: wire.ifindex, ip_version });
        }
        self.programs.detach(Hook::RepresentorEgress, wire.ifindex)?;
        self.programs.detach(Hook::RepresentorIngress, wire.ifindex)
    }

    async fn unwire_address(&self, wire: &Wire, address: IpAddr) -> Result<(), KernelError> {
        let (prefix, uplink) = (IpNet::from(address), self.uplink.1);
        self.network.delete_route(TABLE_INBOUND, prefix, Way::Local).await?;
        self.network.delete_route(table(0), prefix, Way::Link(uplink.ifindex)).await?;
        self.network.delete_route(table(wire.slot), prefix, Way::Link(wire.ifindex)).await?;
        self.network.delete_neighbor(uplink.ifindex, address).await?;
        self.network.delete_neighbor(wire.ifindex, address).await
    }

    async fn rewire(&mut self, change: &Difference<u32, Wire>) -> Result<(), KernelError> {
        if let Some(before) = &change.before {
            let after = change.after.as_ref();
            let kept = |address: &IpAddr| after.is_some_and(|after| after.addresses.contains(address));
            match after {
                Some(after) if after.name == before.name && after.slot == before.slot => {
                    for address in before.addresses.iter().filter(|address| !kept(address)) {
                        self.unwire_address(before, *address).await?;
                    }
                }
                _ => self.unwire(before).await?,
            }
        }
        match &change.after {
            Some(after) => self.wire(after).await,
            None => Ok(()),
        }
    }

    /// The programs' routes, and for the proxy's sockets those of the API: the DPU's own are in its main
    /// table, where those sockets look next.
    async fn route(&mut self, change: &Difference<IpNet, Hop>) -> Result<(), KernelError> {
        let (key, links) = (trie_key(change.key), self.links());
        let uplink = links.uplink;
        if let Some(Hop::Configured(next_hop)) = change.after {
            self.network.put_route(table(0), change.key, Way::Via(uplink, next_hop)).await?;
        }
        let routes = &mut self.programs.maps.routes;
        match change.after {
            Some(hop) => wrote("ROUTES", routes.insert(&key, next_hop(links, hop), 0))?,
            None => gone("ROUTES", routes.remove(&key))?,
        }
        match (change.before, change.after) {
            (Some(Hop::Configured(_)), Some(Hop::Configured(_))) => Ok(()),
            (Some(Hop::Configured(before)), _) => {
                self.network.delete_route(table(0), change.key, Way::Via(uplink, before)).await
            }
            _ => Ok(()),
        }
    }
}

impl Kernel {
    fn links(&self) -> Links {
        Links { uplink: self.uplink.1.ifindex, host: self.host.as_ref().map(|(_, device)| device.ifindex) }
    }
}

type TrieKey = aya::maps::lpm_trie::Key<abi::RoutePrefix>;

impl Door for Kernel {
    async fn device(&mut self, name: &str) -> Result<Option<Device>, KernelError> {
        match self.network.link(name).await {
            Ok(link) => Ok(Some(Device { ifindex: link.ifindex, mac: link.mac })),
            Err(KernelError::NoInterface(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn uplink_address(&mut self) -> Result<Option<IpAddr>, KernelError> {
        self.network.address(self.uplink.1.ifindex).await
    }

    async fn own_routes(&mut self) -> Result<OwnRoutes, KernelError> {
        let heard = self.network.heard_routes().await?;
        Ok(underlay::own_routes(&heard, self.links()))
    }

    async fn carry_out(&mut self, change: &Change) -> Result<(), KernelError> {
        match change {
            Change::Wire(change) => self.rewire(change).await,
            Change::Route(change) => self.route(change).await,
            table => write(&mut self.programs.maps, table),
        }
    }

    fn zero_counters(&mut self, slot: u32) -> Result<(), KernelError> {
        self.programs.counters.zero(slot)
    }

    fn set_listener(&mut self, ifindex: u32, ip_version: u32, socket: &OwnedFd) -> Result<(), KernelError> {
        programs::set_listener(&mut self.programs.maps, abi::ListenerKey { ifindex, ip_version }, socket)
    }
}

fn write(maps: &mut Maps, change: &Change) -> Result<(), KernelError> {
    match change {
        Change::Shut(one) => match one.after {
            Some(mark) => wrote("SHUT", maps.shut.insert(one.key, mark, 0)),
            None => gone("SHUT", maps.shut.remove(&one.key)),
        },
        Change::Port(one) => match one.after {
            Some(port) => wrote("PORTS", maps.ports.insert(one.key, port, 0)),
            None => gone("PORTS", maps.ports.remove(&one.key)),
        },
        Change::Endpoint(one) => match one.after {
            Some(ifindex) => wrote("ENDPOINTS", maps.endpoints.insert(one.key, ifindex, 0)),
            None => gone("ENDPOINTS", maps.endpoints.remove(&one.key)),
        },
        Change::Service(one) => match one.after {
            Some(service) => wrote("SERVICES", maps.services.insert(one.key, service, 0)),
            None => gone("SERVICES", maps.services.remove(&one.key)),
        },
        Change::Backend(one) => wrote("BACKENDS", maps.backends.set(one.key, one.after.unwrap_or_default(), 0)),
        Change::Maglev(one) => write_row(maps, one),
        Change::Wire(_) | Change::Route(_) => Ok(()),
    }
}

/// A row that goes is left: nobody reads it, and the next one overwrites it.
fn write_row(maps: &mut Maps, change: &Difference<u32, Vec<u32>>) -> Result<(), KernelError> {
    let start = change.key * abi::MAGLEV_SIZE;
    for (place, backend) in change.after.iter().flatten().enumerate() {
        wrote("MAGLEV", maps.maglev.set(start + place as u32, backend, 0))?;
    }
    Ok(())
}

fn wrote(map: &'static str, result: Result<(), aya::maps::MapError>) -> Result<(), KernelError> {
    result.map_err(|error| KernelError::map(map, "write", &error))
}

fn gone(map: &'static str, result: Result<(), aya::maps::MapError>) -> Result<(), KernelError> {
    match result {
        Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(aya::maps::MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(nix::libc::ENOENT) => {
            Ok(())
        }
        other => wrote(map, other),
    }
}

/// Table of the way back to a port, or to the fabric (slot 0). Also the mark of what it answers.
fn table(slot: u32) -> u32 {
    abi::MARK_PORT | slot
}

fn port_rules(wire: &Wire) -> [(Selector, u32); 3] {
    [
        (Selector::Output(wire.name.clone()), table(wire.slot)),
        (Selector::Mark(table(wire.slot)), table(wire.slot)),
        (Selector::Input(wire.name.clone()), TABLE_UP),
    ]
}

fn uplink_rules(name: &str) -> [(Selector, u32); 3] {
    [
        (Selector::Output(name.to_owned()), table(0)),
        (Selector::Mark(table(0)), table(0)),
        (Selector::Input(name.to_owned()), TABLE_INBOUND),
    ]
}

async fn named(network: &Network, name: &str) -> Result<(String, Device), KernelError> {
    let link = network.link(name).await?;
    Ok((name.to_owned(), Device { ifindex: link.ifindex, mac: link.mac }))
}

fn next_hop(links: Links, hop: Hop) -> abi::NextHop {
    let by = |ifindex: u32, address: Option<IpAddr>| match address {
        Some(address) => {
            abi::NextHop { ifindex, ip_version: if address.is_ipv4() { 4 } else { 6 }, address: address.into() }
        }
        None => abi::NextHop { ifindex, ..abi::NextHop::default() },
    };
    match hop {
        Hop::Configured(address) => by(links.uplink, Some(address)),
        Hop::Own(address) => by(links.uplink, address),
        // Without such a link there is no such route.
        Hop::Host(address) => by(links.host.unwrap_or_default(), address),
        Hop::Refused => abi::NextHop::default(),
    }
}

fn everything() -> [IpNet; 2] {
    [IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())]
}

fn trie_key(prefix: IpNet) -> TrieKey {
    let length = if prefix.addr().is_ipv4() { 96 + prefix.prefix_len() } else { prefix.prefix_len() };
    programs::route_key(abi::RoutePrefix { vni: 0, prefix: prefix.network().into() }, length)
}
