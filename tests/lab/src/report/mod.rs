//! The demonstration: builds the lab, sends traffic, and tells a person what happened.

mod hops;
mod topology;
pub mod verdict;

use crate::capture::Capture;
use crate::checks::{bypass, routing, wait};
use crate::lab::{self, Lab};
use crate::load::Outcome;
use crate::pods::{PODS, vip};
use crate::programs::{self, Program};
use crate::replay::Scenario;
use crate::topology::HOSTS;
use crate::traffic::{Load, on};
use anyhow::Result;
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use std::time::{Duration, Instant};
use verdict::Verdict;

/// Runs it. True when everything was as it should be.
pub fn demo(keep: bool) -> Result<bool> {
    lab::check_machine()?;
    let started = Instant::now();
    let mut verdict = Verdict::default();
    step("Building two hosts with DPUs, a fabric and a control plane");
    let mut lab = Lab::new(keep)?;
    let capture = Capture::start()?;
    step("Starting controller, adapters, node daemons, dataplanes, proxies");
    lab.start_programs()?;
    step("Attaching eight pods through the CNI plugin");
    for pod in &PODS {
        let at = Instant::now();
        lab.add_pod(pod)?;
        println!(
            "  {:<15} {:<12} on {} ({:.0} ms)",
            pod.name,
            pod.address,
            pod.host.node(),
            at.elapsed().as_secs_f64() * 1e3
        );
    }
    wait::until_served(&lab)?;
    topology::print(&lab)?;
    verdict.note("one request, hop by hop", hops::print());
    verdict.note("split over the versions of reviews", split(&lab));
    verdict.note("a change of weights under load", shift(&lab));
    verdict.note("the wire between the DPUs", wire(&capture));
    drop(capture);
    verdict.note("what the aggregation saved", aggregation());
    verdict.note("a pod that tries to get around", attempts());
    verdict.note(
        "all programs still run",
        lab.check_alive().map(|()| format!("{} programs, {} pods", Program::all().len(), PODS.len())),
    );
    if keep {
        look_around();
    }
    drop(lab);
    Ok(verdict.print(started.elapsed()))
}

fn step(text: &str) {
    println!("\n== {text}");
}

/// The recorded weights against what a load got.
fn split(lab: &Lab) -> Result<String> {
    step("Split over reviews v1, v2, v3 (1,000 requests from productpage; 4,000 if chance is unkind)");
    let outcome = routing::split(lab)?;
    for (version, weight) in routing::WEIGHTS {
        let got = outcome.percent(version);
        println!("  {version}  configured {weight:>5.1} %  got {got:>5.1} %  {}", "#".repeat((got / 2.0) as usize));
    }
    print_load(&outcome);
    let (version, off) = routing::farthest(&outcome);
    anyhow::ensure!(off <= routing::TOLERANCE, "{version} is off by {off:.1} percentage points");
    Ok(format!("off by at most {off:.1} percentage points over {} requests", outcome.requests))
}

fn shift(lab: &Lab) -> Result<String> {
    step("Weights become 0/0/100 while 100 requests a second run on the product page");
    let mut words = on(vip::PRODUCTPAGE, "productpage:9080", "/productpage");
    words.extend(["--rate", "100", "--connections", "8", "--seconds", "6"]);
    let load = Load::start(&lab.binaries, wait::pod("curl")?, "load-demo", &words)?;
    std::thread::sleep(Duration::from_secs(3));
    lab.push(Scenario::Shift)?;
    let outcome = load.finish()?;
    print_load(&outcome);
    println!("  answered by {}", versions(&outcome));
    let after = Load::start(
        &lab.binaries,
        wait::pod("curl")?,
        "load-demo-after",
        &[&words[..6], &["--requests", "100"]].concat(),
    )?
    .finish()?;
    println!("  100 requests afterwards: {}", versions(&after));
    lab.push(Scenario::Demo)?;
    anyhow::ensure!(outcome.failed + after.failed == 0, "failed: {:?} {:?}", outcome.failures, after.failures);
    anyhow::ensure!(after.counted.keys().eq(["v3"]), "after the change: {:?}", after.counted);
    Ok(format!(
        "{} requests, none failed; p50 {:.1} ms, p99 {:.1} ms",
        outcome.requests, outcome.p50_ms, outcome.p99_ms
    ))
}

fn print_load(outcome: &Outcome) {
    let Outcome { requests, failed, rate, p50_ms, p90_ms, p99_ms, max_ms, .. } = outcome;
    println!("  {requests} requests, {failed} failed, {rate:.0} a second");
    println!("  latency: p50 {p50_ms:.1} ms, p90 {p90_ms:.1} ms, p99 {p99_ms:.1} ms, longest {max_ms:.1} ms");
}

fn versions(outcome: &Outcome) -> String {
    let counts: Vec<String> = outcome.counted.iter().map(|(version, count)| format!("{version} {count}")).collect();
    counts.join(", ")
}

fn wire(capture: &Capture) -> Result<String> {
    step("The wire between the DPUs, since its first frame");
    let seen = capture.seen();
    let repeated = seen.tcp_bytes - seen.tls_bytes - seen.plaintext_bytes - seen.unjudged_bytes;
    println!("  {} frames, {} TCP streams, {} of payload:", seen.frames, seen.streams, size(seen.tcp_bytes));
    println!("    inside TLS records  {:>12}", size(seen.tls_bytes));
    println!("    plaintext           {:>12}", size(seen.plaintext_bytes));
    println!("    sent again by TCP   {:>12}", size(repeated));
    println!("    order unknown       {:>12}", size(seen.unjudged_bytes));
    println!("  frames that contain text of the applications: {}", seen.marker_frames);
    anyhow::ensure!(seen.tls_bytes > 0, "nothing was seen");
    bypass::clean(&seen)?;
    Ok(format!("{} of plaintext, {} in TLS", size(seen.plaintext_bytes), size(seen.tls_bytes)))
}

/// Bytes for a person.
fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// Resources and their bytes.
#[derive(Clone, Copy, Default)]
struct Amount {
    resources: u64,
    bytes: u64,
}

impl Amount {
    fn read(value: &serde_json::Value) -> Self {
        let number = |what: &str| value[what].as_u64().unwrap_or(0);
        Self { resources: number("resources"), bytes: number("bytes") }
    }

    fn plus(self, other: Self) -> Self {
        Self { resources: self.resources + other.resources, bytes: self.bytes + other.bytes }
    }

    fn shown(self) -> String {
        format!("{} resources, {}", self.resources, size(self.bytes))
    }

    /// How many times as much as the other.
    fn over(self, other: Self) -> String {
        let ratio = |one: u64, two: u64| one as f64 / two.max(1) as f64;
        format!("{:.1} : 1, {:.1} : 1", ratio(self.resources, other.resources), ratio(self.bytes, other.bytes))
    }
}

fn aggregation() -> Result<String> {
    step("What the aggregation saved");
    let mut table = Table::new();
    let header = ["host", "received for its 4 pods", "stored once and served", "ratio (resources, bytes)"];
    table.load_style(UTF8_BORDERS_ONLY).set_header(header);
    let (mut received, mut stored) = (Amount::default(), Amount::default());
    for host in HOSTS {
        let page = wait::json(&host.namespace(), "127.0.0.1:15111", "/aggregation")?;
        let (came, kept) = (Amount::read(&page["received"]), Amount::read(&page["stored"]));
        table.add_row([host.node(), came.shown(), kept.shown(), came.over(kept)]);
        anyhow::ensure!(kept.resources > 0 && kept.resources < came.resources, "nothing was saved: {page}");
        (received, stored) = (received.plus(came), stored.plus(kept));
    }
    println!("{table}");
    Ok(format!("{} received, {} stored", received.shown(), stored.shown()))
}

fn attempts() -> Result<String> {
    step("A pod that spoofs another's address, or flushes every rule of its own");
    let (seen, dropped) = bypass::spoof_addresses()?;
    bypass::clean(&seen)?;
    println!("  as 10.244.1.11 and 10.99.99.99: no answer, {dropped} packets dropped at its port, none on the fabric");
    let status = bypass::flush_rules()?;
    println!(
        "  after `nft flush ruleset` and without its `ip rule`s: ratings answers it {status}; the policy says 403"
    );
    anyhow::ensure!(dropped > 0.0 && status == 403, "dropped {dropped}, status {status}");
    Ok(format!("{dropped} spoofed packets dropped; still governed without its own rules"))
}

fn look_around() {
    println!("\nThe lab runs on. To look around:");
    println!("  ip netns list | grep {}", crate::topology::PREFIX);
    println!("  ls {}                      # a log for each program", programs::logs().display());
    println!(
        "  nsenter --net=/run/netns/{} curl -s http://10.96.10.1:9080/productpage -H 'host: productpage:9080'",
        PODS[7].namespace()
    );
    println!("  nsenter --net=/run/netns/{} curl -s 127.0.0.1:15000/config_dump", HOSTS[0].dpu());
    println!("  tail -f {}", programs::hop_log(HOSTS[0]).display());
    println!("  make clean-lab                              # removes it");
}
