//! `istio-dpu-cni-node`: the node daemon that attaches VFs to pods.

#![forbid(unsafe_code)]

mod arguments;

use anyhow::Context;
use arguments::{Arguments, Asked, UninstallArgs};
use istio_dpu_cni_node::controller;
use istio_dpu_cni_node::daemon::Daemon;
use istio_dpu_cni_node::forwarding::Forwarding;
use istio_dpu_cni_node::install::{self, Conflist, Departure, Installation, Owner};
use istio_dpu_cni_node::intent::NodeIntent;
use istio_dpu_cni_node::mesh::Mesh;
use istio_dpu_cni_node::metrics::Metrics;
use istio_dpu_cni_node::pod_routes::{self, PodRoutes};
use istio_dpu_cni_node::publish::{Publisher, VIEW};
use istio_dpu_cni_node::record::Records;
use istio_dpu_cni_node::report::Failures;
use istio_dpu_cni_node::status::{DATAPLANE, VFS};
use istio_dpu_cni_node::sys::Namespace;
use istio_dpu_cni_node::{locks, server};
use nix::fcntl::{Flock, FlockArg};
use service::health::Health;
use service::http::{Routes, SharedRegistry};
use service::report::Reporter;
use service::signal::CancellationToken;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use xds::server::{Peer, Store};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match arguments::parse(std::env::args()).unwrap_or_else(|error| error.exit()) {
        Asked::Uninstall(arguments) => uninstall(&arguments).await,
        Asked::Run(arguments) => run(*arguments).await,
    }
}

async fn run(mut arguments: Arguments) -> anyhow::Result<()> {
    service::logging::init(&arguments.log)?;
    let shutdown = service::signal::shutdown()?;
    // Calls under way still need these while the daemon stops.
    let background = CancellationToken::new();
    let _background = background.clone().drop_guard();
    let _only = only_one(&arguments.paths.state_dir)?;
    let departure = departure(&arguments)?;
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
    let calls = server::bind(&arguments.paths.socket, None)?;
    // What is attached, before an adapter that comes back compares it with what it holds.
    daemon.publisher.refresh();
    publish(&arguments, store, background.clone())?;
    daemon.recover().await;
    tokio::spawn(Arc::clone(&daemon).retry(background.clone()));
    tokio::spawn(Arc::clone(&daemon).observe(background.clone()));
    let routes = tokio::spawn(Arc::clone(&daemon).keep_pod_routes(shutdown.clone()));
    let reporter = Reporter::start(controller, tls, "controller")?;
    tokio::spawn(Arc::clone(&daemon).report(reporter, background));
    let keeper = install(&arguments, &departure, &daemon, &shutdown);
    tracing::info!(node, socket = %arguments.paths.socket.display(), "calls of the plugin are taken");
    server::serve(calls, Arc::clone(&daemon), shutdown).await;
    // It must not put back what is taken away now.
    keeper.await.context("the keeper of plugin and conflist panicked")?;
    routes.await.context("the keeper of the pods' routes panicked")?;
    if departure.leave(&attached(&daemon.records)).await {
        remove_pod_routes(&daemon.host).await?;
    }
    Ok(())
}

async fn remove_pod_routes(host: &Namespace) -> anyhow::Result<()> {
    let count = pod_routes::remove_all(host).await?;
    if count > 0 {
        tracing::info!(count, "the host's routes to its pods were removed");
    }
    Ok(())
}

/// Keeps plugin and conflist until `shutdown`.
fn install(
    arguments: &Arguments,
    departure: &Departure,
    daemon: &Arc<Daemon>,
    shutdown: &CancellationToken,
) -> JoinHandle<()> {
    let installation = departure.installation.clone();
    if installation.is_empty() {
        return tokio::spawn(async {});
    }
    daemon.health.require(&[install::CONDITION]);
    tokio::spawn(departure.clone().prepare());
    let conflist = Conflist { network: arguments.install.network.clone(), socket: arguments.paths.socket.clone() };
    let asked = Arc::clone(daemon);
    let ready = move || asked.can_attach();
    let (mesh, health, node) = (daemon.mesh.clone(), daemon.health.clone(), arguments.node.clone());
    tokio::spawn(install::keep(installation, conflist, node, mesh, health, ready, shutdown.clone()))
}

fn departure(arguments: &Arguments) -> anyhow::Result<Departure> {
    let sockets = vec![arguments.paths.socket.clone(), arguments.paths.attachments.clone()];
    Ok(Departure::new(Installation::new(&arguments.install)?, arguments.owner.clone(), sockets))
}

/// By hand, for a daemon that could not do it.
async fn uninstall(arguments: &UninstallArgs) -> anyhow::Result<()> {
    service::logging::init(&arguments.log)?;
    let installation = Installation::new(&arguments.install)?;
    anyhow::ensure!(!installation.is_empty(), "name what to clean: --install-conf-dir, --install-bin-dir");
    let _only = only_one(&arguments.paths.state_dir)?;
    let records = Records::open(&records(&arguments.paths.state_dir))?;
    let sockets = vec![arguments.paths.socket.clone(), arguments.paths.attachments.clone()];
    let removed = Departure::new(installation, Owner::default(), sockets).remove(&attached(&records));
    anyhow::ensure!(removed, "not everything could be removed; see above");
    remove_pod_routes(&Namespace::own().await?).await
}

/// Pods that have a VF, for a person.
fn attached(records: &Records) -> Vec<String> {
    records.list().iter().map(|record| format!("{}/{}", record.pod.namespace, record.pod.name)).collect()
}

fn records(state_dir: &Path) -> PathBuf {
    state_dir.join("records")
}

async fn daemon(
    arguments: &Arguments,
    store: &Store,
    mesh: watch::Receiver<Mesh>,
    metrics: Metrics,
    health: Health,
) -> anyhow::Result<Daemon> {
    let records = Arc::new(Records::open(&records(&arguments.paths.state_dir))?);
    let endpoint = service::grpc::endpoint(&arguments.dataplane, &arguments.tls, "dataplane")?;
    Ok(Daemon {
        publisher: Publisher::new(Arc::clone(&records), store.clone()),
        forwarding: Arc::new(Forwarding::new(&arguments.dataplane, &endpoint)),
        node: arguments.node.clone(),
        provider: arguments.provider(),
        host: Namespace::own().await?,
        locks: locks::Locks::default(),
        leftover: tokio::sync::Notify::new(),
        records,
        mesh,
        metrics,
        health,
        failures: Failures::default(),
        pod_routes: PodRoutes::new(arguments.pod_gateway.clone(), arguments.install.network.pod_cidr.clone()),
        news: tokio::sync::Notify::new(),
    })
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
    let listener = server::bind(&arguments.paths.attachments, arguments.attachments_group)?;
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
