//! Keeps the installed files as they should be, whoever changes them.

use super::conflist::Conflist;
use super::{CONDITION, InstallError, Installation, Plugin, file};
use crate::mesh::Mesh;
use ipnet::IpNet;
use service::health::Health;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A change by others is seen within this.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What the keeper did to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// It was as it should be.
    Nothing,
    /// It was not there.
    Written,
    /// It was another.
    Replaced,
}

/// Keeps the plugin from now on, and the conflist from when `ready` says that calls can be taken, until
/// `shutdown`.
pub async fn keep(
    installation: Installation,
    conflist: Conflist,
    node: String,
    mut mesh: watch::Receiver<Mesh>,
    health: Health,
    ready: impl Fn() -> Result<(), String> + Send,
    shutdown: CancellationToken,
) {
    let mut keeper = Keeper { installation, conflist, seen: None, text: None, was_written: false };
    loop {
        let told = mesh.borrow_and_update().pod_cidrs(&node);
        let state = keeper.look(&told, ready()).unwrap_or_else(|error| Err(error.to_string()));
        health.set(CONDITION, state);
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

struct Keeper {
    installation: Installation,
    conflist: Conflist,
    /// The plugin's file when its content was last compared.
    seen: Option<Stamp>,
    /// What the conflist should be, since it was first known.
    text: Option<String>,
    /// From the first time on, the conflist stays whatever becomes of the rest: its absence would make
    /// the node unfit for pods.
    was_written: bool,
}

/// Changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl From<Metadata> for Stamp {
    fn from(metadata: Metadata) -> Self {
        Self { inode: metadata.ino(), size: metadata.len(), changed: (metadata.ctime(), metadata.ctime_nsec()) }
    }
}

impl Keeper {
    /// Makes both files right. The inner error: why the runtime cannot call us yet.
    fn look(&mut self, told: &[IpNet], ready: Result<(), String>) -> Result<Result<(), String>, InstallError> {
        self.keep_plugin()?;
        let Some(path) = self.installation.conf.clone() else { return Ok(Ok(())) };
        // A node that the controller does not tell of for a while keeps its ranges.
        self.text = self.conflist.text(told).or(self.text.take());
        let Some(text) = self.text.clone() else { return Ok(Err(no_ranges())) };
        if let (false, Err(reason)) = (self.was_written, ready) {
            return Ok(Err(format!("{} waits: {reason}", path.display())));
        }
        let done = put(&path, text.as_bytes(), 0o644)?;
        tell(&path, done, !self.was_written);
        self.was_written = true;
        Ok(is_first(&path))
    }

    fn keep_plugin(&mut self) -> Result<(), InstallError> {
        let Some(Plugin { path, content }) = &self.installation.plugin else { return Ok(()) };
        if self.seen.is_some() && self.seen == stamp(path) {
            return Ok(());
        }
        tell(path, put(path, content, 0o755)?, self.seen.is_none());
        self.seen = stamp(path);
        Ok(())
    }
}

fn no_ranges() -> String {
    "the node has no pod CIDR yet: let the controller manager give it one (--allocate-node-cidrs), or give --pod-cidr"
        .to_owned()
}

fn stamp(path: &Path) -> Option<Stamp> {
    fs::metadata(path).ok().map(Stamp::from)
}

fn put(path: &Path, content: &[u8], mode: u32) -> Result<Done, InstallError> {
    let done = match fs::read(path) {
        Ok(found) if found == content => return Ok(Done::Nothing),
        Ok(_) => Done::Replaced,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Done::Written,
        Err(error) => return Err(InstallError::new("read", path)(error)),
    };
    file::replace(path, content, mode).map_err(InstallError::new("write", path))?;
    Ok(done)
}

fn tell(path: &Path, done: Done, first: bool) {
    let path = path.display();
    match (done, first) {
        (Done::Nothing, false) => {}
        (Done::Nothing, true) => tracing::info!(%path, "installed already"),
        (_, true) => tracing::info!(%path, "installed"),
        (Done::Written, false) => tracing::warn!(%path, "somebody removed it; it is there again"),
        (Done::Replaced, false) => tracing::warn!(%path, "it was not as it should be; it is replaced"),
    }
}

/// The runtime uses the first configuration only.
fn is_first(path: &Path) -> Result<(), String> {
    let (Some(folder), Some(own)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let is_read = |name: &str| [".conflist", ".conf", ".json"].iter().any(|extension| name.ends_with(extension));
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let before = names.filter(|name| name.as_os_str() < own && is_read(&name.to_string_lossy())).min();
    match before {
        None => Ok(()),
        Some(other) => Err(format!(
            "the runtime uses {} in {} and not ours: remove it, or choose an earlier --conf-name",
            other.to_string_lossy(),
            folder.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{NetworkArgs, PLUGIN};
    use super::*;

    fn keeper(folder: &Path) -> Keeper {
        let network = NetworkArgs {
            network_name: "dpumesh".to_owned(),
            pod_cidr: Vec::new(),
            pod_mtu: None,
            pod_ready_timeout_ms: 30_000,
            ipam_data_dir: None,
        };
        Keeper {
            installation: Installation {
                plugin: Some(Plugin { path: folder.join(PLUGIN), content: b"plugin".to_vec() }),
                conf: Some(folder.join("00-dpumesh.conflist")),
            },
            conflist: Conflist { network, socket: "/run/x.sock".into() },
            seen: None,
            text: None,
            was_written: false,
        }
    }

    fn ranges() -> Vec<IpNet> {
        vec!["10.244.1.0/24".parse().expect("CIDR")]
    }

    #[test]
    fn the_conflist_comes_once_calls_can_be_taken_and_stays_from_then_on() {
        let folder = tempfile::tempdir().expect("folder");
        let (mut keeper, path) = (keeper(folder.path()), folder.path().join("00-dpumesh.conflist"));
        let reason = keeper.look(&[], Ok(())).expect("files").expect_err("no ranges");
        assert!(reason.contains("--pod-cidr"), "{reason}");
        let reason = keeper.look(&ranges(), Err("no dataplane".to_owned())).expect("files").expect_err("not ready");
        assert!(reason.contains("no dataplane"), "{reason}");
        assert!(folder.path().join(PLUGIN).exists() && !path.exists());
        keeper.look(&ranges(), Ok(())).expect("files").expect("installed");
        let text = fs::read_to_string(&path).expect("there");
        assert!(text.contains("10.244.1.0/24"), "{text}");
        keeper.look(&[], Err("no dataplane".to_owned())).expect("files").expect("it stays");
        assert_eq!(fs::read_to_string(&path).expect("there"), text);
    }

    #[test]
    fn what_somebody_changes_or_removes_is_made_right() {
        let folder = tempfile::tempdir().expect("folder");
        let (mut keeper, path) = (keeper(folder.path()), folder.path().join("00-dpumesh.conflist"));
        keeper.look(&ranges(), Ok(())).expect("files").expect("installed");
        let text = fs::read_to_string(&path).expect("there");
        fs::write(&path, "{}").expect("write");
        fs::write(folder.path().join(PLUGIN), "plugim").expect("write");
        keeper.look(&ranges(), Ok(())).expect("files").expect("installed");
        assert_eq!(fs::read_to_string(&path).expect("there"), text);
        assert_eq!(fs::read(folder.path().join(PLUGIN)).expect("there"), b"plugin");
        fs::remove_file(&path).expect("remove");
        fs::remove_file(folder.path().join(PLUGIN)).expect("remove");
        keeper.look(&ranges(), Ok(())).expect("files").expect("installed");
        assert!(path.exists() && folder.path().join(PLUGIN).exists());
    }

    #[test]
    fn a_configuration_that_comes_before_ours_is_told_and_left() {
        let folder = tempfile::tempdir().expect("folder");
        let mut keeper = keeper(folder.path());
        fs::write(folder.path().join("00-a.conf"), "{}").expect("write");
        fs::write(folder.path().join("00-a.txt"), "").expect("write");
        let reason = keeper.look(&ranges(), Ok(())).expect("files").expect_err("not the first");
        assert!(reason.contains("00-a.conf"), "{reason}");
        assert!(folder.path().join("00-a.conf").exists());
    }

    #[test]
    fn a_folder_that_is_not_mounted_is_named() {
        let mut keeper = keeper(Path::new("/nonexistent"));
        let error = keeper.look(&ranges(), Ok(())).map(drop).expect_err("no folder");
        assert!(error.to_string().contains("/nonexistent/istio-dpu-cni"), "{error}");
    }
}
