//! How the daemon is: STATUS, the conditions of `/readyz`, the gauges, and `/attachments`.

use crate::daemon::Daemon;
use crate::record::{Phase, Record};
use istio_dpu_cni::error::{CniError, code};
use mesh_api::dataplane::PortState;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The dataplane answers.
pub const DATAPLANE: &str = "dataplane";
/// There are VFs to give.
pub const VFS: &str = "vfs";
/// Gauges and conditions are at most this old.
const REFRESH: Duration = Duration::from_secs(1);

impl Daemon {
    /// STATUS: whether ADD could work now.
    pub async fn status(&self) -> Result<(), CniError> {
        if let Err(reason) = self.dataplane() {
            // Without it the pods that are there have no changes of their services either.
            let code = if self.records.list().is_empty() { code::NOT_AVAILABLE } else { code::NOT_AVAILABLE_LIMITED };
            return Err(CniError::new(code, reason).hint("check the dataplane and the link to the DPU"));
        }
        let unavailable = |reason: String, hint: &str| CniError::new(code::NOT_AVAILABLE, reason).hint(hint);
        self.controller().map_err(|reason| unavailable(reason, "check the connection to the controller"))?;
        // That all VFs are in use is no reason: the runtime would call the whole node unfit, and the
        // pods that use them would be evicted. ADD says it to the pod that gets none.
        self.vfs().await.map_err(|reason| unavailable(reason, "check --vf-provider and --vf-prefix"))?;
        Ok(())
    }

    /// Whether a pod could be attached now, or what is missing.
    pub fn can_attach(&self) -> Result<(), String> {
        self.controller()?;
        self.dataplane()
    }

    /// VFs that are free and in use.
    pub(crate) async fn vfs(&self) -> Result<(usize, usize), String> {
        let present = self.provider.list(&self.host).await.map_err(|error| error.to_string())?;
        let records = self.records.list();
        let is_free = |id: &str| records.iter().all(|record| record.vf.id != id);
        let free = present.iter().filter(|vf| is_free(&vf.id)).count();
        match free + records.len() {
            0 => Err("this host has no VF".to_owned()),
            _ => Ok((free, records.len())),
        }
    }

    /// Keeps conditions and gauges until `shutdown`.
    pub async fn observe(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            self.observe_once().await;
            tokio::select! {
                () = tokio::time::sleep(REFRESH) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn observe_once(&self) {
        self.health.set(DATAPLANE, self.dataplane());
        let vfs = self.vfs().await;
        let (free, used) = vfs.clone().unwrap_or_default();
        self.health.set(VFS, vfs.map(|_| ()));
        let records = self.records.list();
        let count = |phase| records.iter().filter(|record| record.phase == phase).count();
        let by_phase = [Phase::Adding, Phase::Attached, Phase::Removing].map(|phase| (phase_name(phase), count(phase)));
        self.metrics.counted(&by_phase, free, used);
    }

    /// `/attachments`.
    pub fn attachments(&self) -> String {
        let ports = self.forwarding.ports();
        let ports = ports.borrow();
        let describe = |record: &Record| {
            let status = record.port.as_ref().and_then(|port| ports.statuses.get(&port.id));
            let open = status.is_some_and(|status| status.state() == PortState::Open);
            json!({
                "container": record.key.container_id,
                "interface": record.key.ifname,
                "namespace": record.pod.namespace,
                "pod": record.pod.name,
                "uid": record.pod.uid,
                "state": phase_name(record.phase),
                "vf": record.vf.id,
                "representor": record.vf.representor,
                "mac": record.port.as_ref().map(|port| port.mac),
                "addresses": record.port.as_ref().map(|port| &port.addresses),
                "governed": record.port.as_ref().map(|port| !port.ungoverned),
                "netns": record.call.netns,
                "port": if open { "open" } else { "closed" },
                "port_reason": status.map(|status| status.reason.clone()).unwrap_or_default(),
                "trouble": record.trouble,
            })
        };
        format!("{:#}", Value::Array(self.records.list().iter().map(describe).collect()))
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Adding => "adding",
        Phase::Attached => "attached",
        Phase::Removing => "removing",
    }
}
