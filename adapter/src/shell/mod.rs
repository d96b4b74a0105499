//! Sockets and tasks around the core.
//!
//! `driver` is the one loop that owns the core's steps. `clients` opens discovery streams, over `istiod`
//! with the `keys` of the DPU; `server` serves the proxy: `relay` passes signing requests on to the
//! `authority`, `holder` is the wire of the keys. `troubles` and `standing` know how it goes; `report`,
//! `reporting` and `metrics` tell.

pub mod args;
mod authority;
mod clients;
mod driver;
mod holder;
mod istiod;
mod keys;
mod metrics;
mod relay;
mod report;
mod reporting;
mod server;
mod standing;
mod troubles;

pub use args::Args;
pub use metrics::Metrics;

use crate::translate::Aggregate;
use anyhow::Context;
use clients::ControlPlane;
use driver::Driver;
use keys::Keys;
use mesh_model::Identity;
use relay::Relay;
use reporting::Reporting;
use service::health::Health;
use service::http::{Routes, SharedRegistry};
use service::report::Reporter;
use service::signal::CancellationToken;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::mpsc;
use troubles::Troubles;
use xds::server::Store;

/// The core, shared with those who only look.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared {
    aggregate: Arc<Mutex<Aggregate>>,
    /// Identities that are attached now: what the relay may ask certificates for.
    identities: Arc<RwLock<BTreeSet<Identity>>>,
    /// Keys on the DPU, and what goes wrong on the way to streams.
    keys: Keys,
    troubles: Troubles,
    /// Attached pods that are left alone, with the reason.
    ungoverned: Arc<Mutex<std::collections::BTreeMap<String, String>>>,
}

impl Shared {
    pub(crate) fn aggregate(&self) -> MutexGuard<'_, Aggregate> {
        self.aggregate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a running adapter is reached.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub grpc: SocketAddr,
    pub health: SocketAddr,
}

/// Starts everything; it runs until `stop`. Returns once it listens; the handle ends when all is stopped.
pub async fn start(
    mut args: Args,
    stop: CancellationToken,
) -> anyhow::Result<(Addresses, tokio::task::JoinHandle<()>)> {
    let health = Health::new("istio-dpu-adapter");
    health.require(&["controller", "attachments", "control_plane", "proxy"]);
    args.tls.identify("adapter", &args.node, &health)?;
    let (shared, registry) = (Shared::default(), SharedRegistry::default());
    let metrics = Metrics::new(&mut registry.lock().unwrap_or_else(PoisonError::into_inner), shared.clone());
    let store = Store::new();
    store.hold(&args.node);
    let (events, verdicts) = mpsc::unbounded_channel();
    let (keys, troubles) = (shared.keys.clone(), shared.troubles.clone());
    let control_plane = ControlPlane::new(&args, keys.clone(), troubles.clone()).context("--control-plane")?;
    let authority = clients::authority(&args, keys.clone(), troubles.clone()).context("--ca")?;
    let guard = server::Guard::new(&args);
    let relay = Relay::new(shared.identities.clone(), authority, metrics.clone(), troubles, guard);
    let (grpc, served) = server::serve(&args, store.clone(), events, relay, keys, stop.clone()).await?;
    let routes = routes(&shared);
    let health_at = service::http::serve(args.health_listen, health.clone(), registry, routes, stop.clone()).await?;
    let reporter =
        Reporter::start(&args.controller, &args.tls, &args.controller_server_name).context("--controller")?;
    let reporting = Reporting::new(reporter);
    let driver = Driver::new(args, shared, store, control_plane, reporting, metrics, health);
    let task = tokio::spawn(async move {
        driver.run(verdicts, stop).await;
        // A server that panicked has said so.
        let _ = served.await;
    });
    Ok((Addresses { grpc, health: health_at }, task))
}

fn routes(shared: &Shared) -> Routes {
    let (workloads, aggregation, rejections) = (shared.clone(), shared.clone(), shared.clone());
    Routes::new()
        .get("/workloads", move || report::workloads(&workloads))
        .get("/aggregation", move || report::aggregation(&aggregation.aggregate()))
        .get("/rejections", move || report::rejections(&rejections.aggregate()))
}
