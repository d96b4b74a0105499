//! The gRPC server that dpu-proxy calls: discovery, and certificate signing.

use super::args::Args;
use super::holder::Holding;
use super::keys::Keys;
use super::relay::Relay;
use anyhow::Context;
use mesh_api::ca::certificate_relay_server::CertificateRelayServer;
use mesh_api::ca::key_holder_server::KeyHolderServer;
use service::grpc::program_identity;
use service::signal::CancellationToken;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Server;
use xds::server::{Event, Peer, Store};

/// How long streams may take to end after the stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Lets dpu-proxy of this node in, where there is TLS; without it the server is on loopback only.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    expected: Option<String>,
}

impl Guard {
    pub(super) fn new(args: &Args) -> Self {
        Self { expected: args.tls.is_mutual().then(|| program_identity("dpu-proxy", &args.node)) }
    }

    /// Refuses a caller that shows another name.
    // The error is tonic's own and as large as it is.
    #[allow(clippy::result_large_err)]
    pub(super) fn check<T>(&self, request: &tonic::Request<T>) -> Result<(), Status> {
        self.check_shown(&service::grpc::peer_identities(request))
    }

    #[allow(clippy::result_large_err)]
    fn check_shown(&self, shown: &[String]) -> Result<(), Status> {
        match &self.expected {
            Some(expected) if !shown.contains(expected) => {
                Err(Status::permission_denied(format!("caller must be {expected}; it showed {shown:?}")))
            }
            _ => Ok(()),
        }
    }
}

/// Binds and serves until the stop.
pub(super) async fn serve(
    args: &Args,
    store: Store,
    events: mpsc::UnboundedSender<Event>,
    relay: Relay,
    keys: Keys,
    stop: CancellationToken,
) -> anyhow::Result<(SocketAddr, JoinHandle<()>)> {
    let tls = args.tls.server_at(args.listen)?;
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .initial_stream_window_size(4 * 1024 * 1024);
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let bound = listener.local_addr()?;
    let guard = Guard::new(args);
    let authorize = authorize(args.node.clone(), guard.clone());
    let serving = server
        .add_service(xds::server::service(store.clone(), authorize, events))
        .add_service(CertificateRelayServer::new(relay))
        .add_service(KeyHolderServer::new(Holding { keys: keys.clone(), guard }))
        .serve_with_incoming_shutdown(service::grpc::incoming(listener, tls), stop.clone().cancelled_owned());
    tracing::info!(address = %bound, "dpu-proxy is served");
    Ok((bound, tokio::spawn(run(serving, store, keys, stop))))
}

async fn run(
    serving: impl Future<Output = Result<(), tonic::transport::Error>>,
    store: Store,
    keys: Keys,
    stop: CancellationToken,
) {
    let closing = async {
        stop.cancelled().await;
        store.close();
        keys.close();
        tokio::time::sleep(STOP_TIMEOUT).await;
    };
    tokio::select! {
        served = serving => if let Err(error) = served {
            tracing::error!(%error, "the server for dpu-proxy ended");
        },
        () = closing => tracing::warn!("streams of dpu-proxy did not end in time"),
    }
}

/// The proxy of this node sees the one view, which has the node's name.
fn authorize(node: String, guard: Guard) -> impl xds::server::Authorize {
    move |peer: &Peer| {
        guard.check_shown(&peer.identities)?;
        match peer.node.id == node {
            true => Ok(node.clone()),
            false => Err(Status::permission_denied(format!(
                "this is the adapter of node {node:?}, not of {:?}",
                peer.node.id
            ))),
        }
    }
}
