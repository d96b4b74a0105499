//! Measures a case: both proxies stay up, and are loaded in turns.

use crate::case::{Case, Load};
use crate::load::{self, Seen, Sender, Server};
use crate::machine::{busy, cpu_time, on_core, pss_kib};
use anyhow::{Context, ensure};
use conformance::certificates;
use conformance::program::{Kind, Ports, Programs, Running, free_port};
use std::path::Path;
use std::time::Duration;

/// Core of the proxies.
const PROXY_CORE: usize = 1;
/// Share of a core that others may use while a measurement counts.
const FOREIGN_CORES: f64 = 0.35;
/// Measurements that are thrown away before the machine is called too busy.
const RETRIES: usize = 6;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub rounds: usize,
    pub load: Duration,
    /// Only shows that it works: a busy machine is no reason to measure again.
    pub smoke: bool,
}

/// One measurement of one proxy (or chain of proxies).
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// CPU time of all proxies of the chain, in seconds, for each request (or GiB).
    pub cpu_seconds_per_unit: f64,
    pub units_per_second: f64,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub pss_mib: f64,
}

/// All measurements of a case, round by round.
#[derive(Debug)]
pub struct Measured {
    pub name: &'static str,
    pub load: Load,
    pub target: Option<f64>,
    pub envoy: Vec<Sample>,
    pub ours: Vec<Sample>,
    /// Whether others disturbed rounds that had to be kept.
    pub disturbed: bool,
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
    for chain in [&envoy, &ours] {
        load::run(case.load, chain.entry, Duration::from_secs(1)).context("warming up")?;
    }
    let empty = Vec::new();
    let mut all = Measured {
        name: case.name,
        load: case.load,
        target: case.target,
        envoy: empty.clone(),
        ours: empty,
        disturbed: false,
    };
    for round in 0..plan.rounds {
        // Who goes first alternates, so that a drift of the machine favours neither.
        let envoy_first = round % 2 == 0;
        if envoy_first {
            measure(&envoy, case, plan, &mut all.disturbed).map(|sample| all.envoy.push(sample))?;
        }
        measure(&ours, case, plan, &mut all.disturbed).map(|sample| all.ours.push(sample))?;
        if !envoy_first {
            measure(&envoy, case, plan, &mut all.disturbed).map(|sample| all.envoy.push(sample))?;
        }
    }
    Ok(all)
}

fn measure(chain: &Chain, case: &Case, plan: &Plan, disturbed: &mut bool) -> anyhow::Result<Sample> {
    for attempt in 0.. {
        let (cpu, machine) = (chain.cpu()?, busy()?);
        let seen = load::run(case.load, chain.entry, plan.load)?;
        let used = chain.cpu()? - cpu;
        // What is neither the proxy nor on the load's core is somebody else's.
        let load_core = Duration::from_secs_f64(seen.seconds);
        let foreign = (busy()? - machine).saturating_sub(used + load_core);
        let share = foreign.as_secs_f64() / seen.seconds;
        if share <= FOREIGN_CORES || plan.smoke {
            return Ok(sample(chain, seen, used));
        }
        eprintln!("  others used {share:.2} of a core; measuring again");
        if attempt >= RETRIES {
            *disturbed = true;
            return Ok(sample(chain, seen, used));
        }
    }
    unreachable!("the loop returns")
}

fn sample(chain: &Chain, seen: Seen, used: Duration) -> Sample {
    Sample {
        cpu_seconds_per_unit: used.as_secs_f64() / seen.units,
        units_per_second: seen.units / seen.seconds,
        p50_ms: seen.p50_ms,
        p99_ms: seen.p99_ms,
        pss_mib: chain.pss_mib(),
    }
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

    fn cpu(&self) -> anyhow::Result<Duration> {
        self.proxies.iter().map(|proxy| cpu_time(proxy.pid())).sum()
    }

    fn pss_mib(&self) -> f64 {
        self.proxies.iter().map(|proxy| pss_kib(proxy.pid())).sum::<u64>() as f64 / 1024.0
    }
}
