//! Links of a namespace: find, change, move.

use super::{KernelError, Namespace, io_error};
use futures_util::TryStreamExt;
use mesh_model::MacAddress;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};
use serde::{Deserialize, Serialize};
use std::io;

/// What a device is, in whatever namespace and under whatever name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// PCI address, e.g. `0000:03:00.2`.
    Pci(String),
    /// One end of a veth pair: interface index of the other end, in its own namespace.
    VethPeer(u32),
}

/// A link as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Option<MacAddress>,
    pub mtu: u32,
    pub up: bool,
    pub alias: String,
    pub device: Option<Device>,
}

impl Namespace {
    /// All links.
    pub async fn links(&self) -> Result<Vec<Link>, KernelError> {
        let _listing = self.listing().await;
        let stream = self.netlink().link().get().execute();
        let messages: Vec<LinkMessage> =
            stream.try_collect().await.map_err(|error| self.refused("list links", error))?;
        Ok(messages.into_iter().map(link).collect())
    }

    /// The link of that name.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, KernelError> {
        let mut stream = Box::pin(self.netlink().link().get().match_name(name).execute());
        match stream.try_next().await {
            Ok(message) => Ok(message.map(link)),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -nix::libc::ENODEV => Ok(None),
            Err(error) => Err(self.refused(&format!("read link {name}"), error)),
        }
    }

    /// The link that is that device. Where several could be, the one named `hint` is preferred.
    pub async fn find(&self, device: &Device, hint: &str) -> Result<Option<Link>, KernelError> {
        let mut candidates: Vec<Link> =
            self.links().await?.into_iter().filter(|link| link.device.as_ref() == Some(device)).collect();
        candidates.sort_by_key(|link| link.name != hint);
        Ok(candidates.into_iter().next())
    }

    /// Renames a link that is down.
    pub async fn rename(&self, index: u32, name: &str) -> Result<(), KernelError> {
        self.change(&format!("rename link {index} to {name}"), unspec(index).name(name)).await
    }

    /// Sets the MAC address.
    pub async fn set_mac(&self, index: u32, mac: MacAddress) -> Result<(), KernelError> {
        self.change(&format!("set MAC {mac} on link {index}"), unspec(index).address(mac.0.to_vec())).await
    }

    /// Sets the MTU in bytes.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), KernelError> {
        self.change(&format!("set MTU {mtu} on link {index}"), unspec(index).mtu(mtu)).await
    }

    /// Sets the alias, which stays with the device across names and namespaces.
    pub async fn set_alias(&self, index: u32, alias: &str) -> Result<(), KernelError> {
        self.change(&format!("set alias {alias:?} on link {index}"), unspec(index).alias(alias)).await
    }

    /// Brings a link up.
    pub async fn up(&self, index: u32) -> Result<(), KernelError> {
        self.change(&format!("bring link {index} up"), unspec(index).up()).await
    }

    /// Takes a link down.
    pub async fn down(&self, index: u32) -> Result<(), KernelError> {
        self.change(&format!("take link {index} down"), unspec(index).down()).await
    }

    /// Moves a link to another namespace. Its addresses and routes are lost.
    pub async fn move_to(&self, index: u32, target: &Namespace) -> Result<(), KernelError> {
        let action = format!("move link {index} from {} to {}", self.path().display(), target.path().display());
        self.change(&action, unspec(index).setns_by_fd(target.raw_fd())).await
    }

    /// Makes a veth pair.
    pub async fn add_veth(&self, name: &str, peer: &str) -> Result<(), KernelError> {
        let request = self.netlink().link().add(LinkVeth::new(name, peer).build());
        request.execute().await.map_err(|error| self.refused(&format!("make veth pair {name} and {peer}"), error))
    }

    /// Removes a link, and the other end of a veth pair with it; one that is gone is no error.
    pub async fn remove(&self, index: u32) -> Result<(), KernelError> {
        match self.netlink().link().del(index).execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -nix::libc::ENODEV => Ok(()),
            Err(error) => Err(self.refused(&format!("remove link {index}"), error)),
            Ok(()) => Ok(()),
        }
    }

    /// Sends any other change of a link.
    pub async fn change(&self, action: &str, message: LinkMessageBuilder<LinkUnspec>) -> Result<(), KernelError> {
        let request = self.netlink().link().set(message.build());
        request.execute().await.map_err(|error| self.refused(action, error))
    }

    pub(super) fn refused(&self, action: &str, error: rtnetlink::Error) -> KernelError {
        KernelError::refused(action, io_error(error))
    }

    /// The link of that name, or an error that says that it is missing.
    pub async fn expect_link(&self, name: &str) -> Result<Link, KernelError> {
        let missing =
            || KernelError::refused(format!("find link {name}"), io::Error::from_raw_os_error(nix::libc::ENODEV));
        self.link(name).await?.ok_or_else(missing)
    }
}

fn unspec(index: u32) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_index(index)
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        alias: String::new(),
        device: None,
    };
    let (mut parent, mut peer, mut veth) = (None, None, false);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(octets) => link.mac = <[u8; 6]>::try_from(octets).ok().map(MacAddress),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::ParentDevName(name) => parent = Some(name),
            LinkAttribute::Link(index) => peer = Some(index),
            LinkAttribute::LinkInfo(info) => veth = info.contains(&LinkInfo::Kind(InfoKind::Veth)),
            _ => {}
        }
    }
    link.device = match (veth, peer) {
        (true, Some(index)) => Some(Device::VethPeer(index)),
        _ => parent.map(Device::Pci),
    };
    link
}
