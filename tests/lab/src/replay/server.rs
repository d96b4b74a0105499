//! The replay server as a program: discovery and certificates on one port, control over HTTP.

use super::certificates::Certificates;
use super::discovery::Plane;
use super::{Recordings, Scenario};
use crate::programs::Authority;
use crate::state::FOLDER;
use crate::topology::CONTROL_PLANE;
use anyhow::{Context, Result};
use hyper::{Method, StatusCode};
use mesh_api::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use mesh_api::istio_ca::istio_certificate_service_server::IstioCertificateServiceServer;
use service::health::Health;
use service::http::{Call, Reply, Routes};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Flags of `lab replay`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Where discovery and certificates are served.
    #[arg(long, default_value_t = SocketAddr::new(CONTROL_PLANE.parse().expect("a constant address"), 15012))]
    pub listen: SocketAddr,
    /// Where `/readyz`, `/log` and `POST /scenario?NAME` are served.
    #[arg(long, default_value = "127.0.0.1:15011")]
    pub health_listen: SocketAddr,
    /// Folder with `ca.pem` and `ca-key.pem` of the mesh's authority.
    #[arg(long, default_value_os_t = Path::new(FOLDER).join("mesh-ca"))]
    pub authority: PathBuf,
    /// Folder of recordings.
    #[arg(long, default_value_os_t = crate::manifests::fixtures())]
    pub recordings: PathBuf,
    #[command(flatten)]
    pub tls: service::grpc::TlsArgs,
}

/// Serves until SIGTERM.
pub async fn serve(args: Args) -> Result<()> {
    let plane = Plane::new(Recordings::load(&args.recordings)?);
    let authority = Arc::new(Authority::load(&args.authority)?);
    let stop = service::signal::shutdown()?;
    let listener = tokio::net::TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    control(&args, &plane, stop.clone()).await?;
    let mut server = tonic::transport::Server::builder();
    if let Some(tls) = super::caller::tls(&args.tls)? {
        server = server.tls_config(tls)?;
    }
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let router = server
        .add_service(AggregatedDiscoveryServiceServer::new(plane).max_decoding_message_size(64 << 20))
        .add_service(IstioCertificateServiceServer::new(Certificates { authority }));
    // Open streams don't end by themselves: stopping means dropping them.
    tokio::select! {
        served = router.serve_with_incoming(incoming) => served.context("the replay server failed"),
        () = stop.cancelled() => Ok(()),
    }
}

async fn control(args: &Args, plane: &Plane, stop: CancellationToken) -> Result<()> {
    let (log, push) = (plane.clone(), plane.clone());
    let routes = Routes::new().get("/log", move || serde_json::to_string(&log.log()).unwrap_or_default()).route(
        Method::POST,
        "/scenario",
        move |call: Call<'_>| scenario(&push, call.query),
    );
    service::http::serve(args.health_listen, Health::new("replay"), Arc::default(), routes, stop).await?;
    Ok(())
}

fn scenario(plane: &Plane, name: &str) -> Reply {
    match name.parse::<Scenario>() {
        Ok(scenario) => {
            plane.set(scenario);
            Reply::text(format!("{} is in force\n", scenario.as_str()))
        }
        Err(error) => Reply::status(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}
