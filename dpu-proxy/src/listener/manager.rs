//! Which listening sockets are open. In: what a state asks for. Out: groups of sockets, one per
//! worker, opened before those that they replace are closed.

use super::socket::{self, Place};
use crate::connection::Gate;
use crate::workers::Workers;
use dpu_proxy_core::model::Scope;
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use tokio_util::sync::CancellationToken;

/// A group of listening sockets that should be open.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    pub gate: Gate,
    pub place: Place,
    pub backlog: Option<u32>,
}

/// A group that could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot listen on {place} for {gate:?}: {reason}")]
pub struct ListenError {
    pub gate: Gate,
    pub place: Place,
    pub reason: String,
}

#[derive(Debug)]
struct Open {
    wanted: Wanted,
    bound: SocketAddr,
    /// A second handle of one member, for steering; the group lives without it.
    member: TcpListener,
    stop: CancellationToken,
}

/// All groups of the process.
#[derive(Debug, Default)]
pub struct ListenerManager {
    open: HashMap<(Gate, Place), Open>,
}

impl ListenerManager {
    /// Opens what is missing, then closes what is no longer wanted. What stays is not touched:
    /// neither its accept queue nor its connections.
    pub fn reconcile(&mut self, workers: &Workers, wanted: Vec<Wanted>) -> Vec<ListenError> {
        let mut failed = Vec::new();
        for one in &wanted {
            let key = (one.gate.clone(), one.place.clone());
            if self.open.contains_key(&key) {
                continue;
            }
            match start(workers, one) {
                Ok(open) => {
                    self.open.insert(key, open);
                }
                Err(error) => failed.push(ListenError {
                    gate: one.gate.clone(),
                    place: one.place.clone(),
                    reason: error.to_string(),
                }),
            }
        }
        self.open.retain(|key, open| {
            let stays = wanted.iter().any(|one| (&one.gate, &one.place) == (&key.0, &key.1));
            if !stays {
                tracing::info!(gate = ?open.wanted.gate, place = %open.wanted.place, "listening socket closed");
                open.stop.cancel();
            }
            stays
        });
        failed
    }

    /// Closes every group; what waits in the kernel is accepted first.
    pub fn close(&mut self) {
        for (_, open) in self.open.drain() {
            open.stop.cancel();
        }
    }

    /// Gates that are open, with the address that the kernel gave.
    pub fn open(&self) -> impl Iterator<Item = (&Gate, SocketAddr)> {
        self.open.values().map(|open| (&open.wanted.gate, open.bound))
    }

    /// A socket of the group of this gate and IP version.
    pub fn member(&self, gate: &Gate, is_ipv4: bool) -> Option<&TcpListener> {
        let fits = |open: &&Open| open.wanted.gate == *gate && open.bound.is_ipv4() == is_ipv4;
        self.open.values().find(fits).map(|open| &open.member)
    }
}

fn start(workers: &Workers, wanted: &Wanted) -> std::io::Result<Open> {
    let group = socket::group(&wanted.place, workers.len(), wanted.backlog)?;
    let member = group[0].try_clone()?;
    let bound = member.local_addr()?;
    let stop = CancellationToken::new();
    for (index, listener) in group.into_iter().enumerate() {
        workers.listen(index, wanted.gate.clone(), listener, stop.clone());
    }
    tracing::info!(gate = ?wanted.gate, address = %bound, "listening");
    Ok(Open { wanted: wanted.clone(), bound, member, stop })
}

/// The sockets that the listeners of the root scope ask for.
pub fn of_root(scope: &Scope) -> Vec<Wanted> {
    let bound = scope.listeners.iter().filter(|listener| listener.bind_to_port);
    bound
        .map(|listener| Wanted {
            gate: Gate::Bound(listener.name.as_str().into()),
            place: Place { address: listener.address, device: None, ifindex: 0, transparent: listener.transparent },
            backlog: listener.backlog,
        })
        .collect()
}
