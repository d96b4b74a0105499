//! Installing the product as a user does: images on the machines, the chart with Helm, then the files of each DPU from
//! the command-line tool.

use crate::cluster::Cluster;
use crate::images;
use crate::kubectl;
use crate::layout::{HOSTS, Host, netns};
use crate::machine::Machine;
use crate::product::{self, NAMESPACE};
use anyhow::{Context, Result, bail, ensure};
use lab::{probe, shell};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the release.
pub const RELEASE: &str = "dpumesh";

/// Programs of a DPU, each with the page by which it says that it is ready.
const DPU_PROGRAMS: [(&str, &str, &str); 2] =
    [("dataplane", "127.0.0.1:15131", "/readyz"), ("dpu-proxy", "127.0.0.1:15000", "/ready")];

/// The chart.
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/helm/dpumesh")
}

/// The values of this cluster.
pub fn values() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/values.yaml")
}

/// Does all of it, and waits until every part is ready.
pub fn install(cluster: &Cluster) -> Result<()> {
    import()?;
    helm_install(cluster)?;
    HOSTS.into_iter().try_for_each(|host| prepare_dpu(cluster, host))?;
    wait_ready()
}

/// Puts the images onto nodes and DPUs, which can pull none, all at once.
pub fn import() -> Result<()> {
    let machines = HOSTS.map(|host| [(host.node(), false), (host.dpu(), true)]);
    let works = machines.into_iter().flatten().map(|(name, is_dpu)| {
        std::thread::spawn(move || {
            let machine = Machine::find(&name)?;
            if is_dpu { images::import_dpu(&machine) } else { images::import_node(&machine) }
        })
    });
    let works: Vec<_> = works.collect();
    works.into_iter().try_for_each(|work| work.join().unwrap_or_else(|_| bail!("importing images broke")))
}

/// `helm upgrade` with other values than those of this cluster, as the installation guide has it, until all programs of the
/// chart are replaced and ready.
pub fn upgrade(cluster: &Cluster, more: &[&str]) -> Result<()> {
    let (chart, values) = (chart().display().to_string(), values().display().to_string());
    let definitions = format!("{chart}/crds/");
    kubectl::words(&["apply", "--server-side", "--force-conflicts", "-f", &definitions])?;
    let words = ["upgrade", RELEASE, &chart, "-n", NAMESPACE, "-f", &values];
    helm(cluster, &[words.as_slice(), more].concat())?;
    for program in ["deployment/dpumesh-controller", "daemonset/dpumesh-adapter", "daemonset/dpumesh-cni-node"] {
        kubectl::run(&format!("-n {NAMESPACE} rollout status {program} --timeout=120s"))?;
    }
    Ok(())
}

/// `helm install`.
pub fn helm_install(cluster: &Cluster) -> Result<String> {
    let (chart, values) = (chart().display().to_string(), values().display().to_string());
    helm(cluster, &["install", RELEASE, &chart, "-n", NAMESPACE, "--create-namespace", "-f", &values])
}

/// Runs helm as the cluster's administrator.
pub fn helm(cluster: &Cluster, words: &[&str]) -> Result<String> {
    shell::check_interrupted()?;
    let mut command = kubectl::tool(&cluster.tools.path("helm").to_string_lossy());
    let output = shell::output(command.args(words))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "`helm {}` failed: {}{}",
        words.join(" "),
        text,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(text)
}

/// What our command-line tool printed, and its exit code: 0 good, 1 something is wrong, 2 it cannot be told.
#[derive(Clone, Debug)]
pub struct Told {
    pub code: Option<i32>,
    pub text: String,
}

/// Runs our command-line tool as the cluster's administrator.
pub fn dpumesh(cluster: &Cluster, words: &[&str]) -> Result<Told> {
    shell::check_interrupted()?;
    let program = cluster.program("dpumesh")?;
    let output = shell::output(kubectl::tool(&program.to_string_lossy()).args(words))?;
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    Ok(Told { code: output.status.code(), text: String::from_utf8_lossy(&text).into_owned() })
}

/// Certificates and static pods of a DPU, written where its kubelet and its programs look.
pub fn prepare_dpu(cluster: &Cluster, host: Host) -> Result<()> {
    let root = Machine::find(&host.dpu())?.file("/").display().to_string();
    let node = host.node();
    let root = root.trim_end_matches('/');
    for words in [
        vec!["dpu", "certificates", &node, "--out", root, "--force"],
        vec!["dpu", "manifest", &node, "--out", root, "--force"],
    ] {
        let told = dpumesh(cluster, &words)?;
        ensure!(told.code == Some(0), "`dpumesh {}` failed: {}", words.join(" "), told.text.trim());
    }
    Ok(())
}

/// Waits for the programs of nodes and DPUs.
pub fn wait_ready() -> Result<()> {
    product::wait_ready("controller", 2)?;
    HOSTS.into_iter().try_for_each(wait_dpu)?;
    product::wait_ready("adapter", HOSTS.len())?;
    product::wait_ready("cni-node", HOSTS.len())
}

/// Waits until the programs of a DPU are ready.
pub fn wait_dpu(host: Host) -> Result<()> {
    DPU_PROGRAMS.into_iter().try_for_each(|(program, address, path)| {
        shell::wait_for(&format!("{program} of {}", host.dpu()), Duration::from_secs(60), || {
            probe::get(&netns(&host.dpu()), address, path).map(drop)
        })
        .with_context(|| format!("its pod's log ends:\n{}", dpu_log(host, program)))
    })
}

/// The end of the newest log of a program of a DPU.
pub fn dpu_log(host: Host, program: &str) -> String {
    let line = format!("tail -n 12 /var/log/pods/{NAMESPACE}_dpumesh-{program}*-{}_*/{program}/*.log", host.dpu());
    let machine = Machine::find(&host.dpu());
    let output = machine.and_then(|machine| shell::output(machine.command("sh").args(["-c", &line])));
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}
