//! kubectl as the cluster's administrator, in the control plane's namespace.

use crate::layout::{self, CONTROL};
use crate::pki;
use anyhow::{Context, Result, bail};
use lab::shell;
use serde_json::Value;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The command, for callers that add their own arguments.
pub fn command() -> Command {
    tool("kubectl")
}

/// Any client of the API server: it runs where the API server is reached, as the administrator.
pub fn tool(program: &str) -> Command {
    let mut command = shell::command_in(CONTROL, program);
    command.env("KUBECONFIG", pki::kubeconfig("admin"));
    // What clients keep is the cluster's, and goes with it.
    for (name, folder) in [
        ("KUBECACHEDIR", "kube"),
        ("HELM_CACHE_HOME", "helm/cache"),
        ("HELM_CONFIG_HOME", "helm/config"),
        ("HELM_DATA_HOME", "helm/data"),
    ] {
        command.env(name, layout::path(folder));
    }
    command
}

/// Runs words separated by spaces; what it printed.
pub fn run(line: &str) -> Result<String> {
    words(&line.split_whitespace().collect::<Vec<_>>())
}

/// Runs these words.
pub fn words(words: &[&str]) -> Result<String> {
    shell::check_interrupted()?;
    let output = shell::output(command().args(words))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => bail!("`kubectl {}` failed: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim()),
    }
}

/// `get … -o json`, parsed.
pub fn json(line: &str) -> Result<Value> {
    let text = run(&format!("{line} -o json"))?;
    serde_json::from_str(&text).with_context(|| format!("`kubectl {line} -o json` printed no JSON"))
}

/// Applies manifests.
pub fn apply(manifests: &str) -> Result<String> {
    piped(&["apply", "--server-side", "--force-conflicts", "-f", "-"], manifests)
}

/// Deletes what manifests name, if it is there.
pub fn delete(manifests: &str) -> Result<String> {
    piped(&["delete", "--ignore-not-found", "--wait=false", "-f", "-"], manifests)
}

/// Manifests that are in force while this lives.
#[must_use]
pub struct Applied {
    manifests: String,
}

impl Applied {
    /// Applies them.
    pub fn new(manifests: &str) -> Result<Self> {
        let applied = Self { manifests: manifests.to_owned() };
        apply(manifests)?;
        Ok(applied)
    }

    /// Deletes what they name.
    pub fn delete(mut self) -> Result<()> {
        delete(&std::mem::take(&mut self.manifests)).map(drop)
    }
}

impl Drop for Applied {
    fn drop(&mut self) {
        // After a failed check: it is deleted for the next one's sake; the failure is what is told.
        if !self.manifests.is_empty() {
            let _ = delete(&self.manifests);
        }
    }
}

fn piped(words: &[&str], input: &str) -> Result<String> {
    shell::check_interrupted()?;
    let mut child =
        command().args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("a pipe")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => bail!("`kubectl {}` failed: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim()),
    }
}

/// Waits until a node, pod or other object has a condition.
pub fn wait_condition(what: &str, condition: &str, seconds: u64) -> Result<()> {
    shell::wait_for(&format!("{what} {condition}"), Duration::from_secs(seconds), || {
        let path = format!("jsonpath={{.status.conditions[?(@.type==\"{condition}\")]}}");
        let text = words(&[&["get"], what.split(' ').collect::<Vec<_>>().as_slice(), &["-o", &path]].concat())?;
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        anyhow::ensure!(value["status"] == "True", "{}: {}", value["reason"], value["message"]);
        Ok(())
    })
}
