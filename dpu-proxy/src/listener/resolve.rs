//! Which listener and filter chain govern a connection: by its gate, original destination and facts.

use crate::connection::{Connection, Gate};
use dpu_proxy_core::matching::filter_chain;
use dpu_proxy_core::model::{ConnectionFacts, FilterChain, Listener, Scope, Snapshot, TrafficDirection, Workload};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// What governs a connection.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub workload: Option<Arc<Workload>>,
    pub scope: Arc<Scope>,
    pub listener: Arc<Listener>,
    pub chain: Arc<FilterChain>,
}

/// Whose listeners apply: the workload by its port on the way out, by its address on the way in, else the root.
#[derive(Clone, Debug)]
pub struct Owner {
    pub workload: Option<Arc<Workload>>,
    pub scope: Arc<Scope>,
    pub direction: TrafficDirection,
}

/// Finds the owner. `None` when no workload of this DPU is concerned.
pub fn owner(snapshot: &Snapshot, gate: &Gate, destination: SocketAddr) -> Option<Owner> {
    let workload = match gate {
        Gate::Bound(_) => None,
        Gate::Outbound(port) => Some(snapshot.by_port.get(port)?),
        Gate::Inbound | Gate::Host | Gate::Local => Some(snapshot.by_address.get(&destination.ip())?),
    };
    let direction = match gate {
        Gate::Bound(_) => TrafficDirection::Unspecified,
        Gate::Outbound(_) => TrafficDirection::Outbound,
        Gate::Inbound | Gate::Host | Gate::Local => TrafficDirection::Inbound,
    };
    let scope = workload.map_or(&snapshot.root, |workload| &workload.scope);
    Some(Owner { scope: Arc::clone(scope), workload: workload.cloned(), direction })
}

/// The listener that takes a connection first: the one of that name in the root scope, or the virtual
/// listener (it binds, with `use_original_dst`) of the direction in a workload's scope.
pub fn entry(owner: &Owner, gate: &Gate) -> Option<Arc<Listener>> {
    let listeners = owner.scope.listeners.iter();
    let found = match gate {
        Gate::Bound(name) => listeners.into_iter().find(|listener| *listener.name == **name),
        Gate::Outbound(_) => listeners.into_iter().find(|l| is_virtual(l) && l.direction != TrafficDirection::Inbound),
        Gate::Inbound | Gate::Host | Gate::Local => {
            listeners.into_iter().find(|l| l.bind_to_port && l.direction == TrafficDirection::Inbound)
        }
    };
    found.cloned()
}

fn is_virtual(listener: &Listener) -> bool {
    listener.bind_to_port && listener.use_original_dst
}

/// Where `entry` hands the connection over to, when it uses the original destination: the listener of
/// exactly that address, else of any address with that port, else `entry` itself.
pub fn handed_over(scope: &Scope, entry: &Arc<Listener>, destination: SocketAddr) -> Arc<Listener> {
    if !entry.use_original_dst {
        return Arc::clone(entry);
    }
    let others =
        || scope.listeners.iter().filter(|other| other.name != entry.name && other.direction == entry.direction);
    let exact = others().find(|other| other.address == destination);
    let any =
        || others().find(|other| other.address.port() == destination.port() && is_any(other.address.ip(), destination));
    exact.or_else(any).unwrap_or(entry).clone()
}

fn is_any(address: IpAddr, destination: SocketAddr) -> bool {
    // An IPv6 wildcard socket takes IPv4 as well, as Envoy's ipv4_compat listeners do.
    address.is_unspecified() && (address.is_ipv6() || destination.is_ipv4())
}

/// The filter chain for these facts, else the default chain.
pub fn chain(listener: &Listener, facts: &ConnectionFacts<'_>) -> Option<Arc<FilterChain>> {
    filter_chain::choose(listener, facts).cloned()
}

/// Resolves an established connection under another snapshot.
pub fn again(snapshot: &Snapshot, connection: &Connection) -> Option<Resolved> {
    let owner = owner(snapshot, &connection.gate, connection.original_destination)?;
    let entry = entry(&owner, &connection.gate)?;
    let listener = handed_over(&owner.scope, &entry, connection.original_destination);
    let chain = chain(&listener, &connection.facts())?;
    Some(Resolved { workload: owner.workload, scope: owner.scope, listener, chain })
}
