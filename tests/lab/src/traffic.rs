//! Calls from inside a pod: curl, the load generator, and the clients of gRPC and TCP.

use crate::load::Outcome;
use crate::pods::Pod;
use crate::programs::{Binaries, Process};
use crate::shell;
use anyhow::{Context, Result};
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};

/// What curl got. Status 0: no answer.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    /// `1.1` or `2`.
    pub version: String,
    /// Null when it is no JSON.
    pub json: Value,
    pub text: String,
    pub elapsed: Duration,
    /// What curl says of a connection that failed.
    pub error: String,
}

/// Curl's answer ends with these.
const WRITE_OUT: &str = "\n%{http_code} %{http_version}";

/// GETs `http://ADDRESS/path` as `host` from a pod, with further options of curl.
pub fn curl(pod: &Pod, address: &str, host: &str, path: &str, options: &[&str]) -> Result<Response> {
    ask(shell::command_in(&pod.namespace(), "curl"), address, host, path, options)
}

/// The same with a curl that runs wherever `command` puts it.
pub fn ask(mut command: Command, address: &str, host: &str, path: &str, options: &[&str]) -> Result<Response> {
    shell::check_interrupted()?;
    command.args(["-sS", "--max-time", "10", "-w", WRITE_OUT, "-H", &format!("host: {host}")]);
    command.args(options).arg(format!("http://{address}{path}"));
    let started = Instant::now();
    let output = shell::output(&mut command)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, end) = text.rsplit_once('\n').unwrap_or(("", text.as_str()));
    let (status, version) = end.split_once(' ').unwrap_or(("0", ""));
    Ok(Response {
        status: status.parse().unwrap_or(0),
        version: version.to_owned(),
        json: serde_json::from_str(body).unwrap_or(Value::Null),
        text: body.to_owned(),
        elapsed: started.elapsed(),
        error: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Runs a client of `lab-app` in a pod and reads what it prints.
pub fn client(binaries: &Binaries, pod: &Pod, words: &[&str]) -> Result<Value> {
    shell::check_interrupted()?;
    let mut command = shell::command_in(&pod.namespace(), &binaries.path("lab-app").to_string_lossy());
    let output = shell::output(command.args(words))?;
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.trim()).with_context(|| {
        format!("{words:?} from {} failed: {}", pod.name, String::from_utf8_lossy(&output.stderr).trim())
    })
}

/// A load that runs in the background.
pub struct Load {
    process: Process,
    until: std::path::PathBuf,
}

impl Load {
    /// Starts it in a pod; `words` are flags of `lab-load`.
    pub fn start(binaries: &Binaries, pod: &Pod, name: &str, words: &[&str]) -> Result<Self> {
        let until = crate::programs::logs().join(format!("{name}.stop"));
        let mut arguments: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        arguments.extend(["--until".to_owned(), until.display().to_string()]);
        let program = binaries.path("lab-load");
        let process = Process::start(name, &pod.namespace(), &program.to_string_lossy(), &arguments)?;
        Ok(Self { process, until })
    }

    /// Waits for its end.
    pub fn finish(self) -> Result<Outcome> {
        let text = self.process.wait(Duration::from_secs(120))?;
        let line = text.lines().rfind(|line| line.starts_with('{'));
        serde_json::from_str(line.with_context(|| format!("lab-load failed: {text}"))?).context("lab-load's outcome")
    }

    /// Ends it now.
    pub fn stop(self) -> Result<Outcome> {
        std::fs::write(&self.until, "")?;
        self.finish()
    }
}

/// Flags of a load on a service.
pub fn on<'a>(address: &'a str, host: &'a str, path: &'a str) -> Vec<&'a str> {
    vec!["--address", address, "--host", host, "--path", path]
}
