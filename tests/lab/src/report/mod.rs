//! The demonstration: builds the lab, sends traffic, and tells a person what happened.

mod hops;
mod topology;
mod verdict;

use crate::checks::{bypass, wait};
use crate::lab::Lab;
use crate::load::Outcome;
use crate::pods::{PODS, vip};
use crate::programs;
use crate::replay::Scenario;
use crate::topology::HOSTS;
use crate::traffic::{Load, on};
use crate::{capture::Capture, probe};
use anyhow::{Context, Result};
use std::time::{Duration, Instant};
use verdict::Verdict;

/// Runs it. True when everything was as it should be.
pub fn demo(keep: bool) -> Result<bool> {
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
    topology::print()?;
    verdict.note("one request, hop by hop", hops::print());
    verdict.note("split over the versions of reviews", split(&lab));
    verdict.note("a change of weights under load", shift(&lab));
    verdict.note("the wire between the DPUs", wire(&capture));
    drop(capture);
    verdict.note("what the aggregation saved", aggregation());
    verdict.note("a pod that tries to get around", attempts());
    verdict.note("all programs still run", lab.check_alive().map(|()| String::new()));
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
    step("Split over reviews v1, v2, v3 (1,000 requests from productpage)");
    let mut words = on(vip::REVIEWS, "reviews:9080", "/reviews/0");
    words.extend(["--requests", "1000", "--seconds", "100"]);
    let outcome = Load::start(&lab.binaries, wait::pod("productpage-v1")?, "load-split", &words)?.finish()?;
    let mut worst = 0.0_f64;
    for (version, weight) in [("v1", 50.0), ("v2", 30.0), ("v3", 20.0)] {
        let got = outcome.percent(version);
        worst = worst.max((got - weight).abs());
        println!("  {version}  configured {weight:>5.1} %  got {got:>5.1} %  {}", "#".repeat((got / 2.0) as usize));
    }
    print_load(&outcome);
    anyhow::ensure!(outcome.failed == 0, "{} requests failed: {:?}", outcome.failed, outcome.failures);
    // Three standard deviations of chance at 1,000 requests and a half.
    anyhow::ensure!(worst <= 5.0, "off by {worst:.1} percentage points");
    Ok(format!("off by at most {worst:.1} percentage points"))
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
    println!("  answered by {:?}", outcome.counted);
    let after = Load::start(
        &lab.binaries,
        wait::pod("curl")?,
        "load-demo-after",
        &[&words[..6], &["--requests", "100"]].concat(),
    )?
    .finish()?;
    println!("  100 requests afterwards: {:?}", after.counted);
    lab.push(Scenario::Demo)?;
    anyhow::ensure!(outcome.failed + after.failed == 0, "failed: {:?} {:?}", outcome.failures, after.failures);
    anyhow::ensure!(after.counted.keys().eq(["v3"]), "after the change: {:?}", after.counted);
    Ok(format!(
        "{} requests, none failed; p50 {:.1} ms, p99 {:.1} ms",
        outcome.requests, outcome.p50_ms, outcome.p99_ms
    ))
}

fn print_load(outcome: &Outcome) {
    let Outcome { requests, failed, rate, p50_ms, p90_ms, p99_ms, .. } = outcome;
    println!(
        "  {requests} requests, {failed} failed, {rate:.0}/s; latency ms: p50 {p50_ms:.1}  p90 {p90_ms:.1}  p99 {p99_ms:.1}"
    );
}

fn wire(capture: &Capture) -> Result<String> {
    step("The wire between the DPUs, since its first frame");
    let seen = capture.seen();
    println!("  {} frames, {} TCP streams, {} bytes of payload", seen.frames, seen.streams, seen.tcp_bytes);
    println!(
        "  inside TLS records {}, plaintext {}, unjudged {}",
        seen.tls_bytes, seen.plaintext_bytes, seen.unjudged_bytes
    );
    println!("  frames that contain text of the applications: {}", seen.marker_frames);
    anyhow::ensure!(seen.tls_bytes > 0, "nothing was seen");
    bypass::clean(&seen)?;
    Ok(format!("0 bytes of plaintext, {} bytes in TLS", seen.tls_bytes))
}

fn aggregation() -> Result<String> {
    step("What the aggregation saved");
    let mut all = (0, 0);
    for host in HOSTS {
        let text = probe::get(&host.namespace(), "127.0.0.1:15111", "/aggregation")?;
        let value: serde_json::Value = serde_json::from_str(&text).context("/aggregation is no JSON")?;
        let number = |part: &str, what: &str| value[part][what].as_u64().unwrap_or(0);
        let (received, stored) = (number("received", "resources"), number("stored", "resources"));
        println!(
            "  {}: {received} resources ({} bytes) received for all workloads, {stored} ({} bytes) stored and served",
            host.node(),
            number("received", "bytes"),
            number("stored", "bytes")
        );
        anyhow::ensure!(stored > 0 && stored < received, "nothing was saved: {value}");
        (all.0, all.1) = (all.0 + received, all.1 + stored);
    }
    Ok(format!("{} resources received, {} stored: {:.1} to 1", all.0, all.1, all.0 as f64 / all.1 as f64))
}

fn attempts() -> Result<String> {
    step("A pod that spoofs another's address, or flushes every rule of its own");
    let (seen, dropped) = bypass::spoof_addresses()?;
    bypass::clean(&seen)?;
    println!("  as 10.244.1.11 and 10.99.99.99: no answer, {dropped} packets dropped at its port, none on the fabric");
    let status = bypass::flush_rules()?;
    println!(
        "  after `nft flush ruleset` and without its `ip rule`s: ratings answers curl with {status}, as the policy says"
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
