//! Ports that a `tcpSocket` probe asks for: whether the application listens there.
//!
//! The proxy takes a connection before it can ask the pod, and such a probe asks for no more than a connection. So the
//! dataplane refuses what the pod has just refused, and this keeps that fresh: each such port is asked when its
//! workload comes, and from when it refused a probe, until it takes a connection. While it takes them nobody asks.

use crate::upstream::{Target, connect};
use crate::worker::Worker;
use dpu_proxy_core::model::{ProbeKind, Workload};
use mesh_model::PortId;
use std::cell::RefCell;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

/// Both together are less than the dataplane remembers a refusal (`SHUT_NS`), and than a kubelet takes from the
/// attachment of a pod to its first probe.
const AGAIN: Duration = Duration::from_millis(500);
const ANSWER: Duration = Duration::from_millis(250);
/// The pod's gateway: nobody else has this address on its link.
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));

/// A port of a workload.
type Place = (PortId, SocketAddr);

/// What a worker asks, and has asked.
#[derive(Debug, Default)]
pub struct Watch {
    /// Being asked.
    asking: RefCell<HashSet<Place>>,
    /// Of workloads that are here: asked at least once.
    known: RefCell<HashSet<Place>>,
}

/// Asks ports of workloads that are new. One worker is enough.
pub fn follow(worker: &Rc<Worker>) {
    if worker.index != 0 {
        return;
    }
    let here = places(worker);
    let new: Vec<Place> = here.difference(&worker.watch.known.borrow()).cloned().collect();
    *worker.watch.known.borrow_mut() = here;
    new.into_iter().for_each(|(port, address)| ask(worker, port, address));
}

/// Asks a port until it takes a connection, or its workload is gone.
pub(super) fn ask(worker: &Rc<Worker>, port: PortId, address: SocketAddr) {
    let place = (port, address);
    if worker.watch.asking.borrow_mut().insert(place.clone()) {
        tokio::task::spawn_local(until_taken(worker.weak(), place));
    }
}

async fn until_taken(worker: Weak<Worker>, place: Place) {
    while let Some(device) = worker.upgrade().and_then(|worker| device(&worker, &place)) {
        if takes(&place, device).await {
            break;
        }
        tokio::time::sleep(AGAIN).await;
    }
    if let Some(worker) = worker.upgrade() {
        worker.watch.asking.borrow_mut().remove(&place);
    }
}

async fn takes((_, address): &Place, device: Arc<str>) -> bool {
    let source = Some(GATEWAY).filter(|_| address.is_ipv4());
    let target = Target { address: *address, source, device: Some(device), tls: None, inward: None };
    connect(&target, ANSWER, None).await.is_ok()
}

/// The representor, while the workload is here and its port is asked for.
fn device(worker: &Worker, place: &Place) -> Option<Arc<str>> {
    places(worker).contains(place).then(|| worker.devices().representors.get(&place.0).cloned()).flatten()
}

/// All ports that are asked for, where there is a host that asks.
fn places(worker: &Worker) -> HashSet<Place> {
    if worker.devices().host.is_none() {
        return HashSet::new();
    }
    worker.snapshot().by_port.values().flat_map(|workload| of(workload)).collect()
}

fn of(workload: &Workload) -> impl Iterator<Item = Place> {
    let probes = workload.probes.iter().filter(|probe| probe.kind == ProbeKind::Tcp);
    probes.flat_map(|probe| {
        workload.addresses.iter().map(|address| (workload.port.clone(), SocketAddr::new(*address, probe.port)))
    })
}

#[cfg(test)]
mod tests;
