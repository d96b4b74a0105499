//! What a state asks for; pure. In: the snapshot, secrets, the dataplane's ports, and what pods answered where they
//! are probed. Out: listening sockets, devices, identities to be signed, and which ports are ready.

use crate::connection::Gate;
use crate::listener::manager::{Wanted, of_root};
use crate::listener::socket::Place;
use crate::shared::{Answers, Devices, ProbedPort};
use crate::steering::{Port, Ports, Readiness, Ready};
use crate::tls::secrets::Secrets;
use dpu_proxy_core::model::{Snapshot, Workload};
use mesh_model::{Identity, PortId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// Where connections that workloads open are taken; steering needs no port, people like a known one.
const OUTBOUND_PORT: u16 = 15001;
/// Where connections from the fabric and from the host are taken.
const INBOUND_PORT: u16 = 15006;

/// Every socket that should listen. An older proxy may serve what this one cannot yet.
pub(super) fn sockets(snapshot: &Snapshot, ports: &Ports, may_open: impl Fn(&Gate) -> bool) -> Vec<Wanted> {
    let mut wanted = of_root(&snapshot.root);
    wanted.extend(steered(ports).into_iter().filter(|one| may_open(&one.gate)));
    wanted
}

/// Sockets for what the dataplane steers.
pub(super) fn steered(ports: &Ports) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    let mut versions = BTreeSet::new();
    for port in ports.ports.values() {
        let own = versions_of(&port.addresses);
        let gate = Gate::Outbound(port.id.clone());
        let device = (&port.representor, port.ifindex);
        wanted.extend(own.iter().map(|is_ipv4| on_device(gate.clone(), device, OUTBOUND_PORT, *is_ipv4)));
        versions.extend(own);
    }
    if let Some(uplink) = &ports.uplink {
        wanted.extend(versions.iter().map(|is_ipv4| on_device(Gate::Inbound, (uplink, 0), INBOUND_PORT, *is_ipv4)));
    }
    if let Some(host) = &ports.host {
        wanted.extend(versions.iter().map(|is_ipv4| on_device(Gate::Host, (host, 0), INBOUND_PORT, *is_ipv4)));
    }
    wanted
}

/// IPv4 unless there are IPv6 addresses only.
fn versions_of(addresses: &[IpAddr]) -> BTreeSet<bool> {
    match addresses.is_empty() {
        true => BTreeSet::from([true]),
        false => addresses.iter().map(IpAddr::is_ipv4).collect(),
    }
}

fn on_device(gate: Gate, (device, ifindex): (&Arc<str>, u32), port: u16, is_ipv4: bool) -> Wanted {
    let any: IpAddr = if is_ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let address = SocketAddr::new(any, port);
    let place = Place { address, device: Some(Arc::clone(device)), ifindex, transparent: true };
    Wanted { gate, place, backlog: None }
}

/// Devices as the data path needs them.
pub(super) fn devices(ports: &Ports) -> Devices {
    let representors = ports.ports.values().map(|port| (port.id.clone(), Arc::clone(&port.representor)));
    Devices { uplink: ports.uplink.clone(), host: ports.host.clone(), representors: representors.collect() }
}

/// Whose certificates are needed: of workloads that are served, and of pods whose configuration comes
/// only when the control plane has seen their certificate.
pub(super) fn identities(snapshot: &Snapshot, attached: &BTreeSet<Identity>) -> BTreeSet<Identity> {
    snapshot.workloads.values().map(|workload| &workload.identity).chain(attached).cloned().collect()
}

/// Which ports may be opened: those whose workload is in force, with its certificate.
pub(super) fn readiness(
    snapshot: &Snapshot,
    secrets: &Secrets,
    ports: &Ports,
    answers: &Answers,
    is_listening: impl Fn(&PortId) -> bool,
) -> Readiness {
    let ready = |port: &Port| {
        let workload = configured(snapshot, secrets, port)?;
        match is_listening(&port.id) {
            true => Ok(Ready { workload: workload.uid.clone(), probed: probed(workload, ports, answers) }),
            false => Err(format!("cannot listen on {}", port.representor)),
        }
    };
    ports.ports.values().map(|port| (port.id.clone(), ready(port))).collect()
}

/// Where the host, if there is one, probes the workload, with what its pod answered.
fn probed(workload: &Workload, ports: &Ports, answers: &Answers) -> BTreeMap<SocketAddr, Option<bool>> {
    let all = ProbedPort::of(workload).filter(|_| ports.host.is_some());
    all.map(|place| (place.address, answers.get(&place).copied())).collect()
}

/// The workload of a port, if it is in force with its certificate.
pub(super) fn configured<'a>(snapshot: &'a Snapshot, secrets: &Secrets, port: &Port) -> Result<&'a Workload, String> {
    let workload = snapshot.by_port.get(&port.id).ok_or("no complete configuration for this port yet")?;
    if workload.uid != port.workload {
        return Err(format!("the configuration is of workload {}, the port of {}", workload.uid, port.workload));
    }
    if !secrets.identities.contains_key(&workload.identity) {
        return Err(format!("the certificate of {} has not been signed yet", workload.identity));
    }
    Ok(workload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_model::WorkloadUid;

    fn ports(host: Option<&str>) -> Ports {
        let port = |number: u32, address: &str| Port {
            id: PortId(format!("vf{number}")),
            workload: WorkloadUid(format!("w{number}")),
            representor: format!("rep{number}").into(),
            ifindex: number,
            addresses: vec![address.parse().expect("address")],
        };
        let all = [port(1, "10.1.0.1"), port(2, "fd01::2")];
        Ports {
            ports: all.into_iter().map(|port| (port.id.clone(), port)).collect(),
            uplink: Some("up0".into()),
            host: host.map(Into::into),
        }
    }

    fn places(host: Option<&str>, gate: &Gate) -> Vec<String> {
        let all = steered(&ports(host));
        all.into_iter().filter(|wanted| wanted.gate == *gate).map(|wanted| wanted.place.to_string()).collect()
    }

    #[test]
    fn each_representor_the_uplink_and_the_link_to_the_host_have_a_socket_of_their_own() {
        let outbound = Gate::Outbound(PortId("vf1".to_owned()));
        assert_eq!(places(Some("pf0hpf"), &outbound), ["0.0.0.0:15001%rep1"]);
        assert_eq!(places(Some("pf0hpf"), &Gate::Inbound), ["[::]:15006%up0", "0.0.0.0:15006%up0"]);
        assert_eq!(places(Some("pf0hpf"), &Gate::Host), ["[::]:15006%pf0hpf", "0.0.0.0:15006%pf0hpf"]);
    }

    #[test]
    fn without_a_link_to_the_host_nothing_is_taken_for_the_hosts() {
        assert!(places(None, &Gate::Host).is_empty());
        assert_eq!((devices(&ports(None)).host, devices(&ports(Some("h"))).host.as_deref()), (None, Some("h")));
    }
}
