//! The state in a file, so that a restart goes on where the last process stopped.

use super::{Devices, Port, Probed, State};
use mesh_api::dataplane as wire;
use mesh_api::dataplane::operation::Operation as Kind;
use prost::Message;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

#[derive(Clone, PartialEq, Message)]
struct Saved {
    #[prost(message, optional, tag = "1")]
    state: Option<wire::State>,
    #[prost(message, repeated, tag = "2")]
    slots: Vec<Place>,
    #[prost(string, repeated, tag = "3")]
    ready: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    backends: Vec<Place>,
    #[prost(message, repeated, tag = "5")]
    probed: Vec<Asked>,
}

/// Where probes ask, and whether the pod listens there.
#[derive(Clone, PartialEq, Message)]
struct Asked {
    #[prost(string, tag = "1")]
    port_id: String,
    #[prost(uint32, tag = "2")]
    ip_version: u32,
    #[prost(uint32, tag = "3")]
    port: u32,
    #[prost(bool, tag = "4")]
    listens: bool,
}

/// A name and its number.
#[derive(Clone, PartialEq, Message)]
struct Place {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    number: u32,
}

fn place(name: impl ToString, number: u32) -> Place {
    Place { name: name.to_string(), number }
}

fn asked(id: &str, port: &Port) -> impl Iterator<Item = Asked> {
    port.probed.iter().map(move |(place, listens)| Asked {
        port_id: id.to_owned(),
        ip_version: place.ip_version.into(),
        port: place.port.into(),
        listens: *listens,
    })
}

impl State {
    /// On the wire.
    pub fn to_wire(&self) -> wire::State {
        wire::State {
            epoch: self.epoch,
            ports: self.ports.values().map(|port| port.wire.clone()).collect(),
            routes: self.routes.values().map(|route| route.wire.clone()).collect(),
            services: self.services.values().map(|service| service.wire.clone()).collect(),
            ..wire::State::default()
        }
    }

    /// Writes the file, whole or not at all.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let saved = Saved {
            state: Some(self.to_wire()),
            slots: self.ports.iter().map(|(id, port)| place(id, port.slot)).collect(),
            ready: self.ports.values().filter(|port| port.ready).map(|port| port.wire.id.clone()).collect(),
            backends: self.backends.iter().map(|(backend, number)| place(backend, *number)).collect(),
            probed: self.ports.iter().flat_map(|(id, port)| asked(id, port)).collect(),
        };
        let draft = path.with_extension("draft");
        std::fs::write(&draft, saved.encode_to_vec())?;
        std::fs::rename(&draft, path)
    }
}

/// Representors that a saved state needs.
pub fn representors(bytes: &[u8]) -> Result<Vec<String>, prost::DecodeError> {
    let saved = Saved::decode(bytes)?;
    Ok(saved.state.unwrap_or_default().ports.into_iter().map(|port| port.representor).collect())
}

/// What another version wrote there is left out: the proxy says it again.
fn recall(state: &mut State, asked: &Asked) {
    let place = (u8::try_from(asked.ip_version), u16::try_from(asked.port));
    if let ((Ok(ip_version), Ok(port)), Some(of)) = (place, state.ports.get_mut(&asked.port_id)) {
        of.probed.insert(Probed { ip_version, port }, asked.listens);
    }
}

/// The saved state, without what does not fit any more, which is logged.
pub fn restore(bytes: &[u8], devices: &Devices) -> Result<State, prost::DecodeError> {
    let saved = Saved::decode(bytes)?;
    let wire = saved.state.unwrap_or_default();
    let backends =
        saved.backends.iter().filter_map(|place| Some((place.name.parse::<SocketAddr>().ok()?, place.number)));
    let mut state = State { backends: backends.collect(), ..State::default() };
    let services = wire.services.into_iter().map(Kind::PutService);
    let kinds = services.chain(wire.routes.into_iter().map(Kind::PutRoute));
    let kinds = kinds.chain(wire.ports.into_iter().map(Kind::PutPort));
    let operations: Vec<_> = kinds.map(|kind| wire::Operation { operation: Some(kind) }).collect();
    state = match state.applied(&operations, devices) {
        Ok(whole) => whole,
        Err(_) => one_by_one(state, &operations, devices),
    };
    let slots: BTreeMap<_, _> = saved.slots.iter().map(|place| (place.name.as_str(), place.number)).collect();
    state.ports.values_mut().for_each(|port| resume(port, &slots, &saved.ready));
    for asked in saved.probed {
        recall(&mut state, &asked);
    }
    let used: Vec<SocketAddr> = state.services.values().flat_map(|service| service.backends.clone()).collect();
    state.backends.retain(|backend, _| used.contains(backend));
    state.epoch = wire.epoch;
    Ok(state)
}

/// What can be restored, when not everything can.
fn one_by_one(mut state: State, operations: &[wire::Operation], devices: &Devices) -> State {
    for operation in operations {
        match state.applied(std::slice::from_ref(operation), devices) {
            Ok(next) => state = keep_backends(next, &state.backends),
            Err(error) => tracing::warn!(%error, "not restored"),
        }
    }
    state
}

/// Services come one by one, so that a backend of a later one must not lose its place meanwhile.
fn keep_backends(mut next: State, before: &BTreeMap<SocketAddr, u32>) -> State {
    for (backend, place) in before {
        next.backends.entry(*backend).or_insert(*place);
    }
    next
}

fn resume(port: &mut Port, slots: &BTreeMap<&str, u32>, ready: &[String]) {
    port.ready = ready.contains(&port.wire.id);
    if let Some(slot) = slots.get(port.wire.id.as_str()) {
        port.slot = *slot;
    }
    if port.ready {
        port.reason.clear();
    }
}
