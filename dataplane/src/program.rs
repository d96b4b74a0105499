//! The program: arguments, and the parts put together.

use crate::api::Api;
use crate::engine::Engine;
use crate::kernel::{Kernel, KernelArgs};
use crate::metrics::Metrics;
use crate::steering::{Links, Steering};
use crate::sys::links::LinkWatch;
use crate::sys::sysctl::{self, Sysctl};
use anyhow::Context;
use clap::Parser;
use mesh_api::dataplane::dataplane_server::DataplaneServer;
use prometheus_client::registry::Registry;
use service::grpc::TlsArgs;
use service::health::Health;
use service::http::{Routes, SharedRegistry};
use service::logging::LogArgs;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// The forwarding engine of a DPU. It works in the network namespace that it is started in: there are
/// the uplink and the representors. When it stops, packets go on as they were; `--cleanup` ends that.
#[derive(Parser, Clone, Debug)]
#[command(name = "dataplane", version)]
pub struct Args {
    /// Interface to the fabric.
    #[arg(long, value_name = "IFACE")]
    pub uplink: String,
    /// Interface to the host: the representor of a function that the host keeps, e.g. pf0hpf. What the host sends
    /// to its pods by it is known as the host's, so that the kubelet's probes pass.
    #[arg(long, value_name = "IFACE")]
    pub host_interface: Option<String>,
    /// Where the node daemon calls (gRPC).
    #[arg(long, default_value = "127.0.0.1:15130", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Where health, /metrics and /ports are served.
    #[arg(long, default_value = "127.0.0.1:15131", value_name = "ADDRESS")]
    pub health_listen: SocketAddr,
    /// Unix socket on which the proxy registers.
    #[arg(long, default_value = "/run/dpumesh/steering.sock", value_name = "PATH")]
    pub steering_socket: PathBuf,
    /// Folder of pinned maps and links, in a bpf file system (mounted if need be). Default:
    /// /sys/fs/bpf/dpumesh-INODE of the network namespace.
    #[arg(long, value_name = "DIR")]
    pub bpf_dir: Option<PathBuf>,
    /// What is configured, for the next start. Default: dataplane.state beside the steering socket.
    #[arg(long, value_name = "FILE")]
    pub state_file: Option<PathBuf>,
    /// TCP congestion control of this namespace, e.g. reno or cubic. Default: as it is.
    #[arg(long, value_name = "NAME")]
    pub congestion_control: Option<String>,
    /// Where the settings of this network namespace are, for containers that see /proc/sys read-only.
    #[arg(long, value_name = "DIR", default_value = "/proc/sys/net")]
    pub sysctl_dir: PathBuf,
    /// Remove programs, maps, rules and routes of this network namespace, and stop.
    #[arg(long)]
    pub cleanup: bool,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

/// Between attempts to hear of links and routes again.
const REOPEN_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

impl Args {
    fn kernel(&self) -> KernelArgs {
        KernelArgs {
            uplink: self.uplink.clone(),
            host: self.host_interface.clone(),
            bpf_dir: self.bpf_dir.clone().unwrap_or_else(sysctl::default_bpf_dir),
            congestion_control: self.congestion_control.clone(),
            sysctl: Sysctl { folder: self.sysctl_dir.clone() },
        }
    }

    fn state_file(&self) -> PathBuf {
        self.state_file.clone().unwrap_or_else(|| self.steering_socket.with_file_name("dataplane.state"))
    }
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(mut args: Args) -> anyhow::Result<()> {
    service::logging::init(&args.log)?;
    if args.cleanup {
        return clean(&args).await;
    }
    let shutdown = service::signal::shutdown()?;
    if args.host_interface.as_ref() == Some(&args.uplink) {
        anyhow::bail!("--host-interface and --uplink are both {}: the host needs a link of its own", args.uplink);
    }
    let health = Health::new("dataplane");
    health.require(&["kernel"]);
    args.tls.identify("dataplane", "", &health)?;
    let kernel = Kernel::open(&args.kernel()).await?;
    let (uplink, device) = kernel.uplink();
    let host = kernel.host().map(|(name, _)| name).unwrap_or_default();
    let counters = kernel.counters();
    // Before the routes are read for the first time, so that no change is missed.
    let links = LinkWatch::open()?;
    let engine = engine(&args, kernel, device).await?;
    let ports = engine.ports();
    let engine = Arc::new(Mutex::new(engine));
    tokio::spawn(follow_links(links, Arc::clone(&engine)));
    let proxies = Arc::new(AtomicUsize::new(0));
    let metrics = Metrics { ports: ports.clone(), counters: counters.clone(), proxies: Arc::clone(&proxies) };
    health.set("kernel", Ok(()));
    serve_health(&args, &health, metrics, &shutdown).await?;
    let links = Links { uplink: uplink.clone(), host: host.clone() };
    let steering = Steering::new(Arc::clone(&engine), ports.clone(), links, proxies);
    let path = &args.steering_socket;
    Arc::new(steering).serve(path, shutdown.clone()).with_context(|| format!("cannot listen on {}", path.display()))?;
    let check_caller = args.tls.is_mutual();
    serve_api(&args, Api { engine, ports, counters, uplink, host, check_caller }, shutdown).await
}

async fn engine(args: &Args, mut kernel: Kernel, uplink: crate::state::Device) -> anyhow::Result<Engine<Kernel>> {
    let file = args.state_file();
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    if !file.exists() {
        kernel.forget_others(&crate::state::Image::default())?;
    }
    let host = kernel.host().map(|(_, device)| device);
    let mut engine = Engine::new(kernel, uplink, Some(file)).with_host(host);
    engine.follow_routes().await?;
    engine.restore().await?;
    let image = engine.image().clone();
    engine.door().forget_others(&image)?;
    engine.door().forget_other_versions()?;
    tracing::info!(ports = engine.state().ports.len(), epoch = engine.state().epoch, "the dataplane works");
    Ok(engine)
}

async fn follow_links(mut links: LinkWatch, engine: Arc<Mutex<Engine<Kernel>>>) {
    loop {
        while let Some(changed) = links.changed().await {
            refresh(&engine, |_| changed.clone()).await;
        }
        // More happened at once than the socket holds: what was missed is found by looking at everything.
        tracing::warn!("missed news of links and routes; all are looked at again");
        links = reopened().await;
        refresh(&engine, Engine::links).await;
    }
}

async fn refresh(engine: &Mutex<Engine<Kernel>>, changed: impl Fn(&Engine<Kernel>) -> BTreeSet<u32>) {
    let mut engine = engine.lock().await;
    let changed = changed(&engine);
    // A link that is down yet refuses routes; it will be heard of again when it is up.
    if let Err(error) = engine.refresh(&changed).await {
        tracing::info!(%error, "not yet as it should be");
    }
}

async fn reopened() -> LinkWatch {
    loop {
        match LinkWatch::open() {
            Ok(links) => return links,
            Err(error) => tracing::error!(%error, "cannot follow links and routes; trying again"),
        }
        tokio::time::sleep(REOPEN_INTERVAL).await;
    }
}

async fn clean(args: &Args) -> anyhow::Result<()> {
    Kernel::clean(&args.kernel()).await?;
    for path in [args.state_file(), args.steering_socket.clone()] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    tracing::info!("nothing is left of the dataplane in this network namespace");
    Ok(())
}

async fn serve_health(
    args: &Args,
    health: &Health,
    metrics: Metrics,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let registry = SharedRegistry::default();
    let mut fresh = Registry::default();
    fresh.register_collector(Box::new(metrics.clone()));
    if let Ok(mut registry) = registry.lock() {
        *registry = fresh;
    }
    let routes = Routes::new().get("/ports", move || metrics.json());
    service::http::serve(args.health_listen, health.clone(), registry, routes, shutdown.clone()).await?;
    Ok(())
}

async fn serve_api(args: &Args, api: Api<Kernel>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let tls = args.tls.server_at(args.listen)?;
    let mut builder = tonic::transport::Server::builder();
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    tracing::info!(address = %args.listen, "the API is served");
    let incoming = service::grpc::incoming(listener, tls);
    let stopped = shutdown.clone();
    let served = builder.add_service(DataplaneServer::new(api)).serve_with_incoming_shutdown(incoming, async move {
        stopped.cancelled().await;
    });
    // A watcher's stream never ends by itself: it must not hold up the stop.
    tokio::select! {
        result = served => result.context("the API stopped"),
        () = async { shutdown.cancelled().await; tokio::time::sleep(std::time::Duration::from_millis(200)).await } => Ok(()),
    }
}
