//! Reads the manifests folder, and again whenever it changes.

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// The folder is read once it was quiet for this long: half a file may well be a valid one, with
/// half of its objects.
const QUIET: Duration = Duration::from_millis(50);
/// It is read after this long at the latest.
const QUIET_LIMIT: Duration = Duration::from_secs(2);
/// Read again at least this often, whatever the kernel told.
const RESCAN: Duration = Duration::from_secs(10);
/// Largest manifest that is read.
const FILE_LIMIT_BYTES: u64 = 32 * 1024 * 1024;
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// Why the folder cannot be read or watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("cannot read the manifests folder {path}: {source}")]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("cannot read manifest {path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("cannot watch the manifests folder {path}: {source}")]
    Watch { path: PathBuf, source: notify::Error },
}

/// Rings when the folder changes.
#[derive(Debug)]
pub struct FolderWatch {
    path: PathBuf,
    bell: Arc<Notify>,
    watcher: Option<RecommendedWatcher>,
}

impl FolderWatch {
    /// Of that folder, which need not exist yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), bell: Arc::default(), watcher: None }
    }

    /// All manifests by file name. A file that vanishes meanwhile is not there.
    pub fn read(&mut self) -> Result<BTreeMap<String, String>, WatchError> {
        if self.watcher.is_none() {
            self.watch()?;
        }
        let read = read(&self.path);
        if read.is_err() {
            // The folder may come back as another one: then it is watched anew.
            self.watcher = None;
        }
        read
    }

    /// Waits until it is worth reading again.
    pub async fn changed(&self) {
        tokio::select! {
            () = self.bell.notified() => self.quiet().await,
            () = tokio::time::sleep(if self.watcher.is_some() { RESCAN } else { RESCAN / 10 }) => {}
        }
    }

    async fn quiet(&self) {
        let quiet = async { while tokio::time::timeout(QUIET, self.bell.notified()).await.is_ok() {} };
        // At the limit it is read as it is, and again when it changes further.
        let _ = tokio::time::timeout(QUIET_LIMIT, quiet).await;
    }

    fn watch(&mut self) -> Result<(), WatchError> {
        let failed = |source| WatchError::Watch { path: self.path.clone(), source };
        let bell = Arc::clone(&self.bell);
        let ring = move |event: notify::Result<notify::Event>| {
            // Reading is itself an event; it must not ring.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                bell.notify_one();
            }
        };
        let mut watcher = notify::recommended_watcher(ring).map_err(failed)?;
        watcher.watch(&self.path, RecursiveMode::NonRecursive).map_err(failed)?;
        self.watcher = Some(watcher);
        Ok(())
    }
}

fn read(folder: &Path) -> Result<BTreeMap<String, String>, WatchError> {
    let failed = |source| WatchError::Folder { path: folder.to_owned(), source };
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if let Some(name) = manifest_name(&path) {
            files.extend(read_file(&path)?.map(|text| (name, text)));
        }
    }
    Ok(files)
}

/// Editors and ConfigMap mounts keep hidden files beside the real ones.
fn manifest_name(path: &Path) -> Option<String> {
    let is_manifest =
        path.extension().and_then(|extension| extension.to_str()).is_some_and(|one| EXTENSIONS.contains(&one));
    let name = path.file_name()?.to_string_lossy().into_owned();
    (is_manifest && !name.starts_with('.')).then_some(name)
}

fn read_file(path: &Path) -> Result<Option<String>, WatchError> {
    let failed = |reason: String| WatchError::File { path: path.to_owned(), reason };
    // A link to what is gone, or a file that was just removed.
    let Ok(metadata) = std::fs::metadata(path) else { return Ok(None) };
    if !metadata.is_file() {
        return Ok(None);
    }
    if metadata.len() > FILE_LIMIT_BYTES {
        return Err(failed(format!("it is over {FILE_LIMIT_BYTES} bytes: split it")));
    }
    match std::fs::read(path) {
        // What is no UTF-8 is no manifest either; the parser says so with the line.
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error.to_string())),
    }
}
