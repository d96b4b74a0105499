//! From a command to an answer.

use crate::arguments::{Arguments, Certificates, Command, Describe, Dpu, Manifest, Output, Status};
use crate::check;
use crate::cluster::Cluster;
use crate::dpu::authority::Authority;
use crate::dpu::{certificates, files, manifest};
use crate::status;
use anyhow::{Context, anyhow};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// What is printed, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub text: String,
    pub outcome: Outcome,
}

/// The exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Outcome {
    Good = 0,
    /// Something is wrong.
    Bad = 1,
    /// It cannot be told.
    Unknown = 2,
}

/// Runs a command. An error means that it cannot be told.
pub async fn run(arguments: &Arguments) -> anyhow::Result<Answer> {
    let cluster = Cluster::find(&arguments.access).await?;
    match &arguments.command {
        Command::Status(arguments) => show_status(&cluster, arguments).await,
        Command::Describe(Describe::Pod(arguments)) => describe_pod(&cluster, &arguments.pod).await,
        Command::Check => show_checks(&cluster).await,
        Command::Dpu(Dpu::Certificates(arguments)) => dpu_certificates(&cluster, arguments).await,
        Command::Dpu(Dpu::Manifest(arguments)) => dpu_manifest(&cluster, arguments).await,
    }
}

async fn show_status(cluster: &Cluster, arguments: &Status) -> anyhow::Result<Answer> {
    let seen = cluster.see(arguments.namespace.as_deref()).await;
    let status = status::judge(&seen)
        .map_err(|reason| anyhow!("{reason} (API server {}; try `dpumesh check`)", cluster.server))?;
    let text = match arguments.output {
        Some(Output::Json) => serde_json::to_string_pretty(&status).context("cannot be said in JSON")? + "\n",
        output => status::text(&status, output == Some(Output::Wide)),
    };
    Ok(Answer { text, outcome: status.outcome() })
}

async fn describe_pod(cluster: &Cluster, pod: &str) -> anyhow::Result<Answer> {
    let (namespace, name) = pod.split_once('/').unwrap_or((&cluster.default_namespace, pod));
    let described = cluster.describe(namespace, name).await?;
    let outcome = if described.is_good() { Outcome::Good } else { Outcome::Bad };
    Ok(Answer { text: described.text(), outcome })
}

async fn show_checks(cluster: &Cluster) -> anyhow::Result<Answer> {
    let checks = check::checks(&cluster.check().await);
    Ok(Answer { text: check::text(&checks), outcome: check::outcome(&checks) })
}

async fn dpu_certificates(cluster: &Cluster, arguments: &Certificates) -> anyhow::Result<Answer> {
    cluster.require_node(&arguments.node).await?;
    let settings = cluster.settings().await?;
    let (certificate, key) = cluster.authority(&settings.ca_secret).await?;
    let now = SystemTime::now();
    let authority = Authority::new(&certificate, &key, now)?;
    let validity = Duration::from_secs(u64::from(arguments.days) * 24 * 3600);
    let made = certificates::files(&authority, &arguments.node, validity, now)?;
    let paths = files::write(&arguments.out, &made, arguments.force)?;
    let node = &arguments.node;
    let advice = format!("Copy them to / of the DPU of {node} and remove them here: they hold private keys.\n");
    Ok(good(written(&paths) + &advice))
}

async fn dpu_manifest(cluster: &Cluster, arguments: &Manifest) -> anyhow::Result<Answer> {
    cluster.require_node(&arguments.node).await?;
    let mut settings = cluster.settings().await?;
    if let Some(uplink) = &arguments.uplink {
        settings.dpu.uplink.clone_from(uplink);
    }
    if let Some(host_interface) = &arguments.host_interface {
        settings.dpu.host_interface.clone_from(host_interface);
    }
    let made = manifest::files(&arguments.node, &settings);
    let Some(folder) = &arguments.out else { return Ok(good(manifest::page(&made))) };
    let paths = files::write(folder, &made, arguments.force)?;
    Ok(good(written(&paths)))
}

fn written(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| format!("wrote {}\n", path.display())).collect()
}

fn good(text: String) -> Answer {
    Answer { text, outcome: Outcome::Good }
}
