//! Settings below `/proc/sys/net` of this network namespace, and the bpf file system.

use super::KernelError;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Sets what the dataplane needs of the whole namespace.
pub fn prepare_namespace(congestion_control: Option<&str>) -> Result<(), KernelError> {
    // The greater of `all` and the interface's own is in force.
    write("ipv4/conf/all/rp_filter", "0")?;
    // A reset that the kernel sends by itself finds its way back by the mark of what it answers.
    write("ipv4/fwmark_reflect", "1")?;
    write_if_there("ipv6/fwmark_reflect", "1")?;
    congestion_control.map_or(Ok(()), |name| write("ipv4/tcp_congestion_control", name))
}

/// Sets what it needs of a representor or the uplink.
pub fn prepare_interface(name: &str) -> Result<(), KernelError> {
    // A pod's source has no route back in the main table, or one by another interface.
    write(&format!("ipv4/conf/{name}/rp_filter"), "0")?;
    write(&format!("ipv4/conf/{name}/accept_local"), "1")?;
    write(&format!("ipv4/conf/{name}/send_redirects"), "0")?;
    write_if_there(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
    write_if_there(&format!("ipv6/conf/{name}/accept_redirects"), "0")
}

/// A representor has nothing to announce, and a pod nothing to advertise.
pub fn prepare_representor(name: &str) -> Result<(), KernelError> {
    prepare_interface(name)?;
    write_if_there(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
    write_if_there(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
    write_if_there(&format!("ipv6/conf/{name}/router_solicitations"), "0")
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

fn write(name: &str, value: &str) -> Result<(), KernelError> {
    let path = Path::new("/proc/sys/net").join(name);
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|source| KernelError::File { action: "write", path, source })
}

fn write_if_there(name: &str, value: &str) -> Result<(), KernelError> {
    match Path::new("/proc/sys/net").join(name).exists() {
        true => write(name, value),
        false => Ok(()),
    }
}
