//! What an API server must find in the definitions.

use super::*;
use serde_json::{Value, json};

fn of(kind: &str) -> Value {
    let all = definitions();
    let found = all.iter().find(|definition| definition.spec.names.kind == kind).expect("kind");
    serde_json::to_value(found).expect("JSON")
}

fn schema(kind: &str, path: &str) -> Value {
    let definition = of(kind);
    let root = "/spec/versions/0/schema/openAPIV3Schema/properties";
    definition
        .pointer(&format!("{root}{path}"))
        .unwrap_or_else(|| panic!("{kind} has no {path}: {definition:#}"))
        .clone()
}

#[test]
fn kinds_have_their_names_scope_and_status() {
    for (kind, name, scope) in [
        ("Network", "networks.dpumesh.io", "Cluster"),
        ("DpuNode", "dpunodes.dpumesh.io", "Cluster"),
        ("DpuWorkload", "dpuworkloads.dpumesh.io", "Namespaced"),
    ] {
        let definition = of(kind);
        assert_eq!(definition["metadata"]["name"], name);
        assert_eq!(definition["spec"]["scope"], scope);
        assert_eq!(definition["spec"]["versions"][0]["subresources"]["status"], json!({}), "{kind}");
    }
}

#[test]
fn conditions_merge_by_their_type() {
    for kind in ["Network", "DpuNode", "DpuWorkload"] {
        let conditions = schema(kind, "/status/properties/conditions");
        assert_eq!(conditions["x-kubernetes-list-type"], "map", "{kind}");
        assert_eq!(conditions["x-kubernetes-list-map-keys"], json!(["type"]), "{kind}");
    }
}

#[test]
fn the_chart_ships_what_the_types_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/helm/dpumesh/crds/dpumesh.yaml");
    let shipped = std::fs::read_to_string(path).expect("the chart has the definitions");
    let made = yaml().expect("YAML");
    assert!(shipped == made, "{path} is old: run `istio-dpu-controller crds > {path}`");
}

#[test]
fn what_is_printed_is_read_back_the_same() {
    let text = yaml().expect("YAML");
    let read: Vec<CustomResourceDefinition> =
        text.split("---\n").skip(1).map(|document| serde_saphyr::from_str(document).expect("YAML")).collect();
    assert_eq!(read, definitions());
}

#[test]
fn a_workload_is_all_status_and_says_its_states_in_words() {
    let workload: DpuWorkload = serde_json::from_value(json!({
        "apiVersion": "dpumesh.io/v1", "kind": "DpuWorkload", "metadata": {"name": "a", "namespace": "n"},
        "status": {"state": "Open", "configuration": "Accepted", "mutualTLS": "Strict", "vf": "vf3"},
    }))
    .expect("workload");
    let status = workload.status.clone().expect("status");
    assert_eq!(status.state, Some(AttachmentState::Open));
    assert_eq!(status.mutual_tls, Some(MutualTls::Strict));
    let again = serde_json::to_value(&workload).expect("JSON");
    assert_eq!(
        again["status"],
        json!({"state": "Open", "configuration": "Accepted", "mutualTLS": "Strict", "vf": "vf3"})
    );
    assert_eq!(again.as_object().map(serde_json::Map::len), Some(4), "{again}");
}

#[test]
fn a_misspelt_field_is_an_error() {
    assert!(serde_json::from_value::<NetworkSpec>(json!({"vnj": 1})).is_err());
    assert!(serde_json::from_value::<DpuNodeSpec>(json!({"underlay": "10.0.0.1"})).is_err());
}

#[test]
fn pods_ask_for_the_mesh_by_their_own_labels_before_those_of_their_namespace() {
    let labels = |text: &str| -> mesh::Labels {
        let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    for (pod, namespace, expected) in [
        ("", "", false),
        ("", "istio-injection=enabled", true),
        ("", "istio-injection=disabled", false),
        ("", "istio.io/rev=canary", true),
        ("", "istio-injection=disabled dpumesh.io/governed=true", true),
        ("sidecar.istio.io/inject=false", "dpumesh.io/governed=true", false),
        ("dpumesh.io/governed=false", "istio-injection=enabled", false),
        ("dpumesh.io/governed=true", "", true),
        ("istio.io/rev=canary", "", true),
    ] {
        assert_eq!(mesh::asks_for_mesh(&labels(pod), &labels(namespace), false), expected, "{pod:?} in {namespace:?}");
    }
    assert!(!mesh::asks_for_mesh(&labels("dpumesh.io/governed=true"), &labels(""), true), "the host's network");
}
