//! From the command line to running threads, and to a graceful end.

use crate::access_log::LogFiles;
use crate::admin::{self, Admin};
use crate::ads::{self, Dialer};
use crate::control::{Configuration, Control, LoadError, Parties};
use crate::shared::{Phase, Report, Settings, Shared, State};
use crate::tls::identity;
use crate::upstream::dns::Names;
use crate::workers::Workers;
use crate::{key_holder, steering, tls};
use clap::{Parser, ValueEnum};
use mesh_api::envoy::config::core::v3::Node;
use mesh_api::envoy_pb::google::protobuf::value::Kind;
use service::logging::LogArgs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// The shared L4/L7 proxy of a server's pods, on its DPU. Takes an Envoy bootstrap.
#[derive(Clone, Debug, Parser)]
#[command(name = "dpu-proxy", version, about)]
pub struct Arguments {
    /// Envoy bootstrap file, YAML or JSON. Node metadata `DPUMESH: "true"` asks the control plane for the
    /// workloads of this DPU (the adapter serves them); without it, for listeners and clusters as Envoy does.
    #[arg(short = 'c', long, value_name = "FILE", required_unless_present = "config_yaml")]
    pub config_path: Option<PathBuf>,
    /// The bootstrap itself, in the place of a file.
    #[arg(long, value_name = "YAML", conflicts_with = "config_path")]
    pub config_yaml: Option<String>,
    /// `validate` reads the bootstrap, says what is wrong with it, and ends.
    #[arg(long, value_enum, default_value_t = Mode::Serve)]
    pub mode: Mode,
    /// Worker threads; as many as there are cores when absent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub concurrency: Option<u16>,
    /// Socket of this DPU's dataplane: take connections from its ports.
    #[arg(long, value_name = "PATH")]
    pub steering_socket: Option<PathBuf>,
    /// How long connections may go on once nothing new is accepted, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub drain_time_s: u64,
    /// After SIGTERM, how long to serve on while no newer proxy of this DPU has come, in seconds. One that comes is
    /// waited for: it takes over without a pause. Needs `--steering-socket`.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub successor_wait_s: u64,
    /// Write a JSON line for every request and TCP connection, with each hop it took.
    #[arg(long, value_name = "FILE")]
    pub hop_log: Option<PathBuf>,
    /// How long an access log line may wait before it is written, in milliseconds.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 200)]
    pub file_flush_interval_msec: u64,
    #[command(flatten)]
    pub log: LogArgs,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Proxy.
    Serve,
    /// Check the bootstrap.
    Validate,
}

/// Why the proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot read the bootstrap {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("control plane: {0}")]
    Dial(#[from] ads::DialError),
    #[error("certificates: {0}")]
    Tls(#[from] tls::TlsError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Arguments {
    /// The bootstrap's text, and what to call it.
    pub fn bootstrap(&self) -> Result<(String, String), StartError> {
        match (&self.config_path, &self.config_yaml) {
            (Some(path), _) => {
                let read = std::fs::read_to_string(path);
                let text = read.map_err(|source| StartError::Read { path: path.clone(), source })?;
                Ok((text, path.display().to_string()))
            }
            (None, yaml) => Ok((yaml.clone().unwrap_or_default(), "--config-yaml".to_owned())),
        }
    }

    fn settings(&self, node: &Node) -> Settings {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Settings {
            workers: self.concurrency.map_or(cores, usize::from),
            drain_time: Duration::from_secs(self.drain_time_s),
            successor_wait: Duration::from_secs(self.successor_wait_s),
            hop_log: self.hop_log.clone(),
            log_flush: Duration::from_millis(self.file_flush_interval_msec),
            hostname: node.id.clone(),
            cluster_id: cluster_id(node),
            started: Instant::now(),
        }
    }
}

/// Metadata `CLUSTER_ID` of the node; Istio's own default where it is not given.
fn cluster_id(node: &Node) -> String {
    let value = node.metadata.as_ref().and_then(|metadata| metadata.fields.get("CLUSTER_ID"));
    match value.and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) if !text.is_empty() => text.clone(),
        _ => "Kubernetes".to_owned(),
    }
}

/// Reads a bootstrap and says whether it can be served.
pub fn validate(text: &str) -> Result<(), StartError> {
    Configuration::load(text)?;
    Ok(())
}

/// Serves until `stop`, or until an admin ends it. `started` is told the admin's address, if there is one.
pub async fn serve(
    arguments: &Arguments,
    stop: CancellationToken,
    started: impl FnOnce(Option<std::net::SocketAddr>),
) -> Result<(), StartError> {
    let (text, _) = arguments.bootstrap()?;
    let mut configuration = Configuration::load(&text)?;
    let settings = arguments.settings(configuration.node());
    let flush = settings.log_flush;
    let shared = Arc::new(Shared {
        settings,
        state: watch::Sender::new(State::default()),
        phase: watch::Sender::new(Phase::Serving),
        report: watch::Sender::new(Arc::new(Report::default())),
        answers: watch::Sender::default(),
        names: Names::new(tokio::runtime::Handle::current()),
        log_files: LogFiles::new(flush),
    });
    let (workers, threads) = Workers::start(&shared)?;
    let (orders, ordered) = mpsc::channel(4);
    let admin = Admin { shared: Arc::clone(&shared), workers: workers.clone(), orders };
    let parties = parties(arguments, &mut configuration, &shared)?;
    let admin_address = match configuration.admin_address() {
        Some(address) => {
            // Beside a dataplane it may be an older proxy's, which frees it when we have taken over.
            let may_wait = arguments.steering_socket.is_some();
            admin::serve(address, admin, may_wait, parties.belongings.admin.clone()).await?
        }
        None => None,
    };
    let mut control = Control::new(Arc::clone(&shared), workers, configuration);
    started(admin_address);
    control.run(parties, ordered, stop).await;
    drop(control);
    let ended = tokio::task::spawn_blocking(move || {
        threads.join();
        shared.log_files.finish();
    });
    ended.await.map_err(std::io::Error::other)?;
    Ok(())
}

fn parties(arguments: &Arguments, configuration: &mut Configuration, shared: &Shared) -> Result<Parties, StartError> {
    let mut parties = Parties {
        steering: arguments.steering_socket.as_ref().map(|path| steering::start(path.clone())),
        ..Parties::default()
    };
    let Some(control_plane) = configuration.control_plane()? else { return Ok(parties) };
    let dialer = Dialer::new(control_plane.cluster, Arc::new(control_plane.secrets))?;
    let node = configuration.node().clone();
    parties.ads = Some(ads::start(&dialer, node, control_plane.mode, configuration.interests()));
    if configuration.is_mesh() {
        parties.identities = Some(identity::start(ads::signer(&dialer)));
        parties.belongings.holds_keys.send_replace(true);
        let holds = parties.belongings.holds_keys.subscribe();
        parties.attached = Some(key_holder::start(dialer, shared.state.subscribe(), holds));
    }
    Ok(parties)
}
