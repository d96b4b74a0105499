//! Measures a case: what is compared stays up, and is loaded in turns.

use crate::load::{self, Load, Seen, Target};
use crate::machine::{busy, cpu_time, pss_kib};
use anyhow::Context;
use std::time::Duration;

/// Share of a core that others may use while a measurement counts.
const FOREIGN_CORES: f64 = 0.35;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub rounds: usize,
    pub load: Duration,
    /// Measurements that are thrown away before the machine is called too busy.
    pub retries: usize,
}

/// What is loaded: the proxies whose CPU time counts, and where the load goes.
#[derive(Clone, Debug)]
pub struct Subject {
    pub processes: Vec<u32>,
    pub target: Target,
}

/// One measurement of one subject.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// CPU time of all proxies, in seconds, for each request (or GiB).
    pub cpu_seconds_per_unit: f64,
    /// CPU time of the whole machine: softirq, load generator, server and everything else included.
    pub machine_seconds_per_unit: f64,
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

impl Measured {
    /// Nothing yet.
    pub fn of(name: &'static str, load: Load, target: Option<f64>) -> Self {
        Self { name, load, target, envoy: Vec::new(), ours: Vec::new(), disturbed: false }
    }
}

impl Subject {
    fn cpu(&self) -> anyhow::Result<Duration> {
        self.processes.iter().map(|pid| cpu_time(*pid)).sum()
    }

    fn pss_mib(&self) -> f64 {
        self.processes.iter().map(|pid| pss_kib(*pid)).sum::<u64>() as f64 / 1024.0
    }
}

/// Loads both in turns, as often as the plan says.
pub fn rounds(mut all: Measured, envoy: &Subject, ours: &Subject, plan: &Plan) -> anyhow::Result<Measured> {
    for subject in [envoy, ours] {
        load::run(all.load, &subject.target, Duration::from_secs(1)).context("warming up")?;
    }
    for round in 0..plan.rounds {
        // Who goes first alternates, so that a drift of the machine favours neither.
        let envoy_first = round % 2 == 0;
        if envoy_first {
            measure(envoy, all.load, plan, &mut all.disturbed).map(|sample| all.envoy.push(sample))?;
        }
        measure(ours, all.load, plan, &mut all.disturbed).map(|sample| all.ours.push(sample))?;
        if !envoy_first {
            measure(envoy, all.load, plan, &mut all.disturbed).map(|sample| all.envoy.push(sample))?;
        }
    }
    Ok(all)
}

fn measure(subject: &Subject, load: Load, plan: &Plan, disturbed: &mut bool) -> anyhow::Result<Sample> {
    for attempt in 0.. {
        let (cpu, machine) = (subject.cpu()?, busy()?);
        let seen = load::run(load, &subject.target, plan.load)?;
        let (used, total) = (subject.cpu()? - cpu, busy()?.saturating_sub(machine));
        // What is neither the proxies nor on the load's core is somebody else's.
        let load_core = Duration::from_secs_f64(seen.seconds);
        let share = total.saturating_sub(used + load_core).as_secs_f64() / seen.seconds;
        let is_disturbed = share > FOREIGN_CORES;
        if !is_disturbed || attempt >= plan.retries {
            *disturbed |= is_disturbed;
            return Ok(sample(subject, seen, used, total));
        }
        eprintln!("  others used {share:.2} of a core; measuring again");
    }
    unreachable!("the loop returns")
}

fn sample(subject: &Subject, seen: Seen, used: Duration, total: Duration) -> Sample {
    Sample {
        cpu_seconds_per_unit: used.as_secs_f64() / seen.units,
        machine_seconds_per_unit: total.as_secs_f64() / seen.units,
        units_per_second: seen.units / seen.seconds,
        p50_ms: seen.p50_ms,
        p99_ms: seen.p99_ms,
        pss_mib: subject.pss_mib(),
    }
}
