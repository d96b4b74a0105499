//! What must hold of a running cluster with the product on it: each check is a sentence and a function that finds it true
//! and says what it found, or says why not.

mod bad_input;
mod dpus;
mod installation;
mod istio_objects;
mod leaks;
mod naming;
mod nodes;
mod probes;
mod removal;
mod resilience;
mod sidecars;
mod takeover;
mod upgrade;

use crate::bookinfo::{self, Bookinfo};
use crate::cluster::Cluster;
use crate::comparison;
use anyhow::Result;
use std::time::Instant;

/// One check.
#[derive(Clone, Copy)]
pub struct Check {
    /// A sentence in `snake_case`.
    pub name: &'static str,
    /// What was found, for a person.
    pub run: fn(&Stage) -> Result<String>,
}

/// What checks work on.
pub struct Stage {
    pub cluster: Cluster,
}

impl Stage {
    /// The application, as it is now.
    pub fn bookinfo(&self) -> Result<Bookinfo> {
        Bookinfo::find()
    }

    /// All of it runs again, wherever that is possible, and serves.
    pub fn bookinfo_on_one_node(&self) -> Result<()> {
        bookinfo::wait_ready(bookinfo::PODS)?;
        self.bookinfo()?.wait_served()
    }
}

/// All, in the order in which they run.
pub fn all() -> Vec<Check> {
    let rooms: [&[Check]; 14] = [
        installation::CHECKS,
        istio_objects::CHECKS,
        naming::CHECKS,
        sidecars::CHECKS,
        probes::CHECKS,
        resilience::CHECKS,
        dpus::CHECKS,
        upgrade::CHECKS,
        takeover::CHECKS,
        bad_input::CHECKS,
        leaks::CHECKS,
        nodes::CHECKS,
        COMPARISON,
        removal::CHECKS,
    ];
    rooms.into_iter().flatten().copied().collect()
}

const COMPARISON: &[Check] = &[Check {
    name: "the_same_load_costs_hosts_less_processor_time_than_with_sidecars",
    run: |stage| comparison::run(&stage.cluster),
}];

/// Those that the demonstration shows, under its headings.
pub fn shown() -> [(&'static str, &'static [Check]); 5] {
    [
        ("What was installed, and what Kubernetes says of it", installation::CHECKS),
        ("Istio's objects, applied with kubectl", istio_objects::CHECKS),
        ("Where they are named while they are in force", naming::CHECKS),
        ("Scaling under load", resilience::SCALING),
        ("Beside plain Istio sidecars", sidecars::CHECKS),
    ]
}

/// Runs one and prints how it went. True when it holds.
pub fn holds(check: &Check, stage: &Stage) -> bool {
    let started = Instant::now();
    let outcome = (check.run)(stage);
    let seconds = started.elapsed().as_secs_f64();
    match &outcome {
        Ok(found) => println!("test {} ... ok ({seconds:.1} s)\n    {}", check.name, found.replace('\n', "\n    ")),
        Err(error) => println!("test {} ... FAILED ({seconds:.1} s)\n    {error:#}", check.name),
    }
    outcome.is_ok()
}

/// Runs those whose name contains `filter`. True when all hold.
pub fn run(stage: &Stage, filter: Option<&str>) -> Result<bool> {
    let chosen: Vec<Check> =
        all().into_iter().filter(|check| filter.is_none_or(|text| check.name.contains(text))).collect();
    anyhow::ensure!(!chosen.is_empty(), "no check has {:?} in its name", filter.unwrap_or_default());
    let failed: Vec<&str> = chosen.iter().filter(|check| !holds(check, stage)).map(|check| check.name).collect();
    println!("cluster: {} hold; {} don't {}", chosen.len() - failed.len(), failed.len(), failed.join(", "));
    Ok(failed.is_empty())
}
