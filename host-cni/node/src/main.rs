//! `istio-dpu-cni-node`: the node daemon that attaches VFs to pods.

#![forbid(unsafe_code)]

use anyhow::Context;
use clap::{Parser, ValueEnum};
use istio_dpu_cni_node::controller;
use istio_dpu_cni_node::daemon::Daemon;
use istio_dpu_cni_node::forwarding::Forwarding;
use istio_dpu_cni_node::intent::NodeIntent;
use istio_dpu_cni_node::mesh::Mesh;
use istio_dpu_cni_node::metrics::Metrics;
use istio_dpu_cni_node::publish::{Publisher, VIEW};
use istio_dpu_cni_node::record::Records;
use istio_dpu_cni_node::status::{DATAPLANE, VFS};
use istio_dpu_cni_node::sys::Namespace;
use istio_dpu_cni_node::vf::{Emulated, Sriov, VfProvider};
use istio_dpu_cni_node::{locks, server};
use nix::fcntl::{Flock, FlockArg};
use service::grpc::TlsArgs;
use service::health::Health;
use service::http::{Routes, SharedRegistry};
use service::logging::LogArgs;
use service::signal::CancellationToken;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnixListenerStream;
use xds::server::{Peer, Store};

/// Gives pods their VFs, and keeps the ports, routes and services of this host's dataplane.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Kubernetes name of this node.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Where the controller serves this node's view.
    #[arg(long, value_name = "URI", default_value = "http://127.0.0.1:15100")]
    controller: String,
    /// Where the dataplane of this host's DPU listens.
    #[arg(long, value_name = "URI", default_value = "http://127.0.0.1:15130")]
    dataplane: String,
    /// Unix socket that the plugin calls.
    #[arg(long, value_name = "PATH", default_value = istio_dpu_cni::netconf::DAEMON_SOCKET)]
    socket: PathBuf,
    /// Unix socket on which the adapter follows what is attached (incremental xDS).
    #[arg(long, value_name = "PATH", default_value = "/run/dpumesh/attachments.sock")]
    attachments: PathBuf,
    /// Folder of the records of what was done.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/dpumesh/cni")]
    state_dir: PathBuf,
    /// Where VFs come from.
    #[arg(long, value_enum, default_value_t = Provider::Sriov)]
    vf_provider: Provider,
    /// emulated: name of a VF's link without its number. sriov: name of the physical function.
    #[arg(long, value_name = "NAME", default_value = "vf")]
    vf_prefix: String,
    /// Name of a representor on the DPU without its number.
    #[arg(long, value_name = "NAME", default_value = "pf0vf")]
    representor_prefix: String,
    /// emulated: network namespace of the DPU, to make a pair again that died with a pod's namespace.
    #[arg(long, value_name = "PATH")]
    representor_netns: Option<PathBuf>,
    /// Where /healthz, /readyz, /metrics and /attachments are served.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15121")]
    health_listen: SocketAddr,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Provider {
    /// VFs of an SR-IOV network card.
    Sriov,
    /// veth pairs, for the lab.
    Emulated,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = Arguments::parse();
    service::logging::init(&arguments.log)?;
    let shutdown = service::signal::shutdown()?;
    // Calls under way still need these while the daemon stops.
    let background = CancellationToken::new();
    let _background = background.clone().drop_guard();
    let _only = only_one(&arguments.state_dir)?;
    let health = Health::new("istio-dpu-cni-node");
    health.require(&[controller::CONDITION, DATAPLANE, VFS]);
    arguments.tls.identify("cni-node", &arguments.node, &health)?;
    let registry = SharedRegistry::default();
    let metrics = Metrics::register(&mut registry.lock().unwrap_or_else(PoisonError::into_inner));
    let (mesh, seen) = watch::channel(Mesh::default());
    let store = Store::new();
    let daemon = Arc::new(daemon(&arguments, &store, seen, metrics, health.clone()).await?);
    let shown = Arc::clone(&daemon);
    let routes = Routes::new().get("/attachments", move || shown.attachments());
    service::http::serve(arguments.health_listen, health.clone(), registry, routes, background.clone()).await?;

    let Arguments { controller, tls, node, .. } = &arguments;
    tokio::spawn(controller::follow(controller.clone(), tls.clone(), node.clone(), mesh, health));
    let intent = NodeIntent { node: node.clone(), records: Arc::clone(&daemon.records), mesh: daemon.mesh.clone() };
    tokio::spawn(Arc::clone(&daemon.forwarding).run(Arc::new(intent), background.clone()));
    tokio::spawn(nudge(Arc::clone(&daemon)));
    // Both sockets are bound before anything is undone, so that callers wait and are not refused.
    let calls = server::bind(&arguments.socket)?;
    // What is attached, before an adapter that comes back compares it with what it holds.
    daemon.publisher.refresh();
    publish(&arguments, store, background.clone())?;
    daemon.recover().await;
    tokio::spawn(Arc::clone(&daemon).retry(background.clone()));
    tokio::spawn(Arc::clone(&daemon).observe(background));
    tracing::info!(node, socket = %arguments.socket.display(), "calls of the plugin are taken");
    server::serve(calls, daemon, shutdown).await;
    Ok(())
}

async fn daemon(
    arguments: &Arguments,
    store: &Store,
    mesh: watch::Receiver<Mesh>,
    metrics: Metrics,
    health: Health,
) -> anyhow::Result<Daemon> {
    let records = Arc::new(Records::open(&arguments.state_dir.join("records"))?);
    let endpoint = service::grpc::endpoint(&arguments.dataplane, &arguments.tls, "dataplane")?;
    Ok(Daemon {
        publisher: Publisher::new(Arc::clone(&records), store.clone()),
        forwarding: Arc::new(Forwarding::new(&arguments.dataplane, &endpoint)),
        provider: provider(arguments),
        host: Namespace::own().await?,
        locks: locks::Locks::default(),
        leftover: tokio::sync::Notify::new(),
        records,
        mesh,
        metrics,
        health,
    })
}

fn provider(arguments: &Arguments) -> Box<dyn VfProvider> {
    let representor_prefix = arguments.representor_prefix.clone();
    match arguments.vf_provider {
        Provider::Sriov => {
            Box::new(Sriov { physical_function: arguments.vf_prefix.clone(), representor_prefix, sysfs: "/sys".into() })
        }
        Provider::Emulated => Box::new(Emulated {
            vf_prefix: arguments.vf_prefix.clone(),
            representor_prefix,
            representor_netns: arguments.representor_netns.clone(),
        }),
    }
}

/// Two daemons on the same records would undo one another's work.
fn only_one(folder: &Path) -> anyhow::Result<Flock<File>> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make --state-dir {}", folder.display()))?;
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| anyhow::anyhow!("another istio-dpu-cni-node uses {}: {error}", folder.display()))
}

/// Serves the attachments to the adapter of this node.
fn publish(arguments: &Arguments, store: Store, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listener = server::bind(&arguments.attachments)?;
    let node = arguments.node.clone();
    let authorize = move |peer: &Peer| match peer.node.id == node {
        true => Ok(VIEW.to_owned()),
        false => Err(tonic::Status::permission_denied(format!(
            "this is node {node:?}, and the caller is of {:?}",
            peer.node.id
        ))),
    };
    let (events, mut receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(event) = receiver.recv().await {
            tracing::debug!(?event, "attachments stream");
        }
    });
    let server = tonic::transport::Server::builder().add_service(xds::server::service(store, authorize, events));
    tokio::spawn(async move {
        tokio::select! {
            ended = server.serve_with_incoming(UnixListenerStream::new(listener)) => {
                tracing::error!(?ended, "attachments are no longer served");
            }
            () = shutdown.cancelled() => {}
        }
    });
    Ok(())
}

/// Routes and services follow the controller.
async fn nudge(daemon: Arc<Daemon>) {
    let mut mesh = daemon.mesh.clone();
    while mesh.changed().await.is_ok() {
        daemon.forwarding.nudge();
    }
}
