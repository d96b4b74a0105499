//! The host's way to its own pods: by a function that it keeps, straight to its DPU, so that the DPU knows the host's
//! own packets (the kubelet's probes) by the link that they come by.
//!
//! In: the DPU's address on that link, the node's pod CIDRs, and whether the dataplane takes the host's packets.
//! Out: a route for each CIDR in the host's main table, marked as ours; routes of others are never touched.

use crate::daemon::Daemon;
use crate::sys::{HostRoute, KernelError, Namespace};
use ipnet::IpNet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Within this the routes follow, and are put back when somebody took them away.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What is asked for, and what is in its way.
#[derive(Debug, Default)]
pub struct PodRoutes {
    /// The DPU's addresses on the link, at most one of each family. None: the host goes another way.
    gateways: Vec<IpAddr>,
    /// The node's pods, where they are not the controller's to tell.
    cidrs: Vec<IpNet>,
    problem: Mutex<Option<String>>,
}

/// What should be there.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    /// These and no others.
    Routes(Vec<HostRoute>),
    /// None, for that reason.
    Nothing(String),
    /// What is there stays: it is not known yet.
    AsItIs,
}

impl PodRoutes {
    /// For these gateways.
    pub fn new(gateways: Vec<IpAddr>, cidrs: Vec<IpNet>) -> Self {
        Self { gateways, cidrs, problem: Mutex::default() }
    }

    /// Why the routes are not there, for a person.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell(&self, problem: Option<String>) {
        let mut last = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != problem {
            match &problem {
                Some(reason) => tracing::warn!(reason, "the host has no way to its pods by --pod-gateway"),
                None => tracing::info!("the host goes to its pods by --pod-gateway"),
            }
            *last = problem;
        }
    }

    /// `host_interface`: what the dataplane says of it; `None` before it has said anything.
    fn wanted(&self, told: &[IpNet], host_interface: Option<&str>) -> Wanted {
        let cidrs = if self.cidrs.is_empty() { told } else { &self.cidrs };
        match host_interface {
            _ if self.gateways.is_empty() => Wanted::Routes(Vec::new()),
            None => Wanted::AsItIs,
            Some("") => Wanted::Nothing(
                "the dataplane runs without --host-interface: give its DPU the files of `dpumesh dpu manifest`"
                    .to_owned(),
            ),
            // A node that the controller does not tell of for a while keeps its routes.
            Some(_) if cidrs.is_empty() => Wanted::AsItIs,
            Some(_) => Wanted::Routes(cidrs.iter().filter_map(|cidr| self.route(*cidr)).collect()),
        }
    }

    fn route(&self, destination: IpNet) -> Option<HostRoute> {
        let fits = |gateway: &&IpAddr| gateway.is_ipv4() == destination.addr().is_ipv4();
        self.gateways.iter().find(fits).map(|gateway| HostRoute { destination: destination.trunc(), gateway: *gateway })
    }
}

impl Daemon {
    /// Keeps the routes until `shutdown`; they outlive the daemon.
    pub async fn keep_pod_routes(self: Arc<Self>, shutdown: CancellationToken) {
        let mut mesh = self.mesh.clone();
        loop {
            let told = mesh.borrow_and_update().pod_cidrs(&self.node);
            let host_interface = self.forwarding.ports().borrow().host_interface.clone();
            let problem = match self.pod_routes.wanted(&told, host_interface.as_deref()) {
                Wanted::AsItIs => self.pod_routes.problem(),
                Wanted::Nothing(reason) => reconcile(&self.host, &[]).await.err().or(Some(reason)),
                Wanted::Routes(routes) => reconcile(&self.host, &routes).await.err(),
            };
            self.pod_routes.tell(problem);
            tokio::select! {
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }
}

/// Takes all away, for an uninstall.
pub async fn remove_all(host: &Namespace) -> Result<usize, KernelError> {
    let own = host.own_routes().await?;
    for route in &own {
        host.delete_own_route(*route).await?;
    }
    Ok(own.len())
}

async fn reconcile(host: &Namespace, wanted: &[HostRoute]) -> Result<(), String> {
    let own = host.own_routes().await.map_err(|error| error.to_string())?;
    for route in own.iter().filter(|route| !wanted.contains(route)) {
        host.delete_own_route(*route).await.map_err(|error| error.to_string())?;
    }
    for route in wanted.iter().filter(|route| !own.contains(route)) {
        host.add_own_route(*route).await.map_err(|error| explained(*route, &error))?;
    }
    Ok(())
}

fn explained(route: HostRoute, error: &KernelError) -> String {
    let advice = match error.errno() {
        Some(nix::libc::EEXIST) => "another route to it is there already: remove that one",
        Some(nix::libc::ENETUNREACH | nix::libc::EHOSTUNREACH | nix::libc::EINVAL) => {
            "the gateway is on no link of the host: give the function that leads to the DPU an address of its network"
        }
        _ => return error.to_string(),
    };
    format!("no route to {} by {}: {advice}", route.destination, route.gateway)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("prefix")
    }

    fn routes(gateways: &[&str]) -> PodRoutes {
        PodRoutes::new(gateways.iter().map(|text| text.parse().expect("address")).collect(), Vec::new())
    }

    #[test]
    fn each_cidr_has_a_route_by_the_gateway_of_its_family() {
        let told = [net("10.244.1.0/24"), net("fd00:1::/64")];
        let both = routes(&["192.168.101.2", "fd00:101::2"]).wanted(&told, Some("pf0hpf"));
        let route = |destination: &str, gateway: &str| HostRoute {
            destination: net(destination),
            gateway: gateway.parse().expect("address"),
        };
        let v4 = route("10.244.1.0/24", "192.168.101.2");
        assert_eq!(both, Wanted::Routes(vec![v4, route("fd00:1::/64", "fd00:101::2")]));
        assert_eq!(routes(&["192.168.101.2"]).wanted(&told, Some("pf0hpf")), Wanted::Routes(vec![v4]));
        let own = PodRoutes { cidrs: vec![net("10.9.0.1/16")], ..routes(&["192.168.101.2"]) };
        let wanted = own.wanted(&told, Some("pf0hpf"));
        assert_eq!(wanted, Wanted::Routes(vec![route("10.9.0.0/16", "192.168.101.2")]));
    }

    #[test]
    fn no_route_leads_to_a_dpu_that_does_not_take_the_hosts_packets() {
        let told = [net("10.244.1.0/24")];
        let asked = routes(&["192.168.101.2"]);
        assert!(
            matches!(asked.wanted(&told, Some("")), Wanted::Nothing(reason) if reason.contains("--host-interface"))
        );
        assert_eq!(asked.wanted(&told, None), Wanted::AsItIs, "the dataplane is away");
        assert_eq!(asked.wanted(&[], Some("pf0hpf")), Wanted::AsItIs, "the controller is away");
        assert_eq!(routes(&[]).wanted(&told, None), Wanted::Routes(Vec::new()), "nobody asks for them any more");
    }
}
