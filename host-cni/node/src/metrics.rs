//! What the daemon measures.

use istio_dpu_cni::environment::Command;
use istio_dpu_cni::error::CniError;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CommandLabel {
    command: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    command: &'static str,
    code: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

/// Seconds; the last steps are those of a pod that waits for its configuration.
const BUCKETS: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 30.0];

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    duration: Family<CommandLabel, Histogram, fn() -> Histogram>,
    failures: Family<FailureLabels, Counter>,
    attachments: Family<StateLabel, Gauge>,
    vfs: Family<StateLabel, Gauge>,
    lost_vfs: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            duration: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            failures: Family::default(),
            attachments: Family::default(),
            vfs: Family::default(),
            lost_vfs: Counter::default(),
        }
    }
}

impl Metrics {
    /// Registered under `cni_`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("cni");
        registry.register("call_duration_seconds", "Calls of the plugin, by command", metrics.duration.clone());
        registry.register("call_failures", "Calls that failed, by command and CNI code", metrics.failures.clone());
        registry.register("attachments", "Attachments, by state", metrics.attachments.clone());
        registry.register("vfs", "VFs of this host, free or used", metrics.vfs.clone());
        registry.register("lost_vfs", "VFs whose device was gone when their pod was", metrics.lost_vfs.clone());
        metrics
    }

    /// After a call.
    pub fn called(&self, command: Command, took: Duration, failure: Option<&CniError>) {
        let command = name(command);
        self.duration.get_or_create(&CommandLabel { command }).observe(took.as_secs_f64());
        if let Some(error) = failure {
            self.failures.get_or_create(&FailureLabels { command, code: error.code }).inc();
        }
    }

    /// Attachments by state, VFs by state.
    pub fn counted(&self, attachments: &[(&'static str, usize)], free: usize, used: usize) {
        for (state, number) in attachments {
            self.attachments.get_or_create(&StateLabel { state }).set(*number as i64);
        }
        for (state, number) in [("free", free), ("used", used)] {
            self.vfs.get_or_create(&StateLabel { state }).set(number as i64);
        }
    }

    /// A VF is no more.
    pub fn lost_vf(&self) {
        self.lost_vfs.inc();
    }
}

/// As in `CNI_COMMAND`.
pub fn name(command: Command) -> &'static str {
    match command {
        Command::Add => "ADD",
        Command::Del => "DEL",
        Command::Check => "CHECK",
        Command::Version => "VERSION",
        Command::Status => "STATUS",
        Command::Gc => "GC",
    }
}
