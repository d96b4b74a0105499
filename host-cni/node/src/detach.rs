//! DEL, GC and undo: from the record, in reverse, any number of times.
//!
//! A step that cannot be undone now stays in the record with its reason, and so does the VF's
//! lease and the address: the recovery task tries again, and nobody else gets them meanwhile.

use crate::daemon::Daemon;
use crate::failure::Failure;
use crate::ipam;
use crate::plumbing;
use crate::record::{Key, Phase, Record};
use crate::sys::{KernelError, Namespace};
use crate::vf::Recovered;
use istio_dpu_cni::error::{CniError, code};
use std::path::Path;

impl Daemon {
    /// DEL: nothing to undo is success. What cannot be undone yet is the daemon's affair from here
    /// on, and no reason for the runtime to ask for ever.
    pub async fn delete(&self, key: &Key) -> Result<(), CniError> {
        let _held = self.locks.lock(&key.container_id).await;
        if let Some(trouble) = self.undo(key).await? {
            tracing::warn!(%key, trouble, "not wholly undone yet; it is tried again");
            self.leftover.notify_one();
        }
        Ok(())
    }

    /// GC: removes the attachments of this network that the runtime no longer knows.
    pub async fn collect(&self, network: &str, valid: &[(String, String)]) -> Result<(), CniError> {
        let is_valid = |key: &Key| valid.iter().any(|(id, ifname)| *id == key.container_id && *ifname == key.ifname);
        let stale =
            self.records.list().into_iter().filter(|record| record.call.network == network && !is_valid(&record.key));
        let mut failed = Vec::new();
        for record in stale {
            tracing::info!(key = %record.key, "the runtime no longer knows it");
            if let Err(error) = self.delete(&record.key).await {
                failed.push(error.to_string());
            }
        }
        match failed.is_empty() {
            true => Ok(()),
            false => Err(CniError::new(code::RECORDS, failed.join("; "))),
        }
    }

    /// Undoes an attachment. `Some`: why something is left. The caller holds the container's lock.
    pub async fn undo(&self, key: &Key) -> Result<Option<String>, CniError> {
        let begun = self.records.update(key, |record| record.phase = Phase::Removing).map_err(Failure::from)?;
        let Some(record) = begun else { return Ok(None) };
        // The adapter need not wait for the rest.
        self.publisher.refresh();
        let outcome = self.steps_back(&record).await;
        let trouble = outcome.err().map(|failure| failure.to_string());
        if let Some(trouble) = &trouble {
            self.records.update(key, |record| record.trouble.clone_from(trouble)).map_err(Failure::from)?;
        }
        self.changed();
        Ok(trouble)
    }

    async fn steps_back(&self, record: &Record) -> Result<(), Failure> {
        // The port first closes with the link: what left the pod cannot send.
        if record.moved {
            self.bring_home(record).await?;
            self.records.update(&record.key, |record| record.moved = false)?;
        }
        if let Some(port) = &record.port {
            self.forwarding.delete_port(&port.id).await?;
            self.records.update(&record.key, |record| record.port = None)?;
        }
        if let Some(delegate) = &record.ipam {
            ipam::delete(delegate, &record.key, &record.call).await?;
            self.records.update(&record.key, |record| record.ipam = None)?;
        }
        Ok(self.records.remove(&record.key)?)
    }

    /// The VF is on the host, clean, wherever it was.
    async fn bring_home(&self, record: &Record) -> Result<(), Failure> {
        let vf = &record.vf;
        // Where it is on the host already, the pod is left alone: a link there that looks like the
        // VF is the pod's own.
        let is_home = plumbing::clean(&self.host, vf).await?
            || (self.take_from_pod(record).await? && plumbing::clean(&self.host, vf).await?);
        if !is_home {
            match self.provider.recover(&self.host, vf).await? {
                // It may have a name that the kernel chose; a pair that was made again is clean.
                Recovered::Back => {
                    plumbing::clean(&self.host, vf).await?;
                }
                Recovered::Lost => {
                    tracing::error!(vf = vf.id, "the VF is gone with its pod's namespace");
                    self.metrics.lost_vf();
                    return Ok(());
                }
            }
        }
        Ok(self.provider.reset(&self.host, vf).await?)
    }

    /// False when the namespace, and the VF in it, are gone.
    async fn take_from_pod(&self, record: &Record) -> Result<bool, Failure> {
        match Namespace::open(Path::new(&record.call.netns)).await {
            Ok(pod) => Ok(plumbing::take_back(&self.host, &pod, &record.vf, &record.key.ifname).await?),
            Err(KernelError::NamespaceGone { .. } | KernelError::HostNamespace { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
