//! The same application under the same load on the same cluster, once behind DPUs and once with a sidecar in every pod,
//! by turns: what the proxies cost, and what callers wait.

use crate::bookinfo;
use crate::cluster::Cluster;
use crate::kubectl;
use crate::layout::HOSTS;
use crate::machine::Machine;
use crate::pod::{self, Pod, Service, faultless};
use crate::sidecar::Sidecar;
use crate::usage::{cpu, memory_mib};
use anyhow::{Context, Result, ensure};
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use lab::load::Outcome;
use lab::shell;
use serde_json::Value;
use std::time::Duration;

/// Rounds of both.
const ROUNDS: usize = 3;
/// Pages a second; each is about four calls between pods.
const RATE: &str = "60";
/// Seconds of a round.
const SECONDS: &str = "4";
/// The second copy of bookinfo.
const SIDECARS: &str = "bookinfo-sidecars";

/// One side of the comparison.
struct Side {
    client: Pod,
    page: Service,
    /// Proxies, wherever they run.
    proxies: Vec<i32>,
    /// What else is there to serve them.
    helpers: Vec<i32>,
    /// Those of all that use the hosts' processors.
    on_hosts: Vec<i32>,
    rounds: Vec<Round>,
}

struct Round {
    outcome: Outcome,
    proxies: Duration,
    on_hosts: Duration,
}

/// Measures, and shows a table with ratios.
pub fn run(cluster: &Cluster) -> Result<String> {
    let sidecars = deploy_sidecars(cluster)?;
    let measured = measure(cluster, &sidecars);
    for sidecar in sidecars {
        sidecar.stop()?;
    }
    kubectl::run(&format!("delete namespace {SIDECARS} --wait=false"))?;
    measured
}

fn measure(cluster: &Cluster, sidecars: &[Sidecar]) -> Result<String> {
    let mut sides = [dpus()?, with_sidecars(sidecars)?];
    for side in &mut sides {
        // Connections and pools as they are in a service that has run for a while.
        round(cluster, side).context("warming up")?;
    }
    for _ in 0..ROUNDS {
        for side in &mut sides {
            let measured = round(cluster, side)?;
            side.rounds.push(measured);
        }
    }
    let [dpus, sidecars] = &sides;
    table(dpus, sidecars)
}

fn round(cluster: &Cluster, side: &Side) -> Result<Round> {
    let (proxies, on_hosts) = (cpu(&side.proxies)?, cpu(&side.on_hosts)?);
    let words = ["--rate", RATE, "--seconds", SECONDS, "--connections", "8"];
    let load =
        side.client.load(&cluster.program("lab-load")?, "load-comparison", &side.page, "/productpage", &words)?;
    let outcome = load.finish()?;
    faultless(&outcome, 100)?;
    Ok(Round { outcome, proxies: cpu(&side.proxies)? - proxies, on_hosts: cpu(&side.on_hosts)? - on_hosts })
}

fn dpus() -> Result<Side> {
    let bookinfo = bookinfo::Bookinfo::find()?;
    let (mut proxies, mut helpers, mut on_hosts) = (Vec::new(), Vec::new(), Vec::new());
    for host in HOSTS {
        let (node, dpu) = (Machine::find(&host.node())?, Machine::find(&host.dpu())?);
        proxies.extend(dpu.pids_of("dpu-proxy"));
        helpers.extend(dpu.pids_of("dataplane"));
        on_hosts.extend(node.pids_of("istio-dpu-adapter"));
        on_hosts.extend(node.pids_of("istio-dpu-cni-node"));
    }
    ensure!(proxies.len() == HOSTS.len(), "{} proxies run on {} DPUs", proxies.len(), HOSTS.len());
    helpers.extend(&on_hosts);
    Ok(Side { client: bookinfo.client, page: bookinfo.productpage, proxies, helpers, on_hosts, rounds: Vec::new() })
}

fn with_sidecars(sidecars: &[Sidecar]) -> Result<Side> {
    let (mut proxies, mut helpers) = (Vec::new(), Vec::new());
    for sidecar in sidecars {
        let pids = sidecar.pids()?;
        let (agent, envoy) = pids.split_first().context("a sidecar has ended")?;
        helpers.push(*agent);
        proxies.extend(envoy);
    }
    ensure!(proxies.len() == sidecars.len(), "{} Envoys run in {} pods", proxies.len(), sidecars.len());
    let on_hosts = [proxies.as_slice(), helpers.as_slice()].concat();
    let client = Pod::find(SIDECARS, "app=curl")?;
    let page = Service::find(SIDECARS, "productpage", 9080)?;
    Ok(Side { client, page, proxies, helpers, on_hosts, rounds: Vec::new() })
}

/// A copy of bookinfo in a namespace that is not ours to govern, with a sidecar beside each application.
fn deploy_sidecars(cluster: &Cluster) -> Result<Vec<Sidecar>> {
    let manifests = bookinfo::MANIFESTS
        .replace("{istio-injection: enabled}", "{}")
        .replace("namespace: bookinfo", &format!("namespace: {SIDECARS}"));
    // As the injector sets it.
    let manifests = manifests.replace(" labels: {app:", " labels: {security.istio.io/tlsMode: istio, app:");
    kubectl::apply(&manifests.replace("name: bookinfo", &format!("name: {SIDECARS}")))?;
    shell::wait_for("pods of the copy", Duration::from_secs(60), || {
        let count = pod::ready(SIDECARS, "app")?.len();
        ensure!(
            count == bookinfo::PODS,
            "{count} of {} are ready; events:\n{}",
            bookinfo::PODS,
            pod::warnings(SIDECARS)?
        );
        Ok(())
    })?;
    let pods = pod::ready(SIDECARS, "app")?;
    let sidecars: Result<Vec<Sidecar>> = pods.iter().map(|pod| start(cluster, pod)).collect();
    let sidecars = sidecars?;
    sidecars.iter().try_for_each(Sidecar::wait)?;
    Ok(sidecars)
}

fn start(cluster: &Cluster, object: &Value) -> Result<Sidecar> {
    let account = object["spec"]["serviceAccountName"].as_str().context("a pod without account")?;
    let port = object["spec"]["containers"][0]["ports"][0]["containerPort"].as_u64().unwrap_or(9080);
    Sidecar::start(&cluster.tools, &Pod::of(object)?, account, u16::try_from(port)?)
}

fn table(dpus: &Side, sidecars: &Side) -> Result<String> {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(["", "DPUs", "sidecars", "ratio"]);
    let mut row = |what: &str, of: &dyn Fn(&Side) -> f64, digits: usize| {
        let (ours, theirs) = (of(dpus), of(sidecars));
        table.add_row([
            what.to_owned(),
            format!("{ours:.digits$}"),
            format!("{theirs:.digits$}"),
            format!("{:.2}", ours / theirs),
        ]);
    };
    row("processor time of all proxies, µs a page", &|side| side.per_request(|round| round.proxies), 0);
    row("processor time on the hosts, µs a page", &|side| side.per_request(|round| round.on_hosts), 0);
    row("latency p50, ms", &|side| side.median(|outcome| outcome.p50_ms), 1);
    row("latency p99, ms", &|side| side.median(|outcome| outcome.p99_ms), 1);
    let memory =
        [dpus, sidecars].map(|side| Ok::<_, anyhow::Error>((memory_mib(&side.proxies)?, memory_mib(&side.helpers)?)));
    let [ours, theirs] = memory;
    let ((proxies, helpers), (envoys, agents)) = (ours?, theirs?);
    let mut fixed = |what: &str, ours: f64, theirs: f64| {
        table.add_row([what.to_owned(), format!("{ours:.0}"), format!("{theirs:.0}"), format!("{:.2}", ours / theirs)]);
    };
    fixed("memory of all proxies, MiB (PSS)", proxies, envoys);
    fixed("memory of all programs, MiB (PSS)", proxies + helpers, envoys + agents);
    let (ours, theirs) = (dpus.per_request(|round| round.on_hosts), sidecars.per_request(|round| round.on_hosts));
    ensure!(ours < theirs, "hosts spend {ours:.0} µs a page with DPUs and {theirs:.0} µs with sidecars:\n{table}");
    let pages: u64 = dpus.rounds.iter().map(|round| round.outcome.requests).sum();
    Ok(format!(
        "{RATE} pages a second, {ROUNDS} rounds of {SECONDS} s each by turns, {pages} pages each, none failed\n{table}"
    ))
}

impl Side {
    /// Microseconds a request, over all rounds.
    fn per_request(&self, of: impl Fn(&Round) -> Duration) -> f64 {
        let time: Duration = self.rounds.iter().map(of).sum();
        let requests: u64 = self.rounds.iter().map(|round| round.outcome.requests).sum();
        time.as_secs_f64() * 1e6 / requests.max(1) as f64
    }

    fn median(&self, of: impl Fn(&Outcome) -> f64) -> f64 {
        let mut values: Vec<f64> = self.rounds.iter().map(|round| of(&round.outcome)).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }
}
