//! Pods as Kubernetes prints them, as the adapter knows them.

use anyhow::{Context, Result};
use istio_dpu_adapter::pod::Pod;
use mesh_api::attach::Attachment;
use mesh_api::workload::{ContainerPort, Workload};
use serde_json::Value;

/// Pods of a list that have an address.
pub fn parse(list: &str) -> Result<Vec<Pod>> {
    let list: Value = serde_json::from_str(list).context("the pods are no JSON")?;
    let items = list["items"].as_array().context("the pods are no list: `kubectl get pods -o json` prints one")?;
    items.iter().filter(|pod| pod["status"]["podIP"].is_string()).map(pod).collect()
}

fn pod(pod: &Value) -> Result<Pod> {
    let (metadata, spec) = (&pod["metadata"], &pod["spec"]);
    let name = text(&metadata["name"]);
    let address = text(&pod["status"]["podIP"]);
    let attachment = Attachment { addresses: vec![address], ..Attachment::default() };
    let containers = spec["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let namespace = text(&metadata["namespace"]);
    let workload = Workload {
        uid: text(&metadata["uid"]),
        owner: format!("kubernetes://apis/apps/v1/namespaces/{namespace}/deployments/{}", deployment(metadata)),
        namespace,
        name: name.clone(),
        service_account: text(&spec["serviceAccountName"]),
        node: text(&spec["nodeName"]),
        labels: strings(&metadata["labels"]),
        container_ports: containers.iter().flat_map(ports).collect(),
        containers: containers.iter().map(|one| text(&one["name"])).collect(),
        workload_name: deployment(metadata),
        governed: true,
        ..Workload::default()
    };
    Pod::new(&workload, &attachment, "cluster.local").with_context(|| format!("pod {name}"))
}

/// The deployment behind the replica set that owns a pod; the pod itself where there is none.
fn deployment(metadata: &Value) -> String {
    let owner = text(&metadata["ownerReferences"][0]["name"]);
    let hash = text(&metadata["labels"]["pod-template-hash"]);
    match owner.strip_suffix(&format!("-{hash}")) {
        Some(name) if !hash.is_empty() => name.to_owned(),
        _ => text(&metadata["name"]),
    }
}

fn ports(container: &Value) -> Vec<ContainerPort> {
    let all = container["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let port = |port: &Value| ContainerPort {
        name: text(&port["name"]),
        port: port["containerPort"].as_u64().and_then(|number| u32::try_from(number).ok()).unwrap_or_default(),
        protocol: text(&port["protocol"]),
    };
    all.iter().map(port).collect()
}

fn strings(object: &Value) -> std::collections::HashMap<String, String> {
    let all = object.as_object().into_iter().flatten();
    all.map(|(name, value)| (name.clone(), text(value))).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_of_a_deployment_is_known_by_it_and_one_without_address_is_left_out() {
        let list = serde_json::json!({"items": [
            {"metadata": {"name": "a-5d-x", "namespace": "n", "uid": "u", "labels": {"app": "a", "pod-template-hash": "5d"},
                          "ownerReferences": [{"name": "a-5d"}]},
             "spec": {"serviceAccountName": "s", "nodeName": "h", "containers": [
                {"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP"}]}]},
             "status": {"podIP": "10.0.0.1"}},
            {"metadata": {"name": "pending"}, "spec": {}, "status": {}},
        ]});
        let pods = parse(&list.to_string()).expect("valid");
        let [pod] = pods.as_slice() else { panic!("one has an address") };
        assert_eq!(pod.identity.to_string(), "spiffe://cluster.local/ns/n/sa/s");
        assert_eq!((pod.workload.workload_name.as_str(), pod.workload.container_ports[0].port), ("a", 80));
        assert!(pod.workload.owner.ends_with("/namespaces/n/deployments/a"));
    }
}
