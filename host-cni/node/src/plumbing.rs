//! Moves a VF into a pod and back, and sets it up there.
//!
//! The VF carries an alias from before it moves until it is clean again: names and indexes change
//! on the way, and other veth pairs may have the same peer index. Between namespaces it has a
//! name that nobody else chose, so that neither side's names can collide.

use crate::record::{Port, Record};
use crate::sys::{Device, KernelError, Link, Namespace, PodRoute};
use crate::vf::Vf;
use ipnet::IpNet;
use istio_dpu_cni::result::IpamResult;
use mesh_model::MacAddress;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Next hop of every pod. It is on no host: the dataplane answers for it at the representor.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Mark of a VF that is lent.
fn tag(vf: &Vf) -> String {
    format!("dpumesh {}", vf.id)
}

/// Finds the VF in a namespace, by its mark or as the device under one of the names that it may have.
pub async fn locate(namespace: &Namespace, vf: &Vf, names: &[&str]) -> Result<Option<Link>, KernelError> {
    let links = namespace.links().await?;
    let is_device = |link: &&Link| link.device.as_ref() == Some(&vf.device);
    let tag = tag(vf);
    let marked = links.iter().filter(is_device).find(|link| link.alias == tag);
    // A PCI address is one device's alone, under whatever name the kernel gave it.
    let is_pci = matches!(vf.device, Device::Pci(_));
    let named = || links.iter().filter(is_device).find(|link| is_pci || names.contains(&link.name.as_str()));
    Ok(marked.or_else(named).cloned())
}

/// Host to pod. The VF ends up named as the runtime asked, and down.
pub async fn give(host: &Namespace, pod: &Namespace, vf: &Vf, ifname: &str) -> Result<Link, KernelError> {
    if pod.link(ifname).await?.is_some() {
        let taken = io::Error::from_raw_os_error(nix::libc::EEXIST);
        return Err(KernelError::refused(format!("name the VF {ifname} in the pod"), taken));
    }
    let link = locate(host, vf, &[&vf.name]).await?;
    let link = link.ok_or_else(|| missing(&format!("find VF {} on the host", vf.id)))?;
    host.set_alias(link.index, &tag(vf)).await?;
    let moved = carry(host, pod, link.index).await?;
    pod.rename(moved.index, ifname).await?;
    pod.expect_link(ifname).await
}

/// Pod to host, if it is in the pod. The VF ends up as it was before it was lent.
pub async fn take_back(host: &Namespace, pod: &Namespace, vf: &Vf, ifname: &str) -> Result<bool, KernelError> {
    let Some(link) = locate(pod, vf, &[ifname, &vf.name]).await? else { return Ok(false) };
    carry(pod, host, link.index).await?;
    Ok(true)
}

/// Leaves nothing of the pod on a VF that is on the host; false when it is not there.
pub async fn clean(host: &Namespace, vf: &Vf) -> Result<bool, KernelError> {
    let Some(link) = locate(host, vf, &[&vf.name]).await? else { return Ok(false) };
    host.down(link.index).await?;
    host.flush_addresses(link.index).await?;
    if link.mac != Some(vf.mac) {
        host.set_mac(link.index, vf.mac).await?;
    }
    if link.mtu != vf.mtu {
        host.set_mtu(link.index, vf.mtu).await?;
    }
    if link.name != vf.name {
        host.rename(link.index, &vf.name).await?;
    }
    // Last: until here the mark is how an interrupted clean-up finds the VF again.
    host.set_alias(link.index, "").await?;
    Ok(true)
}

async fn carry(from: &Namespace, to: &Namespace, index: u32) -> Result<Link, KernelError> {
    let name = format!("dm{:08x}", fastrand::u32(..));
    from.down(index).await?;
    from.rename(index, &name).await?;
    from.move_to(index, to).await?;
    to.expect_link(&name).await
}

/// Addresses, routes and link settings in the pod.
pub async fn set_up(
    pod: &Namespace,
    link: &Link,
    mac: MacAddress,
    mtu: u32,
    ipam: &IpamResult,
) -> Result<(), KernelError> {
    if link.mac != Some(mac) {
        pod.set_mac(link.index, mac).await?;
    }
    if link.mtu != mtu {
        pod.set_mtu(link.index, mtu).await?;
    }
    quiet_ipv6(pod, &link.name).await?;
    pod.up(link.index).await?;
    for address in host_addresses(ipam) {
        pod.add_address(link.index, address).await?;
    }
    for route in routes(ipam) {
        pod.add_route(link.index, route).await?;
    }
    Ok(())
}

/// Nobody on the fabric tells pods of routers or prefixes.
async fn quiet_ipv6(pod: &Namespace, name: &str) -> Result<(), KernelError> {
    for setting in ["accept_ra", "autoconf"] {
        match pod.write_sysctl(&format!("ipv6/conf/{name}/{setting}"), "0").await {
            // A kernel without IPv6, or a read-only /proc/sys, has no router advertisements to fear.
            Err(error) if matches!(error.errno(), Some(nix::libc::ENOENT | nix::libc::EROFS)) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Each address alone: nothing but the gateway is on the link.
pub fn host_addresses(ipam: &IpamResult) -> Vec<IpNet> {
    ipam.ips.iter().map(|ip| IpNet::from(ip.address.addr())).collect()
}

/// Next hop of an address family.
pub fn gateway(v4: bool) -> IpAddr {
    if v4 { IpAddr::V4(GATEWAY_V4) } else { IpAddr::V6(GATEWAY_V6) }
}

/// The way to the gateway, the default routes, and what IPAM adds, in the order in which they are made.
pub fn routes(ipam: &IpamResult) -> Vec<PodRoute> {
    let families = [true, false].into_iter().filter(|v4| ipam.ips.iter().any(|ip| ip.address.addr().is_ipv4() == *v4));
    let mut all = Vec::new();
    for v4 in families {
        let gateway = gateway(v4);
        if v4 {
            all.push(PodRoute { destination: gateway.into(), gateway: None });
        }
        let default = if v4 { IpNet::from(IpAddr::from([0; 4])) } else { IpNet::from(IpAddr::from([0; 16])) };
        let default = IpNet::new(default.addr(), 0).unwrap_or(default);
        let more =
            ipam.routes.iter().map(|route| route.dst).filter(|dst| dst.addr().is_ipv4() == v4 && dst.prefix_len() > 0);
        all.extend(
            std::iter::once(default).chain(more).map(|destination| PodRoute { destination, gateway: Some(gateway) }),
        );
    }
    all
}

/// What differs between the pod and the record, for CHECK; empty when nothing does.
pub async fn differences(
    pod: &Namespace,
    record: &Record,
    port: &Port,
    ipam: &IpamResult,
) -> Result<Vec<String>, KernelError> {
    let ifname = &record.key.ifname;
    let Some(link) = pod.link(ifname).await? else { return Ok(vec![format!("{ifname} is missing in the pod")]) };
    let mut all = Vec::new();
    let mut expect = |holds: bool, what: String| {
        if !holds {
            all.push(what);
        }
    };
    expect(link.device.as_ref() == Some(&record.vf.device), format!("{ifname} is not VF {}", record.vf.id));
    expect(link.up, format!("{ifname} is down"));
    expect(link.mac == Some(port.mac), format!("{ifname} has another MAC than {}", port.mac));
    expect(link.mtu == record.mtu, format!("{ifname} has MTU {} and not {}", link.mtu, record.mtu));
    let addresses = pod.addresses(link.index).await?;
    for address in host_addresses(ipam) {
        expect(addresses.contains(&address), format!("{ifname} lacks address {address}"));
    }
    for route in routes(ipam) {
        expect(pod.has_route(link.index, route).await?, format!("the route to {} is missing", route.destination));
    }
    Ok(all)
}

fn missing(action: &str) -> KernelError {
    KernelError::refused(action, io::Error::from_raw_os_error(nix::libc::ENODEV))
}

#[cfg(test)]
mod tests {
    use super::*;
    use istio_dpu_cni::result::{Address, Route};

    #[test]
    fn routes_are_made_in_an_order_in_which_each_next_hop_is_reachable() {
        let address = |text: &str| Address { address: text.parse().expect("net"), gateway: None };
        let route = |text: &str| Route { dst: text.parse().expect("net"), gw: None };
        let ipam = IpamResult {
            ips: vec![address("10.244.1.10/24"), address("fd00::a/64")],
            routes: vec![route("0.0.0.0/0"), route("10.96.0.0/12")],
            ..IpamResult::default()
        };
        let made: Vec<String> = routes(&ipam)
            .iter()
            .map(|one| format!("{} {}", one.destination, one.gateway.map_or("link".to_owned(), |via| via.to_string())))
            .collect();
        let expected = ["169.254.1.1/32 link", "0.0.0.0/0 169.254.1.1", "10.96.0.0/12 169.254.1.1", "::/0 fe80::1"];
        assert_eq!(made, expected);
        assert_eq!(host_addresses(&ipam)[0].to_string(), "10.244.1.10/32");
    }
}
