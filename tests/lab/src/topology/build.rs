//! Makes the namespaces and links with iproute2. What is made is found again by its name prefix.

use super::{CONTROL_PLANE, CONTROL_PLANE_NAMESPACE, FABRIC_NAMESPACE, HOSTS, Host, VFS};
use crate::shell;
use anyhow::Result;

/// All namespaces and links, without pods.
pub fn build() -> Result<()> {
    for namespace in [CONTROL_PLANE_NAMESPACE, FABRIC_NAMESPACE] {
        namespace_with_bridge(namespace)?;
    }
    shell::run_in(CONTROL_PLANE_NAMESPACE, &format!("ip address add {CONTROL_PLANE}/24 dev br0"))?;
    HOSTS.into_iter().try_for_each(host)
}

/// A namespace with loopback up and a congestion control that this kernel surely has.
pub fn namespace(name: &str) -> Result<()> {
    shell::run(&format!("ip netns add {name}"))?;
    shell::run_in(name, "ip link set lo up")?;
    shell::run_in(name, "sysctl -q -w net.ipv4.tcp_congestion_control=reno").map(drop)
}

/// A namespace with a bridge `br0`.
pub fn namespace_with_bridge(name: &str) -> Result<()> {
    namespace(name)?;
    shell::run_in(name, "ip link add br0 type bridge stp_state 0 forward_delay 0")?;
    shell::run_in(name, "ip link set br0 up").map(drop)
}

fn host(host: Host) -> Result<()> {
    let (own, dpu, number) = (host.namespace(), host.dpu(), host.number);
    namespace(&own)?;
    namespace(&dpu)?;
    pair((&own, "mgmt0"), (&dpu, "mgmt0"))?;
    address(&own, "mgmt0", &host.management())?;
    address(&dpu, "mgmt0", &host.dpu_management())?;
    plug(CONTROL_PLANE_NAMESPACE, &format!("node{number}"), (&own, "cp0"))?;
    address(&own, "cp0", &host.control())?;
    plug(FABRIC_NAMESPACE, &host.fabric_port(), (&dpu, "uplink"))?;
    address(&dpu, "uplink", &host.underlay())?;
    (0..VFS).try_for_each(|vf| pair((&own, &format!("vf{vf}")), (&dpu, &format!("pf0vf{vf}"))))?;
    // A VF that is not given away is down, as on a server.
    (0..VFS).try_for_each(|vf| shell::run_in(&own, &format!("ip link set vf{vf} down")).map(drop))
}

/// A veth pair with an end in each namespace, both up.
fn pair(one: (&str, &str), other: (&str, &str)) -> Result<()> {
    let (ns, name) = one;
    let (peer_ns, peer) = other;
    shell::run_all(&[
        format!("ip -n {ns} link add {name} type veth peer name {peer} netns {peer_ns}"),
        format!("ip -n {ns} link set {name} up"),
        format!("ip -n {peer_ns} link set {peer} up"),
    ])
}

/// A cable from a bridge to a namespace.
pub fn plug(bridge_namespace: &str, port: &str, end: (&str, &str)) -> Result<()> {
    pair((bridge_namespace, port), end)?;
    shell::run(&format!("ip -n {bridge_namespace} link set {port} master br0")).map(drop)
}

/// An address in a /24.
pub fn address(namespace: &str, link: &str, address: &str) -> Result<()> {
    shell::run(&format!("ip -n {namespace} address add {address}/24 dev {link}")).map(drop)
}
