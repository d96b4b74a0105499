//! How each program is started, and how one knows that it is ready.

use super::{Authority, Binaries, Process, bootstrap, folder};
use crate::probe;
use crate::state::FOLDER;
use crate::topology::{CONTROL_PLANE, CONTROL_PLANE_NAMESPACE, Host};
use anyhow::Result;
use std::path::PathBuf;

/// A program of the product, or the control plane that it talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The replay server: discovery, certificates.
    ControlPlane,
    Controller,
    Adapter(Host),
    CniNode(Host),
    Dataplane(Host),
    DpuProxy(Host),
}

/// Where the programs of a host log each hop.
pub fn hop_log(host: Host) -> PathBuf {
    folder(host).join("hops.jsonl")
}

/// The token that a host's adapter shows to the certificate service.
pub fn istio_token(host: Host) -> PathBuf {
    folder(host).join("istio-token")
}

/// How the DPUs' proxies run.
#[derive(Clone, Copy, Debug)]
pub struct ProxyOptions {
    /// Worker threads.
    pub concurrency: u16,
    /// A line for every hop, which checks and people read.
    pub hop_log: bool,
    /// How long they serve on, told to stop, while no newer one is there.
    pub successor_wait_s: u64,
}

impl Default for ProxyOptions {
    fn default() -> Self {
        Self { concurrency: 2, hop_log: true, successor_wait_s: 0 }
    }
}

impl Program {
    /// All, in the order in which they start. Nothing depends on it: each waits for what it needs.
    pub fn all() -> Vec<Self> {
        let [one, two] = crate::topology::HOSTS;
        let of = |host| [Self::Dataplane(host), Self::CniNode(host), Self::Adapter(host), Self::DpuProxy(host)];
        [Self::ControlPlane, Self::Controller].into_iter().chain(of(one)).chain(of(two)).collect()
    }

    /// Name of its log and in the state file.
    pub fn name(self) -> String {
        match self.host() {
            None => self.kind().to_owned(),
            Some(host) => format!("{}-{}", self.kind(), host.node()),
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::ControlPlane => "control-plane",
            Self::Controller => "controller",
            Self::Adapter(_) => "adapter",
            Self::CniNode(_) => "cni-node",
            Self::Dataplane(_) => "dataplane",
            Self::DpuProxy(_) => "dpu-proxy",
        }
    }

    /// The host that it belongs to.
    pub fn host(self) -> Option<Host> {
        match self {
            Self::ControlPlane | Self::Controller => None,
            Self::Adapter(host) | Self::CniNode(host) | Self::Dataplane(host) | Self::DpuProxy(host) => Some(host),
        }
    }

    /// Its namespace.
    pub fn namespace(self) -> String {
        match self {
            Self::ControlPlane | Self::Controller => CONTROL_PLANE_NAMESPACE.to_owned(),
            Self::Adapter(host) | Self::CniNode(host) => host.namespace(),
            Self::Dataplane(host) | Self::DpuProxy(host) => host.dpu(),
        }
    }

    /// Address and path that answer 200 when it is ready.
    pub fn readiness(self) -> (&'static str, &'static str) {
        match self {
            Self::ControlPlane => ("127.0.0.1:15011", "/readyz"),
            Self::Controller => ("127.0.0.1:15101", "/readyz"),
            Self::Adapter(_) => ("127.0.0.1:15111", "/readyz"),
            Self::CniNode(_) => ("127.0.0.1:15121", "/readyz"),
            Self::Dataplane(_) => ("127.0.0.1:15131", "/readyz"),
            Self::DpuProxy(_) => (bootstrap::ADMIN, "/ready"),
        }
    }

    /// Waits until it is ready.
    pub fn wait_ready(self) -> Result<()> {
        let (address, path) = self.readiness();
        probe::wait_ready(&self.name(), &self.namespace(), address, path)
    }

    /// Issues its certificate.
    pub fn certify(self, authority: &Authority) -> Result<()> {
        let (kind, node) = (self.kind(), self.host().map_or_else(|| "control".to_owned(), Host::node));
        let full = service::grpc::server_name(kind, &node);
        let istiod = ["istiod.istio-system.svc"];
        let own = [kind, full.as_str()];
        let hosts: &[&str] = if self == Self::ControlPlane { &istiod } else { &own };
        authority.issue(&self.tls_folder(), kind, &service::grpc::program_identity(kind, &node), hosts)
    }

    /// Its own certificate, to call as it would.
    pub fn tls_args(self) -> service::grpc::TlsArgs {
        let file = |name: String| Some(self.tls_folder().join(name));
        service::grpc::TlsArgs {
            tls_certificate: file(format!("{}.pem", self.kind())),
            tls_key: file(format!("{}-key.pem", self.kind())),
            tls_ca: file("ca.pem".to_owned()),
            ..service::grpc::TlsArgs::default()
        }
    }

    fn tls_folder(self) -> PathBuf {
        self.host().map_or_else(|| PathBuf::from(FOLDER).join("control"), folder).join("tls")
    }

    /// Starts it.
    pub fn start(self, binaries: &Binaries, proxy: ProxyOptions) -> Result<Process> {
        let binary = match self {
            Self::ControlPlane => "lab",
            Self::Controller => "istio-dpu-controller",
            Self::Adapter(_) => "istio-dpu-adapter",
            Self::CniNode(_) => "istio-dpu-cni-node",
            Self::Dataplane(_) => "dataplane",
            Self::DpuProxy(_) => "dpu-proxy",
        };
        let path = binaries.path(binary);
        Process::start(&self.name(), &self.namespace(), &path.to_string_lossy(), &self.arguments(proxy)?)
    }

    fn arguments(self, options: ProxyOptions) -> Result<Vec<String>> {
        let mut words = match self {
            Self::ControlPlane => vec!["replay".to_owned()],
            Self::Controller => flags(&[
                ("manifests", manifests().display().to_string()),
                ("listen", format!("{CONTROL_PLANE}:15100")),
                ("health-listen", "127.0.0.1:15101".to_owned()),
            ]),
            Self::Adapter(host) => flags(&adapter(host)),
            Self::CniNode(host) => flags(&cni_node(host)),
            Self::Dataplane(host) => flags(&dataplane(host)),
            Self::DpuProxy(host) => return proxy(host, options),
        };
        words.extend(flags(&self.tls()));
        Ok(words)
    }

    fn tls(self) -> Vec<(&'static str, String)> {
        let file = |name: String| self.tls_folder().join(name).display().to_string();
        vec![
            ("tls-certificate", file(format!("{}.pem", self.kind()))),
            ("tls-key", file(format!("{}-key.pem", self.kind()))),
            ("tls-ca", file("ca.pem".to_owned())),
        ]
    }
}

/// The folder that the controller watches.
pub fn manifests() -> PathBuf {
    PathBuf::from(FOLDER).join("manifests")
}

fn adapter(host: Host) -> Vec<(&'static str, String)> {
    vec![
        ("node", host.node()),
        ("controller", format!("https://{CONTROL_PLANE}:15100")),
        ("control-plane", format!("https://{CONTROL_PLANE}:15012")),
        ("control-plane-ca", folder(host).join("tls/ca.pem").display().to_string()),
        ("control-plane-server-name", "istiod.istio-system.svc".to_owned()),
        ("istio-token", istio_token(host).display().to_string()),
        ("attachments", in_folder(host, "attachments.sock")),
        ("listen", format!("{}:15110", host.management())),
        ("health-listen", "127.0.0.1:15111".to_owned()),
    ]
}

fn cni_node(host: Host) -> Vec<(&'static str, String)> {
    vec![
        ("node", host.node()),
        ("controller", format!("https://{CONTROL_PLANE}:15100")),
        ("dataplane", format!("https://{}:15130", host.dpu_management())),
        ("socket", in_folder(host, "cni.sock")),
        ("attachments", in_folder(host, "attachments.sock")),
        ("state-dir", in_folder(host, "cni")),
        ("vf-provider", "emulated".to_owned()),
        ("vf-prefix", "vf".to_owned()),
        ("representor-prefix", "pf0vf".to_owned()),
        ("representor-netns", format!("/run/netns/{}", host.dpu())),
        ("health-listen", "127.0.0.1:15121".to_owned()),
    ]
}

fn dataplane(host: Host) -> Vec<(&'static str, String)> {
    vec![
        ("uplink", "uplink".to_owned()),
        ("bpf-dir", format!("{}/{}", crate::state::PINS, host.node())),
        ("steering-socket", in_folder(host, "steering.sock")),
        ("listen", format!("{}:15130", host.dpu_management())),
        ("health-listen", "127.0.0.1:15131".to_owned()),
    ]
}

fn proxy(host: Host, options: ProxyOptions) -> Result<Vec<String>> {
    let mut pairs = vec![
        ("config-path", bootstrap::write(host)?.display().to_string()),
        ("mode", "serve".to_owned()),
        ("concurrency", options.concurrency.to_string()),
        ("successor-wait-s", options.successor_wait_s.to_string()),
        ("steering-socket", in_folder(host, "steering.sock")),
    ];
    if options.hop_log {
        pairs.push(("hop-log", hop_log(host).display().to_string()));
    }
    Ok(flags(&pairs))
}

fn in_folder(host: Host, name: &str) -> String {
    folder(host).join(name).display().to_string()
}

fn flags(pairs: &[(&'static str, String)]) -> Vec<String> {
    pairs.iter().flat_map(|(name, value)| [format!("--{name}"), value.clone()]).collect()
}
