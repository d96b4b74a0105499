//! What the controller says about this node: pods, nodes, services, networks.
//!
//! In: updates of the node's view. Out: whether a pod is governed, the routes to other nodes, the
//! services to balance. Pure; the stream around it is `controller`.

use istio_dpu_cni::error::{CniError, code};
use mesh_api::dataplane as wire;
use mesh_api::type_url;
use mesh_api::workload::{Network, Node, OnFailure, Service, Workload};
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

    /// VNI and MTU of a network; the empty name is the underlay.
    pub fn network(&self, name: &str) -> Result<(u32, Option<u32>), CniError> {
        if name.is_empty() {
            return Ok((0, None));
        }
        let unknown = || {
            CniError::new(code::TRY_AGAIN_LATER, format!("network {name} is not known on this host")).hint(
                "the controller has not told of it: create the Network, or check the connection to the controller",
            )
        };
        let network = self.networks.get(name).ok_or_else(unknown)?;
        Ok((network.vni, Some(network.mtu).filter(|mtu| *mtu > 0)))
    }

    /// Routes to the pods of all other nodes.
    pub fn routes(&self, own_node: &str) -> Vec<wire::Route> {
        let others = self.nodes.values().filter(|node| node.name != own_node && !node.underlay_address.is_empty());
        let routes = others.flat_map(|node| {
            node.pod_cidrs.iter().map(|prefix| wire::Route {
                prefix: prefix.clone(),
                next_hop: node.underlay_address.clone(),
                vni: 0,
            })
        });
        routes.collect()
    }

    /// Service addresses with their ready backends.
    pub fn services(&self) -> Vec<wire::Service> {
        let mut all = Vec::new();
        for service in self.services.values() {
            for (vip, port) in service.vips.iter().flat_map(|vip| service.ports.iter().map(move |port| (vip, port))) {
                let Some(protocol) = protocol_number(&port.protocol) else { continue };
                let key = wire::ServiceKey { vip: vip.clone(), port: port.port, protocol, vni: 0 };
                let ready = port.backends.iter().filter(|backend| backend.ready);
                let backends =
                    ready.map(|one| wire::Backend { address: one.address.clone(), port: one.port }).collect();
                all.push(wire::Service { key: Some(key), backends });
            }
        }
        all
    }
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
