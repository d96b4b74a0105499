//! The program: its parts put together.

use crate::Controller;
use crate::args::{Args, Source};
use crate::authorize::NodeAuthorize;
use crate::enrollment::review::ApiServer;
use crate::enrollment::{self, Authority, Name};
use crate::keeper::{KUBERNETES, Keeper, MANIFESTS};
use crate::leader::duties::Leader;
use crate::leader::election::Election;
use crate::metrics::Metrics;
use crate::reports::peer_authentication::PeerAuthentications;
use crate::reports::recorder::Recorder;
use crate::reports::writer::{Shared, Writer};
use crate::watch::FolderWatch;
use crate::{api_server, reports, watchers};
use anyhow::Context;
use kube::Client;
use service::health::Health;
use service::http::{Routes, SharedRegistry};
use service::signal::CancellationToken;
use std::sync::PoisonError;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use xds::server::{Event, Store};

/// Nodes can connect.
const SERVING: &str = "serving";
/// Longest answer to a program that enrolls.
const ENROLL_TIMEOUT: Duration = Duration::from_secs(10);
/// A node that does not answer for this long is gone.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Runs until SIGTERM or SIGINT.
pub async fn run(mut args: Args) -> anyhow::Result<()> {
    service::logging::init(&args.log)?;
    let shutdown = service::signal::shutdown()?;
    let health = Health::new("istio-dpu-controller");
    let authority = certify(&mut args)?;
    args.tls.identify("controller", &args.name, &health)?;
    let registry = SharedRegistry::default();
    let metrics = Metrics::register(&mut registry.lock().unwrap_or_else(PoisonError::into_inner));
    let store = Store::new();
    let keeper = Keeper::new(controller(&args, &store, &health), health.clone(), metrics.clone());
    let routes = keeper.routes(Routes::new());
    service::http::serve(args.health_listen, health.clone(), registry, routes, shutdown.clone()).await?;
    let client = client(&args, &health).await?;
    let following = follow(&args, client.clone(), &keeper, &shutdown)?;
    let reports = report(&args, client.clone(), &keeper, &metrics, &shutdown);
    let server = serve(&args, store, &keeper, reports, metrics.clone(), shutdown.clone()).await?;
    let electing = client.clone().map(|client| elect(&args, client, &keeper, &metrics, &health, &shutdown));
    enroll(&args, authority, client, shutdown).await?;
    health.set(SERVING, Ok(()));
    following.await.context("the source is no longer followed")?;
    if let Some(electing) = electing {
        electing.await.context("the election ended")?;
    }
    server.await.context("the discovery server ended")?
}

/// With an authority, the controller's own certificate comes from it.
fn certify(args: &mut Args) -> anyhow::Result<Option<Authority>> {
    let (Some(certificate), Some(key)) = (&args.ca_certificate, &args.ca_key) else { return Ok(None) };
    let authority = Authority { certificate: certificate.clone(), key: key.clone() };
    if args.tls.tls_certificate.is_none() {
        let name = Name { program: "controller".to_owned(), node: args.name.clone() };
        args.tls.held = Some(enrollment::hold(authority.clone(), name)?);
        args.tls.tls_ca = Some(certificate.clone());
    }
    Ok(Some(authority))
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

/// The API server, where it is the source.
async fn client(args: &Args, health: &Health) -> anyhow::Result<Option<Client>> {
    if args.source == Source::Manifests {
        return Ok(None);
    }
    let client = api_server::client(args.kubeconfig.as_deref()).await?;
    tokio::spawn(api_server::probe(client.clone(), health.clone()));
    Ok(Some(client))
}

/// Follows the source in the background. A folder has been read once when this returns.
fn follow(
    args: &Args,
    client: Option<Client>,
    keeper: &Keeper,
    shutdown: &CancellationToken,
) -> anyhow::Result<JoinHandle<()>> {
    let (keeper, shutdown) = (keeper.clone(), shutdown.clone());
    if let Some(client) = client {
        let seen = watchers::start(&client);
        return Ok(tokio::spawn(async move { keeper.follow_cluster(seen, shutdown).await }));
    }
    let folder = args.manifests.as_deref().context("give --manifests DIR, or --source kubernetes")?;
    let mut folder = FolderWatch::new(folder);
    keeper.load(&mut folder);
    Ok(tokio::spawn(async move { keeper.follow_folder(folder, shutdown).await }))
}

/// Binds and serves enrollment, where there is an authority and an API server that knows tokens.
async fn enroll(
    args: &Args,
    authority: Option<Authority>,
    client: Option<Client>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let Some(address) = args.enroll_listen else { return Ok(()) };
    let authority = authority.context("--enroll-listen needs --ca-certificate and --ca-key")?;
    let client = client.context("--enroll-listen needs --source kubernetes: the API server knows the tokens")?;
    let tls = args.tls.server_for_anyone_at(address)?;
    let service = enrollment::service::service(authority, ApiServer(client), &args.namespace);
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} for enrollment"))?;
    tracing::info!(%address, "programs are enrolled");
    let served = tonic::transport::Server::builder()
        .timeout(ENROLL_TIMEOUT)
        .add_service(service)
        .serve_with_incoming_shutdown(service::grpc::incoming(listener, tls), shutdown.cancelled_owned());
    tokio::spawn(async move {
        if let Err(error) = served.await {
            tracing::error!(%error, "programs are no longer enrolled");
        }
    });
    Ok(())
}

/// Writes what nodes report in the background, where there is an API server.
fn report(
    args: &Args,
    client: Option<Client>,
    keeper: &Keeper,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> Option<Shared> {
    let client = client?;
    let shared = Shared::of_mesh(PeerAuthentications::of_mesh(&args.istio_root_namespace));
    watchers::peer_authentications(client.clone(), shared.clone());
    let writer = Writer::new(shared.clone(), client, keeper.clone(), &args.name, metrics.clone());
    tokio::spawn(writer.run(shutdown.clone()));
    Some(shared)
}

/// Takes part in the election, and leads while it is elected. Ends with the lease given back.
fn elect(
    args: &Args,
    client: Client,
    keeper: &Keeper,
    metrics: &Metrics,
    health: &Health,
    shutdown: &CancellationToken,
) -> JoinHandle<()> {
    let (election, leads) = Election::new(client.clone(), &args.namespace, &args.name, health.clone());
    let leader = Leader {
        client: client.clone(),
        keeper: keeper.clone(),
        namespace: args.namespace.clone(),
        name: args.name.clone(),
        metrics: metrics.clone(),
        recorder: Recorder::new(client, &args.name),
    };
    tokio::spawn(leader.run(leads));
    tokio::spawn(election.run(shutdown.clone()))
}

/// Binds and serves the views, and takes reports.
async fn serve(
    args: &Args,
    store: Store,
    keeper: &Keeper,
    reports: Option<Shared>,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let (events, receiver) = mpsc::unbounded_channel();
    tokio::spawn(count(receiver, metrics));
    let tls = args.tls.server_at(args.listen)?;
    let authorize = NodeAuthorize { nodes: keeper.nodes.clone(), tls: tls.is_some() };
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(xds::server::service(store, authorize, events))
        .add_service(reports::service(reports));
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
