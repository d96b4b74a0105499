//! One connected proxy: its requests are answered in order, and it is told of every change of ports and of other
//! proxies.

use super::Steering;
use super::roster::{Rank, Roster};
use crate::engine::{Door, Engine, Ports, Way};
use crate::state::{Port, Probed};
use crate::sys::seqpacket::Peer;
use mesh_api::steering as wire;
use mesh_api::steering::from_dataplane::Message as Said;
use mesh_api::steering::from_proxy::Message as Asked;
use prost::Message;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use tokio::sync::watch;

/// Ports of one message, so that it stays well below the limit of a datagram.
const PORTS_PER_MESSAGE: usize = 64;

type Told = BTreeMap<String, wire::Port>;

/// Runs until the proxy closes (`Ok`) or the socket fails.
pub(super) async fn run<D: Door + 'static>(steering: &Steering<D>, peer: Peer) -> io::Result<()> {
    let mut session = Session { steering, peer, rank: None, ports: None, others: None };
    let ended = session.serve().await;
    if let Some(rank) = session.rank {
        steering.leave(|roster| roster.leave(rank)).await;
    }
    ended
}

struct Session<'a, D> {
    steering: &'a Steering<D>,
    peer: Peer,
    /// Since its Hello.
    rank: Option<Rank>,
    /// What it was told.
    ports: Option<Told>,
    others: Option<wire::Others>,
}

impl<D: Door + 'static> Session<'_, D> {
    async fn serve(&mut self) -> io::Result<()> {
        let (mut ports, mut roster) = (self.steering.ports.clone(), self.steering.roster.subscribe());
        loop {
            tokio::select! {
                received = self.peer.receive() => {
                    let Some((bytes, descriptors)) = received? else { return Ok(()) };
                    let was_known = self.rank.is_some();
                    self.answer(&bytes, descriptors).await?;
                    if self.rank.is_some() && !was_known {
                        self.tell_of_others(&mut roster).await?;
                        self.tell_of_ports(&mut ports).await?;
                    }
                }
                changed = ports.changed(), if self.rank.is_some() => {
                    changed.map_err(io::Error::other)?;
                    self.tell_of_ports(&mut ports).await?;
                }
                changed = roster.changed(), if self.rank.is_some() => {
                    changed.map_err(io::Error::other)?;
                    self.tell_of_others(&mut roster).await?;
                }
            }
        }
    }

    /// Answers one message.
    async fn answer(&mut self, bytes: &[u8], descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let (sequence, message) = match wire::FromProxy::decode(bytes) {
            Ok(message) => (message.sequence, message.message),
            Err(error) => {
                tracing::warn!(%error, "the proxy sent what is no message");
                return say(&self.peer, Said::Answer(wire::Answer { sequence: 0, error: error.to_string() })).await;
            }
        };
        let error = self.perform(message, descriptors).await.err().unwrap_or_default();
        if !error.is_empty() {
            tracing::warn!(sequence, error, "refused the proxy");
        }
        say(&self.peer, Said::Answer(wire::Answer { sequence, error })).await
    }

    async fn perform(&mut self, message: Option<Asked>, descriptors: Vec<OwnedFd>) -> Result<(), String> {
        let message = message.ok_or("the message is empty, or of a kind that this dataplane does not know")?;
        if let Asked::Hello(hello) = &message {
            return self.greet(hello);
        }
        let rank = self.rank.ok_or("say Hello first")?;
        match message {
            Asked::Hello(_) => Ok(()),
            Asked::RegisterListener(request) => self.steering.register(rank, &request, descriptors).await,
            Asked::PortReady(port) => self.steering.ready(rank, port).await,
            Asked::PortNotReady(port) => self.steering.not_ready(rank, port).await,
            Asked::TakenOver(_) => {
                self.steering.roster.send_modify(|roster| roster.take_over(rank));
                Ok(())
            }
            Asked::Leaving(_) => {
                self.steering.leave(|roster| roster.stop_serving(rank)).await;
                Ok(())
            }
        }
    }

    fn greet(&mut self, hello: &wire::Hello) -> Result<(), String> {
        if self.rank.is_some() {
            return Err("you have said Hello before".to_owned());
        }
        let rank = (hello.started_unix_ms, self.steering.calls.fetch_add(1, Ordering::Relaxed));
        self.rank = Some(rank);
        self.steering.roster.send_modify(|roster| roster.join(rank));
        tracing::info!(version = hello.version, started_unix_ms = hello.started_unix_ms, "the proxy is here");
        Ok(())
    }

    async fn tell_of_others(&mut self, roster: &mut watch::Receiver<Roster>) -> io::Result<()> {
        let Some(rank) = self.rank else { return Ok(()) };
        let now = roster.borrow_and_update().others(rank);
        if self.others.as_ref() != Some(&now) {
            say(&self.peer, Said::Others(now.clone())).await?;
            self.others = Some(now);
        }
        Ok(())
    }

    async fn tell_of_ports(&mut self, ports: &mut watch::Receiver<Ports>) -> io::Result<()> {
        let now = tell(self.steering, &self.peer, ports, self.ports.as_ref()).await?;
        let gone = self.ports.iter().flat_map(BTreeMap::keys).filter(|id| !now.contains_key(*id));
        gone.for_each(|id| self.steering.roster.send_modify(|roster| roster.forget(id)));
        self.ports = Some(now);
        Ok(())
    }
}

impl<D: Door + 'static> Steering<D> {
    async fn register(
        &self,
        rank: Rank,
        request: &wire::RegisterListener,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let [socket] = <[OwnedFd; 1]>::try_from(descriptors)
            .map_err(|all| format!("{} descriptors came with the registration: send one", all.len()))?;
        let way = match request.direction() {
            wire::Direction::Outbound => Way::Port(&request.port_id),
            wire::Direction::Inbound => Way::Uplink,
            wire::Direction::Host => Way::Host,
        };
        let mut engine = self.engine.lock().await;
        let listener = (request.direction(), request.port_id.clone(), request.ip_version);
        match self.of_roster(|roster| roster.register(rank, listener)) {
            // Our copy of the socket closes here: it must die with the proxy.
            true => engine.set_listener(way, request.ip_version, &socket).map_err(|error| error.to_string()),
            false => Ok(()),
        }
    }

    /// A proxy is ready for a port's workload.
    async fn ready(&self, rank: Rank, said: wire::PortReady) -> Result<(), String> {
        let (id, uid) = (&said.port_id, &said.workload_uid);
        let probed = probed(&said.probed)?;
        let mut engine = self.engine.lock().await;
        let workload = workload_of(&engine, id);
        let has_the_say = self.of_roster(|roster| {
            roster.say(rank, id, &workload, Ok(uid.clone()));
            roster.is_newest_ready(rank, id, &workload)
        });
        engine.ready(id, uid, has_the_say.then_some(&probed)).await.map_err(|error| error.to_string())
    }

    /// A proxy says why it is not.
    async fn not_ready(&self, rank: Rank, said: wire::PortNotReady) -> Result<(), String> {
        let mut engine = self.engine.lock().await;
        let workload = workload_of(&engine, &said.port_id);
        let word = Err(said.reason.clone());
        match self.of_roster(|roster| roster.say(rank, &said.port_id, &workload, word)) {
            true => engine.not_ready(&said.port_id, &said.reason).await.map_err(|error| error.to_string()),
            false => Ok(()),
        }
    }

    /// A proxy serves nothing from now on: what nobody else serves is closed where somebody could.
    async fn leave(&self, step: impl FnOnce(&mut Roster) -> Vec<(String, String)>) {
        let mut engine = self.engine.lock().await;
        for (port, reason) in self.of_roster(step) {
            close(&mut engine, &port, &reason).await;
        }
    }

    fn of_roster<T>(&self, step: impl FnOnce(&mut Roster) -> T) -> T {
        let mut outcome = None;
        self.roster.send_modify(|roster| outcome = Some(step(roster)));
        outcome.expect("the closure ran")
    }
}

fn workload_of<D: Door>(engine: &Engine<D>, port: &str) -> String {
    engine.state().ports.get(port).map(|port| port.wire.workload_uid.clone()).unwrap_or_default()
}

fn probed(said: &[wire::ProbedPort]) -> Result<BTreeMap<Probed, Option<bool>>, String> {
    let one = |one: &wire::ProbedPort| {
        let ip_version = u8::try_from(one.ip_version).ok().filter(|version| [4, 6].contains(version))?;
        let port = u16::try_from(one.port).ok().filter(|port| *port != 0)?;
        let listens = match one.listening() {
            wire::Listening::Unknown => None,
            wire::Listening::No => Some(false),
            wire::Listening::Yes => Some(true),
        };
        Some((Probed { ip_version, port }, listens))
    };
    let whole = |said: &wire::ProbedPort| {
        one(said).ok_or_else(|| format!("there is no TCP port {} of IP version {}", said.port, said.ip_version))
    };
    said.iter().map(whole).collect()
}

async fn close<D: Door>(engine: &mut Engine<D>, port: &str, reason: &str) {
    match engine.not_ready(port, reason).await {
        Ok(()) | Err(crate::engine::EngineError::NoPort(_)) => {}
        Err(error) => tracing::error!(port, %error, "a port that no proxy serves could not be closed"),
    }
}

/// Tells the proxy of what changed since `told`, everything without it.
async fn tell<D>(
    steering: &Steering<D>,
    peer: &Peer,
    ports: &mut watch::Receiver<Ports>,
    told: Option<&Told>,
) -> io::Result<Told> {
    let now: Told = ports.borrow_and_update().values().filter(|port| port.is_governed()).map(described).collect();
    let known = |id: &String| told.and_then(|told| told.get(id));
    let changed: Vec<_> =
        now.iter().filter(|(id, port)| known(id) != Some(port)).map(|(_, port)| port.clone()).collect();
    let gone: Vec<_> = told.into_iter().flat_map(Told::keys).filter(|id| !now.contains_key(*id)).cloned().collect();
    let mut message = wire::Ports { snapshot: told.is_none(), removed_ids: gone, ..links(steering) };
    let mut chunks = changed.chunks(PORTS_PER_MESSAGE);
    message.changed = chunks.next().unwrap_or_default().to_vec();
    if message.snapshot || !message.changed.is_empty() || !message.removed_ids.is_empty() {
        say(peer, Said::Ports(message)).await?;
    }
    // What does not fit into a snapshot follows as changes.
    for chunk in chunks {
        let more = wire::Ports { changed: chunk.to_vec(), ..links(steering) };
        say(peer, Said::Ports(more)).await?;
    }
    Ok(now)
}

/// What every message tells.
fn links<D>(steering: &Steering<D>) -> wire::Ports {
    wire::Ports { uplink: steering.links.uplink.clone(), host: steering.links.host.clone(), ..wire::Ports::default() }
}

fn described(port: &Port) -> (String, wire::Port) {
    let described = wire::Port {
        id: port.wire.id.clone(),
        workload_uid: port.wire.workload_uid.clone(),
        representor: port.wire.representor.clone(),
        ifindex: port.device.ifindex,
        addresses: port.addresses.iter().map(ToString::to_string).collect(),
        mac: port.mac.to_string(),
        vni: 0,
    };
    (port.wire.id.clone(), described)
}

async fn say(peer: &Peer, message: Said) -> io::Result<()> {
    peer.send(&wire::FromDataplane { message: Some(message) }.encode_to_vec()).await
}
