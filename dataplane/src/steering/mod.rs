//! The steering socket: where the proxy registers its listening sockets and says what it governs.
//!
//! When the proxy goes away, its listening sockets die and leave the map by themselves. Ports stay
//! OPEN, so that a proxy which comes back within seconds serves on without a word to the node daemon:
//! until then new connections of a `closed` port are dropped (the client's SYN is sent again), and
//! those of a `bypass` port are forwarded as they are. Connections of the dead proxy get a reset.
//! Several proxies may be connected at once (a new one takes over); the last registration counts.

mod session;

use crate::engine::{Door, Engine, Ports};
use crate::sys::seqpacket::Listener;
use service::health::Health;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

/// What a session needs.
#[derive(Debug)]
pub struct Steering<D> {
    pub engine: Arc<Mutex<Engine<D>>>,
    pub ports: watch::Receiver<Ports>,
    pub uplink: String,
    pub health: Health,
    /// Proxies that are connected.
    pub proxies: AtomicUsize,
}

/// Condition of `/readyz`.
pub const CONDITION: &str = "proxy";

impl<D: Door + 'static> Steering<D> {
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
                        steering.count(1);
                        tokio::select! {
                            ended = session::run(&steering, peer) => tracing::warn!(?ended, "the proxy is gone"),
                            () = shutdown.cancelled() => {}
                        }
                        steering.count(-1);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the steering socket");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn count(&self, change: isize) {
        let before = match change > 0 {
            true => self.proxies.fetch_add(1, Ordering::Relaxed) + 1,
            false => self.proxies.fetch_sub(1, Ordering::Relaxed) - 1,
        };
        let state = if before > 0 { Ok(()) } else { Err("no proxy is connected to the steering socket".to_owned()) };
        self.health.set(CONDITION, state);
    }
}
