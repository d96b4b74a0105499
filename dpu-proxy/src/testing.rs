//! What tests of the shell stand on: a process's state made by hand, and a thread like a worker's.

use crate::access_log::LogFiles;
use crate::shared::{Phase, Report, Settings, Shared, State};
use crate::upstream::dns::Names;
use dpu_proxy_core::model::{Scope, Snapshot, Workload};
use mesh_model::{Identity, PortId, WorkloadUid};
use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

const LOG_FLUSH: Duration = Duration::from_millis(5);

/// One worker's process that serves by that configuration, and writes hops where that is asked for.
pub fn shared(snapshot: Snapshot, hop_log: Option<PathBuf>) -> Arc<Shared> {
    Arc::new(Shared {
        settings: Settings {
            workers: 1,
            drain_time: Duration::from_secs(1),
            successor_wait: Duration::ZERO,
            hop_log,
            log_flush: LOG_FLUSH,
            hostname: "test".into(),
            cluster_id: "Kubernetes".into(),
            started: Instant::now(),
        },
        state: watch::Sender::new(State { snapshot: Arc::new(snapshot), ..State::default() }),
        phase: watch::Sender::new(Phase::Serving),
        report: watch::Sender::new(Arc::new(Report::default())),
        answers: watch::Sender::default(),
        names: Names::new(tokio::runtime::Handle::current()),
        log_files: LogFiles::new(LOG_FLUSH),
    })
}

/// A pod at a port of the same name.
pub fn workload(uid: &str, identity: &Identity, address: IpAddr, scope: &Arc<Scope>) -> Workload {
    Workload {
        uid: WorkloadUid(uid.into()),
        namespace: "demo".into(),
        name: uid.into(),
        workload_name: uid.into(),
        labels: HashMap::new(),
        identity: identity.clone(),
        addresses: vec![address],
        port: PortId(uid.into()),
        weight: 1,
        probes: Vec::new(),
        scope: Arc::clone(scope),
    }
}

/// Runs a test on one thread, as a worker is.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let limited = async { tokio::time::timeout(Duration::from_secs(20), test).await.expect("the test hangs") };
    tokio::task::LocalSet::new().block_on(&runtime, limited);
}
