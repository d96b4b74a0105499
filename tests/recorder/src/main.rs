//! `recorder`: asks a live istiod what it would tell the sidecars of some pods, and writes it down in the
//! layout of `tests/fixtures`.
//!
//! In: the pods (`kubectl get pods -o json`) on standard input, and istiod's plaintext port. Out: a folder a
//! pod with `{CDS,LDS,RDS,EDS,ECDS,NDS,PCDS}.pb`, the same as JSON for people where the types are known, and
//! the node metadata that was sent. The streams are those that the adapter opens.

mod pods;
mod stream;
mod write;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use istio_dpu_adapter::node::MeshSettings;
use std::path::PathBuf;
use tonic::transport::Endpoint;

/// Records what a live istiod sends to the pods on standard input (`kubectl get pods -o json`).
#[derive(Clone, Debug, Parser)]
#[command(name = "recorder", version)]
struct Args {
    /// istiod's plaintext discovery port, e.g. http://192.0.2.1:15010.
    #[arg(long, value_name = "URI")]
    istiod: String,
    /// Folder to write into: one folder a pod.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// An earlier recording: what is equal there is not written.
    #[arg(long, value_name = "DIR")]
    since: Option<PathBuf>,
    /// The sidecar version that istiod is to generate for.
    #[arg(long, value_name = "VERSION")]
    istio_version: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let list = std::io::read_to_string(std::io::stdin()).context("cannot read the pods")?;
    let pods = pods::parse(&list)?;
    ensure!(!pods.is_empty(), "there is no pod with an address on standard input (kubectl get pods -o json)");
    let endpoint = Endpoint::from_shared(args.istiod.clone()).context("--istiod")?;
    let channel = endpoint.connect().await.with_context(|| format!("cannot reach istiod at {}", args.istiod))?;
    for pod in pods {
        let settings = settings(&args, &pod.workload.node);
        let recording = stream::record(channel.clone(), &pod, &settings).await?;
        let counts = write::write(&args.out, args.since.as_deref(), &pod, &settings, &recording)?;
        println!("{}: {counts}", pod.name());
    }
    Ok(())
}

fn settings(args: &Args, node: &str) -> MeshSettings {
    MeshSettings {
        node: node.to_owned(),
        trust_domain: "cluster.local".to_owned(),
        cluster_id: "Kubernetes".to_owned(),
        mesh_id: "cluster.local".to_owned(),
        control_plane: "istiod.istio-system.svc".to_owned(),
        istio_version: args.istio_version.clone(),
    }
}
