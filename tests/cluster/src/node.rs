//! A node: containerd, kubelet and kube-proxy on a machine with a network card, VFs, and the network of bridges that
//! was there before us.

use crate::images;
use crate::kubectl;
use crate::layout::{self, CONTROL_ADDRESS, DNS_SERVICE, DPU_NETNS, HOST_PORT, Host, MANAGEMENT, VFS};
use crate::machine::{self, Machine, Process, tail};
use crate::pki::{self, Pki};
use crate::tools::Tools;
use anyhow::{Context, Result};
use lab::shell;
use std::path::Path;
use std::time::Duration;

/// A program of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Containerd,
    Kubelet,
    KubeProxy,
}

/// Makes the machine and its links; its DPU must be there.
pub fn build(host: Host) -> Result<Machine> {
    let (node, dpu) = (layout::netns(&host.node()), layout::netns(&host.dpu()));
    let netns = format!("touch $ROOT/run/netns/{DPU_NETNS}\nmount --bind /run/netns/{dpu} $ROOT/run/netns/{DPU_NETNS}");
    let before = format!("mkdir -p $ROOT/run/netns\n{netns}");
    let machine = Machine::start(&host.node(), &before)?;
    machine::plug("br0", &host.node(), &node, "eth0", &host.address())?;
    shell::run(&format!("ip -n {node} route add default via {CONTROL_ADDRESS}"))?;
    machine::link((&node, "mgmt0"), (&dpu, "mgmt0"))?;
    shell::run(&format!("ip -n {node} address add {MANAGEMENT}/24 dev mgmt0"))?;
    shell::run(&format!("ip -n {dpu} address add {}/24 dev mgmt0", layout::DPU_MANAGEMENT))?;
    machine::link((&node, "pf0"), (&dpu, "pf0hpf"))?;
    shell::run(&format!("ip -n {node} address add {}/24 dev pf0", HOST_PORT.node))?;
    shell::run(&format!("ip -n {dpu} address add {}/24 dev pf0hpf", HOST_PORT.dpu))?;
    for vf in 0..VFS {
        machine::link((&node, &format!("vf{vf}")), (&dpu, &format!("pf0vf{vf}")))?;
        // A VF that is not given away is down, as on a server.
        shell::run(&format!("ip -n {node} link set vf{vf} down"))?;
    }
    Ok(machine)
}

/// Writes its configuration and starts its programs.
pub fn start(tools: &Tools, host: Host, pki: &Pki) -> Result<()> {
    let machine = Machine::find(&host.node())?;
    pki.user(&host.node(), &format!("system:node:{}", host.node()), Some("system:nodes"))?;
    configure(tools, &machine, host)?;
    Program::Containerd.start(tools, host)?;
    wait_runtime(&machine)?;
    images::import_pause(&machine)?;
    Program::Kubelet.start(tools, host)?;
    Program::KubeProxy.start(tools, host).map(drop)
}

/// Waits until Kubernetes can place pods on it.
pub fn wait(host: Host) -> Result<()> {
    kubectl::wait_condition(&format!("node {}", host.node()), "Ready", 60)
        .with_context(|| format!("kubelet's log ends:\n{}", tail(&format!("{}-kubelet", host.node()))))
}

/// Waits until the runtime answers.
pub fn wait_runtime(machine: &Machine) -> Result<()> {
    shell::wait_for(&format!("containerd of {}", machine.name), Duration::from_secs(20), || {
        machine.run("ctr version").map(drop)
    })
    .with_context(|| format!("its log ends:\n{}", tail(&format!("{}-containerd", machine.name))))
}

impl Program {
    /// Starts it on a node.
    pub fn start(self, tools: &Tools, host: Host) -> Result<Process> {
        let machine = Machine::find(&host.node())?;
        let (program, line) = match self {
            Self::Containerd => ("containerd".into(), "--config /etc/containerd/config.toml".to_owned()),
            Self::Kubelet => (tools.path("kubelet"), kubelet(host)),
            Self::KubeProxy => (tools.path("kube-proxy"), "--config=/etc/kubernetes/proxy.yaml".to_owned()),
        };
        let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        machine.spawn(&program.to_string_lossy(), &arguments)
    }

    /// The one that runs on a node.
    pub fn process(self, host: Host) -> Result<Process> {
        let kind = match self {
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
        };
        Process::find(&format!("{}-{kind}", host.node()))
    }
}

fn kubelet(host: Host) -> String {
    format!(
        "--config=/etc/kubernetes/kubelet.yaml --kubeconfig={} --hostname-override={} --node-ip={}",
        pki::kubeconfig(&host.node()).display(),
        host.node(),
        host.address()
    )
}

fn configure(tools: &Tools, machine: &Machine, host: Host) -> Result<()> {
    write(machine, "/etc/containerd/config.toml", &containerd_config(&machine.name))?;
    write(machine, "/etc/kubernetes/kubelet.yaml", &kubelet_config(&machine.name, ""))?;
    write(machine, "/etc/kubernetes/proxy.yaml", &proxy_config(host))?;
    write(machine, "/etc/kubernetes/resolv.conf", &format!("nameserver {CONTROL_ADDRESS}\n"))?;
    write(machine, "/etc/cni/net.d/10-bridge.conflist", &bridge_network(host))?;
    copy_plugins(tools, &machine.file("/opt/cni/bin"))
}

/// Writes a file of a machine.
pub fn write(machine: &Machine, inside: &str, text: &str) -> Result<()> {
    let path = machine.file(inside);
    std::fs::create_dir_all(path.parent().context("a folder")?)?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The plugins that a runtime needs for the network before us, in a folder of the node's own.
fn copy_plugins(tools: &Tools, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for name in ["bridge", "host-local", "loopback"] {
        std::fs::copy(tools.path(name), to.join(name)).with_context(|| format!("cannot copy the CNI plugin {name}"))?;
    }
    Ok(())
}

/// The runtime's configuration on nodes and DPUs. What it may not change (scores, profiles) it is told to leave alone.
pub fn containerd_config(machine: &str) -> String {
    format!(
        "# Runtime of {machine}.\nversion = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"{}\"\n  \
         disable_apparmor = true\n  restrict_oom_score_adj = true\n  [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n    \
         snapshotter = \"native\"\n",
        images::PAUSE
    )
}

/// Kubelet's configuration on nodes and DPUs, with further lines.
pub fn kubelet_config(machine: &str, more: &str) -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: false}}, x509: {{clientCAFile: {}}}}}\n\
         authorization: {{mode: AlwaysAllow}}\ncontainerRuntimeEndpoint: unix:///run/containerd/containerd.sock\n\
         cgroupDriver: cgroupfs\ncgroupRoot: {}\ncgroupsPerQOS: false\nenforceNodeAllocatable: []\nfailCgroupV1: false\nfailSwapOn: false\n\
         oomScoreAdj: 0\nmakeIPTablesUtilChains: false\nclusterDNS: [{DNS_SERVICE}]\nclusterDomain: cluster.local\n\
         resolvConf: /etc/kubernetes/resolv.conf\nimageMinimumGCAge: 24h\nimageGCHighThresholdPercent: 100\n\
         evictionHard: {{nodefs.available: \"1%\", imagefs.available: \"1%\", memory.available: \"50Mi\"}}\n{more}",
        pki::file("ca.crt").display(),
        machine::group(machine),
    )
}

fn proxy_config(host: Host) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\nhostnameOverride: {}\n\
         bindAddress: {}\nhealthzBindAddress: 127.0.0.1:10256\nmetricsBindAddress: 127.0.0.1:10249\n\
         clientConnection: {{kubeconfig: {}}}\nclusterCIDR: 10.244.0.0/15\nconntrack: {{maxPerCore: 0, min: 0}}\n",
        host.node(),
        host.address(),
        pki::kubeconfig("proxy").display()
    )
}

/// The network before us.
fn bridge_network(host: Host) -> String {
    format!(
        "{{\"cniVersion\":\"1.0.0\",\"name\":\"bridge\",\"plugins\":[{{\"type\":\"bridge\",\"bridge\":\"cni0\",\"isDefaultGateway\":true,\
         \"ipam\":{{\"type\":\"host-local\",\"ranges\":[[{{\"subnet\":\"{}\"}}]]}}}}]}}\n",
        host.bridge_pods()
    )
}
