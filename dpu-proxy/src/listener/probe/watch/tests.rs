//! A pod at the loopback interface, whose port is shut, taken, and shut again.

use super::*;
use crate::shared::{Devices, State};
use crate::testing::{self, run};
use dpu_proxy_core::model::{Probe, ProbeKind, Scope, Snapshot, Workload};
use mesh_model::{PortId, WorkloadUid};
use std::collections::HashMap;
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpSocket};

/// What one question at the most takes, and some.
const LONG: Duration = Duration::from_secs(1);

fn state(address: SocketAddr, kind: ProbeKind) -> State {
    let identity = "spiffe://cluster.local/ns/demo/sa/w1".parse().expect("identity");
    let workload = Workload {
        probes: vec![Probe { port: address.port(), kind }],
        ..testing::workload("w1", &identity, address.ip(), &Arc::new(Scope::default()))
    };
    let by_port = [(workload.port.clone(), Arc::new(workload))].into();
    let snapshot = Snapshot { version: 1, by_port, ..Snapshot::default() };
    let lo: Arc<str> = "lo".into();
    let devices =
        Devices { uplink: None, host: Some(Arc::clone(&lo)), representors: [(PortId("w1".into()), lo)].into() };
    State { snapshot: Arc::new(snapshot), devices: Arc::new(devices), ..State::default() }
}

/// A port that is bound and refuses connections.
fn shut() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v6().expect("socket");
    socket.bind("[::1]:0".parse().expect("address")).expect("bind");
    let address = socket.local_addr().expect("address");
    (socket, address)
}

fn worker(index: usize) -> Rc<Worker> {
    Worker::new(index, testing::shared(Snapshot::default(), None))
}

fn place(address: SocketAddr) -> ProbedPort {
    ProbedPort { port: PortId("w1".into()), workload: WorkloadUid("w1".into()), address }
}

fn answer(worker: &Worker, address: SocketAddr) -> Option<bool> {
    worker.shared.answers.borrow().get(&place(address)).copied()
}

async fn is_asked(application: &TcpListener) -> bool {
    tokio::time::timeout(LONG, application.accept()).await.is_ok()
}

#[test]
fn a_port_is_asked_until_it_takes_a_connection_and_from_when_it_refused_a_probe() {
    run(async {
        let (socket, address) = shut();
        let worker = worker(0);
        worker.apply(state(address, ProbeKind::Tcp));
        assert_eq!(answer(&worker, address), None, "not asked yet");
        tokio::time::sleep(SOONEST).await;
        assert!(worker.watch.asking.borrow().contains(&place(address)), "refused, so it goes on asking");
        assert_eq!(answer(&worker, address), Some(false));
        let application = socket.listen(8).expect("listen");
        assert!(is_asked(&application).await);
        assert!(!is_asked(&application).await, "an open port is left alone");
        assert!(worker.watch.asking.borrow().is_empty());
        assert_eq!(answer(&worker, address), Some(true));
        worker.apply(state(address, ProbeKind::Tcp));
        assert!(!is_asked(&application).await, "the workload is not new");
        refused(&worker, place(address));
        assert_eq!(answer(&worker, address), Some(false), "at once");
        assert!(is_asked(&application).await);
    });
}

#[test]
fn nobody_asks_for_a_workload_that_is_gone() {
    run(async {
        let (socket, address) = shut();
        let worker = worker(0);
        worker.apply(state(address, ProbeKind::Tcp));
        tokio::time::sleep(SOONEST).await;
        worker.apply(State::default());
        let application = socket.listen(8).expect("listen");
        assert!(!is_asked(&application).await);
        assert!(worker.watch.asking.borrow().is_empty());
        assert_eq!(answer(&worker, address), None, "and what it answered is forgotten");
    });
}

#[test]
fn a_port_without_a_way_to_its_pod_is_asked_when_there_is_one() {
    run(async {
        let application = TcpListener::bind("[::1]:0").await.expect("bind");
        let whole = state(application.local_addr().expect("address"), ProbeKind::Tcp);
        let worker = worker(0);
        let without = Devices { representors: HashMap::new(), ..(*whole.devices).clone() };
        worker.apply(State { devices: Arc::new(without), ..whole.clone() });
        assert!(!is_asked(&application).await);
        worker.apply(whole);
        assert!(is_asked(&application).await);
    });
}

#[test]
fn only_the_first_worker_asks_and_only_for_ports_that_a_probe_connects_to() {
    run(async {
        let application = TcpListener::bind("[::1]:0").await.expect("bind");
        let address = application.local_addr().expect("address");
        let (first, second) = (worker(0), worker(1));
        second.apply(state(address, ProbeKind::Tcp));
        first.apply(state(address, ProbeKind::Grpc));
        let mut without_host = state(address, ProbeKind::Tcp);
        without_host.devices = Arc::new(Devices { host: None, ..(*without_host.devices).clone() });
        first.apply(without_host);
        assert!(!is_asked(&application).await);
    });
}
