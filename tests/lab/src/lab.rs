//! One running lab. Made in steps that can be shown; removed when dropped, unless it is to be kept.

use crate::manifests;
use crate::pods::{PODS, Pod};
use crate::probe;
use crate::programs::{self, Authority, Binaries, Process, Program, ProxyOptions};
use crate::replay::Scenario;
use crate::state::{self, FOLDER, State};
use crate::topology::{CONTROL_PLANE_NAMESPACE, HOSTS, build};
use crate::{cni, shell};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// What runs.
pub struct Lab {
    pub binaries: Binaries,
    /// How the proxies are started from now on.
    pub proxy: ProxyOptions,
    programs: BTreeMap<String, Process>,
    applications: BTreeMap<&'static str, Process>,
    attached: Vec<&'static Pod>,
    keep: bool,
}

impl Lab {
    /// Removes what an earlier lab left, and makes namespaces, links and certificates.
    pub fn new(keep: bool) -> Result<Self> {
        check_machine()?;
        let binaries = Binaries::find()?;
        state::claim(keep)?;
        let lab = Self {
            binaries,
            proxy: ProxyOptions::default(),
            programs: BTreeMap::new(),
            applications: BTreeMap::new(),
            attached: Vec::new(),
            keep,
        };
        lab.watch()?;
        build::build()?;
        certify()?;
        manifests::write(&programs::manifests(), &[])?;
        Ok(lab)
    }

    /// Starts all programs, then waits for each.
    pub fn start_programs(&mut self) -> Result<()> {
        for program in Program::all() {
            self.start(program)?;
        }
        Program::all().into_iter().try_for_each(|program| self.wait_ready(program))
    }

    /// Starts one program.
    pub fn start(&mut self, program: Program) -> Result<()> {
        let process = program.start(&self.binaries, self.proxy)?;
        self.programs.insert(program.name(), process);
        Ok(())
    }

    /// Starts another process of a program beside the one that runs, which is returned.
    pub fn start_beside(&mut self, program: Program) -> Result<Process> {
        let name = program.name();
        let old = self.programs.remove(&name).with_context(|| format!("{name} was not started"))?;
        self.start(program)?;
        Ok(old)
    }

    /// Waits until it is ready; tells at once when it ended.
    pub fn wait_ready(&mut self, program: Program) -> Result<()> {
        let (address, path) = program.readiness();
        let namespace = program.namespace();
        let process = self.process(program)?;
        shell::wait_for(&program.name(), Duration::from_secs(30), || {
            if let Err(ended) = process.check() {
                shell::interrupt();
                return Err(ended);
            }
            probe::get(&namespace, address, path).map(drop)
        })
        .with_context(|| format!("{} is not ready; its log ends:\n{}", program.name(), programs::tail(&program.name())))
    }

    /// A running program.
    pub fn process(&mut self, program: Program) -> Result<&mut Process> {
        self.programs.get_mut(&program.name()).with_context(|| format!("{} was not started", program.name()))
    }

    /// Every program that should run does; if not, how it ended.
    pub fn check_alive(&mut self) -> Result<()> {
        self.programs.values_mut().chain(self.applications.values_mut()).try_for_each(Process::check)
    }

    /// Makes a pod's namespace, attaches it with the plugin, starts its application.
    pub fn add_pod(&mut self, pod: &'static Pod) -> Result<()> {
        build::namespace(&pod.namespace())?;
        self.attach(pod)?;
        let application = self.binaries.path("lab-app");
        let words = ["serve".to_owned(), pod.name.to_owned()];
        let process =
            Process::start(&format!("pod-{}", pod.name), &pod.namespace(), &application.to_string_lossy(), &words)?;
        self.applications.insert(pod.name, process);
        Ok(())
    }

    /// CNI ADD, and the pod's address in Kubernetes.
    pub fn attach(&mut self, pod: &'static Pod) -> Result<()> {
        cni::add(&self.binaries, pod)?;
        self.attached.retain(|other| other.name != pod.name);
        self.attached.push(pod);
        manifests::write(&programs::manifests(), &self.attached)
    }

    /// CNI DEL.
    pub fn detach(&mut self, pod: &'static Pod) -> Result<()> {
        cni::delete(&self.binaries, pod)?;
        self.attached.retain(|other| other.name != pod.name);
        manifests::write(&programs::manifests(), &self.attached)
    }

    /// All eight pods.
    pub fn add_pods(&mut self) -> Result<()> {
        PODS.iter().try_for_each(|pod| self.add_pod(pod))
    }

    /// Lets the control plane push a scenario.
    pub fn push(&self, scenario: Scenario) -> Result<()> {
        let path = format!("/scenario?{}", scenario.as_str());
        let answer = probe::http(CONTROL_PLANE_NAMESPACE, "POST", "127.0.0.1:15011", &path)?;
        anyhow::ensure!(answer.status == 200, "the replay server refused {}: {}", scenario.as_str(), answer.body);
        Ok(())
    }

    /// Removes everything when this process is gone, however it ended.
    fn watch(&self) -> Result<()> {
        let own = std::process::id().to_string();
        let mut command = std::process::Command::new(self.binaries.path("lab"));
        command.args(["watch", &own]).process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().context("cannot start the watcher")?;
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.keep {
            state::remove_all();
        }
    }
}

/// The lab that is running, for commands of another process.
pub fn is_running() -> bool {
    State::load().owner.is_some() && Path::new(FOLDER).exists()
}

fn certify() -> Result<()> {
    let authority = Authority::new("lab of dpumesh")?;
    authority.save(&Path::new(FOLDER).join("mesh-ca"))?;
    Program::all().into_iter().try_for_each(|program| program.certify(&authority))?;
    HOSTS.into_iter().try_for_each(programs::write_token)
}

/// Programs that the lab calls, and their Debian packages.
const TOOLS: [(&str, &str); 5] =
    [("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux"), ("sysctl", "procps"), ("curl", "curl")];

/// What cannot be done without, each with what to do.
pub fn check_machine() -> Result<()> {
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "the lab makes network namespaces: run it as root");
    for (tool, package) in TOOLS {
        anyhow::ensure!(on_path(tool), "{tool} (package {package}) is not installed: run `make tools`");
    }
    let has_ipam = ["/usr/lib/cni/host-local", "/opt/cni/bin/host-local"].iter().any(|path| Path::new(path).exists());
    anyhow::ensure!(has_ipam, "host-local (package containernetworking-plugins) is not installed: run `make tools`");
    Ok(())
}

fn on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(tool).exists())
}
