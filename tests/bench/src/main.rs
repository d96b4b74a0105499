//! Benches: `dpu-proxy` and a stock Envoy under the same load, interleaved, in one run.
//!
//! In: cases, of two kinds: `chain` (a bootstrap that both read) and `mesh` (a call between two pods
//! through DPUs, and through a pair of sidecars). Out: a table of medians and ratios with their spread. Everything runs in a network namespace of its own: load generator and server on core 0,
//! proxies on core 1, one worker each. What counts is CPU time of the proxy; absolute times of a
//! shared machine mean little.

mod chain;
mod load;
mod machine;
mod measure;
mod mesh;
mod report;

use anyhow::Context;
use clap::Parser;
use conformance::program::Programs;
use std::time::Duration;

/// Core of the proxies.
const PROXY_CORE: usize = 1;

/// Compares dpu-proxy with a stock Envoy under the same load.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Cases to run, by a part of their name; all when none is given.
    cases: Vec<String>,
    /// Measured rounds of each case; each round measures both proxies.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of load for each measurement.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// How often a measurement is repeated that others disturbed, before it is kept and marked.
    #[arg(long, default_value_t = 6)]
    retries: usize,
    /// One short round of each case: shows that the benches work, and measures nothing worth quoting.
    #[arg(long)]
    smoke: bool,
    /// Fail when a ratio of CPU time is above its target.
    #[arg(long)]
    check: bool,
}

fn main() -> anyhow::Result<()> {
    let mut args = Args::parse();
    if args.smoke {
        (args.rounds, args.seconds, args.retries) = (1, 1, 0);
    }
    machine::enter_own_namespace().context("benches need root and the ip command")?;
    let programs = Programs::find()?;
    let plan = measure::Plan { rounds: args.rounds, load: Duration::from_secs(args.seconds), retries: args.retries };
    let wanted = |name: &str| args.cases.is_empty() || args.cases.iter().any(|part| name.contains(part.as_str()));
    let mut results = Vec::new();
    for case in chain::all().into_iter().filter(|case| wanted(case.name)) {
        eprintln!("{}: {} rounds of {} s for each side", case.name, plan.rounds, plan.load.as_secs());
        results.push(chain::run(&case, &plan, &programs).with_context(|| format!("case {}", case.name))?);
    }
    let calls: Vec<mesh::Case> = mesh::all().into_iter().filter(|case| wanted(case.name)).collect();
    results.extend(mesh::run(&calls, &plan, &programs)?);
    anyhow::ensure!(!results.is_empty(), "no case is named so");
    println!("{}", report::table(&results));
    if args.smoke {
        println!("smoke run: every bench works; one short round measures nothing, least of all an unoptimised build");
        return Ok(());
    }
    let missed = report::missed(&results);
    missed.iter().for_each(|line| println!("{line}"));
    anyhow::ensure!(!args.check || missed.is_empty(), "{} targets were missed", missed.len());
    Ok(())
}
