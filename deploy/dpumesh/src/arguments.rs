//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Looks at a service mesh on DPUs and prepares DPUs. Exit codes: 0 good, 1 something is wrong, 2 it cannot be told.
#[derive(Clone, Debug, Parser)]
#[command(name = "dpumesh", version)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub access: Access,
}

/// Which cluster, and where in it.
#[derive(Args, Clone, Debug)]
pub struct Access {
    /// Context of the kubeconfig (KUBECONFIG, or ~/.kube/config). Default: the current one; in a pod, its service account.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Namespace that the chart was installed in.
    #[arg(long, global = true, env = "DPUMESH_NAMESPACE", value_name = "NAMESPACE", default_value = kube_api::NAMESPACE)]
    pub system_namespace: String,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// What is attached, acknowledged and refused, and where: one screen.
    Status(Status),
    /// Everything that is known of one object.
    #[command(subcommand)]
    Describe(Describe),
    /// Look for what an installation lacks, and say what to do.
    Check,
    /// Files of a node's DPU.
    #[command(subcommand)]
    Dpu(Dpu),
}

#[derive(Args, Clone, Debug)]
pub struct Status {
    /// Pods of one namespace, and all of them. Default: all namespaces; of many pods only those
    /// that are not good.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// wide: every pod with its address, scope and identity. json: all of it, for programs.
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Wide,
    Json,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Describe {
    /// Its VF, what became of its configuration, the Istio objects that shape it, what was refused and why, its events.
    Pod(DescribePod),
}

#[derive(Args, Clone, Debug)]
pub struct DescribePod {
    /// NAMESPACE/NAME, or NAME in the kubeconfig's namespace.
    pub pod: String,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Dpu {
    /// Make keys and certificates of the DPU's two programs, signed by the installation's authority.
    ///
    /// Writes etc/dpumesh/tls below DIR. Copy it to the DPU, and remove it here. Needs the right to read the Secret
    /// dpumesh-ca. The programs take new files without a restart.
    Certificates(Certificates),
    /// Static pods for the DPU's kubelet, and the proxy's bootstrap.
    ///
    /// Prints them, or writes etc/dpumesh/bootstrap.json and etc/kubernetes/manifests below DIR.
    Manifest(Manifest),
}

#[derive(Args, Clone, Debug)]
pub struct Certificates {
    /// Kubernetes name of the node whose DPU it is.
    pub node: String,
    /// Root of the files.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How long they are valid, in days.
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
    /// Replace files that are there.
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Clone, Debug)]
pub struct Manifest {
    /// Kubernetes name of the node whose DPU it is.
    pub node: String,
    /// Root of the files; printed when absent.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Interface of the DPU to the fabric, instead of the chart's value dpu.uplink.
    #[arg(long, value_name = "IFACE")]
    pub uplink: Option<String>,
    /// Interface of the DPU to its host, instead of the chart's value dpu.hostInterface.
    #[arg(long, value_name = "IFACE")]
    pub host_interface: Option<String>,
    /// Replace files that are there.
    #[arg(long)]
    pub force: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together() {
        Arguments::command().debug_assert();
    }
}
