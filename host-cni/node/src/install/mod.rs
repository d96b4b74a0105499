//! What makes the runtime call us: the plugin in its folder of plugins, and the conflist in its folder of
//! network configurations.
//!
//! In: the plugin that came with this daemon, and the node's pod CIDRs. Out: both files, whole at any
//! moment, kept as they should be while the daemon runs, and taken away when its DaemonSet is. Files of
//! other networks are never touched, so that after ours is gone the one before is in force again.

mod conflist;
mod file;
mod keeper;
mod leave;
mod owner;

pub use conflist::{Conflist, PLUGIN};
pub use keeper::keep;
pub use leave::Departure;
pub use owner::{Fate, Owner};

use clap::Args;
use ipnet::IpNet;
use std::io;
use std::path::{Path, PathBuf};

/// Both files are in place.
pub const CONDITION: &str = "installed";

/// Where to install what. Nothing is installed unless a folder is named.
#[derive(Args, Clone, Debug)]
pub struct InstallArgs {
    /// Keep the plugin in this folder, the runtime's folder of plugins.
    #[arg(long, value_name = "DIR")]
    pub install_bin_dir: Option<PathBuf>,
    /// Keep a network configuration in this folder, once calls can be taken.
    #[arg(long, value_name = "DIR")]
    pub install_conf_dir: Option<PathBuf>,
    /// The plugin to install. Default: istio-dpu-cni beside this program.
    #[arg(long, value_name = "FILE")]
    pub plugin: Option<PathBuf>,
    /// File name of the network configuration. The runtime uses the first in alphabetical order.
    #[arg(long, value_name = "NAME", default_value = "00-dpumesh.conflist", value_parser = conf_name)]
    pub conf_name: String,
    #[command(flatten)]
    pub network: NetworkArgs,
}

/// What the network configuration says.
#[derive(Args, Clone, Debug)]
pub struct NetworkArgs {
    /// Name of the network in the runtime's configuration.
    #[arg(long, value_name = "NAME", default_value = "dpumesh")]
    pub network_name: String,
    /// Addresses of this node's pods; may be given once for each address family. Default: the node's
    /// pod CIDRs as the controller tells them.
    #[arg(long, value_name = "CIDR")]
    pub pod_cidr: Vec<IpNet>,
    /// MTU of pods in bytes. Default: that of the VF or of the pod's Network.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1280..=65535))]
    pub pod_mtu: Option<u32>,
    /// How long the start of a pod waits for its configuration.
    #[arg(long, value_name = "MS", default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(1_000..=110_000))]
    pub pod_ready_timeout_ms: u64,
    /// Where host-local notes the addresses that it gave, on the host and here. Default: its own,
    /// /var/lib/cni/networks.
    #[arg(long, value_name = "DIR")]
    pub ipam_data_dir: Option<PathBuf>,
}

fn conf_name(text: &str) -> Result<String, String> {
    let plain = !text.contains('/') && !text.starts_with('.');
    match plain && text.ends_with(".conflist") {
        true => Ok(text.to_owned()),
        false => Err("must be a file name that ends in .conflist".to_owned()),
    }
}

/// A file that could not be read, written or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct InstallError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl InstallError {
    fn new(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

/// What is installed where.
#[derive(Clone, Debug)]
pub struct Installation {
    pub plugin: Option<Plugin>,
    pub conf: Option<PathBuf>,
}

/// The plugin's file, and what must be in it.
#[derive(Clone, Debug)]
pub struct Plugin {
    pub path: PathBuf,
    pub content: Vec<u8>,
}

impl Installation {
    /// Reads the plugin that came with this daemon.
    pub fn new(arguments: &InstallArgs) -> Result<Self, InstallError> {
        let plugin = match &arguments.install_bin_dir {
            None => None,
            Some(folder) => Some(Plugin { path: folder.join(PLUGIN), content: own_plugin(arguments)? }),
        };
        Ok(Self { plugin, conf: arguments.install_conf_dir.as_ref().map(|folder| folder.join(&arguments.conf_name)) })
    }

    /// Whether there is anything to keep.
    pub fn is_empty(&self) -> bool {
        self.plugin.is_none() && self.conf.is_none()
    }

    /// Takes away the conflist, then the plugin, each only if it is ours. Says what it did, a line each.
    pub fn remove(&self) -> Result<Vec<String>, InstallError> {
        let mut told = Vec::new();
        // The runtime must not find a configuration whose plugin is gone.
        if let Some(path) = &self.conf {
            told.push(take_away(path, conflist::is_ours)?);
        }
        if let Some(Plugin { path, content }) = &self.plugin {
            told.push(take_away(path, |found| found == content)?);
        }
        Ok(told)
    }
}

fn own_plugin(arguments: &InstallArgs) -> Result<Vec<u8>, InstallError> {
    let own = PathBuf::from("/proc/self/exe");
    let path = match &arguments.plugin {
        Some(path) => path.clone(),
        None => std::fs::read_link(&own).map_err(InstallError::new("read", &own))?.with_file_name(PLUGIN),
    };
    std::fs::read(&path).map_err(InstallError::new("read the plugin", &path))
}

fn take_away(path: &Path, is_ours: impl FnOnce(&[u8]) -> bool) -> Result<String, InstallError> {
    let shown = path.display();
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(format!("{shown} is not there")),
        Err(error) => Err(InstallError::new("read", path)(error)),
        Ok(found) if !is_ours(&found) => Ok(format!("{shown} is not ours: it was left")),
        Ok(_) => file::remove(path).map(|()| format!("{shown} was removed")).map_err(InstallError::new("remove", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn installation(folder: &Path) -> Installation {
        Installation {
            plugin: Some(Plugin { path: folder.join(PLUGIN), content: b"plugin".to_vec() }),
            conf: Some(folder.join("00-dpumesh.conflist")),
        }
    }

    #[test]
    fn what_is_ours_is_removed_and_nothing_else_is() {
        let folder = tempfile::tempdir().expect("folder");
        let installation = installation(folder.path());
        fs::write(folder.path().join("10-other.conflist"), "{}").expect("write");
        fs::write(folder.path().join(PLUGIN), "plugin").expect("write");
        fs::write(folder.path().join("00-dpumesh.conflist"), r#"{"plugins":[{"type":"istio-dpu-cni"}]}"#)
            .expect("write");
        installation.remove().expect("removed");
        let left: Vec<_> = fs::read_dir(folder.path()).expect("folder").flatten().map(|one| one.file_name()).collect();
        assert_eq!(left, ["10-other.conflist"]);
        assert!(installation.remove().expect("twice")[0].contains("is not there"));
    }

    #[test]
    fn files_that_somebody_put_in_our_place_are_left_and_named() {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join(PLUGIN), "another build").expect("write");
        fs::write(folder.path().join("00-dpumesh.conflist"), r#"{"plugins":[{"type":"bridge"}]}"#).expect("write");
        let told = installation(folder.path()).remove().expect("done");
        assert!(told.iter().all(|line| line.contains("it was left")), "{told:?}");
        assert!(folder.path().join(PLUGIN).exists());
    }

    #[test]
    fn a_configuration_has_a_plain_name_that_the_runtime_reads() {
        assert!(conf_name("00-dpumesh.conflist").is_ok());
        for bad in ["../x.conflist", ".x.conflist", "x.conf"] {
            assert!(conf_name(bad).is_err(), "{bad}");
        }
    }
}
