//! The steering socket: where the proxy registers its listening sockets and says what it governs.
//!
//! When the proxy goes away, its listening sockets die and leave the map by themselves. Ports stay
//! OPEN, so that a proxy which comes back within seconds serves on without a word to the node daemon:
//! until then new connections of a `closed` port are dropped (the client's SYN is sent again), and
//! those of a `bypass` port are forwarded as they are. Connections of the dead proxy get a reset.
//! Several proxies may be connected at once: a new one takes over from an older one without a pause
//! (`roster` says whose word counts).

mod roster;
mod session;

use crate::engine::{Door, Engine, Ports};
use crate::sys::seqpacket::Listener;
use roster::Roster;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

/// Names of the DPU's links that are no representors of pods.
#[derive(Clone, Debug)]
pub struct Links {
    pub uplink: String,
    /// To the host; empty: none is named.
    pub host: String,
}

/// What a session needs.
#[derive(Debug)]
pub struct Steering<D> {
    engine: Arc<Mutex<Engine<D>>>,
    ports: watch::Receiver<Ports>,
    links: Links,
    /// Proxies that are connected.
    proxies: Arc<AtomicUsize>,
    roster: watch::Sender<Roster>,
    calls: AtomicU64,
}

impl<D: Door + 'static> Steering<D> {
    /// No proxy is connected yet.
    pub fn new(
        engine: Arc<Mutex<Engine<D>>>,
        ports: watch::Receiver<Ports>,
        links: Links,
        proxies: Arc<AtomicUsize>,
    ) -> Self {
        Self { engine, ports, links, proxies, roster: watch::Sender::default(), calls: AtomicU64::new(0) }
    }

    /// Serves until `shutdown`. Returns once it listens.
    pub fn serve(self: Arc<Self>, path: &Path, shutdown: CancellationToken) -> std::io::Result<()> {
        let listener = Listener::bind(path)?;
        tracing::info!(path = %path.display(), "waiting for the proxy");
        tokio::spawn(async move {
            tokio::select! {
                () = self.accept(&listener, &shutdown) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(())
    }

    async fn accept(self: &Arc<Self>, listener: &Listener, shutdown: &CancellationToken) {
        loop {
            match listener.accept().await {
                Ok(peer) => {
                    let (steering, shutdown) = (Arc::clone(self), shutdown.clone());
                    tokio::spawn(async move {
                        steering.proxies.fetch_add(1, Ordering::Relaxed);
                        tokio::select! {
                            ended = session::run(&steering, peer) => tracing::warn!(?ended, "the proxy is gone"),
                            () = shutdown.cancelled() => {}
                        }
                        steering.proxies.fetch_sub(1, Ordering::Relaxed);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the steering socket");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }
}
