//! Addresses and routes of a link, and the host's own ways to its pods.

use super::{KernelError, Namespace};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::RouteMessageBuilder;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Who made a route, as the kernel keeps it: by this number ours are found again.
const OURS: RouteProtocol = RouteProtocol::Other(215);

/// A route of ours in the host's main table. Which link it is out of follows from the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRoute {
    pub destination: IpNet,
    pub gateway: IpAddr,
}

/// A route out of one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRoute {
    pub destination: IpNet,
    /// `None`: on the link itself.
    pub gateway: Option<IpAddr>,
}

impl Namespace {
    /// Adds an address without duplicate address detection: it is unique by IPAM.
    pub async fn add_address(&self, index: u32, address: IpNet) -> Result<(), KernelError> {
        let mut request = self.netlink().address().add(index, address.addr(), address.prefix_len()).replace();
        if address.addr().is_ipv6() {
            let flags = AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Permanent);
            request.message_mut().attributes.push(flags);
        }
        request.execute().await.map_err(|error| self.refused(&format!("add address {address} to link {index}"), error))
    }

    /// Addresses of a link, without link-local ones.
    pub async fn addresses(&self, index: u32) -> Result<Vec<IpNet>, KernelError> {
        let _listing = self.listing().await;
        let stream = self.netlink().address().get().set_link_index_filter(index).execute();
        let messages: Vec<AddressMessage> = stream
            .try_collect()
            .await
            .map_err(|error| self.refused(&format!("list addresses of link {index}"), error))?;
        Ok(messages.iter().filter_map(address).filter(|net| !is_link_local(net.addr())).collect())
    }

    /// Removes every address of a link.
    pub async fn flush_addresses(&self, index: u32) -> Result<(), KernelError> {
        let listing = self.listing().await;
        let stream = self.netlink().address().get().set_link_index_filter(index).execute();
        let action = format!("remove the addresses of link {index}");
        let messages: Vec<AddressMessage> = stream.try_collect().await.map_err(|error| self.refused(&action, error))?;
        drop(listing);
        for message in messages {
            self.netlink().address().del(message).execute().await.map_err(|error| self.refused(&action, error))?;
        }
        Ok(())
    }

    /// Adds a route, or replaces the one to the same destination.
    pub async fn add_route(&self, index: u32, route: PodRoute) -> Result<(), KernelError> {
        let action = format!("add the route to {} out of link {index}", route.destination);
        let request = self.netlink().route().add(message(index, route)).replace();
        request.execute().await.map_err(|error| self.refused(&action, error))
    }

    /// Whether the main table has the route.
    pub async fn has_route(&self, index: u32, route: PodRoute) -> Result<bool, KernelError> {
        let messages = self.routes(route.destination.addr().is_ipv4()).await?;
        Ok(messages.iter().any(|message| parse(message) == Some((index, route))))
    }

    async fn routes(&self, is_v4: bool) -> Result<Vec<RouteMessage>, KernelError> {
        let query = match is_v4 {
            true => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            false => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let _listing = self.listing().await;
        let stream = self.netlink().route().get(query).execute();
        stream.try_collect().await.map_err(|error| self.refused("list routes", error))
    }

    /// The routes that `add_own_route` made, now or in an earlier life.
    pub async fn own_routes(&self) -> Result<Vec<HostRoute>, KernelError> {
        let mut all = self.routes(true).await?;
        all.extend(self.routes(false).await?);
        let is_own = |message: &&RouteMessage| {
            message.header.protocol == OURS && message.header.table == RouteHeader::RT_TABLE_MAIN
        };
        let routes = all.iter().filter(is_own).filter_map(parse);
        Ok(routes
            .filter_map(|(_, route)| Some(HostRoute { destination: route.destination, gateway: route.gateway? }))
            .collect())
    }

    /// Adds one, unless somebody else has one to the same destination.
    pub async fn add_own_route(&self, route: HostRoute) -> Result<(), KernelError> {
        let action = format!("add the route to {} by {}", route.destination, route.gateway);
        let message = own(route).ok_or_else(|| KernelError::refused(&action, io::ErrorKind::InvalidInput.into()))?;
        self.netlink().route().add(message).execute().await.map_err(|error| self.refused(&action, error))
    }

    /// Removes one.
    pub async fn delete_own_route(&self, route: HostRoute) -> Result<(), KernelError> {
        let action = format!("delete the route to {} by {}", route.destination, route.gateway);
        let message = own(route).ok_or_else(|| KernelError::refused(&action, io::ErrorKind::InvalidInput.into()))?;
        self.netlink().route().del(message).execute().await.map_err(|error| self.refused(&action, error))
    }
}

/// `None` when destination and gateway are of different families.
fn own(route: HostRoute) -> Option<RouteMessage> {
    let HostRoute { destination, gateway } = route;
    let builder = RouteMessageBuilder::<IpAddr>::new().protocol(OURS);
    let builder = builder.destination_prefix(destination.addr(), destination.prefix_len()).ok()?;
    Some(builder.gateway(gateway).ok()?.build())
}

fn message(index: u32, route: PodRoute) -> RouteMessage {
    match (route.destination, route.gateway) {
        (IpNet::V4(net), gateway) => {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .output_interface(index)
                .destination_prefix(net.network(), net.prefix_len());
            match gateway {
                Some(IpAddr::V4(gateway)) => builder.gateway(gateway).build(),
                _ => builder.scope(RouteScope::Link).build(),
            }
        }
        (IpNet::V6(net), gateway) => {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .output_interface(index)
                .destination_prefix(net.network(), net.prefix_len());
            match gateway {
                Some(IpAddr::V6(gateway)) => builder.gateway(gateway).build(),
                _ => builder.build(),
            }
        }
    }
}

fn parse(message: &RouteMessage) -> Option<(u32, PodRoute)> {
    let v4 = message.header.address_family == netlink_packet_route::AddressFamily::Inet;
    let mut destination = if v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let (mut index, mut gateway) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(address) => gateway = Some(ip(address)?),
            _ => {}
        }
    }
    let destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    Some((index?, PodRoute { destination, gateway }))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn address(message: &AddressMessage) -> Option<IpNet> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) if local => Some(*ip),
            AddressAttribute::Address(ip) if !local => Some(*ip),
            _ => None,
        })
    };
    IpNet::new(find(true).or_else(|| find(false))?, message.header.prefix_len).ok()
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
