//! Which endpoints are chosen and how often, against shares and choices that a stock Envoy made.

use super::*;
use crate::model::{Discovery, Endpoint, LocalityEndpoints, Priority};
use std::sync::Arc;

fn cluster(lb_policy: LbPolicy, locality_weighted: bool) -> Cluster {
    let discovery = Discovery::Eds { service_name: String::new() };
    Cluster { lb_policy, locality_weighted, ..Cluster::new("c", discovery) }
}

fn endpoint(number: u8, weight: u32, health: EndpointHealth) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        address: ([10, 0, 0, number], 80).into(),
        hostname: String::new(),
        weight,
        health,
        transport_match: Vec::new(),
        istio_workload: String::new(),
    })
}

/// Priorities of localities of (locality weight, endpoint weights).
fn set(priorities: &[&[(u32, &[u32])]]) -> EndpointSet {
    let mut number = 0;
    let mut locality = |(weight, endpoints): &(u32, &[u32])| LocalityEndpoints {
        locality: Default::default(),
        weight: *weight,
        endpoints: endpoints
            .iter()
            .map(|weight| {
                number += 1;
                endpoint(number, *weight, EndpointHealth::Healthy)
            })
            .collect(),
    };
    let mut priority =
        |localities: &&[(u32, &[u32])]| Priority { localities: localities.iter().map(&mut locality).collect() };
    EndpointSet { priorities: priorities.iter().map(&mut priority).collect(), overprovisioning_factor_percent: 140 }
}

#[derive(Default)]
struct Hosts {
    active: Vec<u32>,
    avoided: Vec<usize>,
}

impl HostLoad for Hosts {
    fn active(&self, index: usize) -> u32 {
        self.active.get(index).copied().unwrap_or(0)
    }
    fn is_avoided(&self, index: usize) -> bool {
        self.avoided.contains(&index)
    }
}

/// A counter stands for randomness: every share comes out exactly.
fn counts(balancer: &mut Balancer, hosts: &Hosts, endpoints: usize, picks: u64) -> Vec<usize> {
    let mut counts = vec![0; endpoints];
    for pick in 0..picks {
        if let Some(index) = balancer.choose(hosts, None, &mut || pick) {
            counts[index] += 1;
        }
    }
    counts
}

fn balancer(policy: LbPolicy, set: &EndpointSet, ejected: &[usize]) -> Balancer {
    Balancer::new(&cluster(policy, false), set, |index| ejected.contains(&index), 0)
}

#[test]
fn round_robin_takes_turns_and_follows_weights() {
    let equal = set(&[&[(0, &[1, 1, 1])]]);
    assert_eq!(counts(&mut balancer(LbPolicy::RoundRobin, &equal, &[]), &Hosts::default(), 3, 300), [100; 3]);
    let weighted = set(&[&[(0, &[1, 3])]]);
    assert_eq!(counts(&mut balancer(LbPolicy::RoundRobin, &weighted, &[]), &Hosts::default(), 2, 400), [100, 300]);
}

#[test]
fn ejected_and_unhealthy_endpoints_get_nothing_until_too_few_are_left() {
    let set = set(&[&[(0, &[1, 1, 1, 1])]]);
    let mut one_out = balancer(LbPolicy::RoundRobin, &set, &[1]);
    assert_eq!(counts(&mut one_out, &Hosts::default(), 4, 300), [100, 0, 100, 100]);
    let mut panicking = balancer(LbPolicy::RoundRobin, &set, &[1, 2, 3]);
    assert_eq!(counts(&mut panicking, &Hosts::default(), 4, 400), [100; 4]);
}

#[test]
fn an_empty_set_has_no_endpoint() {
    for set in [set(&[]), set(&[&[]]), set(&[&[(0, &[])]])] {
        assert_eq!(balancer(LbPolicy::RoundRobin, &set, &[]).choose(&Hosts::default(), None, &mut || 1), None);
    }
}

#[test]
fn the_next_priority_takes_what_the_first_cannot() {
    let set = set(&[&[(0, &[1, 1])], &[(0, &[1, 1])]]);
    let mut healthy = balancer(LbPolicy::RoundRobin, &set, &[]);
    assert_eq!(counts(&mut healthy, &Hosts::default(), 4, 100), [50, 50, 0, 0]);
    let mut half = balancer(LbPolicy::RoundRobin, &set, &[0]);
    let shares = counts(&mut half, &Hosts::default(), 4, 100);
    assert_eq!((shares[0], shares[1], shares[2] + shares[3]), (0, 70, 30));
}

#[test]
fn localities_share_by_weight_less_what_they_lack() {
    let set = set(&[&[(1, &[1, 1]), (3, &[1, 1]), (0, &[1])]]);
    let mut all = Balancer::new(&cluster(LbPolicy::RoundRobin, true), &set, |_| false, 0);
    assert_eq!(counts(&mut all, &Hosts::default(), 5, 400), [50, 50, 150, 150, 0]);
    let mut half = Balancer::new(&cluster(LbPolicy::RoundRobin, true), &set, |index| index == 2, 0);
    let shares = counts(&mut half, &Hosts::default(), 5, 310);
    assert_eq!(shares[2], 0);
    assert_eq!((shares[0] + shares[1], shares[3]), (100, 210), "3 × 0.7 against 1");
}

#[test]
fn least_request_prefers_the_less_busy_of_two() {
    let set = set(&[&[(0, &[1, 1])]]);
    let policy = LbPolicy::LeastRequest { choice_count: 2, active_request_bias: 1.0 };
    let hosts = Hosts { active: vec![5, 0], avoided: Vec::new() };
    let mut numbers = 0u64..;
    let mut random = || numbers.next().expect("endless");
    let mut balancer = balancer(policy, &set, &[]);
    let chosen: Vec<_> = (0..10).filter_map(|_| balancer.choose(&hosts, None, &mut random)).collect();
    assert_eq!(chosen, [1; 10], "one of each is drawn every time");
}

#[test]
fn least_request_with_weights_divides_them_by_what_is_active() {
    let set = set(&[&[(0, &[1, 4])]]);
    let policy = LbPolicy::LeastRequest { choice_count: 2, active_request_bias: 1.0 };
    let hosts = Hosts { active: vec![0, 3], avoided: Vec::new() };
    let shares = counts(&mut balancer(policy, &set, &[]), &hosts, 2, 1000);
    assert!((495..=505).contains(&shares[0]), "{shares:?}");
}

#[test]
fn random_ignores_endpoint_weights_as_envoy_does() {
    let set = set(&[&[(0, &[1, 9])]]);
    assert_eq!(counts(&mut balancer(LbPolicy::Random, &set, &[]), &Hosts::default(), 2, 100), [50, 50]);
}

#[test]
fn one_hash_goes_to_one_endpoint() {
    let set = set(&[&[(0, &[1, 1, 1, 1])]]);
    for policy in [LbPolicy::RingHash { minimum: 1024, maximum: 8_388_608 }, LbPolicy::Maglev { table_size: 65_537 }] {
        let mut balancer = balancer(policy, &set, &[]);
        let mut used = std::collections::HashSet::new();
        for number in 0..64u64 {
            let hash = xxhash_rust::xxh64::xxh64(&number.to_le_bytes(), 0);
            let first = balancer.choose(&Hosts::default(), Some(hash), &mut || 1);
            assert_eq!(first, balancer.choose(&Hosts::default(), Some(hash), &mut || 2));
            used.extend(first);
        }
        assert_eq!(used.len(), 4);
    }
}

#[test]
fn endpoints_that_were_tried_are_avoided_while_there_are_others() {
    let set = set(&[&[(0, &[1, 1])]]);
    let hosts = Hosts { active: Vec::new(), avoided: vec![0] };
    let mut two = balancer(LbPolicy::RoundRobin, &set, &[]);
    assert_eq!(counts(&mut two, &hosts, 2, 10), [0, 10]);
    let all = Hosts { active: Vec::new(), avoided: vec![0, 1] };
    assert!(two.choose(&all, None, &mut || 1).is_some());
}
