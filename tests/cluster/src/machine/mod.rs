//! A machine of the cluster: a server or a DPU, emulated by a network, a mount and a process namespace.
//!
//! Its paths are its own where Kubernetes, the runtime and the product write, so that a hostPath volume is that of one
//! machine. Its first process is the only thing that holds it: when that ends, every process of the machine ends, and
//! with the last one all its mounts.

mod process;

pub use process::{Process, tail};

use crate::layout::{self, CGROUP};
use crate::state::State;
use anyhow::{Context, Result};
use lab::shell;
use lab::state::ProcessId;
use nix::sys::signal::Signal;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Paths of which each machine has its own.
const PRIVATE: [&str; 11] = [
    "/run",
    "/etc/cni",
    "/etc/containerd",
    "/etc/kubernetes",
    "/etc/dpumesh",
    "/opt/cni",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/dpumesh",
    "/var/lib/kubelet",
    "/var/log",
];

/// Hierarchies of control groups in which containers are placed.
const HIERARCHIES: &str = "/sys/fs/cgroup";

/// A running machine.
#[derive(Clone, Debug)]
pub struct Machine {
    pub name: String,
    /// Its first process, as seen from outside.
    init: i32,
}

impl Machine {
    /// Makes its namespaces. `before` are shell lines that run inside before the private paths are in place, `$ROOT`
    /// being the folder of those; network links come afterwards.
    pub fn start(name: &str, before: &str) -> Result<Self> {
        namespace(&layout::netns(name))?;
        let root = root(name);
        for path in PRIVATE {
            std::fs::create_dir_all(root.join(&path[1..])).with_context(|| format!("cannot make {path} of {name}"))?;
        }
        make_mount_points()?;
        make_groups(name)?;
        let script = init_script(before);
        let mut command = shell::command_in(&layout::netns(name), "unshare");
        command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["sh", "-c", &script]).env("ROOT", &root).env("XDG_RUNTIME_DIR", "/run");
        let outer = process::spawn(&format!("{name}-init"), &mut command)?;
        let ready = root.join("ready");
        shell::wait_for(&format!("mounts of {name}"), Duration::from_secs(10), || {
            ready.exists().then_some(()).with_context(|| format!("its log ends:\n{}", tail(&format!("{name}-init"))))
        })?;
        let init = process::child_of(outer.pid).with_context(|| format!("{name} has no first process"))?;
        Ok(Self { name: name.to_owned(), init })
    }

    /// One that runs, for a command of another process.
    pub fn find(name: &str) -> Result<Self> {
        let wanted = format!("{name}-init");
        let state = State::load();
        let outer = state.processes.iter().find(|process| process.name == wanted && process.is_alive());
        let outer =
            outer.with_context(|| format!("no machine {name} is running (there are node1, node2, dpu1, dpu2)"))?;
        let init = process::child_of(outer.pid).with_context(|| format!("{name} has no first process"))?;
        Ok(Self { name: name.to_owned(), init })
    }

    /// What is `/` + path inside, seen from outside.
    pub fn file(&self, inside: &str) -> PathBuf {
        root(&self.name).join(inside.trim_start_matches('/'))
    }

    /// A command that runs inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init.to_string(), "--net", "--mount", "--pid", "--wd=/", program]);
        command
    }

    /// Runs a command line inside; what it printed.
    pub fn run(&self, line: &str) -> Result<String> {
        shell::run(&format!("nsenter -t {} --net --mount --pid --wd=/ {line}", self.init))
    }

    /// Starts a program inside.
    pub fn spawn(&self, program: &str, arguments: &[String]) -> Result<Process> {
        let kind = program.rsplit('/').next().unwrap_or(program);
        let mut command = self.command(program);
        Process::start(&format!("{}-{kind}", self.name), command.args(arguments))
    }

    /// Pid, seen from outside, of one inside.
    pub fn pid_outside(&self, inside: i32) -> Option<i32> {
        self.pids().into_iter().find(|pid| number_inside(*pid) == Some(inside))
    }

    /// Processes of a program (the file name of its executable), seen from outside.
    pub fn pids_of(&self, program: &str) -> Vec<i32> {
        let runs = |pid: &i32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path.ends_with(program));
        self.pids().into_iter().filter(runs).collect()
    }

    /// All its processes, also those in process namespaces of containers.
    fn pids(&self) -> Vec<i32> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| self.holds(*pid)).collect()
    }

    /// Whether a process, or one that it descends from, is in the machine's process namespace: containers have their own
    /// below it, and what was started from outside has a parent there.
    fn holds(&self, pid: i32) -> bool {
        let own = process_namespace(self.init);
        let mut pid = pid;
        while pid > 1 {
            if own.is_some() && process_namespace(pid) == own {
                return true;
            }
            pid = parent(pid).unwrap_or(0);
        }
        false
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        ProcessId::of(&self.name, self.init).is_ok()
    }
}

/// What a machine calls a process of its own: the number after ours in `NSpid`.
fn number_inside(pid: i32) -> Option<i32> {
    field(pid, "NSpid:", 1)
}

fn process_namespace(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

fn parent(pid: i32) -> Option<i32> {
    field(pid, "PPid:", 0)
}

fn field(pid: i32, name: &str, number: usize) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().nth(number)?.parse().ok()
}

fn root(name: &str) -> PathBuf {
    layout::path(format!("machines/{name}"))
}

/// The first process: mounts, then reaps what is orphaned until it is killed.
fn init_script(before: &str) -> String {
    let binds: String = PRIVATE.iter().map(|path| format!("mount --rbind $ROOT{path} {path}\n")).collect();
    format!(
        "set -e\n{before}\n{binds}mount -t bpf bpf /sys/fs/bpf\nmkdir -p /run/netns\nmount --make-rshared /\n\
         touch $ROOT/ready\nset +e\nwhile :; do sleep 86400 & wait; done"
    )
}

/// A network namespace with loopback up, forwarding, and a congestion control that this kernel surely has.
pub fn namespace(name: &str) -> Result<()> {
    shell::run(&format!("ip netns add {name}"))?;
    shell::run_in(name, "ip link set lo up")?;
    for setting in ["net.ipv4.tcp_congestion_control=reno", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0"] {
        shell::run_in(name, &format!("sysctl -q -w {setting}"))?;
    }
    Ok(())
}

/// A veth pair with an end in each namespace, both up.
pub fn link(one: (&str, &str), other: (&str, &str)) -> Result<()> {
    let ((ns, name), (peer_ns, peer)) = (one, other);
    shell::run_all(&[
        format!("ip -n {ns} link add {name} type veth peer name {peer} netns {peer_ns}"),
        format!("ip -n {ns} link set {name} up"),
        format!("ip -n {peer_ns} link set {peer} up"),
    ])
}

/// A cable from a bridge of the control plane to a machine, with an address at the machine's end.
pub fn plug(bridge: &str, port: &str, namespace: &str, end: &str, address: &str) -> Result<()> {
    link((layout::CONTROL, port), (namespace, end))?;
    shell::run_all(&[
        format!("ip -n {} link set {port} master {bridge}", layout::CONTROL),
        format!("ip -n {namespace} address add {address}/24 dev {end}"),
    ])
}

/// Folders of this computer that private paths are mounted over; those that were not there are noted, to be removed.
fn make_mount_points() -> Result<()> {
    let mut state = State::load();
    for path in PRIVATE {
        let mut missing = PathBuf::from(path);
        while !missing.exists() {
            state.made_folders.insert(missing.clone());
            missing.pop();
        }
        state.save()?;
        std::fs::create_dir_all(path).with_context(|| format!("cannot make {path}"))?;
    }
    Ok(())
}

/// Name of the control group of a machine's containers.
pub fn group(machine: &str) -> String {
    format!("/{CGROUP}/{machine}")
}

/// Its folder in every hierarchy.
fn make_groups(machine: &str) -> Result<()> {
    for hierarchy in hierarchies() {
        let folder = hierarchy.join(CGROUP);
        for folder in [folder.clone(), folder.join(machine)] {
            // Another machine, or the kernel on mount, may have made it.
            let _ = std::fs::create_dir(&folder);
            inherit(&folder);
        }
    }
    Ok(())
}

/// A new group of `cpuset` holds no processor until it is told.
fn inherit(folder: &std::path::Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let parent = folder.parent().map(|parent| std::fs::read_to_string(parent.join(file)));
        if let Some(Ok(value)) = parent {
            let _ = std::fs::write(folder.join(file), value);
        }
    }
}

/// Folders of the kernel's hierarchies of control groups, version 1 or 2.
pub fn hierarchies() -> Vec<PathBuf> {
    if std::path::Path::new(HIERARCHIES).join("cgroup.procs").exists() {
        return vec![PathBuf::from(HIERARCHIES)];
    }
    let entries = std::fs::read_dir(HIERARCHIES).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.join("cgroup.procs").exists()).collect()
}

/// Ends a process group of ours at once.
pub fn kill(process: &ProcessId) {
    process.signal(Signal::SIGKILL);
}

/// Starts `cluster watch`, which removes everything when this process is gone, however it ended.
pub fn watch() -> Result<()> {
    let own = std::env::current_exe().context("where is this executable?")?;
    let mut command = Command::new(own);
    command.args(["watch", &std::process::id().to_string()]).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("cannot start the watcher").map(drop)
}
