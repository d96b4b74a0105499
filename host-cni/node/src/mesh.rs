//! What the controller says about this node: pods, nodes, services, networks.
//!
//! In: updates of the node's view. Out: whether a pod is governed, the routes to other nodes, the
//! services to balance. Pure; the stream around it is `controller`.

use istio_dpu_cni::error::{CniError, code};
use mesh_api::dataplane as wire;
use mesh_api::type_url;
use mesh_api::workload::{Backend, Network, Node, OnFailure, Service, Workload};
use std::collections::{BTreeMap, BTreeSet};
use xds::{Rejected, Resource};

/// The node's view. Empty until the controller answers, and kept when it is away.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    workloads: BTreeMap<String, Workload>,
    nodes: BTreeMap<String, Node>,
    services: BTreeMap<String, Service>,
    networks: BTreeMap<String, Network>,
    /// Types whose first answer has come.
    answered: BTreeSet<String>,
}

/// How a pod's port is to be treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Treatment {
    pub governed: bool,
    pub bypass_on_failure: bool,
}

impl Treatment {
    /// Of pods that the controller has not told of.
    pub const UNKNOWN: Self = Self { governed: true, bypass_on_failure: false };
}

impl Mesh {
    /// Takes an update over; names what does not parse, which leaves the last good one in force.
    pub fn apply(&mut self, kind: &str, changed: &[Resource], removed: &[String]) -> Result<(), Vec<Rejected>> {
        self.answered.insert(kind.to_owned());
        match kind {
            type_url::WORKLOAD => merge(&mut self.workloads, changed, removed, |_| Ok(())),
            type_url::NODE => merge(&mut self.nodes, changed, removed, check_node),
            type_url::SERVICE => merge(&mut self.services, changed, removed, check_service),
            type_url::NETWORK => merge(&mut self.networks, changed, removed, check_network),
            _ => Ok(()),
        }
    }

    /// Whether every type has been answered once: only then may what is not in it be removed.
    pub fn is_complete(&self) -> bool {
        let types = [type_url::WORKLOAD, type_url::NODE, type_url::SERVICE, type_url::NETWORK];
        types.iter().all(|kind| self.has_answered(kind))
    }

    /// Whether this type has been answered once.
    pub fn has_answered(&self, kind: &str) -> bool {
        self.answered.contains(kind)
    }

    /// The pod of that name.
    pub fn workload(&self, namespace: &str, name: &str) -> Option<&Workload> {
        self.workloads.get(&format!("{namespace}/{name}"))
    }

    /// How to treat the pod; `None` when the controller has not told of it. A pod of the same name
    /// and another uid is another pod; an empty uid, on either side, is not known.
    pub fn treatment(&self, namespace: &str, name: &str, uid: &str) -> Option<Treatment> {
        let is_same = |workload: &&Workload| uid.is_empty() || workload.uid.is_empty() || workload.uid == uid;
        let workload = self.workload(namespace, name).filter(is_same)?;
        let bypass_on_failure = workload.on_failure() == OnFailure::Bypass;
        Some(Treatment { governed: workload.governed, bypass_on_failure })
    }

    /// VNI and MTU of a network; the empty name is the underlay. `who` asks for it.
    pub fn network(&self, name: &str, who: &str) -> Result<(u32, Option<u32>), CniError> {
        if name.is_empty() {
            return Ok((0, None));
        }
        let network = self.networks.get(name).ok_or_else(|| self.no_network(name, who))?;
        Ok((network.vni, Some(network.mtu).filter(|mtu| *mtu > 0)))
    }

    /// The kubelet tries again, and by then it may be there.
    fn no_network(&self, name: &str, who: &str) -> CniError {
        let failed = |msg: String| CniError::new(code::TRY_AGAIN_LATER, msg);
        if !self.has_answered(type_url::NETWORK) {
            return failed(format!("{who} asks for Network {name:?}, and the controller has not told of networks yet"))
                .hint("check the connection to the controller");
        }
        let known: Vec<&str> = self.networks.keys().map(String::as_str).collect();
        let known =
            if known.is_empty() { "there is none".to_owned() } else { format!("there are {}", known.join(", ")) };
        failed(format!("{who} asks for Network {name:?}, which does not exist: {known}"))
            .hint("create it (kubectl get networks.dpumesh.io), or correct the pod's annotation dpumesh.io/network")
    }

    /// Pod CIDRs of a node; empty while the controller has not told any.
    pub fn pod_cidrs(&self, node: &str) -> Vec<ipnet::IpNet> {
        let told = self.nodes.get(node).map(|node| node.pod_cidrs.as_slice()).unwrap_or_default();
        // They were checked when they came.
        told.iter().filter_map(|cidr| cidr.parse().ok()).collect()
    }

    /// Routes to the pods of all other nodes, of the family of their underlay address.
    pub fn routes(&self, own_node: &str) -> Vec<wire::Route> {
        let others = self.nodes.values().filter(|node| node.name != own_node && !node.underlay_address.is_empty());
        let routes = others.flat_map(|node| {
            let reachable = node.pod_cidrs.iter().filter(|prefix| is_v4(prefix) == is_v4(&node.underlay_address));
            reachable.map(|prefix| wire::Route {
                prefix: prefix.clone(),
                next_hop: node.underlay_address.clone(),
                vni: 0,
            })
        });
        routes.collect()
    }

    /// Service addresses with their ready backends of the same family.
    pub fn services(&self) -> Vec<wire::Service> {
        let mut all = Vec::new();
        for service in self.services.values() {
            for (vip, port) in service.vips.iter().flat_map(|vip| service.ports.iter().map(move |port| (vip, port))) {
                let Some(protocol) = protocol_number(&port.protocol) else { continue };
                let key = wire::ServiceKey { vip: vip.clone(), port: port.port, protocol, vni: 0 };
                let is_usable = |backend: &&Backend| backend.ready && is_v4(&backend.address) == is_v4(vip);
                let ready = port.backends.iter().filter(is_usable);
                let backends =
                    ready.map(|one| wire::Backend { address: one.address.clone(), port: one.port }).collect();
                all.push(wire::Service { key: Some(key), backends });
            }
        }
        all
    }
}

/// Of an address or a CIDR that was checked.
fn is_v4(text: &str) -> bool {
    !text.contains(':')
}

/// IP protocol numbers that the dataplane balances.
fn protocol_number(name: &str) -> Option<u32> {
    match name {
        "TCP" | "" => Some(6),
        "UDP" => Some(17),
        _ => None,
    }
}

fn merge<M: prost::Message + Default>(
    table: &mut BTreeMap<String, M>,
    changed: &[Resource],
    removed: &[String],
    check: impl Fn(&M) -> Result<(), String>,
) -> Result<(), Vec<Rejected>> {
    let mut rejected = Vec::new();
    for resource in changed {
        let decoded = resource.decode::<M>().map_err(|error| error.to_string());
        match decoded.and_then(|message| check(&message).map(|()| message)) {
            Ok(message) => drop(table.insert(resource.name.clone(), message)),
            Err(reason) => rejected.push(Rejected { name: resource.name.clone(), reason }),
        }
    }
    removed.iter().for_each(|name| drop(table.remove(name)));
    if rejected.is_empty() { Ok(()) } else { Err(rejected) }
}

fn check_node(node: &Node) -> Result<(), String> {
    for cidr in &node.pod_cidrs {
        cidr.parse::<ipnet::IpNet>().map_err(|_| format!("pod_cidrs: {cidr:?} is no CIDR"))?;
    }
    check_address("underlay_address", &node.underlay_address, true)
}

fn check_service(service: &Service) -> Result<(), String> {
    service.vips.iter().try_for_each(|vip| check_address("vips", vip, false))?;
    for port in &service.ports {
        check_port(port.port)?;
        for backend in &port.backends {
            check_address("backends", &backend.address, false)?;
            check_port(backend.port)?;
        }
    }
    Ok(())
}

fn check_network(network: &Network) -> Result<(), String> {
    match network.vni < 1 << 24 {
        true => Ok(()),
        false => Err(format!("vni {} is over 16777215", network.vni)),
    }
}

fn check_address(field: &str, text: &str, may_be_empty: bool) -> Result<(), String> {
    match (may_be_empty && text.is_empty()) || text.parse::<std::net::IpAddr>().is_ok() {
        true => Ok(()),
        false => Err(format!("{field}: {text:?} is no address")),
    }
}

fn check_port(port: u32) -> Result<(), String> {
    match (1..=65535).contains(&port) {
        true => Ok(()),
        false => Err(format!("port {port} is not 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::workload::ServicePort;

    fn apply<M: prost::Message + prost::Name>(mesh: &mut Mesh, name: &str, message: &M) -> Result<(), Vec<Rejected>> {
        mesh.apply(&format!("type.googleapis.com/{}", M::full_name()), &[Resource::new(name, message)], &[])
    }

    fn node(name: &str, underlay: &str, cidrs: &[&str]) -> Node {
        let pod_cidrs = cidrs.iter().map(|cidr| (*cidr).to_owned()).collect();
        Node { name: name.to_owned(), underlay_address: underlay.to_owned(), pod_cidrs, ..Node::default() }
    }

    #[test]
    fn routes_lead_to_other_nodes_that_can_be_reached() {
        let mut mesh = Mesh::default();
        apply(&mut mesh, "me", &node("me", "192.168.0.1", &["10.1.0.0/24"])).expect("valid");
        apply(&mut mesh, "other", &node("other", "192.168.0.2", &["10.2.0.0/24", "fd00:2::/64"])).expect("valid");
        apply(&mut mesh, "new", &node("new", "", &["10.3.0.0/24"])).expect("valid");
        let prefixes: Vec<String> = mesh.routes("me").into_iter().map(|route| route.prefix).collect();
        assert_eq!(prefixes, ["10.2.0.0/24"]);
    }

    #[test]
    fn a_service_address_has_the_ready_backends_of_its_family() {
        let backend =
            |address: &str, ready| Backend { address: address.to_owned(), port: 80, ready, ..Backend::default() };
        let backends = vec![backend("10.2.0.1", true), backend("10.2.0.2", false), backend("fd00::1", true)];
        let port = |protocol: &str| ServicePort {
            port: 80,
            protocol: protocol.to_owned(),
            backends: backends.clone(),
            ..ServicePort::default()
        };
        let service = Service {
            vips: vec!["10.96.0.1".to_owned(), "fd00:96::1".to_owned()],
            ports: vec![port("UDP"), port("SCTP")],
            ..Service::default()
        };
        let mut mesh = Mesh::default();
        apply(&mut mesh, "n/s", &service).expect("valid");
        let services = mesh.services();
        let seen: Vec<(&str, u32, &str)> = services
            .iter()
            .map(|one| (one.key.as_ref().expect("key"), &one.backends))
            .map(|(key, backends)| (key.vip.as_str(), key.protocol, backends[0].address.as_str()))
            .collect();
        assert_eq!(seen, [("10.96.0.1", 17, "10.2.0.1"), ("fd00:96::1", 17, "fd00::1")]);
        assert!(services.iter().all(|one| one.backends.len() == 1));
    }

    #[test]
    fn a_network_that_does_not_exist_is_named_with_those_that_do() {
        let mut mesh = Mesh::default();
        let error = mesh.network("blue", "pod n/p").expect_err("nothing is known");
        assert!(error.msg.contains("has not told of networks yet"), "{error}");
        mesh.apply(type_url::NETWORK, &[], &[]).expect("none");
        let error = mesh.network("blue", "pod n/p").expect_err("none");
        assert_eq!(error.msg, "pod n/p asks for Network \"blue\", which does not exist: there is none");
        for name in ["green", "red"] {
            apply(&mut mesh, name, &Network { name: name.to_owned(), vni: 7, mtu: 0 }).expect("valid");
        }
        let error = mesh.network("blue", "pod n/p").expect_err("unknown");
        assert!(error.msg.ends_with("there are green, red") && error.details.contains("dpumesh.io/network"), "{error}");
        assert_eq!(mesh.network("red", "pod n/p").expect("known"), (7, None));
        assert_eq!(mesh.network("", "pod n/p").expect("the underlay"), (0, None));
    }

    #[test]
    fn a_bad_resource_is_refused_by_name_and_the_last_good_one_stays() {
        let mut mesh = Mesh::default();
        apply(&mut mesh, "other", &node("other", "192.168.0.2", &["10.2.0.0/24"])).expect("valid");
        let rejected = apply(&mut mesh, "other", &node("other", "here", &["10.2.0.0/24"])).expect_err("no address");
        assert_eq!(rejected[0].name, "other");
        assert_eq!(mesh.routes("me").len(), 1);
        assert!(!mesh.is_complete(), "pods, services and networks have not been told yet");
    }

    #[test]
    fn a_pod_of_the_same_name_and_another_uid_is_another_pod() {
        let workload = Workload { uid: "u1".to_owned(), governed: true, ..Workload::default() };
        let mut mesh = Mesh::default();
        apply(&mut mesh, "n/p", &workload).expect("valid");
        assert!(mesh.treatment("n", "p", "u1").is_some_and(|treatment| treatment.governed));
        assert!(mesh.treatment("n", "p", "").is_some(), "the runtime did not say");
        assert_eq!(mesh.treatment("n", "p", "u2"), None);
    }
}
