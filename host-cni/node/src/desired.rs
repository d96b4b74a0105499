//! What the dataplane should have, against what it has: the operations that make it so. Pure.

use mesh_api::dataplane::operation::Operation as Kind;
use mesh_api::dataplane::{Operation, Port, Route, Service, ServiceKey, State};
use std::collections::BTreeMap;

/// What should be there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    pub ports: Vec<Port>,
    pub routes: Vec<Route>,
    pub services: Vec<Service>,
    /// Whether routes and services are known completely, so that others may be removed. Ports always are.
    pub complete: bool,
}

/// What the dataplane has, by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Actual {
    ports: BTreeMap<String, Port>,
    routes: BTreeMap<String, Route>,
    services: BTreeMap<(String, u32, u32, u32), Service>,
}

impl From<State> for Actual {
    fn from(state: State) -> Self {
        Self {
            ports: state.ports.into_iter().map(|port| (port.id.clone(), port)).collect(),
            routes: state.routes.into_iter().map(|route| (route.prefix.clone(), route)).collect(),
            services: state.services.into_iter().filter_map(keyed).collect(),
        }
    }
}

impl Actual {
    /// The port of that id.
    pub fn port(&self, id: &str) -> Option<&Port> {
        self.ports.get(id)
    }

    /// Notes that an operation was applied.
    pub fn note(&mut self, operation: &Operation) {
        match operation.operation.clone() {
            Some(Kind::PutPort(port)) => drop(self.ports.insert(port.id.clone(), port)),
            Some(Kind::DeletePortId(id)) => drop(self.ports.remove(&id)),
            Some(Kind::PutRoute(route)) => drop(self.routes.insert(route.prefix.clone(), route)),
            Some(Kind::DeleteRoutePrefix(prefix)) => drop(self.routes.remove(&prefix)),
            Some(Kind::PutService(service)) => self.services.extend(keyed(service)),
            Some(Kind::DeleteService(key)) => drop(self.services.remove(&service_key(&key))),
            None => {}
        }
    }
}

/// Removals of ports first (an address may have a new port), then what is to be there, then the
/// other removals.
pub fn operations(desired: &Desired, actual: &Actual) -> Vec<Operation> {
    let mut kinds = Vec::new();
    let is_wanted = |id: &String| desired.ports.iter().any(|port| port.id == *id);
    kinds.extend(actual.ports.keys().filter(|id| !is_wanted(id)).cloned().map(Kind::DeletePortId));
    kinds.extend(missing(&desired.ports, |port| actual.ports.get(&port.id)).map(Kind::PutPort));
    kinds.extend(missing(&desired.routes, |route| actual.routes.get(&route.prefix)).map(Kind::PutRoute));
    let wanted: BTreeMap<_, _> = desired.services.iter().cloned().filter_map(keyed).collect();
    let services: Vec<Service> = wanted.values().cloned().collect();
    kinds.extend(missing(&services, |service| actual.services.get(&key_of(service))).map(Kind::PutService));
    if desired.complete {
        let is_route = |prefix: &String| desired.routes.iter().any(|route| route.prefix == *prefix);
        kinds.extend(actual.routes.keys().filter(|prefix| !is_route(prefix)).cloned().map(Kind::DeleteRoutePrefix));
        let gone = actual.services.iter().filter(|(key, _)| !wanted.contains_key(*key));
        kinds.extend(gone.filter_map(|(_, service)| service.key.clone()).map(Kind::DeleteService));
    }
    kinds.into_iter().map(operation).collect()
}

/// What an operation is about, for a person.
pub fn subject(operation: &Operation) -> String {
    let of_service = |key: &ServiceKey| format!("service {}:{}", key.vip, key.port);
    match &operation.operation {
        Some(Kind::PutPort(port)) => format!("port {} of pod {}/{}", port.id, port.namespace, port.name),
        Some(Kind::DeletePortId(id)) => format!("removal of port {id}"),
        Some(Kind::PutRoute(route)) => format!("route {}", route.prefix),
        Some(Kind::DeleteRoutePrefix(prefix)) => format!("removal of route {prefix}"),
        Some(Kind::PutService(service)) => service.key.as_ref().map(of_service).unwrap_or_default(),
        Some(Kind::DeleteService(key)) => format!("removal of {}", of_service(key)),
        None => String::new(),
    }
}

/// An operation on the wire.
pub fn operation(kind: Kind) -> Operation {
    Operation { operation: Some(kind) }
}

fn missing<'a, T: PartialEq + Clone>(
    wanted: &'a [T],
    present: impl Fn(&T) -> Option<&'a T> + 'a,
) -> impl Iterator<Item = T> + 'a {
    wanted.iter().filter(move |one| present(one) != Some(*one)).cloned()
}

fn keyed(service: Service) -> Option<((String, u32, u32, u32), Service)> {
    let key = service_key(service.key.as_ref()?);
    Some((key, service))
}

fn key_of(service: &Service) -> (String, u32, u32, u32) {
    service.key.as_ref().map(service_key).unwrap_or_default()
}

fn service_key(key: &ServiceKey) -> (String, u32, u32, u32) {
    (key.vip.clone(), key.port, key.protocol, key.vni)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::dataplane::Backend;

    fn port(id: &str, mac: &str) -> Port {
        Port { id: id.to_owned(), mac: mac.to_owned(), ..Port::default() }
    }

    fn route(prefix: &str, next_hop: &str) -> Route {
        Route { prefix: prefix.to_owned(), next_hop: next_hop.to_owned(), vni: 0 }
    }

    fn service(vip: &str, backend: &str) -> Service {
        let key = ServiceKey { vip: vip.to_owned(), port: 80, protocol: 6, vni: 0 };
        Service { key: Some(key), backends: vec![Backend { address: backend.to_owned(), port: 80 }] }
    }

    fn desired() -> Desired {
        Desired {
            ports: vec![port("vf1", "a"), port("vf2", "b")],
            routes: vec![route("10.1.0.0/24", "1.1.1.1")],
            services: vec![service("10.96.0.1", "10.1.0.2")],
            complete: true,
        }
    }

    #[test]
    fn after_the_operations_nothing_is_left_to_do() {
        let mut actual = Actual::from(State {
            ports: vec![port("vf2", "old"), port("vf9", "z")],
            routes: vec![route("10.9.0.0/24", "9.9.9.9")],
            services: vec![service("10.96.0.1", "old"), service("10.96.0.9", "x")],
            ..State::default()
        });
        let first = operations(&desired(), &actual);
        assert_eq!(first[0].operation, Some(Kind::DeletePortId("vf9".to_owned())), "removed before it is replaced");
        first.iter().for_each(|operation| actual.note(operation));
        assert_eq!(operations(&desired(), &actual), []);
    }

    #[test]
    fn what_the_controller_has_not_yet_told_of_is_not_removed() {
        let partial = Desired { ports: vec![], complete: false, ..Desired::default() };
        let state =
            State { ports: vec![port("vf1", "a")], routes: vec![route("10.9.0.0/24", "9")], ..State::default() };
        let kinds = operations(&partial, &Actual::from(state));
        assert_eq!(kinds, [operation(Kind::DeletePortId("vf1".to_owned()))]);
    }
}
