//! Settings below `/proc/sys/net` of this network namespace, and the bpf file system.

use super::KernelError;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Settings of the network namespace that this process is in.
#[derive(Clone, Debug)]
pub struct Sysctl {
    /// `/proc/sys/net`, or where a container that sees it read-only has it once more.
    pub folder: PathBuf,
}

impl Default for Sysctl {
    fn default() -> Self {
        Self { folder: "/proc/sys/net".into() }
    }
}

impl Sysctl {
    /// Sets what the dataplane needs of the whole namespace.
    pub fn prepare_namespace(&self, congestion_control: Option<&str>) -> Result<(), KernelError> {
        // The greater of `all` and the interface's own is in force.
        self.write("ipv4/conf/all/rp_filter", "0")?;
        // A reset that the kernel sends by itself finds its way back by the mark of what it answers.
        self.write("ipv4/fwmark_reflect", "1")?;
        self.write_if_there("ipv6/fwmark_reflect", "1")?;
        // What waits at a listening socket of a proxy that ends goes to its successor's.
        self.write_if_there("ipv4/tcp_migrate_req", "1")?;
        congestion_control.map_or(Ok(()), |name| self.write("ipv4/tcp_congestion_control", name))
    }

    /// Sets what it needs of a representor or the uplink.
    pub fn prepare_interface(&self, name: &str) -> Result<(), KernelError> {
        // A pod's source has no route back in the main table, or one by another interface.
        self.write(&format!("ipv4/conf/{name}/rp_filter"), "0")?;
        self.write(&format!("ipv4/conf/{name}/accept_local"), "1")?;
        self.write(&format!("ipv4/conf/{name}/send_redirects"), "0")?;
        self.write_if_there(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
        self.write_if_there(&format!("ipv6/conf/{name}/accept_redirects"), "0")
    }

    /// A representor has nothing to announce, and a pod nothing to advertise.
    pub fn prepare_representor(&self, name: &str) -> Result<(), KernelError> {
        self.prepare_interface(name)?;
        self.write_if_there(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        self.write_if_there(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
        self.write_if_there(&format!("ipv6/conf/{name}/router_solicitations"), "0")
    }

    fn write(&self, name: &str, value: &str) -> Result<(), KernelError> {
        let path = self.folder.join(name);
        if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
            return Ok(());
        }
        fs::write(&path, value).map_err(|source| KernelError::File { action: "write", path, source })
    }

    fn write_if_there(&self, name: &str, value: &str) -> Result<(), KernelError> {
        match self.folder.join(name).exists() {
            true => self.write(name, value),
            false => Ok(()),
        }
    }
}

/// Default folder of pins: one for each network namespace.
pub fn default_bpf_dir() -> PathBuf {
    let inode = fs::metadata("/proc/thread-self/ns/net").map(|metadata| metadata.ino()).unwrap_or_default();
    PathBuf::from(format!("/sys/fs/bpf/dpumesh-{inode}"))
}

/// Makes the folder, in a bpf file system that is mounted where there is none.
pub fn prepare_bpf_dir(folder: &Path) -> Result<(), KernelError> {
    let standard = Path::new("/sys/fs/bpf");
    if folder.starts_with(standard) && !is_bpf(standard) {
        mount_bpf(standard)?;
    }
    let failed = |source| KernelError::File { action: "create", path: folder.to_owned(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    if !is_bpf(folder) { mount_bpf(folder) } else { Ok(()) }
}

fn is_bpf(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

fn mount_bpf(path: &Path) -> Result<(), KernelError> {
    let none: Option<&str> = None;
    mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), none).map_err(|errno| KernelError::File {
        action: "mount a bpf file system on",
        path: path.to_owned(),
        source: errno.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_written_below_the_folder_that_was_named() {
        let folder = tempfile::tempdir().expect("folder");
        let of = |name: &str| folder.path().join("ipv4/conf/up0").join(name);
        fs::create_dir_all(of("")).expect("folder");
        for name in ["rp_filter", "accept_local", "send_redirects"] {
            fs::write(of(name), "2\n").expect("write");
        }
        let sysctl = Sysctl { folder: folder.path().to_owned() };
        sysctl.prepare_interface("up0").expect("a kernel without IPv6 is no error");
        assert_eq!(fs::read_to_string(of("rp_filter")).expect("read"), "0");
        assert_eq!(fs::read_to_string(of("accept_local")).expect("read"), "1");
        let error = sysctl.prepare_interface("up1").expect_err("no such interface");
        assert!(error.to_string().contains("ipv4/conf/up1"), "{error}");
    }
}
