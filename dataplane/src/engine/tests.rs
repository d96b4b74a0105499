//! All or nothing, against a kernel that refuses.

use super::*;
use crate::state::{Hop, Probed};
use mesh_model::MacAddress;

/// A kernel that remembers its tables, and refuses the step with that number.
#[derive(Debug, Default)]
struct Fake {
    image: Image,
    own: OwnRoutes,
    steps: usize,
    refuse: Option<usize>,
    zeroed: Vec<u32>,
}

fn set<K: Ord + Clone, V: Clone>(map: &mut BTreeMap<K, V>, change: &crate::state::Difference<K, V>) {
    match &change.after {
        Some(after) => map.insert(change.key.clone(), after.clone()),
        None => map.remove(&change.key),
    };
}

impl Door for Fake {
    async fn device(&mut self, name: &str) -> Result<Option<Device>, KernelError> {
        let number = name.strip_prefix("rep").and_then(|number| number.parse().ok());
        Ok(number.map(|number| Device { ifindex: number, mac: MacAddress([2, 0, 0, 0, 9, number as u8]) }))
    }

    async fn uplink_address(&mut self) -> Result<Option<IpAddr>, KernelError> {
        Ok(None)
    }

    async fn own_routes(&mut self) -> Result<OwnRoutes, KernelError> {
        Ok(self.own.clone())
    }

    async fn carry_out(&mut self, change: &Change) -> Result<(), KernelError> {
        match change {
            Change::Shut(change) => set(&mut self.image.shut, change),
            Change::Wire(change) => set(&mut self.image.wires, change),
            Change::Port(change) => set(&mut self.image.ports, change),
            Change::Endpoint(change) => set(&mut self.image.endpoints, change),
            Change::Backend(change) => set(&mut self.image.backends, change),
            Change::Maglev(change) => set(&mut self.image.maglev, change),
            Change::Service(change) => set(&mut self.image.services, change),
            Change::Route(change) => set(&mut self.image.routes, change),
        }
        self.steps += 1;
        match self.refuse == Some(self.steps - 1) {
            true => Err(KernelError::Netlink { action: "test".to_owned(), reason: "refused".to_owned() }),
            false => Ok(()),
        }
    }

    fn zero_counters(&mut self, slot: u32) -> Result<(), KernelError> {
        self.zeroed.push(slot);
        Ok(())
    }

    fn set_listener(&mut self, _: u32, _: u32, _: &OwnedFd) -> Result<(), KernelError> {
        Ok(())
    }
}

fn operations() -> Vec<wire::Operation> {
    let port = |number: u8| wire::Port {
        id: format!("vf{number}"),
        representor: format!("rep{number}"),
        mac: format!("02:00:00:00:00:0{number}"),
        addresses: vec![format!("10.1.0.{number}")],
        workload_uid: format!("uid-{number}"),
        ..wire::Port::default()
    };
    let key = wire::ServiceKey { vip: "10.96.0.1".to_owned(), port: 80, protocol: 6, vni: 0 };
    let backends = vec![wire::Backend { address: "10.1.0.2".to_owned(), port: 8080 }];
    let route = wire::Route { prefix: "10.2.0.0/24".to_owned(), next_hop: "192.0.2.2".to_owned(), vni: 0 };
    let kinds = [
        Kind::PutPort(port(1)),
        Kind::PutPort(port(2)),
        Kind::PutService(wire::Service { key: Some(key), backends }),
        Kind::PutRoute(route),
    ];
    kinds.map(|kind| wire::Operation { operation: Some(kind) }).into()
}

fn engine(file: Option<PathBuf>) -> Engine<Fake> {
    Engine::new(Fake::default(), Device { ifindex: 99, mac: MacAddress([2, 0, 0, 0, 0, 99]) }, file)
}

#[tokio::test]
async fn whichever_step_the_kernel_refuses_everything_is_as_it_was() {
    for step in 0.. {
        let mut engine = engine(None);
        engine.apply(&operations()[..1]).await.expect("first port");
        let (before, image) = (engine.state.clone(), engine.door.image.clone());
        engine.door.refuse = Some(engine.door.steps + step);
        let Err(error) = engine.apply(&operations()).await else {
            assert_eq!(engine.door.image, engine.state.image(&OwnRoutes::default()));
            assert!(step >= 8, "only {step} steps");
            return;
        };
        assert!(error.to_string().contains("everything is as it was"), "{error}");
        assert_eq!((&engine.state, &engine.door.image), (&before, &image), "step {step}");
    }
}

#[tokio::test]
async fn a_port_opens_when_the_proxy_is_ready_and_closes_when_it_gives_up() {
    let mut engine = engine(None);
    engine.apply(&operations()).await.expect("apply");
    let ports = engine.ports();
    assert!(!ports.borrow()["vf1"].is_open());
    assert!(engine.ready("vf1", "uid-2", None).await.expect_err("another workload").to_string().contains("uid-1"));
    assert!(engine.ready("vf9", "uid-9", None).await.is_err());
    engine.ready("vf1", "uid-1", None).await.expect("ready");
    assert!(ports.borrow()["vf1"].is_open());
    engine.not_ready("vf1", "no certificate").await.expect("not ready");
    assert_eq!(ports.borrow()["vf1"].status().reason, "no certificate");
}

fn probed(listens: Option<bool>) -> BTreeMap<Probed, Option<bool>> {
    [(Probed { ip_version: 4, port: 27017 }, listens)].into()
}

#[tokio::test]
async fn where_probes_ask_is_shut_until_the_pod_is_known_to_listen_and_gone_with_the_port() {
    let mut engine = engine(None);
    engine.apply(&operations()).await.expect("apply");
    for (says, is_shut) in [(None, true), (Some(true), false), (None, false), (Some(false), true), (None, true)] {
        engine.ready("vf1", "uid-1", Some(&probed(says))).await.expect("ready");
        assert_eq!(engine.door.image.shut.len() == 1, is_shut, "after {says:?}");
    }
    engine.ready("vf1", "uid-1", None).await.expect("of no account");
    let key = *engine.door.image.shut.keys().next().expect("still shut");
    assert_eq!((key.ip_version, key.port), (4, 27017_u16.to_be_bytes()));
    engine.ready("vf1", "uid-1", Some(&BTreeMap::new())).await.expect("no probes");
    assert!(engine.door.image.shut.is_empty());
    engine.ready("vf1", "uid-1", Some(&probed(None))).await.expect("ready");
    let delete = wire::Operation { operation: Some(Kind::DeletePortId("vf1".to_owned())) };
    engine.apply(&[delete]).await.expect("delete");
    assert!(engine.door.image.shut.is_empty());
}

#[tokio::test]
async fn a_restart_goes_on_from_the_file_with_the_same_slots_and_without_new_counters() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("state");
    let mut first = engine(Some(file.clone()));
    first.apply(&operations()).await.expect("apply");
    let delete = wire::Operation { operation: Some(Kind::DeletePortId("vf1".to_owned())) };
    first.apply(&[delete]).await.expect("delete");
    first.ready("vf2", "uid-2", Some(&probed(None))).await.expect("ready");
    assert_eq!((&first.door.zeroed, first.door.image.shut.len()), (&vec![1, 2], 1));
    let mut second = engine(Some(file.clone()));
    second.restore().await.expect("restore");
    assert_eq!((second.state(), &second.door.image), (first.state(), &first.door.image));
    assert_eq!(second.state().ports["vf2"].slot, 2);
    assert!(second.door.zeroed.is_empty());
    std::fs::write(&file, [0xff; 9]).expect("write");
    let mut third = engine(Some(file));
    third.restore().await.expect("a file that cannot be read is no reason to stop");
    assert!(third.state().ports.is_empty());
}

#[tokio::test]
async fn a_restart_goes_on_with_the_other_ports_when_the_kernel_refuses_one() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("state");
    engine(Some(file.clone())).apply(&operations()).await.expect("apply");
    let mut second = engine(Some(file));
    // The attempt as a whole is refused; one by one they come.
    second.door.refuse = Some(0);
    second.restore().await.expect("restore");
    assert_eq!(second.state().ports.len(), 2);
    assert_eq!(second.door.image, second.state.image(&OwnRoutes::default()));
}

#[tokio::test]
async fn the_api_goes_before_the_dpus_own_routes_but_leads_nobody_to_the_dpu() {
    let mut engine = engine(None);
    engine.apply(&operations()).await.expect("applied");
    let hop =
        |engine: &Engine<Fake>, prefix: &str| engine.door.image.routes.get(&prefix.parse().expect("prefix")).copied();
    let own = |prefix: &str, hop| (prefix.parse().expect("prefix"), hop);
    engine.door.own =
        [own("10.2.0.0/24", Hop::Own(None)), own("0.0.0.0/0", Hop::Own(None)), own("192.0.2.1/32", Hop::Refused)]
            .into();
    engine.follow_routes().await.expect("followed");
    let configured = Some(Hop::Configured("192.0.2.2".parse().expect("address")));
    assert_eq!((hop(&engine, "10.2.0.0/24"), hop(&engine, "0.0.0.0/0")), (configured, Some(Hop::Own(None))));
    let delete = Kind::DeleteRoutePrefix("10.2.0.0/24".to_owned());
    let to_the_dpu = wire::Route { prefix: "192.0.2.1/32".to_owned(), next_hop: "192.0.2.2".to_owned(), vni: 0 };
    for kind in [delete, Kind::PutRoute(to_the_dpu)] {
        engine.apply(&[wire::Operation { operation: Some(kind) }]).await.expect("applied");
    }
    assert_eq!((hop(&engine, "10.2.0.0/24"), hop(&engine, "192.0.2.1/32")), (Some(Hop::Own(None)), Some(Hop::Refused)));
    engine.door.own.clear();
    engine.follow_routes().await.expect("followed");
    assert_eq!((hop(&engine, "10.2.0.0/24"), hop(&engine, "0.0.0.0/0")), (None, None));
}
