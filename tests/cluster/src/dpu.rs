//! A DPU: a machine with an uplink, whose programs run as static pods of a kubelet of its own, as the container service
//! of a real card runs them.

use crate::images;
use crate::layout::{self, FABRIC_ADDRESS, Host};
use crate::machine::{self, Machine, Process};
use crate::node;
use crate::tools::Tools;
use anyhow::Result;
use lab::shell;

/// Folder of the static pods.
pub const MANIFESTS: &str = "/etc/kubernetes/manifests";

/// Makes the machine and its uplink.
pub fn build(host: Host) -> Result<Machine> {
    let machine = Machine::start(&host.dpu(), "mkdir -p $ROOT/run/netns")?;
    let namespace = layout::netns(&host.dpu());
    machine::plug("fabric", &host.dpu(), &namespace, "uplink", &host.underlay())?;
    shell::run(&format!("ip -n {namespace} route add default via {FABRIC_ADDRESS}"))?;
    Ok(machine)
}

/// Starts the runtime and the kubelet; no pod is placed on it yet.
pub fn start(tools: &Tools, host: Host) -> Result<()> {
    let machine = Machine::find(&host.dpu())?;
    node::write(&machine, "/etc/containerd/config.toml", &node::containerd_config(&machine.name))?;
    let more = format!("staticPodPath: {MANIFESTS}\nport: 10250\n");
    node::write(&machine, "/etc/kubernetes/kubelet.yaml", &node::kubelet_config(&machine.name, &more))?;
    node::write(&machine, "/etc/kubernetes/resolv.conf", &format!("nameserver {}\n", layout::CONTROL_ADDRESS))?;
    std::fs::create_dir_all(machine.file(MANIFESTS))?;
    start_runtime(host)?;
    node::wait_runtime(&machine)?;
    images::import_pause(&machine)?;
    start_kubelet(tools, host).map(drop)
}

/// Starts containerd.
pub fn start_runtime(host: Host) -> Result<Process> {
    Machine::find(&host.dpu())?.spawn("containerd", &["--config".to_owned(), "/etc/containerd/config.toml".to_owned()])
}

/// Starts kubelet without an API server.
pub fn start_kubelet(tools: &Tools, host: Host) -> Result<Process> {
    let arguments = [format!("--hostname-override={}", host.dpu()), "--config=/etc/kubernetes/kubelet.yaml".to_owned()];
    Machine::find(&host.dpu())?.spawn(&tools.path("kubelet").to_string_lossy(), &arguments)
}
