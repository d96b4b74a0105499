//! Who is where, as a picture and a table.

use crate::pods::PODS;
use crate::topology::{CONTROL_PLANE, HOSTS};
use crate::{programs, shell};
use anyhow::Result;
use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;

/// Prints it.
pub fn print() -> Result<()> {
    println!("\n== Topology");
    println!("  control plane (istiod's recordings) and controller at {CONTROL_PLANE}");
    for host in HOSTS {
        println!(
            "  {}: adapter, node daemon ({}) ── management link ── DPU: dataplane, dpu-proxy ({}) ── uplink {} ── fabric",
            host.node(),
            host.namespace(),
            host.dpu(),
            host.underlay()
        );
    }
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header(["pod", "host", "address", "VF → representor", "identity"]);
    for pod in &PODS {
        table.add_row([pod.name, &pod.host.node(), pod.address, &port_of(pod)?, &pod.identity()]);
    }
    println!("{table}");
    println!("  logs: {}", programs::logs().display());
    Ok(())
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
