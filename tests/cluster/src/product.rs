//! The installed product: its pods, its leader, its programs' pages, its own objects.

use crate::install;
use crate::kubectl;
use crate::layout::{self, HOSTS, Host};
use crate::machine::Machine;
use crate::pod::{self, Pod};
use anyhow::{Context, Result, ensure};
use lab::state::ProcessId;
use lab::{probe, shell};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::Duration;

/// Where it is installed.
pub const NAMESPACE: &str = "dpumesh-system";

/// A page that a program serves on loopback.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    pub program: &'static str,
    address: &'static str,
    path: &'static str,
    is_on_dpu: bool,
}

pub const ATTACHMENTS: Page =
    Page { program: "node daemon", address: "127.0.0.1:15121", path: "/attachments", is_on_dpu: false };
pub const WORKLOADS: Page =
    Page { program: "adapter", address: "127.0.0.1:15111", path: "/workloads", is_on_dpu: false };
pub const AGGREGATION: Page =
    Page { program: "adapter", address: "127.0.0.1:15111", path: "/aggregation", is_on_dpu: false };
pub const PORTS: Page = Page { program: "dataplane", address: "127.0.0.1:15131", path: "/ports", is_on_dpu: true };
pub const PROXY_WORKLOADS: Page =
    Page { program: "dpu-proxy", address: "127.0.0.1:15000", path: "/workloads", is_on_dpu: true };

impl Page {
    /// Reads it.
    pub fn read(self, host: Host) -> Result<Value> {
        let machine = if self.is_on_dpu { host.dpu() } else { host.node() };
        let text = probe::get(&layout::netns(&machine), self.address, self.path)
            .with_context(|| format!("{} of {machine}", self.program))?;
        serde_json::from_str(&text).with_context(|| format!("{} of {machine} answers no JSON", self.program))
    }
}

/// Waits until that many pods of a component are ready.
pub fn wait_ready(component: &str, count: usize) -> Result<()> {
    let waited = shell::wait_for(&format!("ready pods of {component}"), Duration::from_secs(60), || {
        let ready = pod::ready(NAMESPACE, &format!("app.kubernetes.io/component={component}"))?.len();
        ensure!(ready == count, "{ready} of {count} are ready");
        Ok(())
    });
    waited.with_context(|| format!("events:\n{}", pod::warnings(NAMESPACE).unwrap_or_default()))
}

/// Who leads the controllers.
#[derive(Clone, Debug)]
pub struct Leader {
    /// Name of its pod.
    pub name: String,
    /// When it last said so; later times are greater.
    pub renewed: String,
}

/// As the lease says.
pub fn leader() -> Result<Leader> {
    let lease = kubectl::json(&format!("-n {NAMESPACE} get lease dpumesh-controller"))?;
    let text = |field: &str| lease["spec"][field].as_str().unwrap_or_default().to_owned();
    let leader = Leader { name: text("holderIdentity"), renewed: text("renewTime") };
    ensure!(!leader.name.is_empty(), "no controller leads");
    Ok(leader)
}

/// Kills the program of a pod, as a crash does; the kubelet starts it again.
pub fn kill_pod(name: &str) -> Result<()> {
    let pod = Pod::of(&kubectl::json(&format!("-n {NAMESPACE} get pod {name}"))?)?;
    let machine = Machine::find(&pod.host.node())?;
    kill(&machine.pids_of("istio-dpu-controller"))
}

/// Kills a program on all nodes, and waits until it is ready again there.
pub fn kill_and_wait(program: &str, component: &str) -> Result<()> {
    let restarts = restarts(component)?;
    for host in HOSTS {
        let pids = Machine::find(&host.node())?.pids_of(program);
        ensure!(!pids.is_empty(), "no {program} runs on {}", host.node());
        kill(&pids)?;
    }
    shell::wait_for(&format!("restart of {program}"), Duration::from_secs(40), || {
        let now = self::restarts(component)?;
        ensure!(now >= restarts + HOSTS.len() as u64, "{} of {} were restarted", now - restarts, HOSTS.len());
        Ok(())
    })?;
    wait_ready(component, HOSTS.len())
}

/// Kills a program of a DPU, as a crash does, and hands back who died. The DPU's kubelet starts it again.
pub fn kill_on_dpu(program: &str, host: Host) -> Result<Vec<i32>> {
    let pids = Machine::find(&host.dpu())?.pids_of(program);
    ensure!(!pids.is_empty(), "no {program} runs on {}", host.dpu());
    kill(&pids)?;
    Ok(pids)
}

/// Waits until another process of a program runs on a DPU, and all programs of the DPU are ready.
pub fn wait_again_on_dpu(program: &str, host: Host, dead: &[i32]) -> Result<()> {
    let machine = Machine::find(&host.dpu())?;
    shell::wait_for(&format!("restart of {program} on {}", host.dpu()), Duration::from_secs(60), || {
        let runs = machine.pids_of(program);
        ensure!(!runs.is_empty() && runs.iter().all(|pid| !dead.contains(pid)), "it does not run");
        Ok(())
    })?;
    install::wait_dpu(host)
}

fn restarts(component: &str) -> Result<u64> {
    let pods = kubectl::json(&format!("-n {NAMESPACE} get pods -l app.kubernetes.io/component={component}"))?;
    let counts = pods["items"].as_array().into_iter().flatten();
    Ok(counts.filter_map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].as_u64()).sum())
}

/// SIGKILL.
pub fn kill(pids: &[i32]) -> Result<()> {
    for pid in pids {
        ProcessId::of("program", *pid)?.signal(Signal::SIGKILL);
    }
    Ok(())
}
