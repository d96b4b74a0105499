//! The command line.

use crate::reports::peer_authentication::ROOT_NAMESPACE;
use clap::{Parser, Subcommand, ValueEnum};
use service::grpc::TlsArgs;
use service::logging::LogArgs;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Serves each node its own view of the Kubernetes objects over xDS.
#[derive(Parser, Clone, Debug)]
#[command(name = "istio-dpu-controller", version, args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Where the objects come from.
    #[arg(long, env = "SOURCE", value_enum, default_value_t = Source::Manifests)]
    pub source: Source,
    /// Folder of manifests (*.yaml, *.yml, *.json), watched for change.
    #[arg(long, env = "MANIFESTS", value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// How to reach the API server. Default: as a pod of the cluster.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Where nodes follow their view (incremental xDS) and report.
    #[arg(long, default_value = "127.0.0.1:15100", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Where /healthz, /readyz, /metrics and /refusals are served.
    #[arg(long, default_value = "127.0.0.1:15101", value_name = "ADDRESS")]
    pub health_listen: SocketAddr,
    /// Where programs get their certificates; needs --ca-certificate, --ca-key and --source kubernetes.
    #[arg(long, value_name = "ADDRESS", requires = "ca_key")]
    pub enroll_listen: Option<SocketAddr>,
    /// PEM certificate of the programs' authority. The controller issues its own certificate from it,
    /// too, so that it needs no --tls-* flags.
    #[arg(long, env = "CA_CERTIFICATE", value_name = "FILE", requires = "ca_key")]
    pub ca_certificate: Option<PathBuf>,
    /// PEM private key of the authority.
    #[arg(long, env = "CA_KEY", value_name = "FILE", requires = "ca_certificate")]
    pub ca_key: Option<PathBuf>,
    /// Name of this replica: of its pod.
    #[arg(long, env = "POD_NAME", value_name = "NAME", default_value = "controller")]
    pub name: String,
    /// Namespace of this product.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE", default_value = "dpumesh-system")]
    pub namespace: String,
    /// Namespace of Istio's objects for the whole mesh: `rootNamespace` of its mesh configuration.
    #[arg(long, env = "ISTIO_ROOT_NAMESPACE", value_name = "NAMESPACE", default_value = ROOT_NAMESPACE)]
    pub istio_root_namespace: String,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

/// Where objects come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// A folder (--manifests).
    Manifests,
    /// The API server.
    Kubernetes,
}

/// What else it does.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Prints the CustomResourceDefinitions of dpumesh.io as YAML.
    Crds,
}
