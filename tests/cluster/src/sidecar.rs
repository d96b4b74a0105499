//! A plain Istio sidecar: what injection would have added to a pod, started by hand in the pod's network namespace.
//! Istio's own agent, a stock Envoy, and the redirect of the pod's connections to it.

use crate::kubectl;
use crate::layout::{self, CONTROL_ADDRESS};
use crate::machine::{Machine, Process, tail};
use crate::pki::write_private;
use crate::pod::Pod;
use crate::tools::{self, Tools};
use anyhow::{Context, Result};
use lab::shell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// Group of the agent and Envoy, whose own connections are not redirected.
const GROUP: u32 = 1337;

/// A sidecar that runs.
#[derive(Clone, Debug)]
pub struct Sidecar {
    pub pod: Pod,
    process: Process,
}

impl Sidecar {
    /// Starts one beside the pod's application; `port` is what that listens on.
    pub fn start(tools: &Tools, pod: &Pod, service_account: &str, port: u16) -> Result<Self> {
        let folder = layout::path(format!("sidecars/{}", pod.name));
        write_files(&folder, pod, service_account)?;
        redirect(pod)?;
        let machine = Machine::find(&pod.host.node())?;
        let mut command = machine.command("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", pod.pid_on_node)).arg(format!("--wd={}", folder.display()));
        command.args(["setpriv", "--regid", &GROUP.to_string(), "--clear-groups", "--reset-env"]);
        command.arg("env").args(environment(pod, service_account, port, &folder)?);
        command.arg(tools.path("pilot-agent")).args(["proxy", "sidecar", "--proxyLogLevel=warning"]);
        command.arg("--domain").arg(format!("{}.svc.cluster.local", pod.namespace));
        command.arg("--templateFile").arg(tools.envoy_template()?);
        let process = Process::start(&format!("sidecar-{}", pod.name), &mut command)?;
        Ok(Self { pod: pod.clone(), process })
    }

    /// Waits until it has its configuration.
    pub fn wait(&self) -> Result<()> {
        shell::wait_for(&format!("sidecar of {}", self.pod.name), Duration::from_secs(30), || {
            self.process.check()?;
            let mut curl = self.pod.command("curl");
            let output = shell::output(curl.args(["-sf", "--max-time", "1", "http://127.0.0.1:15021/healthz/ready"]))?;
            anyhow::ensure!(output.status.success(), "its log ends:\n{}", tail(&self.process.name));
            Ok(())
        })
    }

    /// Pids of agent and Envoy.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let agent = self.process.id()?.pid;
        Ok(std::iter::once(agent).chain(children(agent)).collect())
    }

    /// Ends it.
    pub fn stop(self) -> Result<()> {
        self.process.stop()
    }
}

/// A child is listed with the thread that started it.
fn children(pid: i32) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Where the agent looks for them, relative to its folder.
fn write_files(folder: &Path, pod: &Pod, service_account: &str) -> Result<()> {
    for name in ["var/run/secrets/tokens", "var/run/secrets/istio", "etc/istio/pod", "etc/istio/proxy"] {
        std::fs::create_dir_all(folder.join(name))?;
    }
    let token = kubectl::run(&format!(
        "-n {} create token {service_account} --audience istio-ca --bound-object-kind Pod --bound-object-name {}",
        pod.namespace, pod.name
    ))?;
    write_private(&folder.join("var/run/secrets/tokens/istio-token"), token.trim())?;
    let root = kubectl::json("-n istio-system get configmap istio-ca-root-cert")?;
    let root = root["data"]["root-cert.pem"].as_str().context("istiod has not published its root")?;
    std::fs::write(folder.join("var/run/secrets/istio/root-cert.pem"), root)?;
    let object = kubectl::json(&format!("-n {} get pod {}", pod.namespace, pod.name))?;
    let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
    let labels: String = labels.map(|(name, value)| format!("{name}={value}\n")).collect();
    std::fs::write(folder.join("etc/istio/pod/labels"), labels)?;
    std::fs::write(folder.join("etc/istio/pod/annotations"), "").context("cannot write the sidecar's files")
}

fn environment(pod: &Pod, service_account: &str, port: u16, folder: &Path) -> Result<Vec<String>> {
    let envoy = real_envoy()?;
    let config = serde_json::json!({
        "discoveryAddress": format!("{CONTROL_ADDRESS}:15012"),
        "binaryPath": envoy, "configPath": folder.join("etc/istio/proxy"), "concurrency": 1,
    });
    let app = pod.name.split('-').next().unwrap_or(&pod.name);
    let pairs = [
        ("PATH", "/usr/bin:/bin".to_owned()),
        ("POD_NAME", pod.name.clone()),
        ("POD_NAMESPACE", pod.namespace.clone()),
        ("INSTANCE_IP", pod.address.clone()),
        ("SERVICE_ACCOUNT", service_account.to_owned()),
        ("TRUST_DOMAIN", "cluster.local".to_owned()),
        ("CA_ADDR", format!("{CONTROL_ADDRESS}:15012")),
        ("PILOT_CERT_PROVIDER", "istiod".to_owned()),
        ("ISTIO_META_CLUSTER_ID", "Kubernetes".to_owned()),
        ("ISTIO_META_APP_CONTAINERS", "app".to_owned()),
        ("ISTIO_META_POD_PORTS", format!("[{{\"containerPort\":{port}}}]")),
        ("ISTIO_META_WORKLOAD_NAME", app.to_owned()),
        ("ISTIO_META_OWNER", format!("kubernetes://apis/v1/namespaces/{}/pods/{}", pod.namespace, pod.name)),
        ("PROXY_CONFIG", config.to_string()),
    ];
    Ok(pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

/// The package's `envoy` may be a script that finds the program.
fn real_envoy() -> Result<PathBuf> {
    let found = tools::envoy()?;
    let folder = found.parent().and_then(Path::parent).context("Envoy is in no virtual environment")?;
    let packaged = shell::attempt(&format!("find {}/lib -type f -name envoy -size +1M", folder.display()));
    let packaged = packaged.as_deref().and_then(|text| text.lines().next().map(PathBuf::from));
    Ok(packaged.unwrap_or(found))
}

/// All TCP of the pod to Envoy and from it, but for the sidecar's own.
fn redirect(pod: &Pod) -> Result<()> {
    let rules = format!(
        "table ip sidecar {{\n chain inbound {{\n  type nat hook prerouting priority dstnat\n  \
         tcp dport {{ 15020, 15021, 15090 }} accept\n  meta l4proto tcp redirect to :15006\n }}\n chain outbound {{\n  \
         type nat hook output priority -100\n  meta skgid {GROUP} accept\n  ip daddr 127.0.0.0/8 accept\n  \
         meta l4proto tcp redirect to :15001\n }}\n}}\n"
    );
    let mut nft = pod.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    nft.stdin.take().context("a pipe")?.write_all(rules.as_bytes())?;
    let output = nft.wait_with_output()?;
    anyhow::ensure!(output.status.success(), "nft refused the redirect: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
