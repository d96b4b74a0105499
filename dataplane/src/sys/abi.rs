//! The structures of `bpf/tables.h`, byte for byte. Ports are in network order, addresses 16 bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Room for reasons in a counter record.
pub const DROP_REASON_ROOM: usize = 32;
/// Ports, and one for the uplink.
pub const MAX_PORTS: u32 = 1024;
pub const MAX_SERVICES: u32 = 4096;
pub const MAX_BACKENDS: u32 = 16384;
/// Entries of one service in `MAGLEV`.
pub const MAGLEV_SIZE: u32 = 1021;
/// Firewall mark of a port's packets on their way up, and routing table of the way back; the slot is added.
pub const MARK_PORT: u32 = 0x0d9c_0000;

pub const PORT_OPEN: u32 = 1;
pub const PORT_GOVERNED: u32 = 2;
pub const PORT_BYPASS: u32 = 4;

/// IPv6, or IPv4 as `::ffff:a.b.c.d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct Address(pub [u8; 16]);

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        Self(match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        })
    }
}

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        IpAddr::from(address).into()
    }
}

impl From<Ipv6Addr> for Address {
    fn from(address: Ipv6Addr) -> Self {
        IpAddr::from(address).into()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Port {
    pub slot: u32,
    pub vni: u32,
    pub flags: u32,
    pub mac: [u8; 6],
    pub gateway_mac: [u8; 6],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct EndpointKey {
    pub vni: u32,
    pub address: Address,
}

/// What follows the prefix length in a key of the trie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct RoutePrefix {
    pub vni: u32,
    pub prefix: Address,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NextHop {
    /// 0: nobody may go there.
    pub ifindex: u32,
    /// 0: the destination itself is on the link.
    pub ip_version: u32,
    pub address: Address,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct ServiceKey {
    pub vip: Address,
    pub vni: u32,
    pub port: [u8; 2],
    pub protocol: u8,
    pub zero: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    pub index: u32,
    pub backends: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    pub address: Address,
    pub port: [u8; 2],
    pub zero: [u8; 2],
    /// Never 0 for a backend that is there.
    pub generation: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct ListenerKey {
    pub ifindex: u32,
    pub ip_version: u32,
}

/// A TCP port of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct PodPort {
    pub ifindex: u32,
    pub port: [u8; 2],
    pub ip_version: u8,
    pub zero: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Uplink {
    pub ifindex: u32,
    pub mac: [u8; 6],
    pub zero: [u8; 2],
}

/// The link to the host's own function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Host {
    /// 0: none.
    pub ifindex: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub steered: u64,
    pub drops: [u64; DROP_REASON_ROOM],
}

macro_rules! pod {
    ($($name:ident),*) => {$(
        // SAFETY: `repr(C)`, made of integers and arrays of integers without padding, so every byte is
        // initialised and every bit pattern is valid.
        unsafe impl aya::Pod for $name {}
    )*};
}
pod!(
    Port,
    EndpointKey,
    RoutePrefix,
    NextHop,
    ServiceKey,
    Service,
    Backend,
    ListenerKey,
    PodPort,
    Uplink,
    Host,
    Counters
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_that_c_gives_them_and_no_padding() {
        assert_eq!(size_of::<Port>(), 24);
        assert_eq!(size_of::<EndpointKey>(), 20);
        assert_eq!(size_of::<RoutePrefix>(), 20);
        assert_eq!(size_of::<NextHop>(), 24);
        assert_eq!(size_of::<ServiceKey>(), 24);
        assert_eq!(size_of::<Backend>(), 24);
        assert_eq!(size_of::<PodPort>(), 8);
        assert_eq!(size_of::<Uplink>(), 12);
        assert_eq!(size_of::<Counters>(), 8 * (5 + DROP_REASON_ROOM));
    }
}
