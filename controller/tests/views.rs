//! From manifests to what each node sees.

use istio_dpu_controller::Controller;
use mesh_api::type_url;
use mesh_api::workload::{Node, OnFailure, Probe, ProbeKind, Service, Workload};
use std::collections::BTreeMap;
use xds::server::Store;

const NODES: &str = "
apiVersion: v1
kind: Node
metadata: {name: host1, labels: {topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: z1}, annotations: {dpumesh.io/underlay-address: 192.168.100.1}}
spec: {podCIDR: 10.244.1.0/24}
---
apiVersion: v1
kind: Node
metadata: {name: host2, annotations: {dpumesh.io/underlay-address: 192.168.100.2}}
spec: {podCIDR: 10.244.2.0/24, podCIDRs: [10.244.2.0/24, 'fd00:2::/64']}
";

fn pod(name: &str, node: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: bookinfo, uid: uid-{name}, labels: {{app: reviews, pod-template-hash: abc12}}{more}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: reviews, containers: [{{name: c, image: x, ports: [{{name: web, containerPort: 9080}}]}}]}}\n\
         status: {{podIP: 10.244.1.11}}\n"
    )
}

fn namespace(labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: bookinfo, labels: {{{labels}}}}}\n")
}

struct World {
    store: Store,
    controller: Controller,
    files: BTreeMap<String, String>,
}

impl World {
    fn new() -> Self {
        let store = Store::new();
        let mut world = Self { controller: Controller::new(store.clone()), store, files: BTreeMap::new() };
        world.put("nodes.yaml", NODES);
        world.put("namespace.yaml", &namespace("istio-injection: enabled"));
        world
    }

    fn put(&mut self, name: &str, text: &str) {
        self.files.insert(name.to_owned(), text.to_owned());
        self.controller.load(self.files.clone());
    }

    fn remove(&mut self, name: &str) {
        self.files.remove(name);
        self.controller.load(self.files.clone());
    }

    fn see<M: prost::Message + Default>(&self, node: &str, kind: &str) -> Vec<M> {
        self.store.get(node, kind).iter().map(|resource| resource.decode().expect("own encoding")).collect()
    }

    fn workload(&self, node: &str) -> Workload {
        let mut all: Vec<Workload> = self.see(node, type_url::WORKLOAD);
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }
}

#[test]
fn a_node_is_told_what_its_kubelet_asks_the_pod() {
    let mut world = World::new();
    let probe = "ports: [{name: web, containerPort: 9080}], livenessProbe: {httpGet: {port: web, path: /healthz}}";
    world.put("pod.yaml", &pod("a", "host1", "").replace("ports: [{name: web, containerPort: 9080}]", probe));
    let expected = Probe { port: 9080, kind: ProbeKind::Http.into(), path: "/healthz".to_owned() };
    assert_eq!(world.workload("host1").probes, [expected]);
}

#[test]
fn a_node_sees_its_own_pods_and_every_node() {
    let mut world = World::new();
    world.put("a.yaml", &pod("a", "host1", ""));
    world.put("b.yaml", &pod("b", "host2", ""));
    assert_eq!(world.workload("host1").name, "a");
    assert_eq!(world.workload("host2").name, "b");
    let nodes: Vec<Node> = world.see("host1", type_url::NODE);
    assert_eq!(nodes[1].pod_cidrs, ["10.244.2.0/24", "fd00:2::/64"]);
    assert_eq!((nodes[0].underlay_address.as_str(), nodes[0].zone.as_str()), ("192.168.100.1", "z1"));
    world.put("b.yaml", &pod("b", "host1", ""));
    assert_eq!(world.see::<Workload>("host1", type_url::WORKLOAD).len(), 2, "it was moved");
    assert!(world.see::<Workload>("host2", type_url::WORKLOAD).is_empty());
}

#[test]
fn a_workload_carries_what_istios_agent_would_say() {
    let mut world = World::new();
    let owner = ", ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: reviews-v1-abc12, uid: u, controller: true}], annotations: {dpumesh.io/on-failure: bypass, dpumesh.io/network: blue}";
    world.put("a.yaml", &pod("reviews-v1-abc12-xyz", "host1", owner));
    let workload = world.workload("host1");
    assert_eq!(workload.workload_name, "reviews-v1");
    assert_eq!(workload.owner, "kubernetes://apis/apps/v1/namespaces/bookinfo/deployments/reviews-v1");
    assert_eq!((workload.service_account.as_str(), workload.network.as_str()), ("reviews", "blue"));
    assert_eq!(workload.on_failure(), OnFailure::Bypass);
    assert_eq!((workload.container_ports[0].port, workload.containers[0].as_str()), (9080, "c"));
    assert_eq!(workload.addresses, ["10.244.1.11"]);
    assert!(workload.governed);
    world.put("a.yaml", &pod("curl", "host1", ""));
    let workload = world.workload("host1");
    assert_eq!((workload.workload_name.as_str(), workload.on_failure()), ("curl", OnFailure::Closed));
    assert_eq!(workload.owner, "kubernetes://apis/v1/namespaces/bookinfo/pods/curl");
}

#[test]
fn pods_are_governed_as_their_labels_and_those_of_the_namespace_say() {
    let mut world = World::new();
    for (of_namespace, of_pod, governed) in [
        ("istio-injection: enabled", "", true),
        ("istio.io/rev: canary", "", true),
        ("dpumesh.io/governed: 'true'", "", true),
        ("x: y", "", false),
        ("x: y", "sidecar.istio.io/inject: 'true'", true),
        ("x: y", "istio.io/rev: canary", true),
        ("istio-injection: disabled", "istio.io/rev: canary", false),
        ("istio-injection: enabled", "dpumesh.io/governed: 'false'", false),
        ("istio-injection: enabled", "sidecar.istio.io/inject: 'false'", false),
    ] {
        world.put("namespace.yaml", &namespace(of_namespace));
        let text = pod("a", "host1", "")
            .replace("app: reviews", &format!("app: reviews{}{of_pod}", if of_pod.is_empty() { "" } else { ", " }));
        world.put("a.yaml", &text);
        assert_eq!(world.workload("host1").governed, governed, "namespace {of_namespace}, pod {of_pod}");
    }
}

#[test]
fn without_slices_the_selector_names_the_backends_and_slices_take_over() {
    let mut world = World::new();
    world.put(
        "service.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: reviews, namespace: bookinfo}\nspec: {clusterIP: 10.96.10.4, selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: web}]}\n",
    );
    world.put("a.yaml", &pod("a", "host1", ""));
    let services: Vec<Service> = world.see("host2", type_url::SERVICE);
    assert_eq!(services[0].vips, ["10.96.10.4"]);
    let backend = &services[0].ports[0].backends[0];
    assert_eq!(
        (backend.address.as_str(), backend.port, backend.node.as_str(), backend.ready),
        ("10.244.1.11", 9080, "host1", true)
    );
    world.put(
        "slice.yaml",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: reviews-x, namespace: bookinfo, labels: {kubernetes.io/service-name: reviews}}\naddressType: IPv4\nports: [{name: http, port: 9999}]\nendpoints: [{addresses: [10.0.0.9], nodeName: host2, conditions: {ready: false}}]\n",
    );
    let services: Vec<Service> = world.see("host2", type_url::SERVICE);
    let backends = &services[0].ports[0].backends;
    assert_eq!((backends.len(), backends[0].port, backends[0].ready), (1, 9999, false));
    world.remove("slice.yaml");
    world.remove("a.yaml");
    let services: Vec<Service> = world.see("host2", type_url::SERVICE);
    assert!(services[0].ports[0].backends.is_empty());
}

#[test]
fn a_node_that_comes_back_sees_what_is_true_then() {
    let mut world = World::new();
    world.put("a.yaml", &pod("a", "host1", ""));
    world.remove("nodes.yaml");
    assert!(world.controller.nodes().is_some_and(|nodes| nodes.is_empty()));
    assert_eq!(world.workload("host1").name, "a", "a view is frozen, not emptied");
    world.put("a.yaml", &pod("b", "host1", ""));
    world.put("nodes.yaml", NODES);
    assert_eq!(world.workload("host1").name, "b");
}
