//! Kubernetes API objects to `object`: every field that is used is checked here, and a wrong one is named.

use crate::crd;
use crate::object::{
    ContainerPort, DpuNode, Endpoint, EndpointSlice, Key, Kind, Labels, Network, Node, Object, Owner, Pod, Service,
    ServicePort, SlicePort, Target,
};
use crate::probes::probes;
use crate::reports::Part;
use crate::reports::node::{condition_of, replica};
use k8s_openapi::api::apps::v1::ReplicaSet as ApiReplicaSet;
use k8s_openapi::api::core::v1::{
    Namespace as ApiNamespace, Node as ApiNode, Pod as ApiPod, PodSpec, Service as ApiService,
    ServicePort as ApiServicePort,
};
use k8s_openapi::api::discovery::v1::{Endpoint as ApiEndpoint, EndpointSlice as ApiSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use std::net::IpAddr;

/// Address of the DPU's uplink, on a Node.
pub const UNDERLAY_ADDRESS: &str = "dpumesh.io/underlay-address";
/// `closed` or `bypass`, on a Pod.
pub const ON_FAILURE: &str = "dpumesh.io/on-failure";
/// Name of a Network, on a Pod.
pub const NETWORK: &str = "dpumesh.io/network";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Largest VXLAN network identifier.
const VNI_MAX: u32 = (1 << 24) - 1;

/// A field that is missing or wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct FieldError {
    pub field: String,
    pub reason: String,
}

pub(crate) type Checked<T> = Result<T, FieldError>;

/// Anything that can become an object.
pub trait Convert {
    fn convert(self) -> Checked<(Key, Object)>;
}

impl Convert for ApiNamespace {
    fn convert(self) -> Checked<(Key, Object)> {
        let key = Key::new(Kind::Namespace, "", &name(&self.metadata)?);
        Ok((key, Object::Namespace(self.metadata.labels.unwrap_or_default())))
    }
}

impl Convert for ApiNode {
    fn convert(self) -> Checked<(Key, Object)> {
        let key = Key::new(Kind::Node, "", &name(&self.metadata)?);
        let (labels, annotations) = (labels(&self.metadata), self.metadata.annotations.unwrap_or_default());
        let spec = self.spec.unwrap_or_default();
        let cidrs = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
        let cidr = |text: &String| text.parse().map_err(|_| wrong("spec.podCIDRs", format!("{text:?} is no CIDR")));
        let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
        let underlay = annotations.get(UNDERLAY_ADDRESS);
        let node = Node {
            uid: self.metadata.uid.unwrap_or_default(),
            pod_cidrs: cidrs.iter().map(cidr).collect::<Checked<_>>()?,
            underlay_address: underlay.map(|text| address(&annotation(UNDERLAY_ADDRESS), text)).transpose()?,
            region: label("topology.kubernetes.io/region"),
            zone: label("topology.kubernetes.io/zone"),
            subzone: label("topology.istio.io/subzone"),
        };
        Ok((key, Object::Node(node)))
    }
}

impl Convert for crd::Network {
    fn convert(self) -> Checked<(Key, Object)> {
        let key = Key::new(Kind::Network, "", &name(&self.metadata)?);
        let crd::NetworkSpec { vni, mtu } = self.spec;
        require(vni <= VNI_MAX, "spec.vni", || format!("{vni} is over {VNI_MAX}"))?;
        require(mtu == 0 || (576..=65535).contains(&mtu), "spec.mtu", || format!("{mtu} is not 576 to 65535"))?;
        Ok((key, Object::Network(Network { vni, mtu })))
    }
}

impl Convert for crd::DpuNode {
    fn convert(self) -> Checked<(Key, Object)> {
        let key = Key::new(Kind::DpuNode, "", &name(&self.metadata)?);
        let one = |field: &str, text: Option<String>| {
            text.filter(|text| !text.is_empty()).map(|text| address(field, &text)).transpose()
        };
        let status = self.status.unwrap_or_default();
        let told_to = [Part::Host, Part::Proxy].into_iter().filter_map(|part| {
            let own = status.conditions.iter().find(|condition| condition.kind == condition_of(part))?;
            Some((part, replica(own)?.to_owned()))
        });
        let owners = self.metadata.owner_references.unwrap_or_default();
        let node = DpuNode {
            told_to: told_to.collect(),
            owner_uid: owners.into_iter().find(|owner| owner.kind == "Node").map(|owner| owner.uid).unwrap_or_default(),
            wanted_underlay_address: one("spec.underlayAddress", self.spec.underlay_address)?,
            told_underlay_address: one("status.underlayAddress", status.underlay_address)?,
        };
        Ok((key, Object::DpuNode(node)))
    }
}

impl Convert for ApiReplicaSet {
    fn convert(self) -> Checked<(Key, Object)> {
        replica_set(&self.metadata)
    }
}

/// Only its owner matters, so the API server is asked for no more.
impl Convert for PartialObjectMeta<ApiReplicaSet> {
    fn convert(self) -> Checked<(Key, Object)> {
        replica_set(&self.metadata)
    }
}

/// What is no object of that kind at all is refused alone.
impl<K: Convert> Convert for DeserializeGuard<K> {
    fn convert(self) -> Checked<(Key, Object)> {
        self.0.map_err(|error| wrong("object", error.error))?.convert()
    }
}

fn replica_set(metadata: &ObjectMeta) -> Checked<(Key, Object)> {
    Ok((namespaced(Kind::ReplicaSet, metadata)?, Object::ReplicaSet(owner(metadata))))
}

impl Convert for ApiPod {
    fn convert(self) -> Checked<(Key, Object)> {
        let key = namespaced(Kind::Pod, &self.metadata)?;
        let spec = self.spec.ok_or_else(|| wrong("spec", "is missing".to_owned()))?;
        let status = self.status.unwrap_or_default();
        let mut annotations = self.metadata.annotations.clone().unwrap_or_default();
        // As large as the pod, and nobody's business but kubectl's.
        annotations.remove(LAST_APPLIED);
        let phase = status.phase.unwrap_or_default();
        let listed = status.pod_ips.unwrap_or_default().into_iter().map(|ip| ip.ip).collect::<Vec<_>>();
        let texts = if listed.is_empty() { status.pod_ip.into_iter().collect() } else { listed };
        let is_ready = status
            .conditions
            .unwrap_or_default()
            .iter()
            .find(|one| one.type_ == "Ready")
            .map(|one| one.status == "True");
        let pod = Pod {
            uid: self.metadata.uid.clone().unwrap_or_default(),
            labels: labels(&self.metadata),
            service_account: spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned()),
            node: spec.node_name.clone().unwrap_or_default(),
            host_network: spec.host_network.unwrap_or(false),
            addresses: addresses("status.podIPs", &texts)?,
            network: annotations.get(NETWORK).cloned().unwrap_or_default(),
            owner: owner(&self.metadata),
            containers: spec.containers.iter().map(|container| container.name.clone()).collect(),
            ports: container_ports(&spec)?,
            probes: probes(&spec)?,
            bypass_on_failure: bypass(&annotations)?,
            // A manifest without conditions comes from a person, not from a kubelet.
            ready: is_ready.unwrap_or(true) && self.metadata.deletion_timestamp.is_none(),
            finished: matches!(phase.as_str(), "Succeeded" | "Failed"),
            annotations,
        };
        Ok((key, Object::Pod(Box::new(pod))))
    }
}

impl Convert for ApiService {
    fn convert(self) -> Checked<(Key, Object)> {
        let key = namespaced(Kind::Service, &self.metadata)?;
        let spec = self.spec.unwrap_or_default();
        let listed = spec.cluster_ips.unwrap_or_else(|| spec.cluster_ip.into_iter().collect());
        let texts: Vec<String> = listed.into_iter().filter(|text| !text.is_empty() && text != "None").collect();
        let ports = spec.ports.unwrap_or_default();
        let service = Service {
            vips: addresses("spec.clusterIPs", &texts)?,
            selector: spec.selector.unwrap_or_default(),
            ports: ports.into_iter().enumerate().map(service_port).collect::<Checked<_>>()?,
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        };
        Ok((key, Object::Service(service)))
    }
}

impl Convert for ApiSlice {
    fn convert(self) -> Checked<(Key, Object)> {
        let key = namespaced(Kind::EndpointSlice, &self.metadata)?;
        let service = labels(&self.metadata).remove(SERVICE_NAME);
        let service = service.ok_or_else(|| {
            wrong(&format!("metadata.labels[{SERVICE_NAME}]"), "is missing: it names the Service".to_owned())
        })?;
        let is_fqdn = self.address_type == "FQDN";
        let endpoints = if is_fqdn { Vec::new() } else { self.endpoints };
        let mut ports = Vec::new();
        for (index, port) in self.ports.unwrap_or_default().into_iter().enumerate() {
            // Without a number it means every port (API reference), which a service port never is.
            let Some(number) = port.port else { continue };
            let port_number = port_number(&format!("ports[{index}].port"), number)?;
            ports.push(SlicePort { name: port.name.unwrap_or_default(), port: port_number });
        }
        let endpoints = endpoints.into_iter().enumerate().map(endpoint).collect::<Checked<_>>()?;
        Ok((key, Object::EndpointSlice(EndpointSlice { service, ports, endpoints })))
    }
}

fn endpoint((index, endpoint): (usize, ApiEndpoint)) -> Checked<Endpoint> {
    Ok(Endpoint {
        addresses: addresses(&format!("endpoints[{index}].addresses"), &endpoint.addresses)?,
        node: endpoint.node_name.unwrap_or_default(),
        ready: endpoint.conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
    })
}

fn service_port((index, port): (usize, ApiServicePort)) -> Checked<ServicePort> {
    let field = |name: &str| format!("spec.ports[{index}].{name}");
    let number = port_number(&field("port"), port.port)?;
    let target = match port.target_port {
        None => Target::Number(number),
        // The API server writes 0 as "not set".
        Some(IntOrString::Int(0)) => Target::Number(number),
        Some(IntOrString::Int(target)) => Target::Number(port_number(&field("targetPort"), target)?),
        Some(IntOrString::String(name)) => Target::Name(name),
    };
    Ok(ServicePort {
        name: port.name.unwrap_or_default(),
        port: number,
        protocol: protocol(&field("protocol"), port.protocol)?,
        target,
    })
}

fn container_ports(spec: &PodSpec) -> Checked<Vec<ContainerPort>> {
    let mut all = Vec::new();
    for (outer, container) in spec.containers.iter().enumerate() {
        for (inner, port) in container.ports.iter().flatten().enumerate() {
            let field = |name: &str| format!("spec.containers[{outer}].ports[{inner}].{name}");
            all.push(ContainerPort {
                name: port.name.clone().unwrap_or_default(),
                port: port_number(&field("containerPort"), port.container_port)?,
                protocol: protocol(&field("protocol"), port.protocol.clone())?,
            });
        }
    }
    Ok(all)
}

fn bypass(annotations: &Labels) -> Checked<bool> {
    match annotations.get(ON_FAILURE).map(String::as_str) {
        None | Some("closed") => Ok(false),
        Some("bypass") => Ok(true),
        Some(other) => Err(wrong(&annotation(ON_FAILURE), format!("{other:?} is neither closed nor bypass"))),
    }
}

fn protocol(field: &str, text: Option<String>) -> Checked<String> {
    let text = text.filter(|text| !text.is_empty()).unwrap_or_else(|| "TCP".to_owned());
    match text.as_str() {
        "TCP" | "UDP" | "SCTP" => Ok(text),
        _ => Err(wrong(field, format!("{text:?} is not one of TCP, UDP, SCTP"))),
    }
}

pub(crate) fn port_number(field: &str, number: i32) -> Checked<u16> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    port.ok_or_else(|| wrong(field, format!("{number} is not 1 to 65535")))
}

fn addresses(field: &str, texts: &[String]) -> Checked<Vec<IpAddr>> {
    texts.iter().map(|text| address(field, text)).collect()
}

fn address(field: &str, text: &str) -> Checked<IpAddr> {
    text.parse().map_err(|_| wrong(field, format!("{text:?} is no address")))
}

fn owner(metadata: &ObjectMeta) -> Option<Owner> {
    let controller = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    Some(Owner {
        api_version: controller.api_version.clone(),
        kind: controller.kind.clone(),
        name: controller.name.clone(),
    })
}

fn labels(metadata: &ObjectMeta) -> Labels {
    metadata.labels.clone().unwrap_or_default()
}

fn namespaced(kind: Kind, metadata: &ObjectMeta) -> Checked<Key> {
    let namespace = metadata.namespace.clone().filter(|namespace| !namespace.is_empty());
    let namespace = namespace.unwrap_or_else(|| "default".to_owned());
    Ok(Key::new(kind, &namespace, &name(metadata)?))
}

fn name(metadata: &ObjectMeta) -> Checked<String> {
    let name = metadata.name.clone().filter(|name| !name.is_empty() && !name.contains('/'));
    name.ok_or_else(|| wrong("metadata.name", "is missing or holds '/'".to_owned()))
}

fn annotation(name: &str) -> String {
    format!("metadata.annotations[{name}]")
}

fn require(holds: bool, field: &str, reason: impl FnOnce() -> String) -> Checked<()> {
    if holds { Ok(()) } else { Err(wrong(field, reason())) }
}

fn wrong(field: &str, reason: String) -> FieldError {
    FieldError { field: field.to_owned(), reason }
}
