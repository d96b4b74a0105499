//! Snapshots: what is in force after which updates.

use super::super::assemble::{Assembler, Incomplete};
use super::super::bootstrap;
use super::{apply, body, one_file};
use crate::model::{Probe, ProbeKind, Snapshot};
use mesh_api::envoy::config::cluster::v3::Cluster;
use mesh_api::envoy::config::endpoint::v3::ClusterLoadAssignment;
use mesh_api::envoy::config::listener::v3::Listener;
use mesh_api::envoy::config::route::v3::RouteConfiguration;
use mesh_api::proxy::{Reference, Scope, Workload};
use mesh_api::{Any, type_url, workload as wire};
use prost::Message;

fn eds_cluster(name: &str, timeout: &str) -> Any {
    body::<Cluster>(&format!(
        "{{name: '{name}', type: EDS, connect_timeout: {timeout}, eds_cluster_config: {{eds_config: {{ads: {{}}}}}}}}"
    ))
}

fn endpoints(name: &str, port: u16) -> Any {
    body::<ClusterLoadAssignment>(&format!(
        "{{cluster_name: '{name}', endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 10.0.0.1, port_value: {port}}}}}}}}}]}}]}}"
    ))
}

fn routes(name: &str) -> Any {
    body::<RouteConfiguration>(&format!(
        "{{name: '{name}', virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: a}}}}]}}]}}"
    ))
}

fn listener(name: &str, port: u16, rds: &str) -> Any {
    body::<Listener>(&format!(
        r#"
name: {name}
address: {{socket_address: {{address: 0.0.0.0, port_value: {port}}}}}
filter_chains:
- filters:
  - name: hcm
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      rds: {{route_config_name: '{rds}', config_source: {{ads: {{}}}}}}
      http_filters: [{{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]
"#
    ))
}

fn any<M: Message>(type_url: &str, message: &M) -> Any {
    Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

fn reference(name: &str, hash: &str) -> Reference {
    Reference { name: name.to_owned(), resource: format!("{name}@{hash}") }
}

fn take(assembler: &mut Assembler, name: &str, body: &Any) {
    apply(assembler, name, body).unwrap_or_else(|refused| panic!("{refused:?}"));
}

fn ports(snapshot: &Snapshot) -> Vec<u16> {
    snapshot.root.listeners.iter().map(|listener| listener.address.port()).collect()
}

#[test]
fn nothing_new_is_the_same_snapshot() {
    let mut assembler = Assembler::new();
    take(&mut assembler, "a", &eds_cluster("a", "1s"));
    take(&mut assembler, "a", &endpoints("a", 1));
    let first = assembler.snapshot();
    take(&mut assembler, "a", &endpoints("a", 1));
    assert!(std::sync::Arc::ptr_eq(&first, &assembler.snapshot()));
    take(&mut assembler, "a", &endpoints("a", 2));
    assert_eq!(assembler.snapshot().version, first.version + 1);
}

#[test]
fn a_cluster_waits_for_its_endpoints_and_keeps_its_id_when_they_change() {
    let mut assembler = Assembler::new();
    take(&mut assembler, "a", &eds_cluster("a", "1s"));
    assert!(assembler.snapshot().root.clusters.is_empty());
    let waiting = Incomplete { what: "cluster a".into(), missing: vec!["endpoints a".into()] };
    assert_eq!(assembler.incomplete(), vec![waiting]);
    assert!(assembler.wanted().endpoints.contains("a"));

    take(&mut assembler, "a", &endpoints("a", 1));
    let before = assembler.snapshot();
    take(&mut assembler, "a", &endpoints("a", 2));
    let after = assembler.snapshot();
    assert_eq!(before.root.clusters["a"].id, after.root.clusters["a"].id);
    assert_ne!(before.root.clusters["a"].endpoints, after.root.clusters["a"].endpoints);

    take(&mut assembler, "a", &eds_cluster("a", "2s"));
    assert_ne!(assembler.snapshot().root.clusters["a"].id, after.root.clusters["a"].id);
}

#[test]
fn a_listener_waits_for_its_routes_while_the_one_before_it_serves() {
    let mut assembler = Assembler::new();
    take(&mut assembler, "l", &listener("l", 80, "one"));
    assert_eq!(ports(&assembler.snapshot()), Vec::<u16>::new());
    assert!(assembler.wanted().routes.contains("one"));
    take(&mut assembler, "one", &routes("one"));
    assert_eq!(ports(&assembler.snapshot()), vec![80]);

    take(&mut assembler, "l", &listener("l", 81, "two"));
    assert_eq!(ports(&assembler.snapshot()), vec![80]);
    take(&mut assembler, "two", &routes("two"));
    assert_eq!(ports(&assembler.snapshot()), vec![81]);

    assembler.remove(type_url::LISTENER, "l");
    assert_eq!(ports(&assembler.snapshot()), Vec::<u16>::new());
}

#[test]
fn a_bad_resource_is_refused_alone_and_the_one_before_it_stays() {
    let mut assembler = Assembler::new();
    take(&mut assembler, "a", &endpoints("a", 1));
    take(&mut assembler, "a", &eds_cluster("a", "1s"));
    let bad = eds_cluster("a", "0s");
    let good = body::<Cluster>("{name: b}");
    let changed = [("a", &bad), ("b", &good)];
    let refused = assembler.apply(type_url::CLUSTER, changed, [], &one_file).expect_err("one is bad");
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].name, "a");
    assert!(refused[0].reason.contains("connect_timeout"), "{}", refused[0].reason);
    assert_eq!(assembler.rejected().count(), 1);
    let root = &assembler.snapshot().root;
    assert!(root.clusters.contains_key("a") && root.clusters.contains_key("b"));

    take(&mut assembler, "a", &eds_cluster("a", "3s"));
    assert_eq!(assembler.rejected().count(), 0);
}

#[test]
fn a_resource_under_another_name_or_type_is_refused() {
    let mut assembler = Assembler::new();
    assert!(apply(&mut assembler, "b", &body::<Cluster>("{name: a}")).is_err());
    let listener_as_cluster = listener("a", 80, "one");
    assert!(assembler.apply(type_url::CLUSTER, [("a", &listener_as_cluster)], [], &one_file).is_err());
    assert!(assembler.apply("type.googleapis.com/no.Such", [("a", &Any::default())], [], &one_file).is_err());
}

#[test]
fn a_static_listener_that_names_a_missing_cluster_is_refused() {
    let text = |cluster: &str| {
        format!(
            r#"
static_resources:
  clusters: [{{name: a}}]
  listeners:
  - name: l
    address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          route_config: {{virtual_hosts: [{{name: v, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}]}}
          http_filters: [{{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]
"#
        )
    };
    let with = |cluster| Assembler::with_bootstrap(&bootstrap::parse(&text(cluster), &one_file).expect("valid"));
    let mut assembler = with("a").expect("the cluster exists");
    let refused = with("b").expect_err("the cluster does not exist");
    assert_eq!(refused[0].name, "l");
    assert!(refused[0].reason.contains("cluster \"b\""), "{}", refused[0].reason);
    // What the bootstrap says is not overridden by an update.
    assert!(apply(&mut assembler, "a", &body::<Cluster>("{name: a, connect_timeout: 2s}")).is_err());
    assembler.remove(type_url::CLUSTER, "a");
    assert!(assembler.snapshot().root.clusters.contains_key("a"));
}

fn workload(uid: &str, scope: &str, address: &str) -> Any {
    any(
        type_url::PROXY_WORKLOAD,
        &Workload {
            uid: uid.into(),
            identity: "spiffe://cluster.local/ns/n/sa/s".into(),
            addresses: vec![address.into()],
            port_id: format!("port-{uid}"),
            scope: scope.into(),
            ..Workload::default()
        },
    )
}

/// A scope of one inbound cluster with endpoints of that hash.
fn scope(endpoints_hash: &str) -> Any {
    any(
        type_url::SCOPE,
        &Scope {
            listeners: vec![reference("l", "1")],
            routes: vec![reference("one", "1")],
            clusters: vec![reference("a", "1"), reference("inbound|80||", "1")],
            endpoints: vec![reference("a", endpoints_hash)],
            ..Scope::default()
        },
    )
}

fn with_shared_resources() -> Assembler {
    let mut assembler = Assembler::new();
    take(&mut assembler, "a@1", &eds_cluster("a", "1s"));
    take(
        &mut assembler,
        "inbound|80||@1",
        &body::<Cluster>("{name: 'inbound|80||', type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED}"),
    );
    take(&mut assembler, "a@1", &endpoints("a", 1));
    take(&mut assembler, "l@1", &listener("l", 80, "one"));
    assembler
}

#[test]
fn a_workload_enters_when_everything_of_its_scope_is_there() {
    let mut assembler = with_shared_resources();
    take(&mut assembler, "scope@1", &scope("1"));
    take(&mut assembler, "w", &workload("w", "scope@1", "10.1.0.1"));
    assert!(assembler.snapshot().workloads.is_empty());
    let missing = assembler.incomplete();
    assert_eq!(missing[0].what, "workload w");
    assert!(missing[0].missing.contains(&"one@1".to_owned()), "{missing:?}");

    take(&mut assembler, "one@1", &routes("one"));
    let snapshot = assembler.snapshot();
    assert!(assembler.incomplete().is_empty());
    assert!(snapshot.root.clusters.is_empty() && snapshot.root.listeners.is_empty());
    let found = &snapshot.by_address[&"10.1.0.1".parse().expect("address")];
    assert!(found.scope.clusters["inbound|80||"].cluster.delivers_to_workload);
    assert!(!found.scope.clusters["a"].cluster.delivers_to_workload);
    assert_eq!(found.weight, 1);
    assert_eq!(snapshot.by_port.len(), 1);

    assembler.remove(type_url::PROXY_WORKLOAD, "w");
    assert!(assembler.snapshot().workloads.is_empty());
}

#[test]
fn probes_come_with_the_workload_and_what_is_none_is_refused_by_its_field() {
    let probed = |kind: wire::ProbeKind, port, path: &str| {
        let probes = vec![wire::Probe { port, kind: kind.into(), path: path.to_owned() }];
        let Any { value, .. } = workload("w", "scope@1", "10.1.0.1");
        let workload = Workload { probes, ..Workload::decode(value.as_slice()).expect("a workload") };
        any(type_url::PROXY_WORKLOAD, &workload)
    };
    let mut assembler = with_shared_resources();
    take(&mut assembler, "one@1", &routes("one"));
    take(&mut assembler, "scope@1", &scope("1"));
    take(&mut assembler, "w", &probed(wire::ProbeKind::Http, 8080, "/healthz?a=b"));
    let expected = vec![Probe { port: 8080, kind: ProbeKind::Http { path: "/healthz?a=b".to_owned() } }];
    let own = |assembler: &mut Assembler| {
        let snapshot = assembler.snapshot();
        snapshot.workloads.values().next().expect("a workload").probes.clone()
    };
    assert_eq!(own(&mut assembler), expected);
    for (body, field) in [
        (probed(wire::ProbeKind::Tcp, 0, ""), "probes[0].port"),
        (probed(wire::ProbeKind::Grpc, 70_000, ""), "probes[0].port"),
        (probed(wire::ProbeKind::Http, 80, "healthz"), "probes[0].path"),
        (probed(wire::ProbeKind::Http, 80, "/a HTTP/1.1\r\nx:"), "probes[0].path"),
    ] {
        let refused = apply(&mut assembler, "w", &body).expect_err(field);
        assert!(refused[0].reason.contains(field), "{}", refused[0].reason);
    }
    assert_eq!(own(&mut assembler), expected, "the last good one stays");
}

#[test]
fn an_incomplete_scope_leaves_the_last_complete_one_in_force() {
    let mut assembler = with_shared_resources();
    take(&mut assembler, "one@1", &routes("one"));
    take(&mut assembler, "scope@1", &scope("1"));
    take(&mut assembler, "w", &workload("w", "scope@1", "10.1.0.1"));
    let before = assembler.snapshot();

    take(&mut assembler, "scope@2", &scope("2"));
    take(&mut assembler, "w", &workload("w", "scope@2", "10.1.0.1"));
    assembler.remove(type_url::SCOPE, "scope@1");
    let uid = before.workloads.keys().next().expect("one workload").clone();
    assert_eq!(assembler.snapshot().workloads[&uid].scope.name, "scope@1");
    assert_eq!(assembler.incomplete().len(), 1);

    take(&mut assembler, "a@2", &endpoints("a", 2));
    let after = assembler.snapshot();
    let (old, new) = (&before.workloads[&uid].scope, &after.workloads[&uid].scope);
    assert_eq!(new.name, "scope@2");
    assert_eq!(old.clusters["a"].id, new.clusters["a"].id, "pools survive a change of endpoints");
    assert_ne!(old.clusters["a"].endpoints, new.clusters["a"].endpoints);
}

#[test]
fn scopes_share_a_cluster_only_with_the_same_endpoints() {
    let mut assembler = with_shared_resources();
    take(&mut assembler, "one@1", &routes("one"));
    take(&mut assembler, "a@2", &endpoints("a", 2));
    for (uid, scope_name, hash) in [("v", "scope@1", "1"), ("w", "scope@2", "2"), ("x", "scope@1", "1")] {
        take(&mut assembler, scope_name, &scope(hash));
        take(&mut assembler, uid, &workload(uid, scope_name, &format!("10.1.0.{}", uid.as_bytes()[0])));
    }
    let snapshot = assembler.snapshot();
    let cluster = |uid: &str| &snapshot.workloads[&mesh_model::WorkloadUid(uid.into())].scope.clusters["a"];
    assert_ne!(cluster("v").id, cluster("w").id);
    assert!(std::sync::Arc::ptr_eq(cluster("v"), cluster("x")));
    let inbound =
        |uid: &str| snapshot.workloads[&mesh_model::WorkloadUid(uid.into())].scope.clusters["inbound|80||"].id;
    assert_eq!(inbound("v"), inbound("w"));
}

#[test]
fn a_workload_that_says_nonsense_is_refused() {
    let mut assembler = Assembler::new();
    let refused =
        |assembler: &mut Assembler, body: &Any| apply(assembler, "w", body).expect_err("bad").remove(0).reason;
    assert!(refused(&mut assembler, &workload("w", "scope@1", "ten")).contains("addresses[0]"));
    assert!(refused(&mut assembler, &workload("v", "scope@1", "10.0.0.1")).contains("uid"));
    assert!(refused(&mut assembler, &workload("w", "", "10.0.0.1")).contains("scope"));
}
