//! One connected proxy: its requests are answered in order, and it is told of every change of ports.

use super::Steering;
use crate::engine::{Door, Ports, Way};
use crate::state::Port;
use crate::sys::seqpacket::Peer;
use mesh_api::steering as wire;
use mesh_api::steering::from_dataplane::Message as Said;
use mesh_api::steering::from_proxy::Message as Asked;
use prost::Message;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use tokio::sync::watch;

/// Ports of one message, so that it stays well below the limit of a datagram.
const PORTS_PER_MESSAGE: usize = 64;

type Told = BTreeMap<String, wire::Port>;

/// Runs until the proxy closes (`Ok`) or the socket fails.
pub(super) async fn run<D: Door + 'static>(steering: &Steering<D>, peer: Peer) -> io::Result<()> {
    let mut ports = steering.ports.clone();
    let mut told: Option<Told> = None;
    loop {
        tokio::select! {
            received = peer.receive() => {
                let Some((bytes, descriptors)) = received? else { return Ok(()) };
                let is_hello = answer(steering, &peer, &bytes, descriptors).await?;
                if is_hello {
                    told = Some(tell(steering, &peer, &mut ports, None).await?);
                }
            }
            changed = ports.changed(), if told.is_some() => {
                changed.map_err(io::Error::other)?;
                told = Some(tell(steering, &peer, &mut ports, told.as_ref()).await?);
            }
        }
    }
}

/// Answers one message. True when it was a Hello.
async fn answer<D: Door + 'static>(
    steering: &Steering<D>,
    peer: &Peer,
    bytes: &[u8],
    descriptors: Vec<OwnedFd>,
) -> io::Result<bool> {
    let (sequence, message) = match wire::FromProxy::decode(bytes) {
        Ok(message) => (message.sequence, message.message),
        Err(error) => {
            tracing::warn!(%error, "the proxy sent what is no message");
            return say(peer, Said::Answer(wire::Answer { sequence: 0, error: error.to_string() }))
                .await
                .map(|()| false);
        }
    };
    let is_hello = matches!(message, Some(Asked::Hello(_)));
    let error = perform(steering, message, descriptors).await.err().unwrap_or_default();
    if !error.is_empty() {
        tracing::warn!(sequence, error, "refused the proxy");
    }
    say(peer, Said::Answer(wire::Answer { sequence, error })).await.map(|()| is_hello)
}

async fn perform<D: Door + 'static>(
    steering: &Steering<D>,
    message: Option<Asked>,
    descriptors: Vec<OwnedFd>,
) -> Result<(), String> {
    let mut engine = steering.engine.lock().await;
    match message {
        Some(Asked::Hello(hello)) => {
            tracing::info!(version = hello.version, "the proxy is here");
            Ok(())
        }
        Some(Asked::RegisterListener(request)) => {
            let [socket] = <[OwnedFd; 1]>::try_from(descriptors)
                .map_err(|all| format!("{} descriptors came with the registration: send one", all.len()))?;
            let way = match request.direction() {
                wire::Direction::Outbound => Way::Port(&request.port_id),
                wire::Direction::Inbound => Way::Uplink,
                wire::Direction::Host => Way::Host,
            };
            // Our copy of the socket closes here: it must die with the proxy.
            engine.set_listener(way, request.ip_version, &socket).map_err(|error| error.to_string())
        }
        Some(Asked::PortReady(port)) => {
            engine.ready(&port.port_id, &port.workload_uid).await.map_err(|error| error.to_string())
        }
        Some(Asked::PortNotReady(port)) => {
            engine.not_ready(&port.port_id, &port.reason).await.map_err(|error| error.to_string())
        }
        None => Err("the message is empty, or of a kind that this dataplane does not know".to_owned()),
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
    wire::Ports { uplink: steering.uplink.clone(), host: steering.host.clone(), ..wire::Ports::default() }
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
