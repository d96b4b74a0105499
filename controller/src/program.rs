//! The program: its parts put together.

use crate::Controller;
use crate::args::{Args, Source};
use crate::authorize::NodeAuthorize;
use crate::keeper::{KUBERNETES, Keeper, MANIFESTS};
use crate::metrics::Metrics;
use crate::watch::FolderWatch;
use crate::{api_server, watchers};
use anyhow::Context;
use service::health::Health;
use service::http::{Routes, SharedRegistry};
use service::signal::CancellationToken;
use std::sync::PoisonError;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use xds::server::{Event, Store};

/// Nodes can connect.
const SERVING: &str = "serving";

/// Runs until SIGTERM or SIGINT.
pub async fn run(mut args: Args) -> anyhow::Result<()> {
    service::logging::init(&args.log)?;
    let shutdown = service::signal::shutdown()?;
    let health = Health::new("istio-dpu-controller");
    args.tls.identify("controller", &args.name, &health)?;
    let registry = SharedRegistry::default();
    let metrics = Metrics::register(&mut registry.lock().unwrap_or_else(PoisonError::into_inner));
    let store = Store::new();
    let keeper = Keeper::new(controller(&args, &store, &health), health.clone(), metrics.clone());
    let routes = keeper.routes(Routes::new());
    service::http::serve(args.health_listen, health.clone(), registry, routes, shutdown.clone()).await?;
    let following = follow(&args, &keeper, &health, &shutdown).await?;
    let server = serve(&args, store, &keeper, metrics, shutdown.clone()).await?;
    health.set(SERVING, Ok(()));
    following.await.context("the source is no longer followed")?;
    server.await.context("the discovery server ended")?
}

fn controller(args: &Args, store: &Store, health: &Health) -> Controller {
    match args.source {
        Source::Manifests => {
            health.require(&[MANIFESTS, SERVING]);
            Controller::new(store.clone())
        }
        Source::Kubernetes => {
            health.require(&[KUBERNETES, api_server::CONDITION, SERVING]);
            Controller::of_cluster(store.clone())
        }
    }
}

/// Follows the source in the background. A folder has been read once when this returns.
async fn follow(
    args: &Args,
    keeper: &Keeper,
    health: &Health,
    shutdown: &CancellationToken,
) -> anyhow::Result<JoinHandle<()>> {
    let (keeper, shutdown) = (keeper.clone(), shutdown.clone());
    if args.source == Source::Kubernetes {
        let client = api_server::client(args.kubeconfig.as_deref()).await?;
        tokio::spawn(api_server::probe(client.clone(), health.clone()));
        let seen = watchers::start(&client);
        return Ok(tokio::spawn(async move { keeper.follow_cluster(seen, shutdown).await }));
    }
    let folder = args.manifests.as_deref().context("give --manifests DIR, or --source kubernetes")?;
    let mut folder = FolderWatch::new(folder);
    keeper.load(&mut folder);
    Ok(tokio::spawn(async move { keeper.follow_folder(folder, shutdown).await }))
}

/// Binds and serves the views.
async fn serve(
    args: &Args,
    store: Store,
    keeper: &Keeper,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let (events, receiver) = mpsc::unbounded_channel();
    tokio::spawn(count(receiver, metrics));
    let tls = args.tls.server_at(args.listen)?;
    let authorize = NodeAuthorize { nodes: keeper.nodes.clone(), tls: tls.is_some() };
    let server = tonic::transport::Server::builder().add_service(xds::server::service(store, authorize, events));
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {} for nodes", args.listen))?;
    tracing::info!(address = %args.listen, "nodes are served");
    let incoming = service::grpc::incoming(listener, tls);
    Ok(tokio::spawn(async move {
        // Streams never end by themselves: they are cut when the program stops.
        tokio::select! {
            ended = server.serve_with_incoming(incoming) => ended.context("discovery server"),
            () = shutdown.cancelled() => Ok(()),
        }
    }))
}

async fn count(mut events: mpsc::UnboundedReceiver<Event>, metrics: Metrics) {
    while let Some(event) = events.recv().await {
        metrics.stream(&event);
    }
}
