//! The API server, read with the caller's own rights.

use crate::arguments::Access;
use crate::check::Checked;
use crate::describe::Described;
use crate::seen::{Found, Seen};
use anyhow::{Context, bail};
use futures_util::join;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::config::KubeConfigOptions;
use kube::{Api, Client, Config, Resource};
use kube_api::{DpuWorkload, GROUP, objects};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
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
            None => Config::infer().await.map_err(|error| anyhow::anyhow!("no cluster: set KUBECONFIG ({error})"))?,
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

    /// All that `status` judges. What cannot be seen is named in its place.
    pub async fn see(&self, namespace: Option<&str>) -> Seen {
        let (nodes, namespaces, pods, dpu_nodes, workloads) = join!(
            self.list(self.all()),
            self.list(self.all()),
            self.list(self.of(namespace)),
            self.list(self.all()),
            self.list(self.of(namespace)),
        );
        let (networks, system_pods, deployments, daemon_sets, leases) = join!(
            self.list(self.all()),
            self.list(self.own()),
            self.list(self.own()),
            self.list(self.own()),
            self.list(self.own()),
        );
        let (system_namespace, namespace) = (self.namespace.clone(), namespace.map(str::to_owned));
        let now = Timestamp::now();
        Seen {
            now,
            system_namespace,
            namespace,
            nodes,
            namespaces,
            pods,
            dpu_nodes,
            workloads,
            networks,
            system_pods,
            deployments,
            daemon_sets,
            leases,
        }
    }

    /// All that `check` looks at.
    pub async fn check(&self) -> Checked {
        let version =
            self.client.apiserver_version().await.map(|info| info.git_version).map_err(|error| explain(&error));
        let (seen, kinds, system) = join!(self.see(None), self.kinds(), self.get(self.all(), &self.namespace));
        let istiods: Api<_> = self.all();
        let of_istiod = ListParams::default().labels("app=istiod");
        let (authority, istio_root, istiods) = join!(
            self.get(self.own(), objects::CA_CONFIG_MAP),
            self.get(self.own(), "istio-ca-root-cert"),
            istiods.list(&of_istiod),
        );
        let istiods =
            istiods.map(|list| list.items).map_err(|error| refused("list deployments of all namespaces", &error));
        Checked { seen, server: self.server.clone(), version, kinds, system, authority, istio_root, istiods }
    }

    /// A pod's workload and events.
    pub async fn describe(&self, namespace: &str, name: &str) -> anyhow::Result<Described> {
        let workloads: Api<DpuWorkload> = self.of(Some(namespace));
        let events: Api<Event> = self.of(Some(namespace));
        let of_pod = ListParams::default().fields(&format!("involvedObject.kind=Pod,involvedObject.name={name}"));
        let workload = workloads.get_opt(name).await.map_err(self.failed("read dpuworkloads"))?;
        let Some(workload) = workload else { bail!(self.no_workload(namespace, name).await) };
        // Without the right to see events the rest is still worth something.
        let events = events.list(&of_pod).await.map(|list| list.items).unwrap_or_default();
        Ok(Described { workload, events, now: Timestamp::now() })
    }

    async fn no_workload(&self, namespace: &str, name: &str) -> String {
        let pods: Api<Pod> = self.of(Some(namespace));
        match pods.get_opt(name).await {
            Ok(Some(_)) => format!(
                "pod {namespace}/{name} has no VF: it uses the host's network, runs on a node without DPU, or was started \
                 before; `kubectl -n {namespace} describe pod {name}` shows its events"
            ),
            _ => format!("there is no pod {namespace}/{name}"),
        }
    }

    /// Kinds of our group; none when the group is not served.
    async fn kinds(&self) -> Result<Vec<String>, String> {
        match self.client.list_api_group_resources(&format!("{GROUP}/v1")).await {
            Ok(list) => {
                Ok(list.resources.into_iter().filter(|one| !one.name.contains('/')).map(|one| one.kind).collect())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
            Err(error) => Err(explain(&error)),
        }
    }

    fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// In a namespace, or in all.
    fn of<K>(&self, namespace: Option<&str>) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        namespace.map_or_else(|| self.all(), |namespace| Api::namespaced(self.client.clone(), namespace))
    }

    /// In the release's namespace.
    fn own<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        self.of(Some(&self.namespace))
    }

    async fn list<K>(&self, api: Api<K>) -> Found<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let list = api.list(&ListParams::default()).await;
        list.map(|list| list.items).map_err(|error| refused(&format!("list {}", K::plural(&())), &error))
    }

    async fn get<K>(&self, api: Api<K>, name: &str) -> Result<Option<K>, String>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        api.get_opt(name).await.map_err(|error| refused(&format!("read {} {name}", K::kind(&())), &error))
    }

    /// Refuses a name that no node has: the certificate would fit nothing.
    pub async fn require_node(&self, name: &str) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let all = nodes.list_metadata(&Default::default()).await.map_err(self.failed("list nodes"))?;
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
        let map = maps.get_opt(name).await.map_err(self.failed(format!("read {what}")))?;
        let map = map.with_context(|| self.missing(&what))?;
        let text = map.data.unwrap_or_default().remove(key);
        text.with_context(|| format!("{what} has no {key}: `helm upgrade` writes it again"))
    }

    /// Certificate and key of the authority.
    pub async fn authority(&self, secret: &str) -> anyhow::Result<(String, String)> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let what = format!("Secret {}/{secret}", self.namespace);
        let found = secrets.get_opt(secret).await.map_err(self.failed(format!("read {what}")))?;
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

    /// What could not be done, where, and why.
    fn failed(&self, action: impl Into<String>) -> impl FnOnce(kube::Error) -> anyhow::Error {
        let (action, server) = (action.into(), self.server.clone());
        move |error| anyhow::anyhow!("{} (API server {server})", refused(&action, &error))
    }

    fn missing(&self, what: &str) -> String {
        format!("{what} is not there: is the chart installed there? (--system-namespace)")
    }
}

/// Why something cannot be seen, in a sentence.
fn refused(action: &str, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => format!("you may not {action}: {}", status.message),
        kube::Error::Api(status) if status.code == 404 => {
            format!("cannot {action}: the API server does not serve them")
        }
        error => format!("cannot {action}: {}", explain(error)),
    }
}

/// The innermost cause says what happened; those around it say which library saw it.
fn explain(error: &kube::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}
