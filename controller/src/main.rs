//! `istio-dpu-controller`: reads Kubernetes manifests and serves each node its own view.

#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use istio_dpu_controller::Controller;
use istio_dpu_controller::authorize::NodeAuthorize;
use istio_dpu_controller::metrics::Metrics;
use istio_dpu_controller::watch::FolderWatch;
use service::grpc::TlsArgs;
use service::health::Health;
use service::http::{Routes, SharedRegistry};
use service::logging::LogArgs;
use service::signal::CancellationToken;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::mpsc;
use xds::server::{Event, Store};

/// Reads Kubernetes manifests from a folder and serves each node its own view of them over xDS.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Folder of manifests (*.yaml, *.yml, *.json), watched for change.
    #[arg(long, env = "MANIFESTS", value_name = "DIR")]
    manifests: PathBuf,
    /// Where nodes follow their view (incremental xDS).
    #[arg(long, default_value = "127.0.0.1:15100", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where /healthz, /readyz, /metrics and /refusals are served.
    #[arg(long, default_value = "127.0.0.1:15101", value_name = "ADDRESS")]
    health_listen: SocketAddr,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    log: LogArgs,
}

/// The folder was read, and every file in it was good at least once.
const MANIFESTS: &str = "manifests";
/// Nodes can connect.
const SERVING: &str = "serving";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = Arguments::parse();
    service::logging::init(&arguments.log)?;
    let shutdown = service::signal::shutdown()?;
    let health = Health::new("istio-dpu-controller");
    health.require(&[MANIFESTS, SERVING]);
    arguments.tls.identify("controller", "", &health)?;
    let registry = SharedRegistry::default();
    let metrics = Metrics::register(&mut registry.lock().unwrap_or_else(PoisonError::into_inner));
    let store = Store::new();
    let keeper = Keeper {
        controller: Arc::new(Mutex::new(Controller::new(store.clone()))),
        nodes: Arc::default(),
        health: health.clone(),
        metrics: metrics.clone(),
    };
    service::http::serve(arguments.health_listen, health.clone(), registry, keeper.routes(), shutdown.clone()).await?;
    let mut folder = FolderWatch::new(&arguments.manifests);
    keeper.load(&mut folder);
    let server = serve(&arguments, store, &keeper, shutdown.clone()).await?;
    health.set(SERVING, Ok(()));
    keeper.follow(folder, shutdown).await;
    server.await.context("the discovery server ended")?
}

/// Binds and serves the views.
async fn serve(
    arguments: &Arguments,
    store: Store,
    keeper: &Keeper,
    shutdown: CancellationToken,
) -> anyhow::Result<tokio::task::JoinHandle<anyhow::Result<()>>> {
    let (events, receiver) = mpsc::unbounded_channel();
    tokio::spawn(count(receiver, keeper.metrics.clone()));
    let tls = arguments.tls.server_at(arguments.listen)?;
    let authorize = NodeAuthorize { nodes: Arc::clone(&keeper.nodes), tls: tls.is_some() };

    let server = tonic::transport::Server::builder().add_service(xds::server::service(store, authorize, events));
    let listener = tokio::net::TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("cannot listen on {} for nodes", arguments.listen))?;
    tracing::info!(address = %arguments.listen, "nodes are served");
    Ok(tokio::spawn(async move {
        // Streams never end by themselves: they are cut when the program stops.
        tokio::select! {
            ended = server.serve_with_incoming(service::grpc::incoming(listener, tls)) => ended.context("discovery server"),
            () = shutdown.cancelled() => Ok(()),
        }
    }))
}

async fn count(mut events: mpsc::UnboundedReceiver<Event>, metrics: Metrics) {
    while let Some(event) = events.recv().await {
        metrics.stream(&event);
    }
}

/// Keeps the controller as the folder says.
struct Keeper {
    controller: Arc<Mutex<Controller>>,
    nodes: Arc<RwLock<BTreeSet<String>>>,
    health: Health,
    metrics: Metrics,
}

impl Keeper {
    fn routes(&self) -> Routes {
        let controller = Arc::clone(&self.controller);
        Routes::new().get("/refusals", move || {
            let refusals = controller.lock().unwrap_or_else(PoisonError::into_inner).refusals();
            serde_json::to_string_pretty(&refusals).unwrap_or_else(|error| error.to_string())
        })
    }

    async fn follow(&self, mut folder: FolderWatch, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = folder.changed() => self.load(&mut folder),
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn load(&self, folder: &mut FolderWatch) {
        let files = match folder.read() {
            Ok(files) => files,
            // What was read before stays in force.
            Err(error) => return self.health.set(MANIFESTS, Err(error.to_string())),
        };
        let mut controller = self.controller.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = controller.load(files);
        if changes.put + changes.removed > 0 {
            tracing::info!(
                changes.put,
                changes.removed,
                files = controller.files(),
                version = controller.version(),
                "loaded"
            );
        }
        *self.nodes.write().unwrap_or_else(PoisonError::into_inner) = controller.nodes();
        self.metrics.loaded(&controller, changes);
        self.health.set(MANIFESTS, in_force(&controller));
    }
}

/// A file that never was good is missing from the views: that is worth a person's attention.
fn in_force(controller: &Controller) -> Result<(), String> {
    let refusals = controller.refusals();
    let missing: Vec<String> = refusals
        .iter()
        .filter(|refusal| !refusal.last_good)
        .map(|refusal| format!("{}: {}", refusal.file, refusal.reason))
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(missing.join("; ")) }
}
