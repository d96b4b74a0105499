//! Calls the real plugin binary exactly as a container runtime does: environment, configuration on standard
//! input, result or error on standard output.

use crate::pods::Pod;
use crate::programs::Binaries;
use crate::shell;
use crate::state::FOLDER;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::Write;
use std::process::Stdio;

/// What the plugin answered.
#[derive(Clone, Debug)]
pub struct Called {
    pub success: bool,
    /// Null when it printed nothing.
    pub output: Value,
}

/// The network configuration of a pod. `host-local` gives exactly the recorded address.
pub fn netconf(pod: &Pod) -> Value {
    let node = pod.host.node();
    let subnet = format!("10.244.{}.0/24", pod.host.number);
    json!({
        "cniVersion": "1.0.0", "name": "dpumesh", "type": "istio-dpu-cni",
        "daemonSocket": format!("{FOLDER}/{node}/cni.sock"),
        "args": { "cni": { "ips": [pod.address] } },
        "ipam": {
            "type": "host-local", "dataDir": format!("{FOLDER}/{node}/ipam"),
            "ranges": [[{ "subnet": subnet }]], "routes": [{ "dst": "0.0.0.0/0" }],
        },
    })
}

/// Runs the plugin for a pod with this configuration.
pub fn call(binaries: &Binaries, command: &str, pod: &Pod, netconf: &Value) -> Result<Called> {
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=bookinfo;K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        pod.name,
        pod.container_id(),
        pod.uid()
    );
    call_raw(
        binaries,
        pod,
        &[
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", &pod.container_id()),
            ("CNI_NETNS", &format!("/run/netns/{}", pod.namespace())),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni"),
            ("CNI_ARGS", &args),
        ],
        netconf.to_string().as_bytes(),
    )
}

/// Runs the plugin on the pod's host with any environment and input.
pub fn call_raw(binaries: &Binaries, pod: &Pod, environment: &[(&str, &str)], input: &[u8]) -> Result<Called> {
    let plugin = binaries.path("istio-dpu-cni");
    let mut command = shell::command_in(&pod.host.namespace(), &plugin.to_string_lossy());
    command.envs(environment.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot run istio-dpu-cni")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input)?;
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let parsed = if text.trim().is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).context("the plugin printed no JSON")?
    };
    Ok(Called { success: output.status.success(), output: parsed })
}

/// ADD; the address of the result must be the recorded one.
pub fn add(binaries: &Binaries, pod: &Pod) -> Result<Value> {
    let called = call(binaries, "ADD", pod, &netconf(pod))?;
    let address = called.output["ips"][0]["address"].as_str().unwrap_or_default().to_owned();
    match called.success {
        false => bail!("ADD of {} failed: {}", pod.name, called.output),
        true if !address.starts_with(&format!("{}/", pod.address)) => {
            bail!("{} got {address}, not {}", pod.name, pod.address)
        }
        true => Ok(called.output),
    }
}

/// DEL.
pub fn delete(binaries: &Binaries, pod: &Pod) -> Result<()> {
    let called = call(binaries, "DEL", pod, &netconf(pod))?;
    anyhow::ensure!(called.success, "DEL of {} failed: {}", pod.name, called.output);
    Ok(())
}
