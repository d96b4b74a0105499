//! What is left behind when the daemon stops.

use super::{Fate, Installation, Owner};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Between attempts to see the DaemonSet after the start.
const CHECK_AGAIN: Duration = Duration::from_secs(30);

/// Takes away what was installed, or leaves it to the next daemon.
#[derive(Clone, Debug)]
pub struct Departure {
    pub installation: Installation,
    pub owner: Owner,
    /// Sockets of the daemon, which nobody else removes.
    pub sockets: Vec<PathBuf>,
    /// The DaemonSet could be seen once.
    permitted: Arc<AtomicBool>,
}

impl Departure {
    /// Nothing is asked yet.
    pub fn new(installation: Installation, owner: Owner, sockets: Vec<PathBuf>) -> Self {
        Self { installation, owner, sockets, permitted: Arc::default() }
    }

    /// Sees early whether the question at the end can be answered, and says what is missing.
    pub async fn prepare(self) {
        if self.installation.is_empty() || !self.owner.is_known() {
            return;
        }
        let mut said = String::new();
        while let Err(reason) = self.owner.check().await {
            if reason != said {
                let daemonset = self.owner.name();
                tracing::warn!(
                    daemonset,
                    reason,
                    "the DaemonSet cannot be seen, so an uninstall would leave its files"
                );
                said = reason;
            }
            tokio::time::sleep(CHECK_AGAIN).await;
        }
        self.permitted.store(true, Ordering::Relaxed);
    }

    /// The daemon has stopped. `attached`: pods that still have a VF. True when it was an uninstall.
    pub async fn leave(&self, attached: &[String]) -> bool {
        if self.installation.is_empty() {
            return false;
        }
        if !self.owner.is_known() {
            tracing::info!(
                "plugin and conflist stay: without --daemonset nobody can tell whether this is an uninstall"
            );
            return false;
        }
        let daemonset = self.owner.name();
        let fate = self.owner.fate(self.permitted.load(Ordering::Relaxed)).await;
        let goes = fate == Fate::Goes;
        match fate {
            Fate::Stays => tracing::info!(daemonset, "plugin and conflist stay for the next daemon"),
            Fate::Unknown(reason) => tracing::warn!(
                daemonset,
                reason,
                "plugin and conflist stay: nobody told whether this is an uninstall; `istio-dpu-cni-node uninstall` removes them"
            ),
            Fate::Goes => {
                tracing::info!(daemonset, "the DaemonSet is gone: what it installed is removed");
                self.remove(attached);
            }
        }
        goes
    }

    /// Removes files and sockets whatever the API server says; false when something could not be.
    pub fn remove(&self, attached: &[String]) -> bool {
        let outcome = self.installation.remove();
        match &outcome {
            Ok(told) => told.iter().for_each(|line| tracing::info!("{line}")),
            Err(error) => tracing::error!(%error, "not wholly removed"),
        }
        for socket in &self.sockets {
            // One that is not there was never made.
            let _ = std::fs::remove_file(socket);
        }
        if !attached.is_empty() {
            let pods = attached.join(", ");
            tracing::warn!(pods, "these pods keep their VF and their network until they are deleted");
        }
        outcome.is_ok()
    }
}
