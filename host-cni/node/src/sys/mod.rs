//! The one door to the kernel: network namespaces and the links in them.
//!
//! In: a path of a namespace, or the daemon's own. Out: a `Namespace` whose netlink socket lives in
//! it. Only a short-lived thread ever enters a foreign namespace; the daemon's own threads stay.

mod link;
mod routes;

pub use link::{Device, Link};
pub use routes::{HostRoute, PodRoute};

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tokio::task::JoinHandle;

/// File system of namespaces (`linux/magic.h`).
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// What the kernel refused, and during what.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("network namespace {path} is gone: {source}")]
    NamespaceGone { path: PathBuf, source: io::Error },
    #[error("{path} is no network namespace as this daemon sees it")]
    NotNamespace { path: PathBuf },
    #[error("{path} is the host's own network namespace, not a pod's")]
    HostNamespace { path: PathBuf },
    #[error("cannot {action}: {source}")]
    Refused { action: String, source: io::Error },
}

impl KernelError {
    pub(crate) fn refused(action: impl Into<String>, source: io::Error) -> Self {
        Self::Refused { action: action.into(), source }
    }

    /// The error number, where the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::NamespaceGone { source, .. } | Self::Refused { source, .. } => source.raw_os_error(),
            Self::HostNamespace { .. } | Self::NotNamespace { .. } => None,
        }
    }
}

/// An open network namespace. Dropping it lets the namespace go.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    path: PathBuf,
    netlink: rtnetlink::Handle,
    /// The kernel runs one listing at a time on a socket, and answers EBUSY to a second.
    listing: tokio::sync::Mutex<()>,
    task: JoinHandle<()>,
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The socket keeps the namespace alive; the task owns the socket.
        self.task.abort();
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Namespace {
    /// The namespace that this process lives in.
    pub async fn own() -> Result<Self, KernelError> {
        Self::enter(PathBuf::from("/proc/self/ns/net")).await
    }

    /// A pod's namespace; refuses the daemon's own.
    pub async fn open(path: &Path) -> Result<Self, KernelError> {
        let namespace = Self::enter(path.to_owned()).await?;
        match same_file(&namespace.file, Path::new("/proc/self/ns/net")) {
            true => Err(KernelError::HostNamespace { path: path.to_owned() }),
            false => Ok(namespace),
        }
    }

    async fn enter(path: PathBuf) -> Result<Self, KernelError> {
        let gone = |source| KernelError::NamespaceGone { path: path.clone(), source };
        let file = File::open(seen_here(&path)).map_err(gone)?;
        if fstatfs(&file).map_err(|errno| gone(errno.into()))?.filesystem_type() != NSFS_MAGIC {
            return Err(KernelError::NotNamespace { path });
        }
        let inside = file.try_clone().map_err(gone)?;
        let entered = in_namespace(inside, rtnetlink::new_connection).await;
        let (connection, netlink, _) = entered.map_err(|source| not_entered(&path, source))?.map_err(gone)?;
        let task = tokio::spawn(connection);
        Ok(Self { file, path, netlink, listing: tokio::sync::Mutex::default(), task })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn netlink(&self) -> &rtnetlink::Handle {
        &self.netlink
    }

    /// Held during a listing.
    pub(crate) async fn listing(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.listing.lock().await
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Writes `/proc/sys/net/NAME` as seen from inside.
    pub async fn write_sysctl(&self, name: &str, value: &str) -> Result<(), KernelError> {
        let (path, value) = (format!("/proc/sys/net/{name}"), value.to_owned());
        let action = format!("write {value} to {path}");
        let refused = |source| KernelError::refused(action.clone(), source);
        let inside = self.file.try_clone().map_err(refused)?;
        in_namespace(inside, move || std::fs::write(path, value)).await.map_err(refused)?.map_err(refused)
    }
}

/// Whether a pod's namespace is gone for good. Where the folder itself is missing (it is not mounted in the
/// daemon's container), nothing can be told.
pub fn is_gone(path: &Path) -> Option<bool> {
    let path = seen_here(path);
    match path.exists() {
        true => Some(false),
        false => path.parent().filter(|folder| folder.is_dir()).map(|_| true),
    }
}

/// Runtimes name namespaces below `/var/run`, which on every host is a link to `/run`, and in a container
/// need not be there.
fn seen_here(path: &Path) -> PathBuf {
    match path.strip_prefix("/var/run") {
        Ok(rest) if !path.exists() => Path::new("/run").join(rest),
        _ => path.to_owned(),
    }
}

/// Runs `work` on a thread of its own inside a namespace. The runtime's context is entered, so that
/// sockets made there are driven by it.
async fn in_namespace<T: Send + 'static>(file: File, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let runtime = tokio::runtime::Handle::current();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
        let _context = runtime.enter();
        let outcome = setns(&file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from).map(|()| work());
        // The caller may have given up; nothing is left to do then.
        let _ = sender.send(outcome);
    })?;
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the namespace thread panicked")))
}

fn not_entered(path: &Path, source: io::Error) -> KernelError {
    match source.raw_os_error() {
        // The daemon's fault, and no news of the namespace.
        Some(nix::libc::EPERM) => {
            KernelError::refused(format!("enter network namespace {} without CAP_SYS_ADMIN", path.display()), source)
        }
        _ => KernelError::NamespaceGone { path: path.to_owned(), source },
    }
}

fn same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// The io error in an rtnetlink error.
pub(crate) fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_gone_only_where_its_folder_can_be_seen() {
        let folder = tempfile::tempdir().expect("folder");
        assert_eq!(is_gone(folder.path()), Some(false));
        assert_eq!(is_gone(&folder.path().join("gone")), Some(true));
        assert_eq!(is_gone(&folder.path().join("not-mounted/x")), None);
    }

    #[test]
    fn the_runtimes_name_of_the_folder_need_not_be_ours() {
        assert_eq!(seen_here(Path::new("/var/run/netns/none")), Path::new("/run/netns/none"));
        assert_eq!(seen_here(Path::new("/run/netns/none")), Path::new("/run/netns/none"));
    }
}
