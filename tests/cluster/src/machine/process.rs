//! A program that runs in the background: in the state file by pid and start time, its output in a log.

use crate::layout;
use crate::state::State;
use anyhow::{Context, Result, bail};
use lab::shell;
use lab::state::ProcessId;
use nix::sys::signal::Signal;
use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A running program. Dropping it does not stop it: the state file knows it.
#[derive(Clone, Debug)]
pub struct Process {
    pub name: String,
    /// What we started: `nsenter`, which waits for the program when that is in another process namespace.
    outer: ProcessId,
}

impl Process {
    /// Starts it.
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        Ok(Self { name: name.to_owned(), outer: spawn(name, command)? })
    }

    /// One that runs, by its name.
    pub fn find(name: &str) -> Result<Self> {
        let state = State::load();
        let found = state.processes.into_iter().find(|process| process.name == name && process.is_alive());
        let outer = found.with_context(|| format!("{name} is not running"))?;
        Ok(Self { name: name.to_owned(), outer })
    }

    /// The program itself.
    pub fn id(&self) -> Result<ProcessId> {
        let is_entering = std::fs::read_to_string(format!("/proc/{}/comm", self.outer.pid))
            .is_ok_and(|name| name.trim() == "nsenter");
        match is_entering {
            false => Ok(self.outer.clone()),
            true => ProcessId::of(&self.name, child_of(self.outer.pid).unwrap_or(self.outer.pid)),
        }
    }

    /// Whether it runs; if not, the end of its log.
    pub fn check(&self) -> Result<()> {
        match self.outer.is_alive() {
            true => Ok(()),
            false => bail!("{} ended; its log ends:\n{}", self.name, tail(&self.name)),
        }
    }

    /// Waits until `probe` holds; tells at once when the program ended.
    pub fn wait_ready(&self, limit: Duration, mut probe: impl FnMut() -> Result<()>) -> Result<()> {
        let mut ended = None;
        let waited = shell::wait_for(&self.name, limit, || match self.check() {
            Ok(()) => probe(),
            Err(error) => {
                ended = Some(error);
                Ok(())
            }
        });
        ended.map_or(waited.with_context(|| format!("its log ends:\n{}", tail(&self.name))), Err)
    }

    /// SIGKILL, as a crash is.
    pub fn kill(&self) -> Result<()> {
        self.end(Signal::SIGKILL, 5)
    }

    /// SIGTERM, as an administrator stops it.
    pub fn stop(&self) -> Result<()> {
        self.end(Signal::SIGTERM, 20)
    }

    fn end(&self, signal: Signal, seconds: u64) -> Result<()> {
        self.id()?.signal(signal);
        shell::wait_for(&format!("end of {}", self.name), Duration::from_secs(seconds), || {
            match self.outer.is_alive() {
                true => bail!("it still runs"),
                false => Ok(()),
            }
        })
    }
}

/// Starts a command in a group of its own (Ctrl-C is for us, who stop it in order) and records it.
pub(super) fn spawn(name: &str, command: &mut Command) -> Result<ProcessId> {
    shell::check_interrupted()?;
    let log = log_file(name)?;
    command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let id = ProcessId::of(name, child.id() as i32)?;
    // Reaps it: an ended program is gone, not a zombie.
    std::thread::spawn(move || child.wait());
    let mut state = State::load();
    state.processes.retain(ProcessId::is_alive);
    state.processes.push(id.clone());
    state.save()?;
    Ok(id)
}

/// The first child of a process.
pub(super) fn child_of(pid: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

fn log_file(name: &str) -> Result<File> {
    std::fs::create_dir_all(layout::logs())?;
    let path = layout::logs().join(format!("{name}.log"));
    OpenOptions::new().create(true).append(true).open(&path).with_context(|| format!("cannot write {}", path.display()))
}

/// The last lines of a program's log.
pub fn tail(name: &str) -> String {
    let text = std::fs::read(layout::logs().join(format!("{name}.log"))).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
