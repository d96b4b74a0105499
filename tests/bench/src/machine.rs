//! The machine under the benches: a namespace of its own, cores, and who used CPU time.

use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::{Pid, Uid};
use std::fs;
use std::process::Command;
use std::time::Duration;

/// Moves this process into a new network namespace with a loopback device and Reno (the peers' default
/// may be BBR, which costs bulk transfers three times the CPU on a fast link).
pub fn enter_own_namespace() -> anyhow::Result<()> {
    ensure!(Uid::effective().is_root(), "not root");
    unshare(CloneFlags::CLONE_NEWNET)?;
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("cannot run ip (iproute2)")?;
    ensure!(up.success(), "cannot bring up the loopback device");
    fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno").context("cannot choose reno")
}

/// Runs `start` with this thread pinned to a core: what it starts stays there.
pub fn on_core<T>(core: usize, start: impl FnOnce() -> T) -> anyhow::Result<T> {
    let cores = std::thread::available_parallelism()?.get();
    let mut one = CpuSet::new();
    one.set(core % cores)?;
    sched_setaffinity(Pid::from_raw(0), &one)?;
    let result = start();
    let mut all = CpuSet::new();
    (0..cores).try_for_each(|core| all.set(core))?;
    sched_setaffinity(Pid::from_raw(0), &all)?;
    Ok(result)
}

/// CPU time that the live threads of a process have used, to the nanosecond.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let folder = format!("/proc/{pid}/task");
    let mut total = 0;
    for task in fs::read_dir(&folder).with_context(|| format!("process {pid} has ended"))? {
        // A thread may end between the listing and the reading.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        total += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(total))
}

/// CPU time of the whole machine, without idling.
pub fn busy() -> anyhow::Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    ensure!(ticks.len() >= 8, "/proc/stat has an unknown form");
    // user, nice, system, (idle, iowait), irq, softirq, steal; a tick is 10 ms on Linux.
    let used = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6] + ticks[7];
    Ok(Duration::from_millis(used * 10))
}

/// Memory of a process that is its own, shared pages divided: PSS in KiB.
pub fn pss_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}
