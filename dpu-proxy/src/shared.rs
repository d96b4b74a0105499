//! What the process has once: the state that workers follow, settings, secrets, name resolution.

use crate::access_log::LogFiles;
use crate::tls::secrets::Secrets;
use crate::upstream::dns::Names;
use dpu_proxy_core::config::Unsupported;
use dpu_proxy_core::config::assemble::Incomplete;
use dpu_proxy_core::model::{ProbeKind, Snapshot, Workload};
use mesh_model::{PortId, WorkloadUid};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Network devices, as the dataplane named them. Empty when the proxy runs alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    pub uplink: Option<Arc<str>>,
    /// Link to the host.
    pub host: Option<Arc<str>>,
    /// Representor by port.
    pub representors: HashMap<PortId, Arc<str>>,
}

/// What workers follow; replaced whole.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub snapshot: Arc<Snapshot>,
    pub devices: Arc<Devices>,
    pub secrets: Arc<Secrets>,
}

/// Life of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Serving,
    /// Connections finish; nothing new is accepted.
    Draining,
    /// Whatever is left is cut.
    Ending,
}

/// What the admin server tells beside the state; replaced whole by `control`.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Everything that was configured at the start is in force.
    pub live: bool,
    pub unsupported: Vec<Unsupported>,
    /// Refused resources: type and name → reason. The last good one of each stays in force.
    pub refused: BTreeMap<(String, String), String>,
    /// Accepted resources: type and name → version.
    pub resources: BTreeMap<(String, String), String>,
    /// What is accepted and waits for something else.
    pub incomplete: Vec<Incomplete>,
    pub listening: Vec<(String, SocketAddr)>,
    /// Listening sockets that could not be opened, and why.
    pub not_listening: Vec<String>,
    /// `None`: there is no control plane in the bootstrap.
    pub control_plane: Option<Result<(), String>>,
    /// `None`: there is no `--steering-socket`.
    pub dataplane: Option<Result<(), String>>,
    /// Ports that are open for a workload, or why not.
    pub readiness: BTreeMap<PortId, Result<WorkloadUid, String>>,
}

/// What does not change while the process runs.
#[derive(Clone, Debug)]
pub struct Settings {
    pub workers: usize,
    pub drain_time: Duration,
    /// How long to serve on after SIGTERM while no newer proxy of this DPU is here.
    pub successor_wait: Duration,
    /// `--hop-log`: a line per request with every hop.
    pub hop_log: Option<std::path::PathBuf>,
    /// How long a log line may wait in memory.
    pub log_flush: Duration,
    /// Node id, for logs and `%HOSTNAME%`.
    pub hostname: String,
    /// The node's mesh cluster, for metrics.
    pub cluster_id: String,
    pub started: Instant,
}

/// A TCP port of a workload that a `tcpSocket` probe asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProbedPort {
    pub port: PortId,
    pub workload: WorkloadUid,
    pub address: SocketAddr,
}

impl ProbedPort {
    /// Those of a workload, at each of its addresses.
    pub fn of(workload: &Workload) -> impl Iterator<Item = Self> {
        let probes = workload.probes.iter().filter(|probe| probe.kind == ProbeKind::Tcp);
        probes.flat_map(|probe| workload.addresses.iter().map(|address| Self::at(workload, *address, probe.port)))
    }

    /// The one of a workload there.
    pub fn at(workload: &Workload, address: IpAddr, port: u16) -> Self {
        Self { port: workload.port.clone(), workload: workload.uid.clone(), address: SocketAddr::new(address, port) }
    }
}

/// Whether pods listen where they are probed, as far as they have been asked.
pub type Answers = BTreeMap<ProbedPort, bool>;

/// What the process has once.
#[derive(Debug)]
pub struct Shared {
    pub settings: Settings,
    pub state: watch::Sender<State>,
    pub phase: watch::Sender<Phase>,
    pub report: watch::Sender<Arc<Report>>,
    pub answers: watch::Sender<Answers>,
    pub names: Names,
    pub log_files: LogFiles,
}
