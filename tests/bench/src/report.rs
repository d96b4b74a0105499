//! The table: medians of both, and the ratio round by round with its spread.

use crate::load::Load;
use crate::measure::{Measured, Sample};
use comfy_table::{Table, presets};

/// All cases as a table for a person.
pub fn table(results: &[Measured]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "case",
        "unit",
        "Envoy CPU µs/unit",
        "dpu-proxy CPU µs/unit",
        "CPU ratio (lowest–highest)",
        "machine µs/unit Envoy / dpu-proxy",
        "Envoy units/s",
        "dpu-proxy units/s",
        "Envoy p50/p99 ms",
        "dpu-proxy p50/p99 ms",
        "PSS MiB",
    ]);
    for measured in results {
        table.add_row(row(measured));
    }
    format!(
        "{table}\n1 worker each; load and server on core 0, proxies on core 1; wrk and nginx; Reno; ratio below 1: dpu-proxy uses less.\n\
         CPU: of all proxies on the path. Machine: everything, with softirq, load generator and server.\n\
         mesh-*: Envoy is a pair of sidecars with mTLS, its traffic not redirected by nftables (to its favour); dpu-proxy is \
         the lab's: one pass on one host, mTLS between two DPUs across hosts."
    )
}

fn row(measured: &Measured) -> Vec<String> {
    let (envoy, ours) = (&measured.envoy, &measured.ours);
    let micros = |samples: &[Sample]| format!("{:.1}", 1e6 * median_of(samples, |one| one.cpu_seconds_per_unit));
    let rate = |samples: &[Sample]| format!("{:.1}", median_of(samples, |one| one.units_per_second));
    let machine = |samples: &[Sample]| format!("{:.1}", 1e6 * median_of(samples, |one| one.machine_seconds_per_unit));
    let unit = if matches!(measured.load, Load::Bulk { .. }) { "GiB" } else { "request" };
    let mark = if measured.disturbed { " (machine was busy)" } else { "" };
    vec![
        measured.name.to_owned(),
        unit.to_owned(),
        micros(envoy),
        micros(ours),
        format!("{}{mark}", spread(&ratios(measured))),
        format!("{} / {}", machine(envoy), machine(ours)),
        rate(envoy),
        rate(ours),
        latency(envoy),
        latency(ours),
        format!("{:.0} / {:.0}", median_of(envoy, |one| one.pss_mib), median_of(ours, |one| one.pss_mib)),
    ]
}

/// A line for every target that was missed.
pub fn missed(results: &[Measured]) -> Vec<String> {
    let missed = results.iter().filter_map(|measured| {
        let (target, ratio) = (measured.target?, median(ratios(measured)));
        (ratio > target).then(|| format!("{}: CPU ratio {ratio:.2} is above the target {target:.2}", measured.name))
    });
    missed.collect()
}

/// Of CPU time, round by round.
fn ratios(measured: &Measured) -> Vec<f64> {
    let pairs = measured.ours.iter().zip(&measured.envoy);
    pairs.map(|(ours, envoy)| ours.cpu_seconds_per_unit / envoy.cpu_seconds_per_unit).collect()
}

fn spread(values: &[f64]) -> String {
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = values.iter().copied().fold(0.0, f64::max);
    format!("{:.2} ({lowest:.2}–{highest:.2})", median(values.to_vec()))
}

fn latency(samples: &[Sample]) -> String {
    let text = |get: fn(&Sample) -> Option<f64>| {
        let values: Vec<f64> = samples.iter().filter_map(get).collect();
        if values.is_empty() { "–".to_owned() } else { format!("{:.2}", median(values)) }
    };
    format!("{} / {}", text(|one| one.p50_ms), text(|one| one.p99_ms))
}

fn median_of(samples: &[Sample], get: fn(&Sample) -> f64) -> f64 {
    median(samples.iter().map(get).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }

    fn sample(cpu: f64) -> Sample {
        Sample {
            cpu_seconds_per_unit: cpu,
            machine_seconds_per_unit: 2.0 * cpu,
            units_per_second: 1.0,
            p50_ms: None,
            p99_ms: None,
            pss_mib: 1.0,
        }
    }

    #[test]
    fn a_missed_target_is_named_with_both_figures() {
        let measured = Measured {
            name: "x",
            load: Load::KeepAlive { connections: 1 },
            target: Some(0.6),
            envoy: vec![sample(2.0)],
            ours: vec![sample(1.5)],
            disturbed: false,
        };
        assert_eq!(missed(&[measured]), ["x: CPU ratio 0.75 is above the target 0.60"]);
    }
}
