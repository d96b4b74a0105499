//! After a crash, and whenever something could not be undone: makes the host what the records say.

use crate::daemon::Daemon;
use crate::plumbing;
use crate::record::{Key, Phase, Record};
use crate::sys::is_gone;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between attempts to undo what could not be undone.
const RETRY: Duration = Duration::from_secs(2);

impl Daemon {
    /// Once, before calls are taken: undoes ADDs and DELs that died half done, and attachments whose
    /// pod is gone (the host was started anew).
    pub async fn recover(&self) {
        for record in self.records.list() {
            if record.phase == Phase::Attached && !self.has_lost_its_pod(&record).await {
                continue;
            }
            tracing::info!(key = %record.key, phase = ?record.phase, vf = record.vf.id, "undoing what an earlier run left");
            let _held = self.locks.lock(&record.key.container_id).await;
            self.try_undo(&record.key).await;
        }
        self.changed();
    }

    /// Whether the pod of an attachment is gone. Where that cannot be seen, a VF that is on the host tells.
    async fn has_lost_its_pod(&self, record: &Record) -> bool {
        let netns = Path::new(&record.call.netns);
        if let Some(gone) = is_gone(netns) {
            return gone;
        }
        let is_home = plumbing::locate(&self.host, &record.vf, &[&record.vf.name]).await;
        let is_home = is_home.is_ok_and(|link| link.is_some());
        if !is_home {
            tracing::error!(
                key = %record.key, netns = %netns.display(),
                "the folder of the pod's namespace is not there: mount it into the daemon's container; the pod is left alone"
            );
        }
        is_home
    }

    /// Undoes what is left, again and again, until `shutdown`.
    pub async fn retry(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = self.leftover.notified() => {}
                () = tokio::time::sleep(RETRY) => {}
                () = shutdown.cancelled() => return,
            }
            for record in self.records.list() {
                // A call that holds the lock is at work on it.
                let Some(_held) = self.locks.try_lock(&record.key.container_id) else { continue };
                let is_left = |record: &Record| record.phase != Phase::Attached;
                if self.records.get(&record.key).is_some_and(|record| is_left(&record)) {
                    self.try_undo(&record.key).await;
                }
            }
        }
    }

    async fn try_undo(&self, key: &Key) {
        match self.undo(key).await {
            Ok(None) => tracing::info!(%key, "undone"),
            Ok(Some(trouble)) => tracing::warn!(%key, trouble, "not wholly undone yet"),
            Err(error) => tracing::error!(%key, %error, "cannot keep the record"),
        }
    }
}
