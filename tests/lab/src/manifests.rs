//! Kubernetes objects for the controller: those that the recording was made from, plus what a cluster adds
//! while it runs: the DPU's address on each node, each pod's uid and, once attached, its address.

use crate::pods::{PODS, Pod};
use crate::topology::Host;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The folder of recordings.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/istiod-1.30.3")
}

/// Writes `objects.json` into the folder; pods in `running` have an address and are ready.
pub fn write(folder: &Path, running: &[&Pod]) -> Result<()> {
    let source = fixtures().join("inputs/demo-k.yaml");
    let text = std::fs::read_to_string(&source).with_context(|| format!("cannot read {}", source.display()))?;
    let mut items = text.split("\n---\n").map(parse).collect::<Result<Vec<_>>>()?;
    items.iter_mut().for_each(|object| complete(object, running));
    items.extend(services(&items).iter().map(|service| endpoint_slice(service, running)));
    std::fs::create_dir_all(folder)?;
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    let temporary = folder.join(".objects.json.new");
    std::fs::write(&temporary, serde_json::to_vec_pretty(&list)?)?;
    std::fs::rename(&temporary, folder.join("objects.json")).context("cannot write the manifests")
}

fn parse(document: &str) -> Result<Value> {
    serde_saphyr::from_str(document).map_err(|error| anyhow::anyhow!("demo-k.yaml: {error}"))
}

fn complete(object: &mut Value, running: &[&Pod]) {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    match object["kind"].as_str() {
        Some("Node") => {
            if let Some(host) = Host::of_node(&name) {
                object["metadata"]["annotations"] = json!({ "dpumesh.io/underlay-address": host.underlay() });
            }
        }
        Some("Pod") => {
            if let Some(pod) = Pod::named(&name) {
                object["metadata"]["uid"] = json!(pod.uid());
                object["status"] = status(pod, running.iter().any(|other| other.name == name));
            }
        }
        _ => {}
    }
}

fn status(pod: &Pod, is_running: bool) -> Value {
    match is_running {
        false => json!({ "phase": "Pending" }),
        true => json!({
            "phase": "Running", "podIP": pod.address, "podIPs": [{ "ip": pod.address }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        }),
    }
}

fn services(items: &[Value]) -> Vec<Value> {
    items.iter().filter(|object| object["kind"] == "Service").cloned().collect()
}

/// As the endpoint-slice controller makes it.
fn endpoint_slice(service: &Value, running: &[&Pod]) -> Value {
    let name = service["metadata"]["name"].as_str().unwrap_or_default();
    let endpoint = |pod: &&Pod| {
        json!({
            "addresses": [pod.address], "nodeName": pod.host.node(), "conditions": { "ready": true },
            "targetRef": { "kind": "Pod", "namespace": "bookinfo", "name": pod.name },
        })
    };
    let endpoints: Vec<Value> =
        PODS.iter().filter(|pod| pod.app == name && is_in(pod, running)).map(|pod| endpoint(&pod)).collect();
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let ports: Vec<Value> =
        ports.map(|port| json!({ "name": port["name"], "port": port["port"], "protocol": "TCP" })).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": format!("{name}-1"), "namespace": "bookinfo", "labels": { "kubernetes.io/service-name": name } },
        "ports": ports, "endpoints": endpoints,
    })
}

fn is_in(pod: &Pod, running: &[&Pod]) -> bool {
    running.iter().any(|other| other.name == pod.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recorded_object_is_there_and_running_pods_have_their_address() {
        let folder = tempfile::tempdir().expect("temporary folder");
        write(folder.path(), &[&PODS[0]]).expect("written");
        let text = std::fs::read_to_string(folder.path().join("objects.json")).expect("file");
        let list: Value = serde_json::from_str(&text).expect("JSON");
        let items = list["items"].as_array().expect("list");
        let count = |kind: &str| items.iter().filter(|one| one["kind"] == kind).count();
        assert_eq!((count("Node"), count("Pod"), count("Service"), count("EndpointSlice")), (2, 8, 5, 5));
        let running: Vec<&Value> = items.iter().filter(|one| one["status"]["phase"] == "Running").collect();
        assert_eq!(running.len(), 1);
        assert_eq!(running[0]["status"]["podIP"], PODS[0].address);
    }
}
