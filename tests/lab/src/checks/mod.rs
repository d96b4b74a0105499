//! What must hold of a running lab: each check is a sentence and a function that finds it true or says why not.

mod attachment;
mod authorization;
mod bad_configuration;
mod bad_input;
pub mod bypass;
mod downtime;
mod leaks;
mod protocols;
mod resilience;
pub mod routing;
mod strangers;
pub mod wait;

use crate::lab::Lab;
use anyhow::Result;
use std::time::Instant;

/// One check.
pub struct Check {
    /// A sentence in `snake_case`.
    pub name: &'static str,
    pub run: fn(&mut Lab) -> Result<()>,
}

/// All, in the order in which they run.
pub fn all() -> Vec<Check> {
    let rooms: [&[Check]; 11] = [
        protocols::CHECKS,
        routing::CHECKS,
        authorization::CHECKS,
        bypass::CHECKS,
        strangers::CHECKS,
        bad_input::CHECKS,
        bad_configuration::CHECKS,
        attachment::CHECKS,
        resilience::CHECKS,
        downtime::CHECKS,
        leaks::CHECKS,
    ];
    rooms.into_iter().flatten().map(|check| Check { ..*check }).collect()
}

/// Builds a lab and runs those whose name contains `filter`. True when all hold.
pub fn run(filter: Option<&str>, keep: bool) -> Result<bool> {
    let chosen: Vec<Check> =
        all().into_iter().filter(|check| filter.is_none_or(|text| check.name.contains(text))).collect();
    let mut lab = Lab::new(keep)?;
    println!("running {} end-to-end checks", chosen.len());
    lab.start_programs()?;
    lab.add_pods()?;
    wait::until_served(&lab)?;
    let recorded = wait::scopes()?;
    let failed: Vec<&str> =
        chosen.iter().filter(|check| !holds(check, &mut lab, &recorded)).map(|check| check.name).collect();
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "end-to-end: {verdict}. {} hold; {} don't {}",
        chosen.len() - failed.len(),
        failed.len(),
        failed.join(", ")
    );
    Ok(failed.is_empty())
}

fn holds(check: &Check, lab: &mut Lab, recorded: &wait::Scopes) -> bool {
    let started = Instant::now();
    let outcome = (check.run)(lab).and_then(|()| lab.check_alive());
    let seconds = started.elapsed().as_secs_f64();
    let is_ok = outcome.is_ok();
    match outcome {
        Ok(()) => println!("test {} ... ok ({seconds:.1} s)", check.name),
        Err(error) => println!("test {} ... FAILED ({seconds:.1} s)\n    {error:#}", check.name),
    }
    if let Err(error) = wait::restored(lab, recorded) {
        println!("    and the lab could not be put back in order: {error:#}");
    }
    is_ok
}
