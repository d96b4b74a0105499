//! What has to be said to the dataplane; pure.
//!
//! In: its messages, and what the proxy has (`Listening`, `Readiness`). Out: messages, in order, such
//! that at the end of each session the dataplane knows exactly what the proxy has. A new connection
//! starts with nothing said.

use mesh_api::steering::{
    self as wire, Direction, FromDataplane, FromProxy, Hello, Leaving, PortNotReady, PortReady, ProbedPort,
    RegisterListener, TakenOver, from_dataplane, from_proxy,
};
use mesh_model::{PortId, WorkloadUid};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// A port of the dataplane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub id: PortId,
    pub workload: WorkloadUid,
    /// Device name of its representor.
    pub representor: Arc<str>,
    pub ifindex: u32,
    pub addresses: Vec<IpAddr>,
}

/// What the dataplane has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    pub ports: BTreeMap<PortId, Port>,
    pub uplink: Option<Arc<str>>,
    /// Link to the host, where the dataplane has one.
    pub host: Option<Arc<str>>,
}

/// What a listening socket takes: a port's outgoing connections, or (`None`) those that arrive at the uplink or,
/// with `is_host`, at the link to the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Registration {
    pub port: Option<PortId>,
    pub is_host: bool,
    /// Device that the socket is bound to: a port that comes back with another one is registered anew.
    pub device: Arc<str>,
    pub ifindex: u32,
    pub is_ipv4: bool,
}

/// Sockets that are open.
pub type Listening = BTreeSet<Registration>;

/// Which ports' workloads are in force, or why not.
pub type Readiness = BTreeMap<PortId, Result<Ready, String>>;

/// A workload in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    pub workload: WorkloadUid,
    /// Where `tcpSocket` probes ask, and whether the pod listens there; `None` before it was asked.
    pub probed: BTreeMap<SocketAddr, Option<bool>>,
}

/// What the other proxies of this DPU do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Ports that an older one serves.
    pub served_by_older: BTreeSet<PortId>,
    /// There is a newer one.
    pub is_newer_here: bool,
    /// And it serves everything that we serve.
    pub has_newer_taken_over: bool,
}

/// Where this proxy stands among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It serves what it has registered.
    #[default]
    Serving,
    /// And that is all that older ones serve.
    TakenOver,
    /// Its listening sockets are closed.
    Leaving,
}

/// One message, and whose socket it carries.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outgoing {
    pub message: FromProxy,
    pub socket: Option<Registration>,
}

/// What a message from the dataplane means.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Heard {
    /// The ports changed.
    Ports,
    /// Other proxies came, went, or said something.
    Others(Others),
    /// A request was refused.
    Refused {
        what: String,
        error: String,
    },
    Nothing,
}

/// One connection to the dataplane.
#[derive(Debug, Default)]
pub(super) struct Session {
    started_unix_ms: u64,
    sequence: u64,
    /// What each sequence number asked for, until it is answered.
    asked: BTreeMap<u64, String>,
    registered: Listening,
    said: Readiness,
    standing: Standing,
    has_successor: bool,
    greeted: bool,
}

impl Session {
    /// Of a process that started then.
    pub fn new(started_unix_ms: u64) -> Self {
        Self { started_unix_ms, ..Self::default() }
    }

    /// Messages that bring the dataplane up to date, given that all before them arrived.
    pub fn poll(&mut self, listening: &Listening, readiness: &Readiness, standing: Standing) -> Vec<Outgoing> {
        let mut messages = Vec::new();
        if !std::mem::replace(&mut self.greeted, true) {
            let hello = Hello { version: env!("CARGO_PKG_VERSION").to_owned(), started_unix_ms: self.started_unix_ms };
            messages.push(self.message("hello".to_owned(), from_proxy::Message::Hello(hello), None));
        }
        self.registered.retain(|known| listening.contains(known));
        for new in listening.iter().filter(|new| !self.registered.contains(new)).cloned().collect::<Vec<_>>() {
            messages.push(self.register(new));
        }
        for (port, state) in readiness {
            if self.said.get(port) != Some(state) {
                self.said.insert(port.clone(), state.clone());
                messages.push(self.readiness(port, state));
            }
        }
        self.said.retain(|port, _| readiness.contains_key(port));
        messages.extend(self.stand(standing));
        messages
    }

    /// Said after everything that it rests on.
    fn stand(&mut self, standing: Standing) -> Option<Outgoing> {
        let is_new = std::mem::replace(&mut self.standing, standing) != standing;
        let message = match standing {
            Standing::Serving => return None,
            Standing::TakenOver => from_proxy::Message::TakenOver(TakenOver {}),
            Standing::Leaving => from_proxy::Message::Leaving(Leaving {}),
        };
        is_new.then(|| self.message(format!("{standing:?}"), message, None))
    }

    fn register(&mut self, new: Registration) -> Outgoing {
        let direction = match (&new.port, new.is_host) {
            (Some(_), _) => Direction::Outbound,
            (None, false) => Direction::Inbound,
            (None, true) => Direction::Host,
        };
        let port_id = new.port.as_ref().map(|port| port.0.clone()).unwrap_or_default();
        let what = format!("listener of {} ({direction:?})", new.device);
        let ip_version = if new.is_ipv4 { 4 } else { 6 };
        let message = RegisterListener { direction: direction.into(), port_id, ip_version };
        self.registered.insert(new.clone());
        self.message(what, from_proxy::Message::RegisterListener(message), Some(new))
    }

    fn readiness(&mut self, port: &PortId, state: &Result<Ready, String>) -> Outgoing {
        let port_id = port.0.clone();
        let message = match state {
            Ok(ready) => {
                let probed = ready.probed.iter().map(|(address, listens)| probed_port(*address, *listens)).collect();
                from_proxy::Message::PortReady(PortReady { port_id, workload_uid: ready.workload.0.clone(), probed })
            }
            Err(reason) => from_proxy::Message::PortNotReady(PortNotReady { port_id, reason: reason.clone() }),
        };
        self.message(format!("readiness of port {port}"), message, None)
    }

    fn message(&mut self, what: String, message: from_proxy::Message, socket: Option<Registration>) -> Outgoing {
        self.sequence += 1;
        self.asked.insert(self.sequence, what);
        Outgoing { message: FromProxy { sequence: self.sequence, message: Some(message) }, socket }
    }

    /// Takes a message; `ports` is changed by it.
    pub fn handle(&mut self, message: FromDataplane, ports: &mut Ports) -> Heard {
        match message.message {
            Some(from_dataplane::Message::Answer(answer)) => {
                let what = self.asked.remove(&answer.sequence).unwrap_or_else(|| "an unknown request".to_owned());
                match answer.error.is_empty() {
                    true => Heard::Nothing,
                    false => Heard::Refused { what, error: answer.error },
                }
            }
            Some(from_dataplane::Message::Ports(update)) => {
                self.forget(&update);
                apply(update, ports);
                Heard::Ports
            }
            Some(from_dataplane::Message::Others(others)) => Heard::Others(self.others(others)),
            None => Heard::Nothing,
        }
    }

    /// A successor that died took its registrations with it, and ours had made way for them; so had our words.
    fn others(&mut self, others: mesh_api::steering::Others) -> Others {
        if self.has_successor && !others.is_newer_here {
            self.registered.clear();
            self.said.clear();
        }
        self.has_successor = others.is_newer_here;
        Others {
            served_by_older: others.served_by_older.into_iter().map(PortId).collect(),
            is_newer_here: others.is_newer_here,
            has_newer_taken_over: others.has_newer_taken_over,
        }
    }

    /// A port that went (or came anew) knows nothing of what was said of it.
    fn forget(&mut self, update: &mesh_api::steering::Ports) {
        let gone = |port: &PortId| {
            update.removed_ids.contains(&port.0)
                || !update.snapshot && update.changed.iter().any(|changed| changed.id == port.0)
        };
        self.said.retain(|port, _| !gone(port));
        self.registered.retain(|known| known.port.as_ref().is_none_or(|port| !update.removed_ids.contains(&port.0)));
    }
}

fn probed_port(address: SocketAddr, listens: Option<bool>) -> ProbedPort {
    let listening = match listens {
        None => wire::Listening::Unknown,
        Some(false) => wire::Listening::No,
        Some(true) => wire::Listening::Yes,
    };
    let ip_version = if address.is_ipv4() { 4 } else { 6 };
    ProbedPort { ip_version, port: address.port().into(), listening: listening.into() }
}

fn apply(update: mesh_api::steering::Ports, ports: &mut Ports) {
    if update.snapshot {
        ports.ports.clear();
    }
    for id in update.removed_ids {
        ports.ports.remove(&PortId(id));
    }
    for changed in update.changed {
        let port = Port {
            id: PortId(changed.id),
            workload: WorkloadUid(changed.workload_uid),
            representor: changed.representor.into(),
            ifindex: changed.ifindex,
            addresses: changed.addresses.iter().filter_map(|address| address.parse().ok()).collect(),
        };
        ports.ports.insert(port.id.clone(), port);
    }
    if !update.uplink.is_empty() {
        ports.uplink = Some(update.uplink.into());
    }
    // A dataplane that was started without it has none any more.
    ports.host = Some(update.host).filter(|host| !host.is_empty()).map(Into::into);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(port: &str, device: &str) -> Registration {
        Registration {
            port: Some(PortId(port.to_owned())),
            is_host: false,
            device: device.into(),
            ifindex: 0,
            is_ipv4: true,
        }
    }

    fn ready(workload: &str) -> Ready {
        Ready { workload: WorkloadUid(workload.to_owned()), probed: BTreeMap::new() }
    }

    fn kinds(messages: &[Outgoing]) -> Vec<String> {
        let name = |outgoing: &Outgoing| match outgoing.message.message.as_ref().expect("a message") {
            from_proxy::Message::Hello(_) => "hello".to_owned(),
            from_proxy::Message::RegisterListener(one) => format!("listen {}", one.port_id),
            from_proxy::Message::PortReady(one) => format!("ready {}", one.port_id),
            from_proxy::Message::PortNotReady(one) => format!("not ready {}", one.port_id),
            from_proxy::Message::TakenOver(_) => "taken over".to_owned(),
            from_proxy::Message::Leaving(_) => "leaving".to_owned(),
        };
        messages.iter().map(name).collect()
    }

    fn ports(changed: &[(&str, &str)], removed: &[&str], snapshot: bool) -> FromDataplane {
        let port = |(id, device): &(&str, &str)| wire::Port {
            id: (*id).to_owned(),
            representor: (*device).to_owned(),
            ..wire::Port::default()
        };
        let update = wire::Ports {
            snapshot,
            changed: changed.iter().map(port).collect(),
            removed_ids: removed.iter().map(|id| (*id).to_owned()).collect(),
            uplink: "eth0".to_owned(),
            host: "pf0hpf".to_owned(),
        };
        FromDataplane { message: Some(from_dataplane::Message::Ports(update)) }
    }

    #[test]
    fn a_session_says_everything_once_and_a_new_one_says_it_again() {
        let listening = Listening::from([listener("vf1", "rep1")]);
        let ready = Readiness::from([(PortId("vf1".to_owned()), Ok(ready("w")))]);
        let mut session = Session::default();
        assert_eq!(kinds(&session.poll(&listening, &ready, Standing::Serving)), ["hello", "listen vf1", "ready vf1"]);
        assert!(session.poll(&listening, &ready, Standing::Serving).is_empty());
        let withdrawn = Readiness::from([(PortId("vf1".to_owned()), Err("scope removed".to_owned()))]);
        assert_eq!(kinds(&session.poll(&listening, &withdrawn, Standing::Serving)), ["not ready vf1"]);
        assert_eq!(
            kinds(&Session::default().poll(&listening, &ready, Standing::Serving)),
            ["hello", "listen vf1", "ready vf1"]
        );
    }

    #[test]
    fn a_port_that_comes_back_is_registered_and_declared_ready_again() {
        let ready = Readiness::from([(PortId("vf1".to_owned()), Ok(ready("w")))]);
        let (mut session, mut known) = (Session::default(), Ports::default());
        session.handle(ports(&[("vf1", "rep1")], &[], true), &mut known);
        session.poll(&Listening::from([listener("vf1", "rep1")]), &ready, Standing::Serving);
        session.handle(ports(&[], &["vf1"], false), &mut known);
        assert!(known.ports.is_empty());
        session.handle(ports(&[("vf1", "rep1")], &[], false), &mut known);
        let again = session.poll(&Listening::from([listener("vf1", "rep1")]), &ready, Standing::Serving);
        assert_eq!(kinds(&again), ["listen vf1", "ready vf1"]);
    }

    #[test]
    fn the_socket_of_the_link_to_the_host_is_registered_as_that_while_the_dataplane_has_the_link() {
        let (mut session, mut known) = (Session::default(), Ports::default());
        session.handle(ports(&[], &[], true), &mut known);
        assert_eq!(known.host.as_deref(), Some("pf0hpf"));
        let host = Registration { port: None, is_host: true, ..listener("", "pf0hpf") };
        let uplink = Registration { is_host: false, ..host.clone() };
        let said = session.poll(&Listening::from([host, uplink]), &Readiness::new(), Standing::Serving);
        let directions = said.iter().filter_map(|outgoing| match &outgoing.message.message {
            Some(from_proxy::Message::RegisterListener(one)) => Some(one.direction()),
            _ => None,
        });
        assert_eq!(directions.collect::<Vec<_>>(), [Direction::Inbound, Direction::Host]);
        let without = wire::Ports { snapshot: true, uplink: "eth0".to_owned(), ..wire::Ports::default() };
        session.handle(FromDataplane { message: Some(from_dataplane::Message::Ports(without)) }, &mut known);
        assert_eq!(known.host, None);
    }

    #[test]
    fn what_a_pod_answers_where_it_is_probed_is_said_with_its_readiness_and_again_when_it_changes() {
        let mut session = Session::default();
        let mut say = |listens: Option<bool>| {
            let probed = [("10.1.0.1:27017", listens), ("[fd01::1]:27017", None)];
            let probed = probed.map(|(address, listens)| (address.parse().expect("address"), listens)).into();
            let state = Readiness::from([(PortId("vf1".to_owned()), Ok(Ready { probed, ..ready("w") }))]);
            let said = session.poll(&Listening::new(), &state, Standing::Serving);
            said.into_iter().find_map(|outgoing| match outgoing.message.message {
                Some(from_proxy::Message::PortReady(ready)) => Some(ready.probed),
                _ => None,
            })
        };
        let place = |ip_version, listening: wire::Listening| ProbedPort {
            ip_version,
            port: 27017,
            listening: listening.into(),
        };
        let all = |listening| Some(vec![place(4, listening), place(6, wire::Listening::Unknown)]);
        assert_eq!(say(None), all(wire::Listening::Unknown));
        assert_eq!(say(None), None, "nothing new");
        assert_eq!(say(Some(true)), all(wire::Listening::Yes));
        assert_eq!(say(Some(false)), all(wire::Listening::No));
    }

    #[test]
    fn a_refusal_names_what_was_refused() {
        let mut session = Session::default();
        session.poll(&Listening::from([listener("vf1", "rep1")]), &Readiness::new(), Standing::Serving);
        let answer = wire::Answer { sequence: 2, error: "no such port".to_owned() };
        let message = FromDataplane { message: Some(from_dataplane::Message::Answer(answer)) };
        let heard = session.handle(message, &mut Ports::default());
        let expected =
            Heard::Refused { what: "listener of rep1 (Outbound)".to_owned(), error: "no such port".to_owned() };
        assert_eq!(heard, expected);
    }

    fn others(is_newer_here: bool) -> FromDataplane {
        let others = wire::Others { is_newer_here, ..wire::Others::default() };
        FromDataplane { message: Some(from_dataplane::Message::Others(others)) }
    }

    #[test]
    fn taking_over_and_leaving_are_said_once_and_after_what_they_rest_on() {
        let (listening, ready) = (Listening::from([listener("vf1", "rep1")]), Readiness::new());
        let mut session = Session::new(7);
        let said = session.poll(&listening, &ready, Standing::TakenOver);
        assert_eq!(kinds(&said), ["hello", "listen vf1", "taken over"]);
        let Some(from_proxy::Message::Hello(hello)) = &said[0].message.message else { panic!("{said:?}") };
        assert_eq!(hello.started_unix_ms, 7);
        assert!(session.poll(&listening, &ready, Standing::TakenOver).is_empty());
        assert_eq!(kinds(&session.poll(&Listening::new(), &ready, Standing::Leaving)), ["leaving"]);
    }

    #[test]
    fn when_a_successor_dies_everything_is_said_again() {
        let listening = Listening::from([listener("vf1", "rep1")]);
        let readiness = Readiness::from([(PortId("vf1".to_owned()), Ok(ready("w")))]);
        let (mut session, mut known) = (Session::default(), Ports::default());
        session.poll(&listening, &readiness, Standing::Serving);
        let heard = session.handle(others(true), &mut known);
        assert_eq!(heard, Heard::Others(Others { is_newer_here: true, ..Others::default() }));
        assert!(session.poll(&listening, &readiness, Standing::Serving).is_empty());
        session.handle(others(false), &mut known);
        assert_eq!(kinds(&session.poll(&listening, &readiness, Standing::Serving)), ["listen vf1", "ready vf1"]);
    }
}
