//! Load: many requests from a pod, closed or paced loop, and what became of each.

mod run;

pub use run::run;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Flags of `lab-load`.
#[derive(clap::Parser, Clone, Debug)]
#[command(name = "lab-load", version, about = "Sends HTTP requests and counts what became of them")]
pub struct Args {
    /// IP:PORT to connect to.
    #[arg(long)]
    pub address: String,
    /// Value of the host header.
    #[arg(long)]
    pub host: String,
    /// Path and query.
    #[arg(long, default_value = "/")]
    pub path: String,
    /// NAME:VALUE, any number of them.
    #[arg(long)]
    pub header: Vec<String>,
    /// Connections; each has one request in flight.
    #[arg(long, default_value_t = 4)]
    pub connections: u32,
    /// Requests per second over all connections; 0: as fast as they are answered.
    #[arg(long, default_value_t = 0)]
    pub rate: u32,
    /// Seconds to run, unless `--requests` are done before.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Requests to send; 0: no limit.
    #[arg(long, default_value_t = 0)]
    pub requests: u64,
    /// Response header whose values are counted.
    #[arg(long, default_value = "x-reviews-version")]
    pub count: String,
    /// HTTP/2 with prior knowledge.
    #[arg(long)]
    pub http2: bool,
    /// Stop when this file appears.
    #[arg(long)]
    pub until: Option<std::path::PathBuf>,
}

/// What became of the requests.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    pub requests: u64,
    /// Not answered with 200.
    pub failed: u64,
    /// What the failures were.
    pub failures: BTreeMap<String, u64>,
    /// Values of the counted header.
    pub counted: BTreeMap<String, u64>,
    pub seconds: f64,
    pub rate: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl Outcome {
    /// Share of a counted value, in percent.
    pub fn percent(&self, value: &str) -> f64 {
        let total: u64 = self.counted.values().sum();
        100.0 * self.counted.get(value).copied().unwrap_or(0) as f64 / (total.max(1)) as f64
    }
}
