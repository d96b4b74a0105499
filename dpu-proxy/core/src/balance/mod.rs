//! Which endpoint takes a request: priority, then locality, then the cluster's policy.
//!
//! In: a cluster, its endpoints, which of them are ejected, how busy each is, a hash and random numbers.
//! Out: the index of an endpoint, counted through priorities, localities and endpoints in order. The
//! shell builds a `Balancer` per endpoint set, and anew when ejections change.

mod group;
pub mod hash_policy;
mod maglev;
mod priority;
mod ring;
mod scheduler;

use crate::model::{Cluster, EndpointHealth, EndpointSet, LbPolicy};
use group::{Group, Member};
use priority::{Availability, Loads};
use scheduler::Scheduler;

pub use maglev::Maglev;
pub use ring::Ring;

/// What the shell knows of endpoints at the moment of a choice.
pub trait HostLoad {
    /// Requests in flight.
    fn active(&self, index: usize) -> u32;

    /// True for an endpoint that was tried already: avoided while there are others.
    fn is_avoided(&self, index: usize) -> bool;
}

/// How often another endpoint is asked for when an avoided one comes up.
const ATTEMPTS: u32 = 5;

/// Chooses endpoints of one endpoint set.
#[derive(Debug)]
pub struct Balancer {
    policy: LbPolicy,
    loads: Loads,
    levels: Vec<Level>,
}

/// The endpoints of a priority.
#[derive(Debug)]
struct Level {
    healthy: Choice,
    degraded: Choice,
    /// In panic: all of them.
    all: Choice,
}

/// One group, or one per locality with its share.
#[derive(Debug)]
struct Choice {
    groups: Vec<Group>,
    localities: Option<Scheduler>,
}

impl Balancer {
    /// For an endpoint set; `seed` is where turns start.
    pub fn new(cluster: &Cluster, set: &EndpointSet, is_ejected: impl Fn(usize) -> bool, seed: u64) -> Self {
        let levels = members(set, is_ejected);
        let factor = if set.overprovisioning_factor_percent == 0 { 140 } else { set.overprovisioning_factor_percent };
        let counts: Vec<_> = levels.iter().map(|localities| priority::Counts::of(localities)).collect();
        let build = |localities: &Vec<Locality>| Level::build(cluster, localities, factor, seed);
        Self {
            policy: cluster.lb_policy,
            loads: Loads::of(&counts, factor, cluster.healthy_panic_threshold_percent),
            levels: levels.iter().map(build).collect(),
        }
    }

    /// Chooses an endpoint. `hash` is that of the route's hash policy; without it a random number takes
    /// its place. `None`: there is none.
    pub fn choose(
        &mut self,
        hosts: &impl HostLoad,
        hash: Option<u64>,
        random: &mut impl FnMut() -> u64,
    ) -> Option<usize> {
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            let chosen = self.choose_once(hosts, hash, attempt, random)?;
            if !hosts.is_avoided(chosen) {
                return Some(chosen);
            }
            last = Some(chosen);
        }
        last
    }

    fn choose_once(
        &mut self,
        hosts: &impl HostLoad,
        hash: Option<u64>,
        attempt: u32,
        random: &mut impl FnMut() -> u64,
    ) -> Option<usize> {
        let is_hashing = matches!(self.policy, LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. });
        let number = hash.filter(|_| is_hashing).unwrap_or_else(&mut *random);
        let (level, availability) = self.loads.choose(number);
        let level = self.levels.get_mut(level)?;
        let choice = match availability {
            Availability::Healthy => &mut level.healthy,
            Availability::Degraded => &mut level.degraded,
            Availability::Panic => &mut level.all,
        };
        choice.group()?.choose(self.policy, hosts, number, attempt, random)
    }
}

/// An endpoint's place and weight, with its health, by locality.
#[derive(Clone, Debug)]
pub(crate) struct Locality {
    weight: u32,
    members: Vec<(Member, Health)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Healthy,
    Degraded,
    Unhealthy,
}

fn members(set: &EndpointSet, is_ejected: impl Fn(usize) -> bool) -> Vec<Vec<Locality>> {
    let mut index = 0;
    let mut next = |endpoint: &crate::model::Endpoint| {
        let member = Member { index, weight: endpoint.weight.max(1), address: endpoint.address };
        index += 1;
        (member, health(endpoint.health, is_ejected(member.index)))
    };
    let mut localities = |priority: &crate::model::Priority| {
        let locality = |locality: &crate::model::LocalityEndpoints| Locality {
            weight: locality.weight,
            members: locality.endpoints.iter().map(|endpoint| next(endpoint)).collect(),
        };
        priority.localities.iter().map(locality).collect()
    };
    set.priorities.iter().map(&mut localities).collect()
}

fn health(health: EndpointHealth, is_ejected: bool) -> Health {
    match health {
        _ if is_ejected => Health::Unhealthy,
        EndpointHealth::Unknown | EndpointHealth::Healthy => Health::Healthy,
        EndpointHealth::Degraded => Health::Degraded,
        EndpointHealth::Unhealthy | EndpointHealth::Draining => Health::Unhealthy,
    }
}

impl Level {
    fn build(cluster: &Cluster, localities: &[Locality], factor: u32, seed: u64) -> Self {
        let choice = |wanted: Option<Health>| Choice::build(cluster, localities, wanted, factor, seed);
        Self { healthy: choice(Some(Health::Healthy)), degraded: choice(Some(Health::Degraded)), all: choice(None) }
    }
}

impl Choice {
    fn build(cluster: &Cluster, localities: &[Locality], wanted: Option<Health>, factor: u32, seed: u64) -> Self {
        let picked = |locality: &Locality| -> Vec<Member> {
            let fits = |health: Health| wanted.is_none_or(|wanted| wanted == health);
            locality.members.iter().filter(|(_, health)| fits(*health)).map(|(member, _)| *member).collect()
        };
        // In panic Envoy forgets localities.
        if cluster.locality_weighted && wanted.is_some() {
            return Self::by_locality(cluster, localities, factor, seed, picked);
        }
        let all: Vec<Member> = localities.iter().flat_map(picked).collect();
        Self { groups: group::some(cluster.lb_policy, all, seed), localities: None }
    }

    /// A locality's share is its weight, less what it lacks in healthy endpoints.
    fn by_locality(
        cluster: &Cluster,
        localities: &[Locality],
        factor: u32,
        seed: u64,
        picked: impl Fn(&Locality) -> Vec<Member>,
    ) -> Self {
        let (mut groups, mut shares) = (Vec::new(), Vec::new());
        for locality in localities {
            let members = picked(locality);
            let availability = f64::from(factor) / 100.0 * members.len() as f64 / locality.members.len().max(1) as f64;
            let share = f64::from(locality.weight) * availability.min(1.0);
            if share > 0.0 {
                groups.extend(group::some(cluster.lb_policy, members, seed));
                shares.push(share);
            }
        }
        Self { localities: Some(Scheduler::new(&shares, seed)), groups }
    }

    fn group(&mut self) -> Option<&mut Group> {
        let index = match &mut self.localities {
            Some(localities) => localities.next(|_, weight| weight)?,
            None => 0,
        };
        self.groups.get_mut(index)
    }
}

#[cfg(test)]
mod tests;
