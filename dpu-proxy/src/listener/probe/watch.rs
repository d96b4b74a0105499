//! Ports that a `tcpSocket` probe asks for: whether the application listens there.
//!
//! The proxy takes a connection before it can ask the pod, and such a probe asks for no more than a connection. So the
//! dataplane refuses the host's until the pod is known to take them, and this finds out: each such port is asked when
//! its workload comes, and from when it refused a probe, until it takes a connection. While it takes them nobody asks.

use crate::shared::ProbedPort;
use crate::upstream::{ConnectErrorKind, Target, connect};
use crate::worker::Worker;
use std::cell::RefCell;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

/// Before a pod is asked again: a little longer each time, for most listen soon or are long about it.
const SOONEST: Duration = Duration::from_millis(50);
const LATEST: Duration = Duration::from_millis(500);
const ANSWER: Duration = Duration::from_millis(250);
/// The pod's gateway: nobody else has this address on its link.
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));

/// What a worker asks, and has asked.
#[derive(Debug, Default)]
pub struct Watch {
    /// Being asked.
    asking: RefCell<HashSet<ProbedPort>>,
    /// Of workloads that are here: asked at least once.
    known: RefCell<HashSet<ProbedPort>>,
}

/// Asks ports of workloads that are new. One worker is enough.
pub fn follow(worker: &Rc<Worker>) {
    if worker.index != 0 {
        return;
    }
    let here = places(worker);
    forget_others(worker, &here);
    let new: Vec<ProbedPort> = here.difference(&worker.watch.known.borrow()).cloned().collect();
    *worker.watch.known.borrow_mut() = here;
    new.into_iter().for_each(|place| ask(worker, place));
}

/// A pod took no connection of a probe.
pub(super) fn refused(worker: &Rc<Worker>, place: ProbedPort) {
    note(worker, &place, false);
    ask(worker, place);
}

/// Asks a port until it takes a connection, or its workload is gone.
fn ask(worker: &Rc<Worker>, place: ProbedPort) {
    if worker.watch.asking.borrow_mut().insert(place.clone()) {
        tokio::task::spawn_local(until_taken(worker.weak(), place));
    }
}

async fn until_taken(worker: Weak<Worker>, place: ProbedPort) {
    let mut again = SOONEST;
    while let Some(device) = worker.upgrade().and_then(|worker| device(&worker, &place)) {
        let listens = listens(&place, device).await;
        if let Some(worker) = worker.upgrade() {
            note(&worker, &place, listens);
        }
        if listens {
            break;
        }
        tokio::time::sleep(again).await;
        again = LATEST.min(again * 11 / 10);
    }
    if let Some(worker) = worker.upgrade() {
        worker.watch.asking.borrow_mut().remove(&place);
    }
}

async fn listens(place: &ProbedPort, device: Arc<str>) -> bool {
    let is_ipv4 = place.address.is_ipv4();
    let source = Some(GATEWAY).filter(|_| is_ipv4);
    let target = Target { address: place.address, source, device: Some(device), tls: None, inward: None };
    match connect(&target, ANSWER, None).await {
        Ok(_) => true,
        // Without an IPv6 address of our own no answer comes: only a refusal says something.
        Err(error) => !is_ipv4 && error.kind != ConnectErrorKind::Connect,
    }
}

fn note(worker: &Worker, place: &ProbedPort, listens: bool) {
    worker.shared.answers.send_if_modified(|answers| answers.insert(place.clone(), listens) != Some(listens));
}

/// Answers of pods that are gone.
fn forget_others(worker: &Worker, here: &HashSet<ProbedPort>) {
    worker.shared.answers.send_if_modified(|answers| {
        let before = answers.len();
        answers.retain(|place, _| here.contains(place));
        answers.len() != before
    });
}

/// The representor, while the workload is here and its port is asked for.
fn device(worker: &Worker, place: &ProbedPort) -> Option<Arc<str>> {
    places(worker).contains(place).then(|| worker.devices().representors.get(&place.port).cloned()).flatten()
}

/// All ports that are asked for, where there is a host that asks and a way to the pod.
fn places(worker: &Worker) -> HashSet<ProbedPort> {
    let (snapshot, devices) = (worker.snapshot(), worker.devices());
    if devices.host.is_none() {
        return HashSet::new();
    }
    let reachable = snapshot.by_port.values().filter(|workload| devices.representors.contains_key(&workload.port));
    reachable.flat_map(|workload| ProbedPort::of(workload)).collect()
}

#[cfg(test)]
mod tests;
