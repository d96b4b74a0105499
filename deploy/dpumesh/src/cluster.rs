//! The API server, read with the caller's own rights.

use crate::arguments::Access;
use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use kube::config::KubeConfigOptions;
use kube::{Api, Client, Config};
use kube_api::objects;
use std::time::Duration;

/// An API server that does not answer within this is taken for away.
const PATIENCE: Duration = Duration::from_secs(15);

/// A connection, and where the product is.
#[derive(Clone)]
pub struct Cluster {
    pub client: Client,
    /// Namespace of the release.
    pub namespace: String,
    /// Namespace of the kubeconfig's context.
    pub default_namespace: String,
    /// Address of the API server, for messages.
    pub server: String,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("server", &self.server)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// Finds the API server. Nothing is asked of it yet.
    pub async fn find(access: &Access) -> anyhow::Result<Self> {
        let mut config = match &access.context {
            None => Config::infer().await.context("no cluster: give a kubeconfig (KUBECONFIG)")?,
            Some(context) => {
                let options = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
                Config::from_kubeconfig(&options).await.with_context(|| format!("context {context:?}"))?
            }
        };
        config.connect_timeout = Some(PATIENCE);
        config.read_timeout = Some(PATIENCE);
        let (server, default_namespace) = (config.cluster_url.to_string(), config.default_namespace.clone());
        let client = Client::try_from(config).context("the kubeconfig cannot be used")?;
        Ok(Self { client, namespace: access.system_namespace.clone(), default_namespace, server })
    }

    /// Refuses a name that no node has: the certificate would fit nothing.
    pub async fn require_node(&self, name: &str) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let all = nodes.list_metadata(&Default::default()).await.with_context(|| self.cannot("list nodes"))?;
        let names: Vec<String> = all.items.into_iter().filter_map(|node| node.metadata.name).collect();
        if !names.iter().any(|one| one == name) {
            bail!("there is no node {name:?}; nodes are: {}", names.join(", "));
        }
        Ok(())
    }

    /// A text of a ConfigMap of the release.
    pub async fn config_map(&self, name: &str, key: &str) -> anyhow::Result<String> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let what = format!("ConfigMap {}/{name}", self.namespace);
        let map = maps.get_opt(name).await.with_context(|| self.cannot(&format!("read {what}")))?;
        let map = map.with_context(|| self.missing(&what))?;
        let text = map.data.unwrap_or_default().remove(key);
        text.with_context(|| format!("{what} has no {key}: `helm upgrade` writes it again"))
    }

    /// Certificate and key of the authority.
    pub async fn authority(&self, secret: &str) -> anyhow::Result<(String, String)> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let what = format!("Secret {}/{secret}", self.namespace);
        let found = secrets.get_opt(secret).await.with_context(|| self.cannot(&format!("read {what}")))?;
        let mut data = found.with_context(|| self.missing(&what))?.data.unwrap_or_default();
        let mut text = |key: &str| {
            let bytes = data.remove(key).with_context(|| format!("{what} has no {key}"))?;
            String::from_utf8(bytes.0).map_err(|_| anyhow::anyhow!("{key} of {what} is no PEM text"))
        };
        Ok((text("tls.crt")?, text("tls.key")?))
    }

    /// The settings that the chart wrote.
    pub async fn settings(&self) -> anyhow::Result<crate::dpu::settings::Settings> {
        let (name, key) = (objects::SETTINGS_CONFIG_MAP, crate::dpu::settings::KEY);
        let text = self.config_map(name, key).await?;
        crate::dpu::settings::Settings::parse(&text).with_context(|| {
            format!(
                "ConfigMap {}/{name} is of another version of the chart than this tool ({})",
                self.namespace,
                env!("CARGO_PKG_VERSION")
            )
        })
    }

    /// What could not be done, where.
    pub fn cannot(&self, action: &str) -> String {
        format!("cannot {action} at {}", self.server)
    }

    fn missing(&self, what: &str) -> String {
        format!("{what} is not there: is the chart installed there? (--system-namespace)")
    }
}
