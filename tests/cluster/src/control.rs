//! The control plane: etcd, API server, controller manager, scheduler, istiod, DNS. Each an ordinary process in the
//! control plane's namespace, with the flags that an installer would give it.

use crate::kubectl;
use crate::layout::{
    self, CONTROL, CONTROL_ADDRESS, DNS_SERVICE, FABRIC_ADDRESS, HOSTS, Host, POD_RANGE, SERVICE_RANGE,
};
use crate::machine::{self, Process};
use crate::pki::{self, Pki};
use crate::tools::Tools;
use anyhow::{Context, Result};
use lab::{probe, shell};
use std::path::Path;
use std::time::Duration;

/// A program of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Etcd,
    ApiServer,
    ControllerManager,
    Scheduler,
    Istiod,
    Dns,
}

/// The service account whose signing requests for others istiod answers.
const TRUSTED: &str = "dpumesh-system/dpumesh-adapter";

/// Makes the namespace with its two networks.
pub fn build() -> Result<()> {
    machine::namespace(CONTROL)?;
    for (bridge, address) in [("br0", CONTROL_ADDRESS), ("fabric", FABRIC_ADDRESS)] {
        shell::run_all(&[
            format!("ip -n {CONTROL} link add {bridge} type bridge stp_state 0 forward_delay 0"),
            format!("ip -n {CONTROL} address add {address}/24 dev {bridge}"),
            format!("ip -n {CONTROL} link set {bridge} up"),
        ])?;
    }
    HOSTS.into_iter().try_for_each(|host| {
        let (pods, node) = (host.bridge_pods(), host.address());
        shell::run(&format!("ip -n {CONTROL} route add {pods} via {node} onlink dev br0")).map(drop)
    })
}

/// Pods with a VF are behind their DPU: routes to the addresses that Kubernetes gave to the node. The node itself has a way
/// of its own to them, which the product sets.
pub fn route(host: Host) -> Result<()> {
    let node = kubectl::json(&format!("get node {}", host.node()))?;
    let pods = node["spec"]["podCIDR"].as_str().with_context(|| format!("{} has no podCIDR yet", host.node()))?;
    shell::run(&format!("ip -n {CONTROL} route replace {pods} via {} onlink dev fabric", host.underlay())).map(drop)
}

/// Starts all, each once what it needs is there.
pub fn start(tools: &Tools) -> Result<()> {
    start_kubernetes(tools)?;
    Program::Scheduler.start(tools)?;
    kubectl::apply(&services())?;
    write_dns_config()?;
    write_mesh_config(&mesh_config())?;
    Program::Istiod.start(tools)?;
    Program::Dns.start(tools)?;
    Program::ControllerManager.wait()?;
    Program::Scheduler.wait()?;
    Program::Dns.wait()?;
    Program::Istiod.wait()
}

/// Starts what istiod needs, and an istiod with Istio's defaults and these settings of the mesh. No pod can be placed.
pub fn start_alone(tools: &Tools, mesh: &str) -> Result<()> {
    start_kubernetes(tools)?;
    write_mesh_config(mesh)?;
    Program::Istiod.spawn(tools, &[])?;
    Program::ControllerManager.wait()?;
    Program::Istiod.wait()
}

/// Kubernetes but for the scheduler, and the kinds of Istio.
fn start_kubernetes(tools: &Tools) -> Result<()> {
    Program::Etcd.start(tools)?.wait()?;
    Program::ApiServer.start(tools)?.wait()?;
    Program::ControllerManager.start(tools)?;
    kubectl::apply(&std::fs::read_to_string(tools.istio_crds()?).context("Istio's CRDs")?)?;
    kubectl::apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system}\n").map(drop)
}

/// Starts an istiod that answers the signing requests of another service account.
pub fn start_istiod(tools: &Tools, trusted: &str) -> Result<Program> {
    Program::Istiod.spawn(tools, &for_stock_envoys(trusted))
}

impl Program {
    /// Name of its log and in the state file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Istiod => "istiod",
            Self::Dns => "dns",
        }
    }

    /// Starts it.
    pub fn start(self, tools: &Tools) -> Result<Self> {
        self.spawn(tools, &for_stock_envoys(TRUSTED))
    }

    /// `more` are variables of istiod.
    fn spawn(self, tools: &Tools, more: &[(&str, &str)]) -> Result<Self> {
        let (program, arguments) = match self {
            Self::Etcd => ("etcd".into(), etcd()),
            Self::ApiServer => (tools.path("kube-apiserver"), api_server()),
            Self::ControllerManager => (tools.path("kube-controller-manager"), controller_manager()),
            Self::Scheduler => (tools.path("kube-scheduler"), scheduler()),
            Self::Istiod => (tools.path("pilot-discovery"), istiod()),
            Self::Dns => (tools.path("dns"), format!("-conf {}", layout::path("Corefile").display())),
        };
        let mut command = shell::command_in(CONTROL, &program.to_string_lossy());
        command.args(arguments.split_whitespace());
        if self == Self::Istiod {
            command.envs(ISTIOD_ENVIRONMENT).envs(more.iter().copied());
        }
        Process::start(self.name(), &mut command)?;
        Ok(self)
    }

    /// The one that runs.
    pub fn process(self) -> Result<Process> {
        Process::find(self.name())
    }

    /// Waits until it is ready.
    pub fn wait(self) -> Result<()> {
        self.process()?.wait_ready(Duration::from_secs(60), || self.is_ready())
    }

    fn is_ready(self) -> Result<()> {
        match self {
            Self::Etcd => probe::get(CONTROL, "127.0.0.1:2379", "/health").map(drop),
            Self::ApiServer => kubectl::run("get --raw /readyz").map(drop),
            Self::ControllerManager => kubectl::run("-n default get serviceaccount default").map(drop),
            Self::Scheduler => Ok(()),
            Self::Istiod => probe::get(CONTROL, &format!("{CONTROL_ADDRESS}:8080"), "/ready").map(drop),
            Self::Dns => probe::get(CONTROL, "127.0.0.1:8181", "/ready").map(drop),
        }
    }
}

fn etcd() -> String {
    let (client, peer) = ("http://127.0.0.1:2379", "http://127.0.0.1:2380");
    format!(
        "--data-dir {} --unsafe-no-fsync --log-level warn --listen-client-urls {client} --advertise-client-urls {client} \
         --listen-peer-urls {peer} --initial-advertise-peer-urls {peer} --initial-cluster default={peer}",
        layout::path("etcd").display()
    )
}

fn api_server() -> String {
    let pki = |name: &str| pki::file(name).display().to_string();
    format!(
        "--etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 --secure-port=6443 --advertise-address={CONTROL_ADDRESS} \
         --tls-cert-file={} --tls-private-key-file={} --client-ca-file={} --service-cluster-ip-range={SERVICE_RANGE} \
         --service-account-issuer=https://kubernetes.default.svc --service-account-key-file={} \
         --service-account-signing-key-file={} --kubelet-client-certificate={} --kubelet-client-key={} \
         --kubelet-preferred-address-types=InternalIP --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true --profiling=false",
        pki("apiserver.crt"),
        pki("apiserver.key"),
        pki("ca.crt"),
        pki("service-accounts.pub"),
        pki("service-accounts.key"),
        pki("admin.crt"),
        pki("admin.key"),
    )
}

fn controller_manager() -> String {
    let pki = |name: &str| pki::file(name).display().to_string();
    let kubeconfig = pki::kubeconfig("controller-manager");
    format!(
        "--kubeconfig={} --bind-address=127.0.0.1 --leader-elect=false --use-service-account-credentials=true \
         --allocate-node-cidrs=true --cluster-cidr={POD_RANGE} --service-cluster-ip-range={SERVICE_RANGE} \
         --service-account-private-key-file={} --root-ca-file={ca} --cluster-signing-cert-file={ca} --cluster-signing-key-file={}",
        kubeconfig.display(),
        pki("service-accounts.key"),
        pki("ca.key"),
        ca = pki("ca.crt"),
    )
}

fn scheduler() -> String {
    let kubeconfig = pki::kubeconfig("scheduler");
    format!("--kubeconfig={} --bind-address=127.0.0.1 --leader-elect=false", kubeconfig.display())
}

fn istiod() -> String {
    format!(
        "discovery --kubeconfig={} --meshConfig={} --grpcAddr={CONTROL_ADDRESS}:15010 --secureGRPCAddr={CONTROL_ADDRESS}:15012 \
         --httpAddr={CONTROL_ADDRESS}:8080 --httpsAddr=127.0.0.1:15017 --monitoringAddr=127.0.0.1:15014 --ctrlz_port=0",
        pki::kubeconfig("admin").display(),
        layout::path("mesh.yaml").display()
    )
}

/// No webhook is registered: nothing is injected, and objects are judged when they are translated.
const ISTIOD_ENVIRONMENT: [(&str, &str); 8] = [
    ("POD_NAMESPACE", "istio-system"),
    ("POD_NAME", "istiod-0"),
    ("SERVICE_ACCOUNT", "istiod"),
    ("CLUSTER_ID", "Kubernetes"),
    ("PILOT_CERT_PROVIDER", "istiod"),
    ("INJECTION_WEBHOOK_CONFIG_NAME", ""),
    ("VALIDATION_WEBHOOK_CONFIG_NAME", ""),
    ("ISTIOD_CUSTOM_HOST", CONTROL_ADDRESS),
];

/// Metadata exchange and Istio's own ALPN filter are off, so that the stock Envoy of the sidecars accepts what it is sent.
fn for_stock_envoys(trusted: &str) -> [(&str, &str); 3] {
    [
        ("CA_TRUSTED_NODE_ACCOUNTS", trusted),
        ("PILOT_ENABLE_METADATA_EXCHANGE", "false"),
        ("PILOT_ENABLE_ALPN_FILTER", "false"),
    ]
}

fn mesh_config() -> String {
    format!(
        "trustDomain: cluster.local\nrootNamespace: istio-system\naccessLogFile: /dev/stdout\n\
         defaultConfig: {{discoveryAddress: \"{CONTROL_ADDRESS}:15012\"}}\n"
    )
}

fn write_mesh_config(text: &str) -> Result<()> {
    std::fs::write(layout::path("mesh.yaml"), text).context("cannot write istiod's mesh configuration")
}

fn write_dns_config() -> Result<()> {
    let text = format!(
        ".:53 {{\n  errors\n  health 127.0.0.1:8182\n  ready 127.0.0.1:8181\n  cache 5\n  kubernetes cluster.local {{\n    kubeconfig {} cluster\n    pods verified\n  }}\n}}\n",
        pki::kubeconfig("admin").display()
    );
    std::fs::write(layout::path("Corefile"), text).context("cannot write the DNS server's configuration")
}

/// What runs outside of pods is found by services all the same.
fn services() -> String {
    let service = |namespace: &str, name: &str, address: &str, ports: &[(&str, u16, &str)]| {
        let list = |field: &str| -> String {
            let port = |(name, port, protocol): &(&str, u16, &str)| {
                format!("  - {{name: {name}, {field}: {port}, protocol: {protocol}}}\n")
            };
            ports.iter().map(port).collect()
        };
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  {address}\n  ports:\n{}---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-1\n  namespace: {namespace}\n  \
             labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\nendpoints: [{{addresses: [{CONTROL_ADDRESS}], conditions: {{ready: true}}}}]\nports:\n{}---\n",
            list("port"),
            list("port"),
        )
    };
    let dns = [("dns", 53, "UDP"), ("dns-tcp", 53, "TCP")];
    let istiod = [("grpc-xds", 15010, "TCP"), ("https-dns", 15012, "TCP")];
    format!(
        "{}{}",
        service("kube-system", "kube-dns", &format!("clusterIP: {DNS_SERVICE}"), &dns),
        service("istio-system", "istiod", "type: ClusterIP", &istiod),
    )
}

/// Creates keys before anything starts.
pub fn keys() -> Result<Pki> {
    anyhow::ensure!(Path::new(layout::FOLDER).exists(), "{} was not made", layout::FOLDER);
    Pki::create()
}
