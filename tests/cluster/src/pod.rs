//! A pod of the cluster, and calls from inside it. They enter its network namespace as a process of the pod would, without
//! asking Kubernetes, so that they work while that is being killed.

use crate::kubectl;
use crate::layout::{self, Host};
use crate::machine::{Machine, Process};
use anyhow::{Context, Result, bail, ensure};
use lab::load::Outcome;
use lab::shell;
use lab::traffic::{self, Response};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// One that runs.
#[derive(Clone, Debug)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub host: Host,
    pub address: String,
    /// A process of it, as seen from outside.
    pub pid: i32,
    /// The same as seen on its node.
    pub pid_on_node: i32,
}

/// Pods that match a selector (`app=reviews`), that are ready and not on their way out.
pub fn ready(namespace: &str, selector: &str) -> Result<Vec<Value>> {
    let pods = kubectl::json(&format!("-n {namespace} get pods -l {selector}"))?;
    let all = pods["items"].as_array().cloned().unwrap_or_default();
    Ok(all.into_iter().filter(is_ready).collect())
}

/// Newest warnings of a namespace, one a line, for an error's text.
pub fn warnings(namespace: &str) -> Result<String> {
    let columns = "custom-columns=ON:.regarding.name,REASON:.reason,NOTE:.note";
    let line =
        format!("-n {namespace} get events.events.k8s.io --field-selector type=Warning --no-headers -o {columns}");
    let text = kubectl::run(&line)?;
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(8)..].join("\n"))
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let is_true = conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
    is_true && pod["metadata"]["deletionTimestamp"].is_null()
}

impl Pod {
    /// The first that is ready.
    pub fn find(namespace: &str, selector: &str) -> Result<Self> {
        let pods = ready(namespace, selector)?;
        Self::of(pods.first().with_context(|| format!("no pod of {namespace} with {selector} is ready"))?)
    }

    /// Of a Kubernetes object.
    pub fn of(pod: &Value) -> Result<Self> {
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let uid = text("/metadata/uid");
        let host = Host::of_node(&text("/spec/nodeName")).context("the pod is on no node")?;
        let (pid, pid_on_node) =
            pids_of(host, &uid).with_context(|| format!("pod {} on {}", text("/metadata/name"), host.node()))?;
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        Ok(Self { namespace, name, uid, host, address: text("/status/podIP"), pid, pid_on_node })
    }

    /// A command in its network namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.pid)).arg(program);
        command
    }

    /// GET from this pod.
    pub fn get(&self, service: &Service, path: &str, options: &[&str]) -> Result<Response> {
        traffic::ask(self.command("curl"), &service.address, &service.host, path, options)
    }

    /// Load from this pod, in the background; `words` are further flags of `lab-load`.
    pub fn load(&self, load: &Path, name: &str, service: &Service, path: &str, words: &[&str]) -> Result<Load> {
        let until = layout::logs().join(format!("{name}.stop"));
        let log = layout::logs().join(format!("{name}.log"));
        // Of a load of the same name before.
        let _ = (std::fs::remove_file(&until), std::fs::remove_file(&log));
        let mut command = self.command(&load.to_string_lossy());
        command.args(["--address", &service.address, "--host", &service.host, "--path", path]).args(words);
        command.arg("--until").arg(&until);
        Ok(Load { process: Process::start(name, &mut command)?, until, log })
    }
}

/// A service, by its cluster address.
#[derive(Clone, Debug)]
pub struct Service {
    pub address: String,
    pub host: String,
}

impl Service {
    /// `name` in `namespace`, at one of its ports.
    pub fn find(namespace: &str, name: &str, port: u16) -> Result<Self> {
        let service = kubectl::json(&format!("-n {namespace} get service {name}"))?;
        let address =
            service["spec"]["clusterIP"].as_str().with_context(|| format!("{name} has no cluster address"))?;
        Ok(Self { address: format!("{address}:{port}"), host: format!("{name}.{namespace}:{port}") })
    }
}

/// Pid of a container of the pod, as seen from outside and on its node.
fn pids_of(host: Host, uid: &str) -> Result<(i32, i32)> {
    let machine = Machine::find(&host.node())?;
    let containers = machine.run(&format!("ctr -n k8s.io containers ls -q labels.\"io.kubernetes.pod.uid\"=={uid}"))?;
    let tasks = machine.run("ctr -n k8s.io tasks ls")?;
    let of = |line: &str| -> Option<i32> {
        let mut words = line.split_whitespace();
        let is_of_pod = words.next().is_some_and(|id| containers.lines().any(|container| container == id));
        is_of_pod.then(|| words.next()?.parse().ok()).flatten()
    };
    let inside = tasks.lines().find_map(of).context("none of its containers runs")?;
    Ok((machine.pid_outside(inside).context("its process has ended")?, inside))
}

/// Load that runs in the background.
pub struct Load {
    process: Process,
    until: PathBuf,
    log: PathBuf,
}

impl Load {
    /// Waits for its end.
    pub fn finish(self) -> Result<Outcome> {
        shell::wait_for("end of the load", Duration::from_secs(90), || match self.process.check() {
            Ok(()) => bail!("it still runs"),
            Err(_) => Ok(()),
        })?;
        let text = std::fs::read_to_string(&self.log)?;
        let line = text.lines().rfind(|line| line.starts_with('{'));
        serde_json::from_str(line.with_context(|| format!("lab-load failed: {text}"))?).context("lab-load's outcome")
    }

    /// Ends it now.
    pub fn stop(self) -> Result<Outcome> {
        std::fs::write(&self.until, "")?;
        self.finish()
    }
}

/// Requests were made and all were answered.
pub fn faultless(outcome: &Outcome, at_least: u64) -> Result<()> {
    ensure!(outcome.requests >= at_least, "only {} requests were made, {at_least} were expected", outcome.requests);
    ensure!(outcome.failed == 0, "{} of {} failed: {:?}", outcome.failed, outcome.requests, outcome.failures);
    Ok(())
}
