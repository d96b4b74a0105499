//! What the process has once: the state that workers follow, settings, secrets, name resolution.

use crate::access_log::LogFiles;
use crate::tls::secrets::Secrets;
use crate::upstream::dns::Names;
use dpu_proxy_core::model::Snapshot;
use mesh_model::PortId;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Network devices, as the dataplane named them. Empty when the proxy runs alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    pub uplink: Option<Arc<str>>,
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

/// What does not change while the process runs.
#[derive(Clone, Debug)]
pub struct Settings {
    pub workers: usize,
    pub drain_time: Duration,
    /// `--access-log`: a line per request with every hop.
    pub hop_log: Option<std::path::PathBuf>,
    /// Node id, for logs and `%HOSTNAME%`.
    pub hostname: String,
}

/// What the process has once.
#[derive(Debug)]
pub struct Shared {
    pub settings: Settings,
    pub state: watch::Sender<State>,
    pub phase: watch::Sender<Phase>,
    pub names: Names,
    pub log_files: LogFiles,
}
