//! What processes use: processor time, and memory with shared pages counted once.

use anyhow::{Context, Result};
use std::time::Duration;

/// Ticks a second in `/proc/PID/stat`, on every Linux that we run on.
const TICKS: u32 = 100;

/// Processor time of these processes so far, user and system. One that ended meanwhile is an error: its time is lost.
pub fn cpu(pids: &[i32]) -> Result<Duration> {
    let ticks: Result<Vec<u32>> = pids.iter().map(|pid| ticks(*pid)).collect();
    Ok(Duration::from_secs(1) * ticks?.iter().sum::<u32>() / TICKS)
}

fn ticks(pid: i32) -> Result<u32> {
    let stat =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |number: usize| fields.get(number).and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    Ok(field(11) + field(12))
}

/// Proportional set size, in MiB.
pub fn memory_mib(pids: &[i32]) -> Result<f64> {
    let sizes: Result<Vec<f64>> = pids.iter().map(|pid| pss_kib(*pid)).collect();
    Ok(sizes?.iter().sum::<f64>() / 1024.0)
}

fn pss_kib(pid: i32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .with_context(|| format!("process {pid} is gone"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or("0");
    Ok(line.trim().trim_end_matches(" kB").trim().parse().unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_time_and_memory() {
        let own = [std::process::id() as i32];
        let started = std::time::Instant::now();
        let before = cpu(&own).expect("runs");
        while started.elapsed() < Duration::from_millis(60) {}
        assert!(cpu(&own).expect("runs") > before);
        assert!(memory_mib(&own).expect("runs") > 0.1);
        cpu(&[i32::MAX]).expect_err("no such process");
    }
}
