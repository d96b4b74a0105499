//! One running cluster: made, shown, and removed when dropped, unless it is to be kept.

use crate::layout::HOSTS;
use crate::tools::Tools;
use crate::{control, dpu, machine, node, pki::Pki, state};
use anyhow::{Context, Result};
use lab::shell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What runs.
pub struct Cluster {
    pub tools: Tools,
    /// The folder of our own programs, statically linked.
    binaries: PathBuf,
    keep: bool,
}

impl Cluster {
    /// Removes what an earlier one left; makes namespaces, links and keys; starts Kubernetes and istiod.
    pub fn start(binaries: &Path, keep: bool) -> Result<Self> {
        let cluster = Self::claim(binaries, keep)?;
        let started = Instant::now();
        control::build()?;
        let pki = control::keys()?;
        for host in HOSTS {
            dpu::build(host)?;
            node::build(host)?;
        }
        control::start(&cluster.tools)?;
        told("control plane: etcd, API server, controller manager, scheduler, istiod, DNS", started);
        cluster.start_machines(&pki)?;
        told("two nodes and two DPUs", started);
        Ok(cluster)
    }

    /// The control plane alone, with Istio's defaults and these settings of the mesh: what a recording needs.
    pub fn start_control_plane(binaries: &Path, mesh: &str) -> Result<Self> {
        let cluster = Self::claim(binaries, false)?;
        let started = Instant::now();
        control::build()?;
        control::keys()?;
        control::start_alone(&cluster.tools, mesh)?;
        told("control plane: etcd, API server, controller manager, istiod", started);
        Ok(cluster)
    }

    /// Removes what an earlier one left; nothing runs yet.
    fn claim(binaries: &Path, keep: bool) -> Result<Self> {
        anyhow::ensure!(nix::unistd::geteuid().is_root(), "the cluster makes namespaces: run it as root");
        let tools = Tools::build()?;
        state::claim(keep)?;
        machine::watch()?;
        Ok(Self { tools, binaries: binaries.to_owned(), keep })
    }

    fn start_machines(&self, pki: &Pki) -> Result<()> {
        for host in HOSTS {
            node::start(&self.tools, host, pki)?;
            dpu::start(&self.tools, host)?;
        }
        HOSTS.into_iter().try_for_each(|host| {
            node::wait(host)?;
            shell::wait_for("addresses of the node's pods", Duration::from_secs(10), || control::route(host))
        })
    }

    /// The one that runs, for commands of another process; it is not removed at the end.
    pub fn find(binaries: &Path) -> Result<Self> {
        Ok(Self { tools: Tools::find()?, binaries: binaries.to_owned(), keep: true })
    }

    /// Path of a program of ours.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.binaries.join(name);
        path.canonicalize().with_context(|| format!("{} is not there: build the static binaries", path.display()))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.keep {
            state::remove_all();
        }
    }
}

fn told(what: &str, started: Instant) {
    println!("  {what} ({:.1} s)", started.elapsed().as_secs_f64());
}
