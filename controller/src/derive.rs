//! What nodes are told, computed from the tables: `Workload`, `Node`, `Service`, `Network`. Pure.

use crate::object::{
    ContainerPort, EndpointSlice, Key, Kind, Labels, Object, Owner, Pod, Probe, ProbeKind, Service, ServicePort, Target,
};
use crate::tables::Tables;
use kube_api::mesh::asks_for_mesh;
use mesh_api::workload as wire;
use std::collections::BTreeSet;

/// The node of a pod and what is told of it; `None` while it is not scheduled.
pub fn workload(tables: &Tables, namespace: &str, name: &str) -> Option<wire::Workload> {
    let pod = tables.pod(namespace, name).filter(|pod| !pod.node.is_empty())?;
    let owner = owner(tables, namespace, name, pod);
    let nothing = Labels::new();
    let of_namespace = tables.namespace(namespace).unwrap_or(&nothing);
    let on_failure = if pod.bypass_on_failure { wire::OnFailure::Bypass } else { wire::OnFailure::Closed };
    Some(wire::Workload {
        uid: pod.uid.clone(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        service_account: pod.service_account.clone(),
        node: pod.node.clone(),
        addresses: pod.addresses.iter().map(ToString::to_string).collect(),
        network: pod.network.clone(),
        labels: pod.labels.clone().into_iter().collect(),
        annotations: pod.annotations.clone().into_iter().collect(),
        container_ports: pod.ports.iter().map(container_port).collect(),
        containers: pod.containers.clone(),
        probes: pod.probes.iter().map(probe).collect(),
        owner: owner_url(namespace, &owner),
        workload_name: owner.name,
        on_failure: on_failure.into(),
        governed: asks_for_mesh(&pod.labels, of_namespace, pod.host_network),
    })
}

fn container_port(port: &ContainerPort) -> wire::ContainerPort {
    wire::ContainerPort { name: port.name.clone(), port: port.port.into(), protocol: port.protocol.clone() }
}

fn probe(probe: &Probe) -> wire::Probe {
    let (kind, path) = match &probe.kind {
        ProbeKind::Tcp => (wire::ProbeKind::Tcp, ""),
        ProbeKind::Http(path) => (wire::ProbeKind::Http, path.as_str()),
        ProbeKind::Https => (wire::ProbeKind::Https, ""),
        ProbeKind::Grpc => (wire::ProbeKind::Grpc, ""),
    };
    wire::Probe { port: probe.port.into(), kind: kind.into(), path: path.to_owned() }
}

/// The workload that a pod belongs to, as Istio's injector finds it.
fn owner(tables: &Tables, namespace: &str, name: &str, pod: &Pod) -> Owner {
    let itself = || Owner { api_version: "v1".to_owned(), kind: "Pod".to_owned(), name: name.to_owned() };
    let Some(owner) = pod.owner.clone() else { return itself() };
    match owner.kind.as_str() {
        "ReplicaSet" => {
            let known = tables.replica_set_owner(namespace, &owner.name).cloned();
            known.or_else(|| deployment(&owner, pod)).unwrap_or(owner)
        }
        "Job" => cron_job(&owner).unwrap_or(owner),
        _ => owner,
    }
}

/// `NAME-HASH` of a ReplicaSet whose pods carry that hash is Deployment `NAME`.
fn deployment(replica_set: &Owner, pod: &Pod) -> Option<Owner> {
    let hash = pod.labels.get("pod-template-hash")?;
    let name = replica_set.name.strip_suffix(hash.as_str())?.strip_suffix('-')?;
    Some(Owner { kind: "Deployment".to_owned(), name: name.to_owned(), ..replica_set.clone() })
}

/// `NAME-MINUTES` of a Job is CronJob `NAME`.
fn cron_job(job: &Owner) -> Option<Owner> {
    let (name, digits) = job.name.rsplit_once('-')?;
    let is_time = (8..=10).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_time.then(|| Owner { kind: "CronJob".to_owned(), name: name.to_owned(), ..job.clone() })
}

fn owner_url(namespace: &str, owner: &Owner) -> String {
    let kind = owner.kind.to_ascii_lowercase();
    format!("kubernetes://apis/{}/namespaces/{namespace}/{kind}s/{}", owner.api_version, owner.name)
}

/// A server. Its DPU's address: of the Node's annotation, else as a person wants it, else as the DPU tells.
pub fn node(tables: &Tables, name: &str) -> Option<wire::Node> {
    let node = tables.node(name)?;
    let dpu = tables.dpu_node(name);
    let underlay_address =
        node.underlay_address.or_else(|| dpu?.wanted_underlay_address).or_else(|| dpu?.told_underlay_address);
    Some(wire::Node {
        name: name.to_owned(),
        pod_cidrs: node.pod_cidrs.iter().map(ToString::to_string).collect(),
        underlay_address: underlay_address.map(|address| address.to_string()).unwrap_or_default(),
        region: node.region.clone(),
        zone: node.zone.clone(),
        subzone: node.subzone.clone(),
    })
}

/// A network.
pub fn network(tables: &Tables, name: &str) -> Option<wire::Network> {
    let network = tables.network(name)?;
    Some(wire::Network { name: name.to_owned(), vni: network.vni, mtu: network.mtu })
}

/// A service with its backends: those of its endpoint slices, or, where there is no slice (nobody
/// runs the endpoint controller), the pods that its selector names.
pub fn service(tables: &Tables, namespace: &str, name: &str) -> Option<wire::Service> {
    let service = tables.service(namespace, name)?;
    let slices: Vec<&EndpointSlice> = slices(tables, namespace).filter(|slice| slice.service == name).collect();
    let backends = |port: &ServicePort| match slices.is_empty() {
        false => from_slices(&slices, port),
        true => from_pods(tables, namespace, service, port),
    };
    let ports = service.ports.iter().map(|port| wire::ServicePort {
        name: port.name.clone(),
        port: port.port.into(),
        protocol: port.protocol.clone(),
        backends: backends(port).into_iter().map(Candidate::into_wire).collect(),
    });
    Some(wire::Service {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        vips: service.vips.iter().map(ToString::to_string).collect(),
        ports: ports.collect(),
    })
}

/// A backend, ordered so that its place does not depend on where it came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    address: std::net::IpAddr,
    port: u16,
    node: String,
    ready: bool,
}

impl Candidate {
    fn into_wire(self) -> wire::Backend {
        let Self { address, port, node, ready } = self;
        wire::Backend { address: address.to_string(), port: port.into(), node, ready }
    }
}

fn slices<'a>(tables: &'a Tables, namespace: &'a str) -> impl Iterator<Item = &'a EndpointSlice> {
    tables.within(Kind::EndpointSlice, namespace).filter_map(|(_, object)| match object {
        Object::EndpointSlice(slice) => Some(slice),
        _ => None,
    })
}

fn from_slices(slices: &[&EndpointSlice], port: &ServicePort) -> BTreeSet<Candidate> {
    let mut all = BTreeSet::new();
    for slice in slices {
        let Some(number) = slice.ports.iter().find(|other| other.name == port.name).map(|other| other.port) else {
            continue;
        };
        for endpoint in &slice.endpoints {
            all.extend(endpoint.addresses.iter().map(|address| Candidate {
                address: *address,
                port: number,
                node: endpoint.node.clone(),
                ready: endpoint.ready,
            }));
        }
    }
    all
}

fn from_pods(tables: &Tables, namespace: &str, service: &Service, port: &ServicePort) -> BTreeSet<Candidate> {
    let mut all = BTreeSet::new();
    for pod in selected(tables, namespace, &service.selector) {
        let Some(number) = target(port, pod) else { continue };
        all.extend(pod.addresses.iter().map(|address| Candidate {
            address: *address,
            port: number,
            node: pod.node.clone(),
            ready: pod.ready || service.publish_not_ready,
        }));
    }
    all
}

fn selected<'a>(tables: &'a Tables, namespace: &'a str, selector: &'a Labels) -> impl Iterator<Item = &'a Pod> {
    let pods = tables.within(Kind::Pod, namespace).filter_map(|(_, object)| match object {
        Object::Pod(pod) => Some(&**pod),
        _ => None,
    });
    let matches = |pod: &Pod| selector.iter().all(|(name, value)| pod.labels.get(name) == Some(value));
    pods.filter(move |pod| !selector.is_empty() && !pod.finished && matches(pod))
}

fn target(port: &ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target {
        Target::Number(number) => Some(*number),
        Target::Name(name) => pod
            .ports
            .iter()
            .find(|other| other.name == *name && other.protocol == port.protocol)
            .map(|other| other.port),
    }
}

/// Services of a namespace that an endpoint slice or a pod may concern.
pub fn services_of<'a>(tables: &'a Tables, namespace: &'a str) -> impl Iterator<Item = &'a Key> {
    tables.within(Kind::Service, namespace).map(|(key, _)| key)
}
