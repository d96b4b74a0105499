//! The endpoints among which the cluster's policy chooses.

use super::scheduler::Scheduler;
use super::{HostLoad, Maglev, Ring};
use crate::model::LbPolicy;
use std::net::SocketAddr;

/// An endpoint: its index in the endpoint set, its weight, its address (which ring and Maglev hash).
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub index: usize,
    pub weight: u32,
    pub address: SocketAddr,
}

/// Endpoints and the state of the policy over them. Never empty.
#[derive(Debug)]
pub(super) struct Group {
    members: Vec<Member>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Equal weights: the next turn.
    Turn(u64),
    Weighted(Scheduler),
    Ring(Ring),
    Maglev(Maglev),
}

/// The group of these members, if there are any.
pub(super) fn some(policy: LbPolicy, members: Vec<Member>, seed: u64) -> Vec<Group> {
    if members.is_empty() {
        return Vec::new();
    }
    let state = match policy {
        LbPolicy::RingHash { minimum, maximum } => State::Ring(Ring::new(&keys(&members), minimum, maximum)),
        LbPolicy::Maglev { table_size } => State::Maglev(Maglev::new(&keys(&members), table_size)),
        _ if has_equal_weights(&members) => State::Turn(seed),
        _ => {
            let weights: Vec<f64> = members.iter().map(|member| f64::from(member.weight)).collect();
            State::Weighted(Scheduler::new(&weights, seed))
        }
    };
    vec![Group { members, state }]
}

fn has_equal_weights(members: &[Member]) -> bool {
    members.windows(2).all(|pair| pair[0].weight == pair[1].weight)
}

fn keys(members: &[Member]) -> Vec<(String, u32)> {
    members.iter().map(|member| (member.address.to_string(), member.weight)).collect()
}

impl Group {
    /// Index in the endpoint set.
    pub fn choose(
        &mut self,
        policy: LbPolicy,
        hosts: &impl HostLoad,
        number: u64,
        attempt: u32,
        random: &mut impl FnMut() -> u64,
    ) -> Option<usize> {
        let members = &self.members;
        let at = match (&mut self.state, policy) {
            (State::Ring(ring), _) => ring.choose(number, attempt)?,
            (State::Maglev(maglev), _) => maglev.choose(number, attempt)?,
            (_, LbPolicy::Random) => within(random(), members.len()),
            (State::Weighted(turns), LbPolicy::LeastRequest { active_request_bias, .. }) => {
                let busy = |at: usize| f64::from(hosts.active(members[at].index)) + 1.0;
                turns.next(|at, weight| weight / busy(at).powf(active_request_bias))?
            }
            (State::Turn(_), LbPolicy::LeastRequest { choice_count, .. }) => {
                least_busy(members, hosts, choice_count, random)
            }
            (State::Weighted(turns), _) => turns.next(|_, weight| weight)?,
            (State::Turn(turn), _) => {
                *turn = turn.wrapping_add(1);
                within(*turn, members.len())
            }
        };
        members.get(at).map(|member| member.index)
    }
}

fn within(number: u64, count: usize) -> usize {
    (number % count as u64) as usize
}

/// The least busy of so many random ones.
fn least_busy(members: &[Member], hosts: &impl HostLoad, choices: u32, random: &mut impl FnMut() -> u64) -> usize {
    let mut best = within(random(), members.len());
    for _ in 1..choices.max(1) {
        let other = within(random(), members.len());
        if hosts.active(members[other].index) < hosts.active(members[best].index) {
            best = other;
        }
    }
    best
}
