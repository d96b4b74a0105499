//! Links, policy rules, routes and neighbours of this network namespace, by netlink.
//!
//! Every object here may be there already (after a restart) or be gone already: neither is an error.

use super::KernelError;
use futures_util::TryStreamExt;
use ipnet::IpNet;
use mesh_model::MacAddress;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, LinkUnspec, RouteMessageBuilder};
use std::net::IpAddr;
use tokio::task::JoinHandle;

/// Interface index of `lo` in every namespace.
const LOOPBACK: u32 = 1;

/// The kernel's own tables (`linux/rtnetlink.h`).
const TABLE_MAIN: u32 = 254;
const TABLE_LOCAL: u32 = 255;

/// A link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub mac: MacAddress,
}

/// What a rule matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// Entered by the interface.
    Input(String),
    /// From a socket that is bound to the interface.
    Output(String),
    Mark(u32),
}

/// A route in a table of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Delivered to this machine, whoever's the address is.
    Local,
    /// On the link.
    Link(u32),
    /// By a next hop on the link.
    Via(u32, IpAddr),
}

/// A route that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub prefix: IpNet,
    /// False: to an address of this machine, or refused by whoever made the route.
    pub is_unicast: bool,
    /// Links, each with the next hop on it; without one, the destination is on the link.
    pub ways: Vec<(u32, Option<IpAddr>)>,
    /// The least is in force.
    pub metric: u32,
}

/// The netlink socket of the namespace that this was made in.
#[derive(Debug)]
pub struct Network {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Network {
    /// Needs a tokio runtime.
    pub fn open() -> Result<Self, KernelError> {
        let opened = rtnetlink::new_connection();
        let (connection, handle, _) = opened.map_err(|error| refused("open a netlink socket", error))?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    /// The link of that name.
    pub async fn link(&self, name: &str) -> Result<Link, KernelError> {
        let mut links = Box::pin(self.handle.link().get().match_name(name).execute());
        match links.try_next().await {
            Ok(Some(message)) => link(&message).ok_or_else(|| KernelError::NoInterface(name.to_owned())),
            Ok(None) => Err(KernelError::NoInterface(name.to_owned())),
            Err(error) if errno(&error) == Some(nix::libc::ENODEV) => Err(KernelError::NoInterface(name.to_owned())),
            Err(error) => Err(refused(&format!("read link {name}"), error)),
        }
    }

    /// Sets the link up.
    pub async fn set_up(&self, ifindex: u32) -> Result<(), KernelError> {
        let message = LinkUnspec::new_with_index(ifindex).up().build();
        let result = self.handle.link().set(message).execute().await;
        result.map_err(|error| refused(&format!("set link {ifindex} up"), error))
    }

    /// First IPv4 address of the link, else its first other one that is more than link-local.
    pub async fn address(&self, ifindex: u32) -> Result<Option<IpAddr>, KernelError> {
        let stream = self.handle.address().get().set_link_index_filter(ifindex).execute();
        let messages: Vec<_> = stream.try_collect().await.map_err(|error| refused("list addresses", error))?;
        let addresses =
            messages.iter().flat_map(|message| &message.attributes).filter_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
        let is_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let addresses = addresses.filter(|address| !is_local(address));
        Ok(addresses.min_by_key(|address| address.is_ipv6()))
    }

    /// Adds a rule that looks into `table`, for IPv4 and IPv6.
    pub async fn add_rule(&self, selector: &Selector, table: u32, priority: u32) -> Result<(), KernelError> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = self.handle.rule().add();
            *request.message_mut() = rule(selector, table, priority, family);
            tolerate(request.execute().await, nix::libc::EEXIST, || {
                format!("add the rule {selector:?} to table {table:#x}")
            })?;
        }
        Ok(())
    }

    /// Removes it.
    pub async fn delete_rule(&self, selector: &Selector, table: u32, priority: u32) -> Result<(), KernelError> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let message = rule(selector, table, priority, family);
            let result = self.handle.rule().del(message).execute().await;
            tolerate(result, nix::libc::ENOENT, || format!("delete the rule {selector:?} to table {table:#x}"))?;
        }
        Ok(())
    }

    /// Removes rules that send what enters by other interfaces than these into `table`.
    pub async fn keep_inputs(&self, table: u32, interfaces: &[String]) -> Result<(), KernelError> {
        for version in [IpVersion::V4, IpVersion::V6] {
            let stream = self.handle.rule().get(version).execute();
            let rules: Vec<RuleMessage> = stream.try_collect().await.map_err(|error| refused("list rules", error))?;
            let is_other = |rule: &RuleMessage| {
                table_of(rule) == Some(table)
                    && input_of(rule).is_some_and(|name| !interfaces.iter().any(|one| one == name))
            };
            for rule in rules.into_iter().filter(is_other) {
                tolerate(self.handle.rule().del(rule).execute().await, nix::libc::ENOENT, || {
                    "delete a rule".to_owned()
                })?;
            }
        }
        Ok(())
    }

    /// Removes every rule to a table that `is_ours`, every route in such a table, and the neighbour of
    /// every address that is on a link by such a route.
    pub async fn sweep(&self, is_ours: impl Fn(u32) -> bool) -> Result<(), KernelError> {
        for version in [IpVersion::V4, IpVersion::V6] {
            let stream = self.handle.rule().get(version).execute();
            let rules: Vec<RuleMessage> = stream.try_collect().await.map_err(|error| refused("list rules", error))?;
            for rule in rules.into_iter().filter(|rule| table_of(rule).is_some_and(&is_ours)) {
                tolerate(self.handle.rule().del(rule).execute().await, nix::libc::ENOENT, || {
                    "delete a rule".to_owned()
                })?;
            }
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for route in self.routes(family).await?.into_iter().filter(|route| is_ours(route_table(route))) {
                if let Some((ifindex, address)) = on_link(&route) {
                    self.delete_neighbor(ifindex, address).await?;
                }
                let result = self.handle.route().del(route).execute().await;
                tolerate(result, nix::libc::ESRCH, || "delete a route".to_owned())?;
            }
        }
        Ok(())
    }

    async fn routes(&self, family: AddressFamily) -> Result<Vec<RouteMessage>, KernelError> {
        let mut query = RouteMessage::default();
        query.header.address_family = family;
        self.handle.route().get(query).execute().try_collect().await.map_err(|error| refused("list routes", error))
    }

    /// What the kernel's main and local tables say.
    pub async fn heard_routes(&self) -> Result<Vec<Heard>, KernelError> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            all.extend(self.routes(family).await?.iter().filter_map(heard));
        }
        Ok(all)
    }

    /// Adds a route or replaces the one to the prefix.
    pub async fn put_route(&self, table: u32, prefix: IpNet, way: Way) -> Result<(), KernelError> {
        let result = self.handle.route().add(route(table, prefix, way)?).replace().execute().await;
        result.map_err(|error| refused(&format!("add the route {prefix} {way:?} to table {table:#x}"), error))
    }

    /// Removes it.
    pub async fn delete_route(&self, table: u32, prefix: IpNet, way: Way) -> Result<(), KernelError> {
        let result = self.handle.route().del(route(table, prefix, way)?).execute().await;
        match result.as_ref().err().and_then(errno) {
            Some(nix::libc::ESRCH | nix::libc::ENODEV | nix::libc::ENOENT) => Ok(()),
            _ => result.map_err(|error| refused(&format!("delete the route {prefix} from table {table:#x}"), error)),
        }
    }

    /// Says where an address is, so that nobody needs to be asked.
    pub async fn put_neighbor(&self, ifindex: u32, address: IpAddr, mac: MacAddress) -> Result<(), KernelError> {
        let request = self.handle.neighbours().add(ifindex, address).link_layer_address(&mac.0);
        let result = request.state(NeighbourState::Permanent).replace().execute().await;
        result.map_err(|error| refused(&format!("set the neighbour {address}"), error))
    }

    /// Forgets it.
    pub async fn delete_neighbor(&self, ifindex: u32, address: IpAddr) -> Result<(), KernelError> {
        let mut request = self.handle.neighbours().add(ifindex, address);
        let message = request.message_mut().clone();
        let result = self.handle.neighbours().del(message).execute().await;
        match result.as_ref().err().and_then(errno) {
            Some(nix::libc::ENOENT | nix::libc::ENODEV | nix::libc::ENXIO) => Ok(()),
            _ => result.map_err(|error| refused(&format!("forget the neighbour {address}"), error)),
        }
    }
}

fn link(message: &LinkMessage) -> Option<Link> {
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
        _ => None,
    });
    Some(Link { ifindex: message.header.index, mac: MacAddress(mac?) })
}

fn rule(selector: &Selector, table: u32, priority: u32, family: AddressFamily) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Table(table));
    message.attributes.push(RuleAttribute::Priority(priority));
    message.attributes.push(match selector {
        Selector::Input(name) => RuleAttribute::Iifname(name.clone()),
        Selector::Output(name) => RuleAttribute::Oifname(name.clone()),
        Selector::Mark(mark) => RuleAttribute::FwMark(*mark),
    });
    message
}

fn table_of(rule: &RuleMessage) -> Option<u32> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    })
}

fn input_of(rule: &RuleMessage) -> Option<&str> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Iifname(name) => Some(name.as_str()),
        _ => None,
    })
}

fn route_table(route: &RouteMessage) -> u32 {
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or(u32::from(route.header.table))
}

/// Link and address of a route to one address on a link.
fn on_link(route: &RouteMessage) -> Option<(u32, IpAddr)> {
    let (mut ifindex, mut address) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => ifindex = Some(*oif),
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            RouteAttribute::Gateway(_) => return None,
            _ => {}
        }
    }
    let is_host = route.header.destination_prefix_length == if address?.is_ipv4() { 32 } else { 128 };
    Some((ifindex?, address?)).filter(|_| is_host && route.header.kind == RouteType::Unicast)
}

/// `None`: a route of ours, of multicast or broadcast, or one that is dead.
fn heard(route: &RouteMessage) -> Option<Heard> {
    let is_unicast = route.header.kind == RouteType::Unicast;
    let is_refusal = matches!(route.header.kind, RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit);
    let is_heard = match route_table(route) {
        TABLE_MAIN => is_unicast || is_refusal,
        TABLE_LOCAL => route.header.kind == RouteType::Local,
        _ => false,
    };
    if !is_heard || route.header.flags.contains(RouteFlags::Dead) {
        return None;
    }
    let v4 = route.header.address_family == AddressFamily::Inet;
    let mut destination = if v4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let (mut ways, mut single, mut metric) = (Vec::new(), (None, None), 0);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Oif(oif) => single.0 = Some(*oif),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => single.1 = gateway(attribute),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::MultiPath(hops) => {
                ways.extend(hops.iter().map(|hop| (hop.interface_index, hop.attributes.iter().find_map(gateway))))
            }
            _ => {}
        }
    }
    ways.extend(single.0.map(|oif| (oif, single.1)));
    let prefix = IpNet::new(destination, route.header.destination_prefix_length).ok()?;
    Some(Heard { prefix, is_unicast, ways, metric })
}

fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        // A next hop of the other family.
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn route(table: u32, prefix: IpNet, way: Way) -> Result<RouteMessage, KernelError> {
    let builder = RouteMessageBuilder::<IpAddr>::new().table_id(table);
    let builder = builder.destination_prefix(prefix.network(), prefix.prefix_len());
    let builder = builder.map_err(|error| refused(&format!("write the route {prefix}"), error))?;
    Ok(match way {
        Way::Local => builder.kind(RouteType::Local).scope(RouteScope::Host).output_interface(LOOPBACK).build(),
        Way::Link(ifindex) => builder.scope(RouteScope::Link).output_interface(ifindex).build(),
        Way::Via(ifindex, gateway) => {
            let builder = builder.output_interface(ifindex).onlink().gateway(gateway);
            builder.map_err(|error| refused(&format!("write the route {prefix}"), error))?.build()
        }
    })
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(-message.raw_code()),
        _ => None,
    }
}

fn tolerate(result: Result<(), rtnetlink::Error>, code: i32, action: impl Fn() -> String) -> Result<(), KernelError> {
    match result {
        Err(error) if errno(&error) == Some(code) => Ok(()),
        other => other.map_err(|error| refused(&action(), error)),
    }
}

fn refused(action: &str, error: impl std::fmt::Display) -> KernelError {
    KernelError::Netlink { action: action.to_owned(), reason: error.to_string() }
}
