//! What a cluster has made, on disk, so that a later run finds and removes it whatever happened to this one.

use crate::layout::{self, CGROUP, FOLDER, PREFIX};
use crate::machine;
use anyhow::{Context, Result, bail};
use lab::shell;
use lab::state::ProcessId;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The state file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The process that made the cluster.
    pub owner: Option<ProcessId>,
    /// Left running on purpose (`up`, `--keep`): nobody removes it unasked.
    pub keep: bool,
    pub processes: Vec<ProcessId>,
    /// Folders outside our own that were not there before.
    pub made_folders: BTreeSet<PathBuf>,
}

impl State {
    fn path() -> PathBuf {
        layout::path("state.json")
    }

    /// Reads it; an absent or torn file is an empty state.
    pub fn load() -> Self {
        let text = std::fs::read_to_string(Self::path()).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Writes it in one step.
    pub fn save(&self) -> Result<()> {
        std::fs::create_dir_all(FOLDER).with_context(|| format!("cannot make {FOLDER}"))?;
        let temporary = layout::path("state.json.new");
        std::fs::write(&temporary, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&temporary, Self::path()).context("cannot write the cluster's state file")
    }

    /// The owner, while it runs.
    pub fn running_owner(&self) -> Option<&ProcessId> {
        self.owner.as_ref().filter(|owner| owner.is_alive())
    }
}

/// Makes this process the owner of a new cluster; what a dead or kept one left is removed first.
pub fn claim(keep: bool) -> Result<()> {
    let own = ProcessId::of("cluster", std::process::id() as i32)?;
    if let Some(owner) = State::load().running_owner().filter(|owner| **owner != own) {
        bail!("another cluster is running (pid {}): stop it first, or run `make clean-cluster`", owner.pid);
    }
    if !leftovers().is_empty() {
        println!("removing what an earlier cluster left behind");
        remove_all();
        let left = leftovers();
        anyhow::ensure!(left.is_empty(), "could not be removed: {}", left.join(", "));
    }
    State { owner: Some(own), keep, ..State::default() }.save()
}

/// What is there of a cluster now: namespaces, processes, mounts, control groups, folders.
pub fn leftovers() -> Vec<String> {
    let mut found: Vec<String> = namespaces().into_iter().map(|name| format!("namespace {name}")).collect();
    let alive = State::load().processes.into_iter().filter(ProcessId::is_alive);
    found.extend(alive.map(|process| format!("process {} (pid {})", process.name, process.pid)));
    found.extend(mounts().into_iter().map(|path| format!("mount {path}")));
    found.extend(groups().into_iter().map(|path| format!("control group {}", path.display())));
    if Path::new(FOLDER).exists() {
        found.push(format!("folder {FOLDER}"));
    }
    found
}

/// What a person wants to know of the cluster that is there; `None` when there is none.
pub fn describe() -> Option<String> {
    let (found, state) = (leftovers(), State::load());
    let whose = match (state.running_owner(), state.keep) {
        _ if found.is_empty() => return None,
        (Some(owner), _) => format!("a cluster is running, made by process {}", owner.pid),
        (None, true) => "a cluster was left running".to_owned(),
        (None, false) => "a cluster was left behind by a process that ended".to_owned(),
    };
    let list: String = found.iter().map(|one| format!("  {one}\n")).collect();
    Some(format!("{whose}:\n{list}logs are in {}; `cluster down` removes everything", layout::logs().display()))
}

/// Removes every trace.
pub fn remove_all() {
    let state = State::load();
    stop(&state.processes);
    for path in mounts().into_iter().rev() {
        shell::attempt(&format!("umount -l {path}"));
    }
    for name in namespaces() {
        shell::attempt(&format!("ip netns delete {name}"));
    }
    remove_groups();
    for folder in state.made_folders.iter().rev() {
        // What others have put there meanwhile stays.
        let _ = std::fs::remove_dir(folder);
    }
    let _ = std::fs::remove_dir_all(FOLDER);
}

/// The processes of the control plane are asked to end; a machine ends with its first process.
fn stop(processes: &[ProcessId]) {
    let is_machine = |process: &&ProcessId| process.name.ends_with("-init");
    processes.iter().filter(is_machine).for_each(machine::kill);
    let others: Vec<&ProcessId> = processes.iter().filter(|process| !is_machine(process)).collect();
    others.iter().for_each(|process| process.signal(Signal::SIGTERM));
    let deadline = Instant::now() + Duration::from_secs(2);
    while processes.iter().any(ProcessId::is_alive) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    processes.iter().for_each(machine::kill);
}

/// Namespaces of a cluster that exist now.
fn namespaces() -> Vec<String> {
    let listed = shell::attempt("ip netns list").unwrap_or_default();
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.starts_with(PREFIX)).map(str::to_owned).collect()
}

/// Mounts of this computer below our folder, outermost first. Those of machines are their own and go with them.
fn mounts() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut found: Vec<String> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|path| Path::new(path).starts_with(FOLDER))
        .map(str::to_owned)
        .collect();
    found.sort();
    found
}

fn groups() -> Vec<PathBuf> {
    machine::hierarchies().into_iter().map(|folder| folder.join(CGROUP)).filter(|folder| folder.exists()).collect()
}

/// A group can go once its last process is gone, which the kernel does in its own time.
fn remove_groups() {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !groups().is_empty() && Instant::now() < deadline {
        groups().iter().for_each(|folder| remove_group(folder));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn remove_group(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(folder);
}

/// Waits for the owner to end, however it does, and removes the cluster unless it is to be kept.
pub fn watch(owner: i32) {
    let Ok(owner) = ProcessId::of("cluster", owner) else { return };
    while owner.is_alive() {
        std::thread::sleep(Duration::from_millis(100));
    }
    let state = State::load();
    if state.owner.as_ref() == Some(&owner) && !state.keep {
        remove_all();
    }
}
