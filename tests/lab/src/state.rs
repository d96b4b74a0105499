//! What a lab has made, on disk, so that a later run finds and removes it whatever happened to this one.
//!
//! Processes are named by pid *and* start time, so that a reused pid is never killed.

use crate::{shell, topology};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Everything of the lab that lives in files: sockets, keys, logs, records, this state.
pub const FOLDER: &str = "/run/dpumesh-lab";

/// The state file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The lab's own process.
    pub owner: Option<ProcessId>,
    /// Left running on purpose (`--keep`): nobody removes it unasked.
    pub keep: bool,
    pub processes: Vec<ProcessId>,
}

/// A process that cannot be mistaken for another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub name: String,
    pub pid: i32,
    /// Clock ticks since boot, field 22 of `/proc/PID/stat`.
    pub started: u64,
}

impl ProcessId {
    /// Of a process that runs now.
    pub fn of(name: &str, pid: i32) -> Result<Self> {
        let started = start_time(pid).with_context(|| format!("{name} (pid {pid}) ended at once"))?;
        Ok(Self { name: name.to_owned(), pid, started })
    }

    /// Whether that very process still runs.
    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Sends a signal, to that very process only.
    pub fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // It may end in between; then there is nothing to do.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// `None` when there is no such process, or only its exit status is left.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

impl State {
    /// Path of the file.
    pub fn path() -> PathBuf {
        Path::new(FOLDER).join("state.json")
    }

    /// Reads it; an absent or torn file is an empty state.
    pub fn load() -> Self {
        let text = std::fs::read_to_string(Self::path()).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Writes it in one step.
    pub fn save(&self) -> Result<()> {
        std::fs::create_dir_all(FOLDER).with_context(|| format!("cannot make {FOLDER}"))?;
        let temporary = Path::new(FOLDER).join("state.json.new");
        std::fs::write(&temporary, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&temporary, Self::path()).context("cannot write the lab's state file")
    }

    /// The owner, while it runs.
    pub fn running_owner(&self) -> Option<&ProcessId> {
        self.owner.as_ref().filter(|owner| owner.is_alive())
    }
}

/// Makes this process the owner of a new lab; what a dead or kept one left is removed first.
pub fn claim(keep: bool) -> Result<()> {
    let state = State::load();
    let own = ProcessId::of("lab", std::process::id() as i32)?;
    if let Some(owner) = state.running_owner().filter(|owner| **owner != own) {
        bail!("another lab is running (pid {}): stop it first, or run `make clean-lab`", owner.pid);
    }
    if !leftovers().is_empty() {
        println!("removing what an earlier lab left behind");
        remove_all();
    }
    State { owner: Some(own), keep, processes: Vec::new() }.save()
}

/// What is there of a lab now: namespaces, processes, folders, pins.
pub fn leftovers() -> Vec<String> {
    let mut found: Vec<String> =
        topology::existing_namespaces().into_iter().map(|name| format!("namespace {name}")).collect();
    let alive = State::load().processes.into_iter().filter(ProcessId::is_alive);
    found.extend(alive.map(|process| format!("process {} (pid {})", process.name, process.pid)));
    for path in [FOLDER, PINS].into_iter().filter(|path| Path::new(path).exists()) {
        found.push(format!("folder {path}"));
    }
    found
}

/// What a person wants to know of the lab that is there; `None` when there is none.
pub fn describe() -> Option<String> {
    let (found, state) = (leftovers(), State::load());
    let whose = match (state.running_owner(), state.keep) {
        _ if found.is_empty() => return None,
        (Some(owner), _) => format!("a lab is running, made by process {}", owner.pid),
        (None, true) => "a lab was left running (`--keep`)".to_owned(),
        (None, false) => "a lab was left behind by a process that ended".to_owned(),
    };
    let list: String = found.iter().map(|one| format!("  {one}\n")).collect();
    Some(format!("{whose}:\n{list}logs are in {FOLDER}/logs; `lab down` removes everything"))
}

/// Where the lab's dataplanes may pin maps.
pub const PINS: &str = "/sys/fs/bpf/dpumesh-lab";

/// Removes every trace: recorded processes, namespaces (and with them their links), pins, files.
pub fn remove_all() {
    stop(&State::load().processes);
    for name in topology::existing_namespaces() {
        shell::attempt(&format!("ip netns delete {name}"));
    }
    // Absent when the dataplane pins nothing.
    let _ = std::fs::remove_dir_all(PINS);
    let _ = std::fs::remove_dir_all(FOLDER);
}

/// Asks all to end, and makes those end that don't within two seconds.
fn stop(processes: &[ProcessId]) {
    processes.iter().rev().for_each(|process| process.signal(Signal::SIGTERM));
    let deadline = Instant::now() + Duration::from_secs(2);
    while processes.iter().any(ProcessId::is_alive) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    processes.iter().for_each(|process| process.signal(Signal::SIGKILL));
}

/// Waits for the owner to end, however it does, and removes the lab unless it is to be kept.
pub fn watch(owner: i32) {
    let Ok(owner) = ProcessId::of("lab", owner) else { return };
    while owner.is_alive() {
        std::thread::sleep(Duration::from_millis(100));
    }
    let state = State::load();
    let is_mine = state.owner.as_ref() == Some(&owner);
    if is_mine && !state.keep {
        remove_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_pid_is_another_process() {
        let own = ProcessId::of("test", std::process::id() as i32).expect("runs");
        assert!(own.is_alive());
        assert!(!ProcessId { started: own.started + 1, ..own }.is_alive());
    }
}
