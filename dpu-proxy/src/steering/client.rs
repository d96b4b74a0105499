//! The task around `session`: connects, exchanges, connects again.

use super::session::{Heard, Listening, Others, Ports, Readiness, Registration, Session, Standing};
use super::socket::SeqPacket;
use mesh_api::steering::FromDataplane;
use prost::Message;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use xds::Backoff;

/// A session that lived this long was healthy: the next wait starts small again.
const HEALTHY: std::time::Duration = std::time::Duration::from_secs(5);

/// Many ports come in several messages: together they are one change, so that no port seems gone meanwhile.
const GATHER: std::time::Duration = std::time::Duration::from_millis(3);

/// What the proxy learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Ports(Ports),
    Others(Others),
    /// The dataplane is gone. Ports stay as they were until it says otherwise.
    Disconnected {
        reason: String,
    },
}

/// What the proxy has for the dataplane.
#[derive(Clone, Debug, Default)]
struct Offer {
    sockets: BTreeMap<Registration, Arc<OwnedFd>>,
    readiness: Readiness,
    standing: Standing,
}

/// Tells the dataplane what the proxy has.
#[derive(Debug)]
pub struct Client {
    offer: watch::Sender<Offer>,
}

impl Client {
    /// Replaces all that was offered before.
    pub fn offer(&self, sockets: BTreeMap<Registration, Arc<OwnedFd>>, readiness: Readiness, standing: Standing) {
        self.offer.send_if_modified(|offer| {
            let same =
                offer.readiness == readiness && offer.sockets.keys().eq(sockets.keys()) && offer.standing == standing;
            *offer = Offer { sockets, readiness, standing };
            !same
        });
    }
}

/// Follows the dataplane whose socket is at `path`.
pub fn start(path: PathBuf) -> (Client, mpsc::Receiver<Event>) {
    let (offer, offers) = watch::channel(Offer::default());
    let (events, receiver) = mpsc::channel(16);
    tokio::spawn(run(path, offers, events));
    (Client { offer }, receiver)
}

async fn run(path: PathBuf, mut offers: watch::Receiver<Offer>, events: mpsc::Sender<Event>) {
    let mut backoff = Backoff::default();
    let process = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    loop {
        let started = Instant::now();
        let reason = match session(&path, Session::new(process), &mut offers, &events).await {
            Ok(()) => return,
            Err(error) => format!("{}: {error}", path.display()),
        };
        if started.elapsed() > HEALTHY {
            backoff.reset();
        }
        let wait = backoff.next(fastrand::f64());
        tracing::warn!(reason, wait_ms = wait.as_millis() as u64, "no dataplane; trying again");
        if events.send(Event::Disconnected { reason }).await.is_err() {
            return;
        }
        tokio::time::sleep(wait).await;
    }
}

/// One connection. `Ok` when the proxy wants no more.
async fn session(
    path: &Path,
    mut session: Session,
    offers: &mut watch::Receiver<Offer>,
    events: &mpsc::Sender<Event>,
) -> io::Result<()> {
    let mut socket = SeqPacket::connect(path)?;
    let mut ports = Ports::default();
    let mut is_news = false;
    tracing::info!(path = %path.display(), "connected to the dataplane");
    loop {
        let offer = offers.borrow_and_update().clone();
        say(&socket, &mut session, &offer).await?;
        tokio::select! {
            biased;
            changed = offers.changed() => if changed.is_err() { return Ok(()) },
            message = socket.receive() => {
                let message = message?.ok_or(io::ErrorKind::ConnectionReset)?;
                let message = FromDataplane::decode(message).map_err(io::Error::other)?;
                match session.handle(message, &mut ports) {
                    Heard::Ports => is_news = true,
                    Heard::Others(others) => {
                        if events.send(Event::Others(others)).await.is_err() {
                            return Ok(());
                        }
                    }
                    Heard::Refused { what, error } => tracing::warn!(what, error, "the dataplane refused"),
                    Heard::Nothing => {}
                }
            }
            () = tokio::time::sleep(GATHER), if is_news => {
                is_news = false;
                if events.send(Event::Ports(ports.clone())).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

async fn say(socket: &SeqPacket, session: &mut Session, offer: &Offer) -> io::Result<()> {
    let listening: Listening = offer.sockets.keys().cloned().collect();
    for outgoing in session.poll(&listening, &offer.readiness, offer.standing) {
        let carried = outgoing.socket.and_then(|registration| offer.sockets.get(&registration));
        socket.send(&outgoing.message.encode_to_vec(), carried.map(|socket| socket.as_fd())).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
