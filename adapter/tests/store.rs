//! Any order of workloads coming, changing, being accepted, refused and going ends with exactly what
//! is referred to.

mod support;

use istio_dpu_adapter::translate::{Aggregate, Kind};
use mesh_api::envoy::config::cluster::v3::Cluster;
use mesh_api::type_url;
use proptest::prelude::*;
use support::{Proxy, pod, update};
use xds::{Rejected, Resource};

const WORKLOADS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    Join(usize),
    /// The workload's clusters become those of these numbers.
    Clusters(usize, Vec<u8>),
    Accept(usize),
    Refuse(u8),
    ProxyRestarts,
    Leave(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let clusters = proptest::collection::vec(0..5_u8, 0..4);
    prop_oneof![
        1 => (0..WORKLOADS).prop_map(Step::Join),
        4 => (0..WORKLOADS, clusters).prop_map(|(workload, clusters)| Step::Clusters(workload, clusters)),
        2 => (0..WORKLOADS).prop_map(Step::Accept),
        1 => (0..5_u8).prop_map(Step::Refuse),
        1 => Just(Step::ProxyRestarts),
        1 => (0..WORKLOADS).prop_map(Step::Leave),
    ]
}

fn uid(workload: usize) -> String {
    format!("uid-{}", support::PODS[workload])
}

fn clusters(aggregate: &mut Aggregate, workload: usize, wanted: &[u8]) {
    let name = |number: u8| format!("c{number}");
    let changed = wanted
        .iter()
        .map(|number| Resource::new(name(*number), &Cluster { name: name(*number), ..Cluster::default() }));
    let removed = (0..5).filter(|number| !wanted.contains(number)).map(name).collect();
    aggregate.update(&uid(workload), &update(Kind::Cluster, changed.collect(), removed));
    aggregate.update(&uid(workload), &update(Kind::Listener, Vec::new(), Vec::new()));
}

fn apply(aggregate: &mut Aggregate, proxy: &mut Proxy, step: &Step) {
    let changes = match step {
        Step::Join(workload) => {
            aggregate.join(pod(support::PODS[*workload]));
            return;
        }
        Step::Clusters(workload, wanted) => {
            clusters(aggregate, *workload, wanted);
            aggregate.publish(&uid(*workload))
        }
        Step::Accept(workload) => {
            let key = (type_url::PROXY_WORKLOAD.to_owned(), uid(*workload));
            let Some(version) = proxy.held.get(&key).map(|one| one.version.clone()) else { return };
            aggregate.acked(type_url::PROXY_WORKLOAD, &[(uid(*workload), version)], 1)
        }
        Step::Refuse(number) => {
            let prefix = format!("c{number}@");
            let Some(name) = proxy.names(type_url::CLUSTER).into_iter().find(|name| name.starts_with(&prefix)) else {
                return;
            };
            aggregate.nacked(type_url::CLUSTER, &[Rejected { name, reason: "no".to_owned() }]).0
        }
        Step::ProxyRestarts => aggregate.proxy_connected(),
        Step::Leave(workload) => aggregate.leave(&uid(*workload)),
    };
    proxy.take(&changes);
}

/// What is kept beside what is in force is what the proxy accepted last.
fn check(aggregate: &mut Aggregate, proxy: &mut Proxy) {
    proxy.check();
    for workload in 0..WORKLOADS {
        let changes = aggregate.leave(&uid(workload));
        proxy.take(&changes);
        proxy.check();
    }
    assert!(proxy.held.is_empty(), "{:?}", proxy.held.keys());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn exactly_what_is_referred_to_is_held(steps in proptest::collection::vec(step(), 0..60)) {
        let (mut aggregate, mut proxy) = (Aggregate::default(), Proxy::default());
        for step in &steps {
            apply(&mut aggregate, &mut proxy, step);
            proxy.check();
        }
        check(&mut aggregate, &mut proxy);
    }
}
