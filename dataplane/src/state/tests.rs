//! Operations in, state and image out.

use super::*;
use proptest::prelude::*;

fn devices() -> Devices {
    let device = |number: u32| Device { ifindex: 10 + number, mac: MacAddress([2, 0, 0, 0, 9, number as u8]) };
    (1..=4).map(|number| (format!("rep{number}"), device(number))).collect()
}

fn port(number: u8) -> wire::Port {
    wire::Port {
        id: format!("vf{number}"),
        representor: format!("rep{number}"),
        mac: format!("02:00:00:00:00:0{number}"),
        addresses: vec![format!("10.1.0.{number}")],
        workload_uid: format!("uid-{number}"),
        ..wire::Port::default()
    }
}

fn service(vip: &str, backends: &[&str]) -> Kind {
    let key = wire::ServiceKey { vip: vip.to_owned(), port: 53, protocol: 17, vni: 0 };
    let backends = backends.iter().map(|address| wire::Backend { address: (*address).to_owned(), port: 5353 });
    Kind::PutService(wire::Service { key: Some(key), backends: backends.collect() })
}

fn apply(state: &State, kinds: impl IntoIterator<Item = Kind>) -> Result<State, ApplyError> {
    let operations: Vec<_> = kinds.into_iter().map(|kind| wire::Operation { operation: Some(kind) }).collect();
    state.applied(&operations, &devices())
}

#[test]
fn a_wrong_field_is_named_with_its_operation() {
    let route = |prefix: &str, next_hop: &str, vni| {
        Kind::PutRoute(wire::Route { prefix: prefix.to_owned(), next_hop: next_hop.to_owned(), vni })
    };
    let bad = |change: fn(&mut wire::Port)| {
        let mut port = port(2);
        change(&mut port);
        Kind::PutPort(port)
    };
    let cases = [
        (bad(|port| port.mac = "02:00".to_owned()), "put_port.mac", Code::Invalid),
        (bad(|port| port.mac = "ff:ff:ff:ff:ff:ff".to_owned()), "put_port.mac", Code::Invalid),
        (bad(|port| port.addresses.clear()), "put_port.addresses", Code::Invalid),
        (bad(|port| port.addresses = vec!["10.1.0.2/24".to_owned()]), "put_port.addresses", Code::Invalid),
        (bad(|port| port.addresses = vec!["127.0.0.1".to_owned()]), "put_port.addresses", Code::Invalid),
        (bad(|port| port.addresses = vec!["10.1.0.1".to_owned()]), "put_port.addresses", Code::Precondition),
        (bad(|port| port.representor = "rep9".to_owned()), "put_port.representor", Code::Precondition),
        (bad(|port| port.representor = "rep1".to_owned()), "put_port.representor", Code::Precondition),
        (bad(|port| port.vni = 5), "put_port.vni", Code::NotSupported),
        (bad(|port| port.steering = 9), "put_port.steering", Code::Invalid),
        (bad(|port| port.id.clear()), "put_port.id", Code::Invalid),
        (Kind::DeletePortId("vf9".to_owned()), "delete_port_id", Code::Precondition),
        (route("10.2.0.0", "192.0.2.2", 0), "put_route.prefix", Code::Invalid),
        (route("10.2.0.0/24", "fd00::1", 0), "put_route.next_hop", Code::Invalid),
        (route("10.2.0.0/24", "192.0.2.2", 1), "put_route.vni", Code::NotSupported),
        (service("10.96.0.300", &[]), "put_service.key", Code::Invalid),
        (service("10.96.0.1", &["fd01::1"]), "put_service.backends", Code::Invalid),
    ];
    for (kind, field, code) in cases {
        let error = apply(&State::default(), [Kind::PutPort(port(1)), kind]).expect_err(field);
        assert_eq!((error.operation, error.field, error.code), (1, field, code), "{error}");
    }
}

#[test]
fn an_address_moves_from_one_port_to_another_in_one_apply() {
    let state = apply(&State::default(), [Kind::PutPort(port(1))]).expect("first");
    let heir = wire::Port { addresses: port(1).addresses, ..port(2) };
    let next = apply(&state, [Kind::DeletePortId("vf1".to_owned()), Kind::PutPort(heir)]).expect("moved");
    let changes = difference(&state.image(&OwnRoutes::default()), &next.image(&OwnRoutes::default()));
    let place = |wanted: fn(&Change) -> bool| changes.iter().position(wanted).expect("step");
    let leaves = place(|change| matches!(change, Change::Port(one) if one.after.is_none()));
    let comes = place(|change| matches!(change, Change::Port(one) if one.before.is_none()));
    assert!(leaves < comes);
}

#[test]
fn the_same_again_changes_nothing_and_another_workload_starts_closed() {
    let state = apply(&State::default(), [Kind::PutPort(port(1))]).expect("first");
    let state = state.with_readiness("vf1", Some("uid-1"), Ok(())).expect("ready");
    assert_eq!(apply(&state, [Kind::PutPort(port(1))]).expect("again"), state);
    let other = wire::Port { workload_uid: "uid-9".to_owned(), ..port(1) };
    assert!(!apply(&state, [Kind::PutPort(other)]).expect("other").ports["vf1"].is_open());
}

#[test]
fn a_port_waits_for_the_proxy_only_where_it_must() {
    let none = wire::Port { steering: wire::Steering::None.into(), ..port(2) };
    let bypass = wire::Port { on_failure: wire::OnFailure::Bypass.into(), ..port(3) };
    let state = apply(&State::default(), [port(1), none, bypass].map(Kind::PutPort)).expect("ports");
    let open: Vec<_> = state.ports.values().map(Port::is_open).collect();
    assert_eq!(open, [false, true, true]);
}

#[test]
fn backends_keep_their_places_while_any_service_uses_them() {
    let state = apply(&State::default(), [service("10.96.0.1", &["10.1.0.1", "10.1.0.2"])]).expect("one");
    let next = apply(&state, [service("10.96.0.2", &["10.1.0.2", "10.1.0.3"]), service("10.96.0.1", &["10.1.0.2"])]);
    let next = next.expect("two");
    let place = |state: &State, address: &str| state.backends.get(&address.parse().expect("address")).copied();
    assert_eq!(place(&state, "10.1.0.2:5353"), place(&next, "10.1.0.2:5353"));
    assert_eq!(place(&next, "10.1.0.1:5353"), None);
    assert_eq!(place(&next, "10.1.0.3:5353"), place(&state, "10.1.0.1:5353"), "a free place is used again");
}

fn any_kind() -> impl Strategy<Value = Kind> {
    let port = (1u8..4, 1u8..4, any::<bool>()).prop_map(|(id, address, bypass)| {
        let on_failure = i32::from(bypass);
        Kind::PutPort(wire::Port { addresses: vec![format!("10.1.0.{address}")], on_failure, ..port(id) })
    });
    let route = (0u8..3, 1u8..3).prop_map(|(net, hop)| {
        Kind::PutRoute(wire::Route { prefix: format!("10.{net}.0.0/16"), next_hop: format!("192.0.2.{hop}"), vni: 0 })
    });
    let balanced = (1u8..3, proptest::collection::vec(1u8..5, 0..4)).prop_map(|(vip, backends)| {
        let backends: Vec<_> = backends.iter().map(|backend| format!("10.1.0.{backend}")).collect();
        service(&format!("10.96.0.{vip}"), &backends.iter().map(String::as_str).collect::<Vec<_>>())
    });
    prop_oneof![
        port,
        (1u8..4).prop_map(|id| Kind::DeletePortId(format!("vf{id}"))),
        route,
        (0u8..3).prop_map(|net| Kind::DeleteRoutePrefix(format!("10.{net}.0.0/16"))),
        balanced,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_order_of_operations_makes_a_table_point_at_nothing(kinds in proptest::collection::vec(any_kind(), 1..24)) {
        let mut state = State::default();
        for kind in kinds {
            if let Ok(next) = apply(&state, [kind]) {
                state = next;
            }
            let image = state.image(&OwnRoutes::default());
            prop_assert!(image.endpoints.values().all(|ifindex| image.ports.contains_key(ifindex)));
            prop_assert!(image.maglev.values().flatten().all(|place| image.backends.contains_key(place)));
            prop_assert!(image.ports.keys().eq(image.wires.keys()));
            let slots: std::collections::BTreeSet<_> = image.ports.values().map(|port| port.slot).collect();
            prop_assert!(slots.len() == image.ports.len() && !slots.contains(&0));
        }
    }
}

#[test]
fn every_place_is_given_once_and_the_lowest_free_one_first() {
    assert_eq!(free(1..4, [1, 3].into_iter()), Some(2));
    assert_eq!(free(1..4, [0, 7].into_iter()), Some(1), "what is not of the range takes no place");
    assert_eq!(free(1..4, [2, 1, 3].into_iter()), None);
}
