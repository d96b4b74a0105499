//! How a workload presents itself to the control plane: the node of its discovery stream, field by
//! field what the agent beside a sidecar would send.
//!
//! Not asked for are the name table (NDS) and the proxy configuration (PCDS): both serve the agent.

use crate::pod::Pod;
use mesh_api::envoy::config::core::v3::{Locality, Node};
use mesh_api::envoy_pb::google::protobuf::{Struct, Value as ProtoValue, value::Kind};
use mesh_api::workload::{Node as Server, Workload};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What is the same for all workloads.
#[derive(Clone, Debug)]
pub struct MeshSettings {
    pub node: String,
    pub trust_domain: String,
    pub cluster_id: String,
    pub mesh_id: String,
    /// DNS name of the control plane, e.g. `istiod.istio-system.svc`.
    pub control_plane: String,
    /// The sidecar version that is spoken, e.g. `1.30.3`: the control plane generates for it.
    pub istio_version: String,
}

/// Domain of services.
const DOMAIN: &str = "svc.cluster.local";
/// Annotations of this kind repeat the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The node of a pod's stream. `server` adds the locality, where it is known.
pub fn node(pod: &Pod, settings: &MeshSettings, server: Option<&Server>) -> Node {
    let workload = &pod.workload;
    let Value::Object(metadata) = metadata(pod, settings) else { unreachable!("metadata is an object") };
    Node {
        id: id(pod),
        cluster: format!("{}.{}", canonical_name(workload), workload.namespace),
        metadata: Some(to_struct(metadata)),
        locality: server.map(locality),
        user_agent_name: "istio-dpu-adapter".to_owned(),
        ..Node::default()
    }
}

/// `sidecar~IP~POD.NS~NS.svc.cluster.local`.
pub fn id(pod: &Pod) -> String {
    let (ip, workload) = (pod.addresses.first().map_or("", String::as_str), &pod.workload);
    format!("sidecar~{ip}~{name}.{ns}~{ns}.{DOMAIN}", name = workload.name, ns = workload.namespace)
}

/// The metadata as the agent sends it.
pub fn metadata(pod: &Pod, settings: &MeshSettings) -> Value {
    let workload = &pod.workload;
    let mut metadata = json!({
        "ANNOTATIONS": annotations(workload),
        "APP_CONTAINERS": workload.containers.join(","),
        "CLUSTER_ID": settings.cluster_id,
        "ENVOY_PROMETHEUS_PORT": 15090,
        "ENVOY_STATUS_PORT": 15021,
        "INSTANCE_IPS": pod.addresses.join(","),
        "INTERCEPTION_MODE": "REDIRECT",
        "ISTIO_PROXY_SHA": concat!("dpumesh:", env!("CARGO_PKG_VERSION")),
        "ISTIO_VERSION": settings.istio_version,
        "LABELS": labels(workload),
        "MESH_ID": settings.mesh_id,
        "NAME": workload.name,
        "NAMESPACE": workload.namespace,
        "NODE_NAME": settings.node,
        "OWNER": workload.owner,
        "PILOT_SAN": [settings.control_plane],
        "POD_PORTS": pod_ports(workload),
        "PROXY_CONFIG": proxy_config(settings),
        "SERVICE_ACCOUNT": pod.identity.service_account(),
        "WORKLOAD_NAME": workload.workload_name,
    });
    if let Some(network) = workload.labels.get("topology.istio.io/network") {
        metadata["NETWORK"] = json!(network);
    }
    metadata
}

/// Labels as the injector would complete them.
fn labels(workload: &Workload) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = workload.labels.clone().into_iter().collect();
    labels.remove("pod-template-hash");
    let mut complete = |name: &str, value: String| {
        labels.entry(name.to_owned()).or_insert(value);
    };
    complete("security.istio.io/tlsMode", "istio".to_owned());
    complete("service.istio.io/canonical-name", canonical_name(workload));
    complete("service.istio.io/canonical-revision", canonical_revision(workload));
    labels
}

fn annotations(workload: &Workload) -> BTreeMap<&String, &String> {
    workload.annotations.iter().filter(|(name, _)| name.as_str() != LAST_APPLIED).collect()
}

fn canonical_name(workload: &Workload) -> String {
    let names = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
    first_label(workload, &names).unwrap_or_else(|| workload.workload_name.clone())
}

fn canonical_revision(workload: &Workload) -> String {
    let names = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
    first_label(workload, &names).unwrap_or_else(|| "latest".to_owned())
}

fn first_label(workload: &Workload, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| workload.labels.get(*name).filter(|value| !value.is_empty()).cloned())
}

/// JSON text in JSON, as the injector passes it by environment variable.
fn pod_ports(workload: &Workload) -> String {
    let port = |port: &mesh_api::workload::ContainerPort| {
        let mut all = Map::new();
        if !port.name.is_empty() {
            all.insert("name".to_owned(), json!(port.name));
        }
        all.insert("containerPort".to_owned(), json!(port.port));
        let protocol = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
        all.insert("protocol".to_owned(), json!(protocol));
        Value::Object(all)
    };
    Value::Array(workload.container_ports.iter().map(port).collect()).to_string()
}

/// The mesh's defaults: what of it matters to a sidecar's process has no meaning here.
fn proxy_config(settings: &MeshSettings) -> Value {
    json!({
        "binaryPath": "/usr/local/bin/envoy",
        "concurrency": 2,
        "configPath": "./etc/istio/proxy",
        "controlPlaneAuthPolicy": "MUTUAL_TLS",
        "discoveryAddress": format!("{}:15012", settings.control_plane),
        "drainDuration": "45s",
        "proxyAdminPort": 15000,
        "serviceCluster": "istio-proxy",
        "statNameLength": 189,
        "statusPort": 15020,
        "terminationDrainDuration": "5s",
    })
}

fn locality(server: &Server) -> Locality {
    Locality { region: server.region.clone(), zone: server.zone.clone(), sub_zone: server.subzone.clone() }
}

fn to_struct(object: Map<String, Value>) -> Struct {
    Struct { fields: object.into_iter().map(|(name, value)| (name, to_proto(value))).collect() }
}

fn to_proto(value: Value) -> ProtoValue {
    use mesh_api::envoy_pb::google::protobuf::ListValue;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => Kind::ListValue(ListValue { values: values.into_iter().map(to_proto).collect() }),
        Value::Object(object) => Kind::StructValue(to_struct(object)),
    };
    ProtoValue { kind: Some(kind) }
}
