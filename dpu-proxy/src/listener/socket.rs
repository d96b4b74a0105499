//! Listening sockets: a SO_REUSEPORT group with one member per worker.

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

const BACKLOG: u32 = 4096;

/// Where a group listens. The group stays while this stays, whatever else of a listener changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub address: SocketAddr,
    /// Bound to this device: only what enters by it is accepted.
    pub device: Option<Arc<str>>,
    /// Which incarnation of the device; 0 without one. A device that comes back is another one.
    pub ifindex: u32,
    /// Accepts connections to addresses that are not ours.
    pub transparent: bool,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.device {
            Some(device) => write!(f, "{}%{device}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

/// Makes the group. A port of 0 is chosen once for all members.
pub fn group(place: &Place, members: usize, backlog: Option<u32>) -> io::Result<Vec<std::net::TcpListener>> {
    let first = member(place, place.address, backlog)?;
    let address = first.local_addr()?;
    let mut group = vec![first];
    for _ in 1..members {
        group.push(member(place, address, backlog)?);
    }
    Ok(group)
}

fn member(place: &Place, address: SocketAddr, backlog: Option<u32>) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        // On a device each IP version has its own socket.
        socket.set_only_v6(place.device.is_some())?;
    }
    if let Some(device) = &place.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if place.transparent {
        match address {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
        }
    }
    socket.bind(&SockAddr::from(address))?;
    socket.listen(backlog.unwrap_or(BACKLOG).min(i32::MAX as u32) as i32)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_shares_one_port() {
        let address = "127.0.0.1:0".parse().expect("address");
        let group = group(&Place { address, device: None, ifindex: 0, transparent: false }, 3, None).expect("group");
        let ports: Vec<_> = group.iter().map(|one| one.local_addr().expect("address").port()).collect();
        assert!(ports[0] != 0 && ports.iter().all(|port| *port == ports[0]), "{ports:?}");
    }
}
