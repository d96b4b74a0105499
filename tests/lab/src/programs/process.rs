//! A program that runs in the background, recorded in the state file, its output in a log.

use super::logs;
use crate::shell;
use crate::state::{ProcessId, State};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Where the programs' binaries are: beside this one.
#[derive(Clone, Debug)]
pub struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    /// All that the lab needs; a missing one is named.
    pub const NEEDED: [&'static str; 9] = [
        "istio-dpu-controller",
        "istio-dpu-adapter",
        "istio-dpu-cni",
        "istio-dpu-cni-node",
        "dataplane",
        "dpu-proxy",
        "lab",
        "lab-app",
        "lab-load",
    ];

    /// In `LAB_BIN_DIR`, or in the folder of this executable (or its parent, for a test).
    pub fn find() -> Result<Self> {
        let folder = match std::env::var_os("LAB_BIN_DIR") {
            Some(folder) => PathBuf::from(folder),
            None => {
                let own = std::env::current_exe()?;
                let folder = own.parent().context("this executable has no folder")?;
                if folder.ends_with("deps") { folder.join("..") } else { folder.to_owned() }
            }
        };
        let folder = folder.canonicalize().with_context(|| format!("{} is no folder", folder.display()))?;
        let missing: Vec<&str> = Self::NEEDED.into_iter().filter(|name| !folder.join(name).exists()).collect();
        anyhow::ensure!(missing.is_empty(), "not in {}: {} (run `make build`)", folder.display(), missing.join(", "));
        Ok(Self { folder })
    }

    /// Path of one.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// A running program. Dropping it does not stop it: the state file knows it.
#[derive(Debug)]
pub struct Process {
    pub id: ProcessId,
    child: Child,
}

impl Process {
    /// Starts `program` with `arguments` in a namespace; its log is `NAME.log`.
    pub fn start(name: &str, namespace: &str, program: &str, arguments: &[String]) -> Result<Self> {
        shell::check_interrupted()?;
        let log = log_file(name)?;
        let mut command = shell::command_in(namespace, program);
        // A group of its own: Ctrl-C is for the lab, which then stops them in order.
        command.args(arguments).process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        let id = ProcessId::of(name, child.id() as i32)?;
        let mut state = State::load();
        state.processes.retain(ProcessId::is_alive);
        state.processes.push(id.clone());
        state.save()?;
        Ok(Self { id, child })
    }

    /// Whether it runs; if not, how it ended and the end of its log.
    pub fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        anyhow::bail!("{} ended ({status}); its log ends:\n{}", self.id.name, tail(&self.id.name))
    }

    /// SIGKILL, as a crash is.
    pub fn kill(&mut self) -> Result<()> {
        self.id.signal(Signal::SIGKILL);
        self.child.wait().map(drop).context("cannot wait for a killed program")
    }

    /// SIGTERM, and SIGKILL after a while.
    pub fn stop(&mut self) -> Result<()> {
        self.id.signal(Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill()?;
        anyhow::bail!("{} did not stop within 10 s of SIGTERM", self.id.name)
    }

    /// Waits until it ends by itself, and reads its log.
    pub fn wait(mut self, limit: Duration) -> Result<String> {
        shell::wait_for(&format!("end of {}", self.id.name), limit, || {
            self.child.try_wait()?.map(drop).context("it still runs")
        })?;
        let path = logs().join(format!("{}.log", self.id.name));
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

fn log_file(name: &str) -> Result<File> {
    std::fs::create_dir_all(logs())?;
    let path = logs().join(format!("{name}.log"));
    OpenOptions::new().create(true).append(true).open(&path).with_context(|| format!("cannot write {}", path.display()))
}

/// The last lines of a program's log.
pub fn tail(name: &str) -> String {
    let text = std::fs::read_to_string(logs().join(format!("{name}.log"))).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
