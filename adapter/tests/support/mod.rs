//! The recordings as resources and pods.

#![allow(dead_code)]

pub mod holder;
pub mod istiod;
pub mod reports;
pub mod world;

use istio_dpu_adapter::pod::Pod;
use istio_dpu_adapter::translate::{Aggregate, Kind};
use mesh_api::attach::Attachment;
use mesh_api::envoy::config::{
    cluster::v3 as cluster, core::v3 as core, endpoint::v3 as endpoint, listener::v3 as listener, route::v3 as route,
};
use mesh_api::envoy::service::discovery::v3::DiscoveryResponse;
use mesh_api::workload::{ContainerPort, Workload};
use prost::Message;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use xds::Resource;
use xds::client::core::{ClientCore, Response};
use xds::client::{Interest, Mode, Update};

pub const DEMO: &str = "0-demo";
pub const SHIFT: &str = "0-demo-shift";
pub const PODS: [&str; 8] =
    ["curl", "details-v1", "mongodb-v1", "productpage-v1", "ratings-v1", "reviews-v1", "reviews-v2", "reviews-v3"];

fn folder(scenario: &str, pod: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/istiod-1.30.3").join(scenario).join(pod)
}

fn file(kind: Kind) -> &'static str {
    match kind {
        Kind::Cluster => "CDS.pb",
        Kind::Endpoints => "EDS.pb",
        Kind::Extension => "ECDS.pb",
        Kind::Listener => "LDS.pb",
        Kind::Route => "RDS.pb",
    }
}

/// What istiod sent to a pod; empty where nothing of the kind was recorded.
pub fn recorded(scenario: &str, pod: &str, kind: Kind) -> Vec<Resource> {
    let Ok(bytes) = std::fs::read(folder(scenario, pod).join(file(kind))) else { return Vec::new() };
    let response = DiscoveryResponse::decode(bytes.as_slice()).expect("recording");
    response.resources.into_iter().map(|body| Resource::from_any(name(kind, &body.value), body)).collect()
}

fn name(kind: Kind, body: &[u8]) -> String {
    match kind {
        Kind::Cluster => cluster::Cluster::decode(body).expect("cluster").name,
        Kind::Endpoints => endpoint::ClusterLoadAssignment::decode(body).expect("endpoints").cluster_name,
        Kind::Extension => core::TypedExtensionConfig::decode(body).expect("extension").name,
        Kind::Listener => listener::Listener::decode(body).expect("listener").name,
        Kind::Route => route::RouteConfiguration::decode(body).expect("route").name,
    }
}

pub fn metadata(pod: &str) -> Value {
    let text = std::fs::read(folder(DEMO, pod).join("node-metadata.json")).expect("recording");
    serde_json::from_slice(&text).expect("JSON")
}

/// The pod as the controller would tell of it, from the recorded metadata.
pub fn workload(pod: &str) -> Workload {
    let metadata = metadata(pod);
    let text = |key: &str| metadata[key].as_str().expect("text").to_owned();
    let derived = ["service.istio.io/canonical-name", "service.istio.io/canonical-revision"];
    let labels =
        metadata["LABELS"].as_object().expect("labels").iter().filter(|(key, _)| !derived.contains(&key.as_str()));
    let ports: Vec<Value> = serde_json::from_str(&text("POD_PORTS")).expect("ports");
    let port = |port: &Value| ContainerPort {
        name: String::new(),
        port: port["containerPort"].as_u64().expect("port") as u32,
        protocol: "TCP".to_owned(),
    };
    Workload {
        uid: format!("uid-{pod}"),
        namespace: text("NAMESPACE"),
        name: text("NAME"),
        service_account: text("SERVICE_ACCOUNT"),
        node: text("NODE_NAME"),
        labels: labels.map(|(key, value)| (key.clone(), value.as_str().expect("text").to_owned())).collect(),
        container_ports: ports.iter().map(port).collect(),
        containers: vec![text("APP_CONTAINERS")],
        workload_name: text("WORKLOAD_NAME"),
        owner: text("OWNER"),
        governed: true,
        ..Workload::default()
    }
}

pub fn attachment(pod: &str) -> Attachment {
    let metadata = metadata(pod);
    Attachment {
        pod_uid: format!("uid-{pod}"),
        namespace: "bookinfo".to_owned(),
        name: pod.to_owned(),
        container_id: format!("container-{pod}"),
        addresses: vec![metadata["INSTANCE_IPS"].as_str().expect("address").to_owned()],
        port_id: format!("port-{pod}"),
        mac: "02:00:00:00:00:01".to_owned(),
        network: String::new(),
    }
}

pub fn pod(name: &str) -> Pod {
    Pod::new(&workload(name), &attachment(name), "cluster.local").expect("governed")
}

pub fn update(kind: Kind, changed: Vec<Resource>, removed: Vec<String>) -> Update {
    // A token comes from a client core only.
    let mut client =
        ClientCore::new(Mode::Delta, core::Node::default(), vec![(kind.type_url().to_owned(), Interest::Wildcard)]);
    client.connected();
    let response = mesh_api::envoy::service::discovery::v3::DeltaDiscoveryResponse {
        type_url: kind.type_url().to_owned(),
        system_version_info: "v1".to_owned(),
        ..Default::default()
    };
    let update = client.handle(Response::Delta(response)).expect("wanted");
    Update { changed, removed, ..update }
}

/// Tells a workload everything that was recorded for it and publishes.
pub fn feed(aggregate: &mut Aggregate, scenario: &str, pod: &str) -> istio_dpu_adapter::translate::Changes {
    let uid = format!("uid-{pod}");
    // What is referred to is asked for, and so comes, after what refers to it.
    for kind in [Kind::Cluster, Kind::Endpoints, Kind::Listener, Kind::Extension, Kind::Route] {
        let changed = recorded(scenario, pod, kind);
        if scenario == DEMO || !changed.is_empty() {
            let outcome = aggregate.update(&uid, &update(kind, changed, Vec::new()));
            assert!(outcome.rejected.is_empty(), "{:?}", outcome.rejected);
        }
    }
    aggregate.publish(&uid)
}

/// What a proxy holds that was sent all changes.
#[derive(Debug, Default, PartialEq)]
pub struct Proxy {
    pub held: BTreeMap<(String, String), Resource>,
}

impl Proxy {
    pub fn take(&mut self, changes: &istio_dpu_adapter::translate::Changes) {
        for (type_url, name, resource) in changes.iter() {
            let key = (type_url.to_owned(), name.to_owned());
            match resource {
                Some(resource) => drop(self.held.insert(key, resource.clone())),
                None => assert!(self.held.remove(&key).is_some(), "{key:?} was removed twice"),
            }
        }
    }

    pub fn names(&self, type_url: &str) -> BTreeSet<String> {
        self.held.keys().filter(|(other, _)| other == type_url).map(|(_, name)| name.clone()).collect()
    }

    /// Every reference of every scope is held, and nothing is held that no scope refers to.
    pub fn check(&self) {
        use mesh_api::{proxy, type_url};
        let mut expected = BTreeSet::new();
        for workload in self.names(type_url::PROXY_WORKLOAD) {
            let resource = &self.held[&(type_url::PROXY_WORKLOAD.to_owned(), workload)];
            let workload: proxy::Workload = resource.decode().expect("workload");
            assert!(self.names(type_url::SCOPE).contains(&workload.scope), "{} is held", workload.scope);
        }
        for scope in self.names(type_url::SCOPE) {
            let scope: proxy::Scope = self.held[&(type_url::SCOPE.to_owned(), scope)].decode().expect("scope");
            let mut refer = |type_url: &str, all: &[proxy::Reference]| {
                expected.extend(all.iter().map(|one| (type_url.to_owned(), one.resource.clone())));
            };
            refer(type_url::CLUSTER, &scope.clusters);
            refer(type_url::CLUSTER_LOAD_ASSIGNMENT, &scope.endpoints);
            refer(type_url::LISTENER, &scope.listeners);
            refer(type_url::ROUTE_CONFIGURATION, &scope.routes);
            refer(type_url::EXTENSION_CONFIG, &scope.extensions);
        }
        let own = [type_url::SCOPE, type_url::PROXY_WORKLOAD];
        let held: BTreeSet<_> = self.held.keys().filter(|(kind, _)| !own.contains(&kind.as_str())).cloned().collect();
        assert_eq!(held, expected);
    }
}
