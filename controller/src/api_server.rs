//! The way to the API server, and whether it answers.

use crate::watchers::explain;
use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use service::health::Health;
use std::path::Path;
use std::time::Duration;

/// Condition of `Health`: the API server answers. Views are served as they are while it does not.
pub const CONDITION: &str = "api_server";

const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// By a kubeconfig file, or as a pod of the cluster.
pub async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("--kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("--kubeconfig {}", path.display()))?
        }
        None => Config::incluster().context("this is no pod of a cluster: give --kubeconfig FILE")?,
    };
    config.connect_timeout = Some(Duration::from_secs(5));
    tracing::info!(api_server = %config.cluster_url, "the API server is followed");
    Client::try_from(config).context("the settings of the API server were refused")
}

/// Tells health whether the API server answers, until the process ends.
pub async fn probe(client: Client, health: Health) {
    loop {
        let answer = tokio::time::timeout(PROBE_TIMEOUT, client.apiserver_version()).await;
        let state = match answer {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("the API server does not answer: {}", explain(&error))),
            Err(_) => Err(format!("the API server did not answer within {} s", PROBE_TIMEOUT.as_secs())),
        };
        health.set(CONDITION, state);
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
}
