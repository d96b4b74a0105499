//! Who is where, as a picture and a table.

use crate::lab::Lab;
use crate::pods::PODS;
use crate::topology::{CONTROL_PLANE, CONTROL_PLANE_NAMESPACE, FABRIC_NAMESPACE, HOSTS, Host, VFS};
use crate::{programs, shell};
use anyhow::Result;
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;

/// Prints it.
pub fn print(lab: &Lab) -> Result<()> {
    println!("\n== Topology");
    println!(
        "  control plane ({CONTROL_PLANE_NAMESPACE}, {CONTROL_PLANE}): istio-dpu-controller; what istiod 1.30.3 sent"
    );
    for host in HOSTS {
        print_host(host, lab.proxy.concurrency);
    }
    println!("  fabric ({FABRIC_NAMESPACE}): one bridge between the uplinks\n");
    println!(
        "  Emulated: hosts, DPUs and pods are network namespaces of this machine; a VF and its representor are the two"
    );
    println!(
        "  ends of a veth pair; links and fabric are veth pairs and a bridge; istiod's answers are played back from a"
    );
    println!(
        "  recording. Real: all programs of the product, eBPF in the kernel, CNI calls, certificates, every byte sent.\n"
    );
    println!("{}", pods()?);
    println!("  logs: {}", programs::logs().display());
    Ok(())
}

fn print_host(host: Host, workers: u16) {
    let (node, pods) = (host.node(), PODS.iter().filter(|pod| pod.host == host).count());
    println!("  {node} ({}): istio-dpu-adapter, istio-dpu-cni-node, {pods} pods", host.namespace());
    println!("   ╟─ management link {} – {}, {VFS} VFs", host.management(), host.dpu_management());
    println!(
        "  DPU of {node} ({}): dataplane, dpu-proxy with {workers} workers, uplink {}",
        host.dpu(),
        host.underlay()
    );
}

fn pods() -> Result<Table> {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(["pod", "host", "address", "VF → representor", "identity"]);
    for pod in &PODS {
        table.add_row([pod.name, &pod.host.node(), pod.address, &port_of(pod)?, &pod.identity()]);
    }
    Ok(table)
}

/// The VF is known by its representor: the other end of its link.
fn port_of(pod: &crate::pods::Pod) -> Result<String> {
    let own = shell::run(&format!("ip -n {} -o link show eth0", pod.namespace()))?;
    let peer = own.split("@if").nth(1).and_then(|rest| rest.split(':').next()).unwrap_or_default().to_owned();
    let all = shell::run(&format!("ip -n {} -o link show", pod.host.dpu()))?;
    let representor = all.lines().find(|line| line.starts_with(&format!("{peer}:")));
    let name = representor.and_then(|line| line.split_whitespace().nth(1)).unwrap_or("?");
    let name = name.split('@').next().unwrap_or("?").trim_end_matches(':').to_owned();
    Ok(format!("{} → {name}", name.trim_start_matches("pf0")))
}
