//! From objects to the screen.

use super::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn objects<T: DeserializeOwned>(list: Value) -> Result<Vec<T>, String> {
    Ok(serde_json::from_value(list).expect("objects"))
}

fn program(name: &str, wanted: i32, ready: i32) -> Value {
    json!({"metadata": {"name": name}, "spec": {"selector": {}, "template": {}},
        "status": {"currentNumberScheduled": wanted, "numberMisscheduled": 0, "desiredNumberScheduled": wanted, "numberReady": ready}})
}

fn node(name: &str) -> Value {
    json!({"apiVersion": "dpumesh.io/v1", "kind": "DpuNode", "metadata": {"name": name}, "spec": {}, "status": {
        "underlayAddress": "198.18.0.1", "vfsTotal": 16, "vfsFree": 12, "dataplaneConnected": true, "proxyConnected": true,
        "streams": "4/4", "resources": {"received": 128, "stored": 38},
        "conditions": [condition("Host", "True"), condition("Proxy", "True"), condition("Ready", "True")]}})
}

fn condition(name: &str, status: &str) -> Value {
    json!({"type": name, "status": status, "lastTransitionTime": "", "reason": "Because", "message": ""})
}

fn workload(name: &str, status: Value) -> Value {
    let mut whole = json!({"node": "node1", "governed": true, "vf": "vf3", "addresses": ["10.244.1.14"], "state": "Open",
        "configuration": "Accepted", "mutualTLS": "Strict", "acknowledgedAt": "2026-10-02T12:00:18Z",
        "istioObjects": ["VirtualService bookinfo/reviews"]});
    let fields = whole.as_object_mut().expect("object");
    fields.extend(status.as_object().expect("object").clone());
    json!({"apiVersion": "dpumesh.io/v1", "kind": "DpuWorkload", "status": whole,
        "metadata": {"name": name, "namespace": "bookinfo", "creationTimestamp": "2026-10-02T11:00:00Z"}})
}

fn pod(name: &str, phase: &str, created: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "bookinfo", "creationTimestamp": created},
        "spec": {"nodeName": "node1", "containers": []}, "status": {"phase": phase}})
}

/// An installation of one node in which all is well.
fn good() -> Seen {
    let controller = json!([{"metadata": {"name": "dpumesh-controller"}, "spec": {"replicas": 2, "selector": {}, "template": {}},
        "status": {"readyReplicas": 2}}]);
    let lease = json!([{"metadata": {"name": "dpumesh-controller"},
        "spec": {"holderIdentity": "dpumesh-controller-a", "renewTime": "2026-10-02T12:00:25.000000Z"}}]);
    let labels = json!({"istio-injection": "enabled"});
    Seen {
        now: "2026-10-02T12:00:30Z".parse().expect("time"),
        system_namespace: "dpumesh-system".to_owned(),
        namespace: None,
        nodes: objects(json!([{"metadata": {"name": "node1"}}])),
        namespaces: objects(json!([{"metadata": {"name": "bookinfo", "labels": labels}}])),
        pods: objects(json!([pod("reviews-v1", "Running", "2026-10-02T11:00:00Z")])),
        dpu_nodes: objects(json!([node("node1")])),
        workloads: objects(json!([workload("reviews-v1", json!({}))])),
        networks: objects(json!([])),
        system_pods: objects(json!([])),
        deployments: objects(controller),
        daemon_sets: objects(json!([program("dpumesh-adapter", 1, 1), program("dpumesh-cni-node", 1, 1)])),
        leases: objects(lease),
    }
}

fn judged(seen: &Seen) -> Status {
    judge(seen).expect("judged")
}

fn only_problem(seen: &Seen) -> Problem {
    let status = judged(seen);
    assert_eq!(status.problems.len(), 1, "{:#?}", status.problems);
    assert_eq!(status.outcome(), Outcome::Bad);
    status.problems[0].clone()
}

#[test]
fn an_installation_in_which_all_is_well_fits_a_few_lines() {
    let status = judged(&good());
    assert_eq!(status.outcome(), Outcome::Good, "{:#?}", status.problems);
    let expected = "\
dpumesh-system: controller 2/2 (leader dpumesh-controller-a), adapter 1/1, cni-node 1/1

NODE   READY  DATAPLANE  PROXY  VFS USED  STREAMS  RESOURCES  UNDERLAY    PODS
node1  yes    yes        yes    4 of 16   4/4      128 -> 38  198.18.0.1  1

NAMESPACE  PODS  GOVERNED  OPEN  ACCEPTED  WAITING  REFUSED  DENIED  mTLS
bookinfo   1     1         1     1         0        0        0       Strict

POD                  NODE   VF   STATE  CONFIGURATION  ACKNOWLEDGED  mTLS
bookinfo/reviews-v1  node1  vf3  Open   Accepted       12 s ago      Strict

ISTIO OBJECT IN FORCE            PODS
VirtualService bookinfo/reviews  1

OK: 1 pods on 1 nodes
";
    assert_eq!(text(&status, false), expected);
}

#[test]
fn a_refused_workload_is_shown_with_where_and_why_and_the_verdict_is_last() {
    let mut seen = good();
    let refused = json!({"configuration": "Refused", "refusals": [{"resource": "virtualInbound", "reason": "jwt_authn is not supported"}]});
    seen.workloads = objects(json!([workload("reviews-v1", refused)]));
    let shown = text(&judged(&seen), false);
    assert!(shown.contains("bookinfo/reviews-v1  node1  vf3  Open   Refused        12 s ago      Strict\n"), "{shown}");
    let end = "\
1. bookinfo/reviews-v1 on node1: its newest configuration was refused, the one before is in force: virtualInbound: jwt_authn is not supported
   -> dpumesh describe pod bookinfo/reviews-v1
1 PROBLEM
";
    assert!(shown.ends_with(end), "{shown}");
}

#[test]
fn many_good_workloads_are_counted_and_listed_when_asked_for() {
    let mut seen = good();
    let many: Vec<Value> = (0..31).map(|number| workload(&format!("web-{number}"), json!({}))).collect();
    seen.workloads = objects(Value::Array(many));
    seen.pods = objects(json!([]));
    let shown = text(&judged(&seen), false);
    assert!(!shown.contains("bookinfo/web-7"), "{shown}");
    assert!(shown.contains("31 pods are good and not listed"), "{shown}");
    seen.namespace = Some("bookinfo".to_owned());
    assert!(text(&judged(&seen), false).contains("bookinfo/web-7"));
}

#[test]
fn what_takes_long_is_wrong_and_what_has_just_begun_is_not() {
    let mut seen = good();
    let mut young = workload("reviews-v2", json!({"state": "Closed", "configuration": "Waiting"}));
    young["metadata"]["creationTimestamp"] = json!("2026-10-02T12:00:00Z");
    seen.workloads = objects(json!([young.clone()]));
    seen.pods = objects(json!([]));
    let status = judged(&seen);
    assert_eq!((status.outcome(), status.workloads[0].health), (Outcome::Good, Health::Pending));
    assert!(text(&status, false).ends_with("OK: 1 pods on 1 nodes, 1 of them on their way\n"));
    young["metadata"]["creationTimestamp"] = json!("2026-10-02T11:59:00Z");
    seen.workloads = objects(json!([young]));
    assert!(only_problem(&seen).what.contains("port is closed"));
}

#[test]
fn pods_that_ask_for_the_mesh_and_have_no_vf_are_found() {
    let mut seen = good();
    seen.pods = objects(json!([
        pod("old", "Running", "2026-10-02T10:00:00Z"),
        pod("young", "Pending", "2026-10-02T12:00:20Z"),
        pod("done", "Succeeded", "2026-10-02T10:00:00Z"),
    ]));
    let problem = only_problem(&seen);
    assert_eq!(problem.place, "bookinfo/old");
    assert!(problem.advice.contains("delete pod old"), "{problem:?}");
}

#[test]
fn a_program_that_does_not_start_is_named_with_its_node_and_reason() {
    let mut seen = good();
    seen.daemon_sets = objects(json!([program("dpumesh-adapter", 1, 0), program("dpumesh-cni-node", 1, 1)]));
    seen.system_pods = objects(json!([{
        "metadata": {"name": "dpumesh-adapter-x", "creationTimestamp": "2026-10-02T11:55:00Z",
            "labels": {"app.kubernetes.io/component": "adapter"}},
        "spec": {"nodeName": "node1", "containers": []},
        "status": {"containerStatuses": [{"name": "adapter", "image": "", "imageID": "", "ready": false, "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]},
    }]));
    let problem = only_problem(&seen);
    assert_eq!(problem.place, "adapter on node1");
    assert_eq!(problem.what, "is not ready (CrashLoopBackOff); its pod is 5 min old");
    assert_eq!(problem.advice, "kubectl -n dpumesh-system logs dpumesh-adapter-x");
}

#[test]
fn a_release_that_is_elsewhere_is_noticed() {
    let mut seen = good();
    seen.deployments = Ok(Vec::new());
    assert!(only_problem(&seen).what.contains("not installed in namespace dpumesh-system"));
}

#[test]
fn a_controller_that_does_not_lead_any_more_is_noticed() {
    let mut seen = good();
    seen.now = "2026-10-02T12:05:00Z".parse().expect("time");
    assert!(only_problem(&seen).what.contains("none leads"));
}

#[test]
fn each_end_of_a_node_that_is_missing_is_said() {
    for (field, value, expected) in [
        ("dataplaneConnected", json!(false), "dataplane does not answer"),
        ("proxyConnected", json!(false), "proxy is not connected"),
        ("streams", json!("3/4"), "3 of 4 streams"),
        ("problems", json!(["VF vf7 is in no namespace"]), "VF vf7 is in no namespace"),
    ] {
        let mut seen = good();
        let mut node = node("node1");
        node["status"][field] = value;
        seen.dpu_nodes = objects(json!([node]));
        let problem = only_problem(&seen);
        assert!(problem.what.contains(expected), "{problem:?}");
        assert_eq!(problem.place, "node node1");
    }
}

#[test]
fn a_node_whose_programs_do_not_report_is_not_called_good() {
    let mut seen = good();
    let mut silent = node("node1");
    silent["status"]["conditions"][1] = condition("Proxy", "Unknown");
    seen.dpu_nodes = objects(json!([silent]));
    seen.system_pods = objects(json!([{
        "metadata": {"name": "dpumesh-adapter-x", "labels": {"app.kubernetes.io/component": "adapter"}},
        "spec": {"nodeName": "node1", "containers": []}, "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }]));
    let problem = only_problem(&seen);
    assert_eq!(problem.what, "its adapter does not report");
    assert_eq!(problem.advice, "kubectl -n dpumesh-system logs dpumesh-adapter-x");
    assert_eq!(judged(&seen).nodes[0].proxy_connected, None);
    seen.dpu_nodes =
        objects(json!([{"apiVersion": "dpumesh.io/v1", "kind": "DpuNode", "metadata": {"name": "node1"}, "spec": {}}]));
    assert_eq!(judged(&seen).problems.len(), 2, "neither reports");
}

#[test]
fn nodes_without_a_dpu_are_not_missed() {
    let mut seen = good();
    let plain =
        json!({"apiVersion": "dpumesh.io/v1", "kind": "DpuNode", "metadata": {"name": "control-plane"}, "spec": {}});
    seen.dpu_nodes = objects(json!([node("node1"), plain]));
    let status = judged(&seen);
    assert_eq!((status.outcome(), status.nodes.len()), (Outcome::Good, 1), "{:#?}", status.problems);
}

#[test]
fn a_network_that_is_refused_is_said() {
    let mut seen = good();
    seen.networks = objects(
        json!([{"apiVersion": "dpumesh.io/v1", "kind": "Network", "metadata": {"name": "blue"}, "spec": {"vni": 7},
        "status": {"conditions": [{"type": "Accepted", "status": "False", "lastTransitionTime": "", "reason": "Overlay", "message": "overlays are not carried"}]}}]),
    );
    assert_eq!(only_problem(&seen).what, "overlays are not carried");
}

#[test]
fn what_may_not_be_seen_is_said_and_nothing_is_called_good() {
    let mut seen = good();
    seen.leases = Err("you may not list leases".to_owned());
    let status = judged(&seen);
    assert_eq!(status.outcome(), Outcome::Unknown);
    assert!(
        text(&status, false).ends_with("?  you may not list leases\nNOT ALL COULD BE SEEN: what could be is good\n")
    );
    seen.workloads = Err("cannot list dpuworkloads".to_owned());
    assert_eq!(judge(&seen), Err("cannot list dpuworkloads".to_owned()));
}

#[test]
fn json_has_the_same_words() {
    let value = serde_json::to_value(judged(&good())).expect("JSON");
    assert_eq!(value["workloads"][0]["mutualTLS"], "Strict");
    assert_eq!(value["workloads"][0]["health"], "good");
    assert_eq!(value["nodes"][0]["vfsFree"], 12);
    assert_eq!(value["istioObjects"][0], json!({"object": "VirtualService bookinfo/reviews", "workloads": 1}));
}
