//! The recorded routes: weights, a header match, faults.

use super::Check;
use super::wait::{get, pod};
use crate::lab::Lab;
use crate::load::Outcome;
use crate::pods::vip;
use crate::traffic::{Load, on};
use anyhow::{Result, ensure};
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "a_thousand_requests_are_split_as_weighted", run: weights },
    Check { name: "a_header_chooses_the_route", run: header },
    Check { name: "a_recorded_delay_is_injected", run: delay },
    Check { name: "a_recorded_abort_is_injected", run: abort },
];

/// Of the recorded route, in percent.
pub const WEIGHTS: [(&str, f64); 3] = [("v1", 50.0), ("v2", 30.0), ("v3", 20.0)];
/// Percentage points that a share may be off.
pub const TOLERANCE: f64 = 3.0;
/// Requests whose share is compared. Three percentage points are two standard deviations of chance here, so a
/// split that is outside is tried once more with four times as many: four standard deviations.
const REQUESTS: u32 = 1000;

fn weights(lab: &mut Lab) -> Result<()> {
    let outcome = split(lab)?;
    let (version, off) = farthest(&outcome);
    ensure!(off <= TOLERANCE, "{version} is off by {off:.1} points of {}: {:?}", outcome.requests, outcome.counted);
    Ok(())
}

/// A thousand requests of the product page's pod; four thousand where chance put the first thousand outside.
pub fn split(lab: &Lab) -> Result<Outcome> {
    let first = reviews(lab, REQUESTS)?;
    match farthest(&first).1 <= TOLERANCE {
        true => Ok(first),
        false => reviews(lab, 4 * REQUESTS),
    }
}

/// The version whose share is farthest from its weight, and the distance in percentage points.
pub fn farthest(outcome: &Outcome) -> (&'static str, f64) {
    let off = WEIGHTS.map(|(version, weight)| (version, (outcome.percent(version) - weight).abs()));
    off.into_iter().fold(off[0], |worst, one| if one.1 > worst.1 { one } else { worst })
}

fn reviews(lab: &Lab, requests: u32) -> Result<Outcome> {
    let requests = requests.to_string();
    let mut words = on(vip::REVIEWS, "reviews:9080", "/reviews/0");
    words.extend(["--requests", &requests, "--seconds", "100", "--connections", "4"]);
    let outcome = Load::start(&lab.binaries, pod("productpage-v1")?, "load-weights", &words)?.finish()?;
    ensure!(outcome.failed == 0, "{} of {} failed: {:?}", outcome.failed, outcome.requests, outcome.failures);
    Ok(outcome)
}

fn header(_: &mut Lab) -> Result<()> {
    for number in 0..20 {
        let answer = get("productpage-v1", vip::REVIEWS, "reviews", "/reviews/0", &["-H", "end-user: jason"])?;
        ensure!(
            answer.json["version"] == "v2",
            "request {number} of jason went to {}: {}",
            answer.json["version"],
            answer.text
        );
    }
    Ok(())
}

fn delay(_: &mut Lab) -> Result<()> {
    let answer = get("productpage-v1", vip::REVIEWS, "reviews", "/reviews/0", &["-H", "end-user: slow"])?;
    ensure!(answer.status == 200 && answer.json["version"] == "v1", "{answer:?}");
    let (least, most) = (Duration::from_millis(500), Duration::from_millis(2500));
    ensure!((least..most).contains(&answer.elapsed), "it took {:?}, and the delay is 500 ms", answer.elapsed);
    Ok(())
}

fn abort(_: &mut Lab) -> Result<()> {
    let answer = get("productpage-v1", vip::REVIEWS, "reviews", "/reviews/0", &["-H", "end-user: broken"])?;
    ensure!(answer.status == 503 && answer.text.contains("fault filter abort"), "{answer:?}");
    Ok(())
}
