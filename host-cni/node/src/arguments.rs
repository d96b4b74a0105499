//! The command line.

use clap::{Args, Parser, ValueEnum};
use istio_dpu_cni_node::install::{InstallArgs, Owner};
use istio_dpu_cni_node::vf::{Emulated, Sriov, VfProvider};
use service::grpc::TlsArgs;
use service::logging::LogArgs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// What is asked for.
#[derive(Debug)]
pub enum Asked {
    Run(Box<Arguments>),
    Uninstall(Box<UninstallArgs>),
}

/// First word of the command line that asks for something else than the daemon.
const UNINSTALL: &str = "uninstall";

/// Reads the command line of this program.
pub fn parse(line: impl IntoIterator<Item = String>) -> Result<Asked, clap::Error> {
    let mut words: Vec<String> = line.into_iter().collect();
    if words.get(1).is_some_and(|word| word == UNINSTALL) {
        words.remove(1);
        return UninstallArgs::try_parse_from(words).map(Box::new).map(Asked::Uninstall);
    }
    Arguments::try_parse_from(words).map(Box::new).map(Asked::Run)
}

/// Removes the plugin, the network configuration and the sockets of a daemon that does not run any more.
/// Pods keep their network until they are deleted.
#[derive(Parser, Debug)]
#[command(name = "istio-dpu-cni-node uninstall", version)]
pub struct UninstallArgs {
    #[command(flatten)]
    pub install: InstallArgs,
    #[command(flatten)]
    pub paths: Paths,
    #[command(flatten)]
    pub log: LogArgs,
}

/// Of the daemon on this host.
#[derive(Args, Clone, Debug)]
pub struct Paths {
    /// Unix socket that the plugin calls.
    #[arg(long, value_name = "PATH", default_value = istio_dpu_cni::netconf::DAEMON_SOCKET)]
    pub socket: PathBuf,
    /// Unix socket on which the adapter follows what is attached (incremental xDS).
    #[arg(long, value_name = "PATH", default_value = "/run/dpumesh/attachments.sock")]
    pub attachments: PathBuf,
    /// Folder of the records of what was done.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/dpumesh/cni")]
    pub state_dir: PathBuf,
}

/// Gives pods their VFs, and keeps the ports, routes and services of this host's dataplane.
#[derive(Parser, Debug)]
#[command(version, after_help = "`istio-dpu-cni-node uninstall --help` tells how to remove what it installed.")]
pub struct Arguments {
    /// Kubernetes name of this node.
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// Where the controller serves this node's view.
    #[arg(long, value_name = "URI", default_value = "http://127.0.0.1:15100")]
    pub controller: String,
    /// Where the dataplane of this host's DPU listens.
    #[arg(long, value_name = "URI", default_value = "http://127.0.0.1:15130")]
    pub dataplane: String,
    #[command(flatten)]
    pub paths: Paths,
    /// Group that may follow the attachments, beside root: the adapter's, where that is not root. The
    /// daemon must be a member of it.
    #[arg(long, value_name = "GID")]
    pub attachments_group: Option<u32>,
    /// Where VFs come from.
    #[arg(long, value_enum, default_value_t = Provider::Sriov)]
    pub vf_provider: Provider,
    /// emulated: name of a VF's link without its number. sriov: name of the physical function.
    #[arg(long, value_name = "NAME", default_value = "vf")]
    pub vf_prefix: String,
    /// Name of a representor on the DPU without its number.
    #[arg(long, value_name = "NAME", default_value = "pf0vf")]
    pub representor_prefix: String,
    /// emulated: network namespace of the DPU, to make a pair again that died with a pod's namespace.
    #[arg(long, value_name = "PATH")]
    pub representor_netns: Option<PathBuf>,
    /// Address of the DPU on a link between it and a function that the host keeps (not the management link); may be
    /// given once for each address family. The host's routes to this node's pods then lead there, so that the DPU
    /// knows the kubelet's probes by the link. It takes effect when the dataplane has its --host-interface.
    #[arg(long, value_name = "ADDRESS")]
    pub pod_gateway: Vec<IpAddr>,
    /// Where /healthz, /readyz, /metrics and /attachments are served.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15121")]
    pub health_listen: SocketAddr,
    #[command(flatten)]
    pub install: InstallArgs,
    #[command(flatten)]
    pub owner: Owner,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Provider {
    /// VFs of an SR-IOV network card.
    Sriov,
    /// veth pairs, for the lab.
    Emulated,
}

impl Arguments {
    /// Where VFs come from.
    pub fn provider(&self) -> Box<dyn VfProvider> {
        let (prefix, representor_prefix) = (self.vf_prefix.clone(), self.representor_prefix.clone());
        match self.vf_provider {
            Provider::Sriov => Box::new(Sriov { physical_function: prefix, representor_prefix, sysfs: "/sys".into() }),
            Provider::Emulated => Box::new(Emulated {
                vf_prefix: prefix,
                representor_prefix,
                representor_netns: self.representor_netns.clone(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn asked(line: &str) -> Result<Asked, clap::Error> {
        parse(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn the_command_line_holds_together() {
        Arguments::command().debug_assert();
        UninstallArgs::command().debug_assert();
        assert!(matches!(asked("x --node n"), Ok(Asked::Run(arguments)) if arguments.node == "n"));
        assert!(matches!(asked("x uninstall --install-conf-dir /etc/cni/net.d"), Ok(Asked::Uninstall(_))));
        assert!(asked("x --node n --daemonset d").is_err(), "in which namespace?");
        assert!(asked("x --node n --conf-name ../x.conflist").is_err());
        assert!(asked("x uninstall --node n").is_err());
    }
}
