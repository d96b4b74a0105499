//! Each piece, good and bad.

use super::*;
use crate::seen::Seen;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn of<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("object")
}

/// An installation that lacks nothing.
fn good() -> Checked {
    let program = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"replicas": 1, "selector": {}, "template": {}}, "status": {"readyReplicas": 1,
            "currentNumberScheduled": 1, "numberMisscheduled": 0, "desiredNumberScheduled": 1, "numberReady": 1}})
    };
    let seen = Seen {
        now: "2026-10-02T12:00:30Z".parse().expect("time"),
        system_namespace: "dpumesh-system".to_owned(),
        namespace: None,
        nodes: Ok(of(json!([{"metadata": {"name": "node1"}, "spec": {"podCIDR": "10.244.1.0/24"}}]))),
        namespaces: Ok(of(json!([{"metadata": {"name": "bookinfo", "labels": {"istio-injection": "enabled"}}}]))),
        pods: Ok(of(
            json!([{"metadata": {"name": "a", "namespace": "bookinfo"}, "spec": {"containers": [{"name": "app"}]}}]),
        )),
        dpu_nodes: Ok(of(
            json!([{"apiVersion": "dpumesh.io/v1", "kind": "DpuNode", "metadata": {"name": "node1"}, "spec": {},
            "status": {"underlayAddress": "198.18.0.1", "dataplaneConnected": true, "proxyConnected": true, "conditions": [
                {"type": "Host", "status": "True", "reason": "Reporting", "lastTransitionTime": ""}]}}]),
        )),
        workloads: Ok(Vec::new()),
        networks: Ok(Vec::new()),
        system_pods: Ok(Vec::new()),
        deployments: Ok(of(json!([program("dpumesh-controller")]))),
        daemon_sets: Ok(of(json!([program("dpumesh-adapter"), program("dpumesh-cni-node")]))),
        leases: Ok(of(json!([{"metadata": {"name": "dpumesh-controller"},
            "spec": {"holderIdentity": "c", "renewTime": "2026-10-02T12:00:25.000000Z"}}]))),
    };
    let ca = include_str!("../dpu/testdata/ca.pem");
    Checked {
        seen,
        server: "https://192.0.2.1:6443".to_owned(),
        version: Ok("v1.36.3".to_owned()),
        kinds: Ok(vec!["Network".to_owned(), "DpuNode".to_owned(), "DpuWorkload".to_owned()]),
        system: Ok(Some(of(json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}})))),
        authority: Ok(Some(of(json!({"metadata": {}, "data": {"ca.crt": ca}})))),
        istio_root: Ok(Some(of(json!({"metadata": {}})))),
        istiods: Ok(vec![istiod("a/b, dpumesh-system/dpumesh-adapter")]),
    }
}

fn istiod(trusted: &str) -> Deployment {
    let env = json!([{"name": "CA_TRUSTED_NODE_ACCOUNTS", "value": trusted}]);
    let template = json!({"spec": {"containers": [{"name": "discovery", "env": env}]}});
    of(
        json!({"metadata": {"name": "istiod", "namespace": "istio-system"}, "spec": {"selector": {}, "template": template}}),
    )
}

fn finding(checked: &Checked, name: &str) -> Finding {
    checks(checked).into_iter().find(|check| check.name == name).expect("check").finding
}

fn assert_bad(checked: &Checked, name: &str, expected: &str) {
    match finding(checked, name) {
        Finding::Bad(what, advice) => assert!(what.contains(expected) && !advice.is_empty(), "{name}: {what}"),
        other => panic!("{name}: {other:?}"),
    }
    assert_eq!(outcome(&checks(checked)), Outcome::Bad);
}

#[test]
fn an_installation_that_lacks_nothing_is_good() {
    let checks = checks(&good());
    assert_eq!(outcome(&checks), Outcome::Good, "{}", text(&checks));
    assert!(text(&checks).lines().all(|line| line.starts_with("ok")), "{}", text(&checks));
}

#[test]
fn an_api_server_that_is_away_or_old_is_bad() {
    let mut checked = good();
    checked.version = Err("connection refused".to_owned());
    assert_bad(&checked, "API server", "connection refused");
    checked.version = Ok("v1.20.0".to_owned());
    assert_bad(&checked, "API server", "too old");
}

#[test]
fn kinds_that_are_missing_are_named() {
    let mut checked = good();
    checked.kinds = Ok(vec!["Network".to_owned()]);
    assert_bad(&checked, "kinds", "DpuNode, DpuWorkload");
}

#[test]
fn a_namespace_that_refuses_the_pods_is_bad_and_one_that_says_nothing_is_odd() {
    let mut checked = good();
    checked.system = Ok(Some(of(json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}}))));
    assert_bad(&checked, "namespace", "refused");
    checked.system = Ok(Some(of(json!({"metadata": {}}))));
    assert!(matches!(finding(&checked, "namespace"), Finding::Odd(..)));
    checked.system = Ok(None);
    assert_bad(&checked, "namespace", "not there");
}

#[test]
fn an_authority_that_ended_is_bad() {
    let mut checked = good();
    checked.seen.now = "2226-01-01T00:00:00Z".parse().expect("time");
    assert!(matches!(finding(&checked, "authority"), Finding::Bad(..)));
    checked.authority = Ok(Some(of(json!({"metadata": {}, "data": {"ca.crt": "x"}}))));
    assert_bad(&checked, "authority", "no certificate");
}

#[test]
fn an_istiod_that_does_not_trust_the_adapter_is_named_with_the_setting() {
    let mut checked = good();
    checked.istiods = Ok(vec![istiod("istio-system/ztunnel")]);
    assert_bad(&checked, "istiod trust", "istio-system/istiod does not let dpumesh-system/dpumesh-adapter");
    checked.istiods = Ok(Vec::new());
    assert!(matches!(finding(&checked, "istiod trust"), Finding::Unknown(_)));
    assert_eq!(outcome(&checks(&checked)), Outcome::Unknown);
}

#[test]
fn an_istiod_elsewhere_is_judged_by_what_became_of_workloads() {
    let mut checked = good();
    checked.istiods = Ok(Vec::new());
    let workload = |configuration: &str| json!({"apiVersion": "dpumesh.io/v1", "kind": "DpuWorkload", "metadata": {"name": "a"}, "status": {"configuration": configuration}});
    checked.seen.workloads = Ok(of(json!([workload("Accepted")])));
    assert_eq!(finding(&checked, "istiod trust"), Finding::Good("istiod serves 1 workloads of DPUs".to_owned()));
    checked.seen.workloads = Ok(of(json!([workload("Accepted"), workload("Denied")])));
    assert_bad(&checked, "istiod trust", "refuses 1 workloads");
}

#[test]
fn sidecars_of_governed_pods_are_worth_a_word() {
    let mut checked = good();
    checked.seen.pods = Ok(of(json!([{"metadata": {"name": "a", "namespace": "bookinfo"},
        "spec": {"containers": [{"name": "app"}, {"name": "istio-proxy"}]}}])));
    assert!(matches!(finding(&checked, "sidecars"), Finding::Odd(..)));
}

#[test]
fn two_dpus_with_one_address_and_one_without_are_bad() {
    let mut checked = good();
    let node = |name: &str, status: Value| json!({"apiVersion": "dpumesh.io/v1", "kind": "DpuNode", "metadata": {"name": name}, "spec": {}, "status": status});
    let reports = json!([{"type": "Host", "status": "True", "reason": "Reporting", "lastTransitionTime": ""}]);
    let same = json!({"underlayAddress": "198.18.0.1", "conditions": reports});
    checked.seen.dpu_nodes = Ok(of(json!([node("node1", same.clone()), node("node2", same)])));
    assert_bad(&checked, "underlay", "node1 and node2 both have 198.18.0.1");
    checked.seen.dpu_nodes = Ok(of(json!([node("node2", json!({"conditions": reports}))])));
    assert_bad(&checked, "underlay", "no address on the fabric: node2");
    checked.seen.nodes =
        Ok(of(json!([{"metadata": {"name": "node2", "annotations": {"dpumesh.io/underlay-address": "198.18.0.2"}}}])));
    assert!(matches!(finding(&checked, "underlay"), Finding::Good(_)));
    assert_bad(&checked, "pod addresses", "no spec.podCIDRs: node2");
}

#[test]
fn a_dpu_that_is_not_connected_is_named_with_the_commands_that_set_it_up() {
    let mut checked = good();
    checked.seen.dpu_nodes =
        Ok(of(json!([{"apiVersion": "dpumesh.io/v1", "kind": "DpuNode", "metadata": {"name": "node9"}, "spec": {}}])));
    assert_bad(&checked, "DPUs", "no node with a DPU is known");
    checked.seen.system_pods = Ok(of(json!([{"metadata": {"labels": {"app.kubernetes.io/component": "cni-node"}},
        "spec": {"nodeName": "node9", "containers": []}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}])));
    assert_bad(&checked, "DPUs", "not connected: node9");
}

#[test]
fn what_cannot_be_seen_makes_the_answer_unknown() {
    let mut checked = good();
    checked.istiods = Err("you may not list deployments".to_owned());
    let checks = checks(&checked);
    assert_eq!(outcome(&checks), Outcome::Unknown);
    assert!(text(&checks).contains("?     istiod trust  you may not list deployments"), "{}", text(&checks));
}
