//! What istiod 1.30.3 sent to the eight pods of bookinfo, through the core.

mod support;

use istio_dpu_adapter::node::{MeshSettings, id, metadata};
use istio_dpu_adapter::translate::{Aggregate, Kind};
use mesh_api::envoy::config::cluster::v3::Cluster;
use mesh_api::{proxy, type_url};
use std::collections::BTreeSet;
use support::{DEMO, PODS, Proxy, SHIFT, feed, pod, recorded, update};
use xds::{Rejected, Resource};

fn demo() -> (Aggregate, Proxy) {
    let (mut aggregate, mut proxy) = (Aggregate::default(), Proxy::default());
    for name in PODS {
        aggregate.join(pod(name));
        proxy.take(&feed(&mut aggregate, DEMO, name));
    }
    (aggregate, proxy)
}

fn scope_of(proxy: &Proxy, pod: &str) -> String {
    let key = (type_url::PROXY_WORKLOAD.to_owned(), format!("uid-{pod}"));
    proxy.held[&key].decode::<proxy::Workload>().expect("workload").scope
}

/// The proxy takes the Workload resources over as they are.
fn accept_all(aggregate: &mut Aggregate, proxy: &mut Proxy) {
    let workloads = proxy.names(type_url::PROXY_WORKLOAD);
    let versions: Vec<(String, String)> = workloads
        .into_iter()
        .map(|uid| {
            let version = proxy.held[&(type_url::PROXY_WORKLOAD.to_owned(), uid.clone())].version.clone();
            (uid, version)
        })
        .collect();
    let changes = aggregate.acked(type_url::PROXY_WORKLOAD, &versions, 1);
    proxy.take(&changes);
}

#[test]
fn every_distinct_resource_is_served_once() {
    let (_, proxy) = demo();
    proxy.check();
    let received: usize = PODS.iter().flat_map(|pod| Kind::ALL.map(|kind| recorded(DEMO, pod, kind).len())).sum();
    let stored: usize = Kind::ALL.map(|kind| proxy.names(kind.type_url()).len()).iter().sum();
    // 256 resources of 8 pods; two hosts and six applications make 43 of them distinct.
    assert_eq!((received, stored), (256, 43));
    assert_eq!(proxy.names(type_url::PROXY_WORKLOAD).len(), 8);
}

#[test]
fn replicas_on_one_host_share_a_scope_and_others_do_not() {
    let (_, proxy) = demo();
    assert_eq!(scope_of(&proxy, "reviews-v2"), scope_of(&proxy, "reviews-v3"));
    assert_ne!(scope_of(&proxy, "reviews-v1"), scope_of(&proxy, "reviews-v2"), "priorities follow the zone");
    assert_eq!(proxy.names(type_url::SCOPE).len(), 7);
}

#[test]
fn no_cluster_connects_from_the_sidecars_loopback_address() {
    let (_, proxy) = demo();
    let clusters: Vec<Cluster> = proxy
        .held
        .iter()
        .filter(|((kind, _), _)| kind == type_url::CLUSTER)
        .map(|(_, one)| one.decode().expect("cluster"))
        .collect();
    assert!(clusters.iter().any(|cluster| cluster.name == "inbound|9080||"));
    assert!(clusters.iter().all(|cluster| cluster.upstream_bind_config.is_none()));
    let bytes = proxy.held.values().flat_map(|one| one.body.value.windows(9));
    assert!(!bytes.into_iter().any(|window| window == b"127.0.0.6"));
}

#[test]
fn what_is_not_rewritten_stays_byte_for_byte() {
    let (_, proxy) = demo();
    for kind in [Kind::Listener, Kind::Route, Kind::Endpoints] {
        for resource in recorded(DEMO, "ratings-v1", kind) {
            let held = proxy.held.iter().filter(|((other, _), _)| other == kind.type_url());
            assert!(held.into_iter().any(|(_, one)| one.body == resource.body), "{}", resource.name);
        }
    }
}

#[test]
fn a_weight_shift_changes_the_route_table_and_the_scopes_only() {
    let (mut aggregate, mut proxy) = demo();
    accept_all(&mut aggregate, &mut proxy);
    let before = proxy.held.keys().cloned().collect::<BTreeSet<_>>();
    for name in PODS {
        proxy.take(&feed(&mut aggregate, SHIFT, name));
    }
    accept_all(&mut aggregate, &mut proxy);
    proxy.check();
    let after = proxy.held.keys().cloned().collect::<BTreeSet<_>>();
    let changed: BTreeSet<&str> = before.symmetric_difference(&after).map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(changed, BTreeSet::from([type_url::ROUTE_CONFIGURATION, type_url::SCOPE]));
    let routes = before.difference(&after).filter(|(kind, _)| kind == type_url::ROUTE_CONFIGURATION).count();
    assert_eq!(routes, 1, "one route table was replaced");
    assert_eq!(proxy.names(type_url::SCOPE).len(), 7);
}

#[test]
fn a_scope_is_served_only_when_everything_that_it_names_was_answered() {
    let mut aggregate = Aggregate::default();
    aggregate.join(pod("curl"));
    let mut give = |kind: Kind, changed: Vec<Resource>| {
        aggregate.update("uid-curl", &update(kind, changed, Vec::new()));
        aggregate.publish("uid-curl")
    };
    assert!(give(Kind::Cluster, recorded(DEMO, "curl", Kind::Cluster)).is_empty());
    assert!(give(Kind::Listener, recorded(DEMO, "curl", Kind::Listener)).is_empty());
    assert!(give(Kind::Endpoints, recorded(DEMO, "curl", Kind::Endpoints)).is_empty());
    let routes = recorded(DEMO, "curl", Kind::Route);
    assert!(give(Kind::Route, routes[..1].to_vec()).is_empty(), "one route table is missing");
    assert!(!give(Kind::Route, routes[1..].to_vec()).is_empty());
}

#[test]
fn the_old_scope_stays_while_the_new_one_is_incomplete() {
    let (mut aggregate, mut proxy) = demo();
    let before = scope_of(&proxy, "curl");
    let mut cluster: Cluster = recorded(DEMO, "curl", Kind::Cluster)
        .iter()
        .find(|one| one.name.contains("details"))
        .expect("recorded")
        .decode()
        .expect("cluster");
    cluster.name = "outbound|80||new".to_owned();
    cluster.eds_cluster_config = None;
    let outcome = aggregate
        .update("uid-curl", &update(Kind::Cluster, vec![Resource::new("outbound|80||new", &cluster)], Vec::new()));
    let asked = BTreeSet::from([(Kind::Endpoints, "outbound|80||new".to_owned())]);
    assert_eq!(outcome.interests.subscribe, asked);
    proxy.take(&aggregate.publish("uid-curl"));
    assert_eq!(scope_of(&proxy, "curl"), before);
    aggregate.update("uid-curl", &update(Kind::Endpoints, Vec::new(), vec!["outbound|80||new".to_owned()]));
    proxy.take(&aggregate.publish("uid-curl"));
    assert_ne!(scope_of(&proxy, "curl"), before, "that there are no endpoints is an answer too");
    proxy.check();
}

#[test]
fn a_resource_that_the_proxy_refuses_touches_only_the_workloads_that_use_it() {
    let (mut aggregate, mut proxy) = demo();
    accept_all(&mut aggregate, &mut proxy);
    let (before_curl, before_details) = (scope_of(&proxy, "curl"), scope_of(&proxy, "details-v1"));
    let mut cluster: Cluster = recorded(DEMO, "curl", Kind::Cluster)[0].decode().expect("cluster");
    cluster.name = "bad".to_owned();
    aggregate.update("uid-curl", &update(Kind::Cluster, vec![Resource::new("bad", &cluster)], Vec::new()));
    proxy.take(&aggregate.publish("uid-curl"));
    let bad = proxy.names(type_url::CLUSTER).into_iter().find(|name| name.starts_with("bad@")).expect("served");
    let refused = Rejected { name: bad.clone(), reason: "no good".to_owned() };
    let (changes, workloads) = aggregate.nacked(type_url::CLUSTER, &[refused]);
    proxy.take(&changes);
    assert_eq!(workloads, ["bookinfo/curl"]);
    assert_eq!(scope_of(&proxy, "curl"), before_curl, "back to what the proxy accepted");
    assert_eq!(scope_of(&proxy, "details-v1"), before_details);
    proxy.check();
    aggregate.update("uid-curl", &update(Kind::Cluster, Vec::new(), vec!["bad".to_owned()]));
    proxy.take(&aggregate.publish("uid-curl"));
    proxy.check();
}

#[test]
fn a_workload_that_leaves_takes_with_it_only_what_was_its_own() {
    let (mut aggregate, mut proxy) = demo();
    accept_all(&mut aggregate, &mut proxy);
    for name in PODS {
        proxy.take(&aggregate.leave(&format!("uid-{name}")));
        proxy.check();
    }
    assert!(proxy.held.is_empty(), "{:?}", proxy.held.keys());
}

#[test]
fn garbage_is_refused_by_name_and_the_last_good_one_stays() {
    let (mut aggregate, mut proxy) = demo();
    let before = scope_of(&proxy, "curl");
    let mut garbage = recorded(DEMO, "curl", Kind::Listener)[0].clone();
    garbage.body.value = vec![0xff, 0xff];
    let outcome = aggregate.update("uid-curl", &update(Kind::Listener, vec![garbage.clone()], Vec::new()));
    assert_eq!(outcome.rejected.iter().map(|one| one.name.clone()).collect::<Vec<_>>(), [garbage.name]);
    proxy.take(&aggregate.publish("uid-curl"));
    assert_eq!(scope_of(&proxy, "curl"), before);
}

#[test]
fn the_metadata_is_what_the_agent_sends() {
    for name in PODS {
        let recorded = support::metadata(name);
        let settings = MeshSettings {
            node: recorded["NODE_NAME"].as_str().expect("node").to_owned(),
            trust_domain: "cluster.local".to_owned(),
            cluster_id: "Kubernetes".to_owned(),
            mesh_id: "cluster.local".to_owned(),
            control_plane: "istiod.istio-system.svc".to_owned(),
            istio_version: "1.30.3".to_owned(),
        };
        let pod = pod(name);
        let mut own = metadata(&pod, &settings);
        let ports = |text: &serde_json::Value| -> serde_json::Value {
            serde_json::from_str(text.as_str().expect("text")).expect("JSON in JSON")
        };
        assert_eq!(ports(&own["POD_PORTS"]), ports(&recorded["POD_PORTS"]));
        // Spaces in the JSON text, and the build of the proxy, are the recorder's own.
        own["POD_PORTS"] = recorded["POD_PORTS"].clone();
        own["ISTIO_PROXY_SHA"] = recorded["ISTIO_PROXY_SHA"].clone();
        assert_eq!(own, recorded);
        let address = &pod.addresses[0];
        assert_eq!(id(&pod), format!("sidecar~{address}~{name}.bookinfo~bookinfo.svc.cluster.local"));
    }
}
