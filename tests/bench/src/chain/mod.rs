//! Chains: the same bootstraps in one proxy, or in a row of proxies, over loopback.

use crate::PROXY_CORE;
use crate::load::{self, Load, Sender, Server, Target};
use crate::machine::on_core;
use crate::measure::{self, Measured, Plan, Subject};
use anyhow::{Context, ensure};
use conformance::certificates;
use conformance::program::{Kind, Ports, Programs, Running, free_port};
use std::path::Path;

/// One comparison.
#[derive(Debug)]
pub struct Case {
    pub name: &'static str,
    /// Bootstrap templates in the order in which a request passes the proxies.
    pub chain: &'static [&'static str],
    pub load: Load,
    /// Highest ratio of CPU time (ours to Envoy's) that the project aims at.
    pub target: Option<f64>,
}

const HTTP: &str = include_str!("../../bootstraps/http.yaml");
const HTTP_LOGGED: &str = include_str!("../../bootstraps/http-logged.yaml");
const TCP: &str = include_str!("../../bootstraps/tcp.yaml");
const OUTBOUND_MTLS: &str = include_str!("../../bootstraps/outbound-mtls.yaml");
const INBOUND_MTLS: &str = include_str!("../../bootstraps/inbound-mtls.yaml");

/// Every case.
pub fn all() -> Vec<Case> {
    let keep_alive = Load::KeepAlive { connections: 32 };
    vec![
        Case { name: "http1-keep-alive", chain: &[HTTP], load: keep_alive, target: Some(0.6) },
        Case { name: "http1-keep-alive-access-log", chain: &[HTTP_LOGGED], load: keep_alive, target: None },
        Case { name: "http1-mtls-pair", chain: &[OUTBOUND_MTLS, INBOUND_MTLS], load: keep_alive, target: None },
        Case {
            name: "http1-new-connections",
            chain: &[HTTP],
            load: Load::NewConnections { connections: 16 },
            target: None,
        },
        Case {
            name: "tcp-new-connections",
            chain: &[TCP],
            load: Load::NewConnections { connections: 16 },
            target: None,
        },
        Case { name: "tcp-bulk", chain: &[TCP], load: Load::Bulk { connections: 1 }, target: None },
    ]
}

enum Backend {
    Http(#[allow(dead_code, reason = "held for its drop")] Server),
    Bytes(#[allow(dead_code, reason = "held for its drop")] Sender),
}

/// Runs all rounds of a case.
pub fn run(case: &Case, plan: &Plan, programs: &Programs) -> anyhow::Result<Measured> {
    let folder = tempfile::tempdir()?;
    certificates::write(folder.path())?;
    let backend_port = free_port()?;
    let _backend = match case.load {
        Load::Bulk { .. } => Backend::Bytes(Sender::start(backend_port)?),
        _ => Backend::Http(Server::start(folder.path(), backend_port)?),
    };
    let envoy = Chain::start(Kind::Envoy, case, programs, backend_port, folder.path())?;
    let ours = Chain::start(Kind::DpuProxy, case, programs, backend_port, folder.path())?;
    let measured = Measured::of(case.name, case.load, case.target);
    measure::rounds(measured, &envoy.subject(), &ours.subject(), plan)
}

/// Proxies of one kind in a row.
struct Chain {
    proxies: Vec<Running>,
    entry: u16,
}

impl Chain {
    fn start(kind: Kind, case: &Case, programs: &Programs, backend: u16, folder: &Path) -> anyhow::Result<Self> {
        let mut next = backend;
        let mut proxies = Vec::new();
        // The last proxy first: each is told the port of the one behind it.
        for (index, template) in case.chain.iter().enumerate().rev() {
            let (listener, admin) = (free_port()?, free_port()?);
            let mut ports = Ports::default();
            ports.set("listener", listener);
            ports.set("admin", admin);
            ports.set("upstream", next);
            ports.set("certificates", folder.display());
            ports.set("log", folder.join(format!("{kind:?}-{index}.log")).display());
            let config = folder.join(format!("{kind:?}-{index}.yaml"));
            std::fs::write(&config, ports.render(template)?)?;
            let output = folder.join(format!("{kind:?}-{index}.out"));
            let start = || Running::start(kind, programs, &config, admin, &output);
            proxies.push(on_core(PROXY_CORE, start)?.with_context(|| format!("{kind:?}"))?);
            load::wait_for(listener)?;
            next = listener;
        }
        ensure!(!proxies.is_empty(), "a case has a proxy");
        Ok(Self { proxies, entry: next })
    }

    fn subject(&self) -> Subject {
        Subject { processes: self.proxies.iter().map(Running::pid).collect(), target: Target::loopback(self.entry) }
    }
}
