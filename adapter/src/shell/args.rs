//! Flags.

use crate::node::MeshSettings;
use clap::Parser;
use service::grpc::TlsArgs;
use service::logging::LogArgs;
use std::net::SocketAddr;
use std::path::PathBuf;

/// An xDS client of istiod for the pods of its host; serves their shared configuration to dpu-proxy.
#[derive(Clone, Debug, Parser)]
#[command(name = "istio-dpu-adapter", version)]
pub struct Args {
    /// Kubernetes name of this node.
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// The controller, e.g. https://controller.dpumesh.svc:15100.
    #[arg(long, value_name = "URI")]
    pub controller: String,
    /// DNS name that the controller's certificate must carry.
    #[arg(long, value_name = "NAME", default_value = "controller")]
    pub controller_server_name: String,
    /// The mesh's control plane, e.g. https://istiod.istio-system.svc:15012.
    #[arg(long, value_name = "URI")]
    pub control_plane: String,
    /// PEM certificates of the authority that signed the control plane's certificate, read again at every
    /// connection: a mounted ConfigMap istio-ca-root-cert. By default --tls-ca.
    #[arg(long, value_name = "FILE")]
    pub control_plane_ca: Option<PathBuf>,
    /// DNS name that the control plane's certificate must carry.
    #[arg(long, value_name = "NAME", default_value = "istiod.istio-system.svc")]
    pub control_plane_server_name: String,
    /// Istio's certificate service; by default the control plane.
    #[arg(long, value_name = "URI")]
    pub ca: Option<String>,
    /// Kubernetes token that is shown to the certificate service, read again at every use: projected into
    /// this pod, with audience istio-ca.
    #[arg(long, env = "ISTIO_TOKEN", value_name = "FILE", default_value = "/var/run/secrets/tokens/istio-token")]
    pub istio_token: PathBuf,
    /// The node daemon's socket that tells of attached pods.
    #[arg(long, value_name = "PATH", default_value = "/run/dpumesh/attachments.sock")]
    pub attachments: PathBuf,
    /// Trust domain of workload identities.
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub trust_domain: String,
    /// The cluster's name in the mesh.
    #[arg(long, value_name = "NAME", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// The mesh's name.
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub mesh_id: String,
    /// The sidecar version that the control plane is to generate for.
    #[arg(long, value_name = "VERSION", default_value = "1.30.3")]
    pub istio_version: String,
    /// Where dpu-proxy is served: delta ADS and certificate signing.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15110")]
    pub listen: SocketAddr,
    /// Where health, metrics and reports are served.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15111")]
    pub health_listen: SocketAddr,
    /// After a start, once the first workload is complete: how long the others are waited for before
    /// the proxy is answered without them, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub sync_grace_s: u64,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

impl Args {
    /// What is the same for all workloads.
    pub fn settings(&self) -> MeshSettings {
        MeshSettings {
            node: self.node.clone(),
            trust_domain: self.trust_domain.clone(),
            cluster_id: self.cluster_id.clone(),
            mesh_id: self.mesh_id.clone(),
            control_plane: self.control_plane_server_name.clone(),
            istio_version: self.istio_version.clone(),
        }
    }

    /// The certificate service.
    pub fn authority(&self) -> &str {
        self.ca.as_ref().unwrap_or(&self.control_plane)
    }

    /// File with the authority of the control plane's certificate.
    pub fn control_plane_authority(&self) -> Option<PathBuf> {
        self.control_plane_ca.clone().or_else(|| self.tls.tls_ca.clone())
    }
}
