//! Tells the controller how the node and its workloads stand, for people to see.
//!
//! In: looks at the core, a little after it changed. Out: reports to `service::report::Reporter`, which sends
//! what differs. After a start nothing is told until everything attached is answered, or was waited for:
//! what is merely not known again would be told as withdrawn.

use super::troubles::FRESH;
use super::{Shared, standing};
use crate::translate::aggregate::{Aggregate, Member};
use crate::translate::status::Obstacles;
use mesh_api::report::{NodeReport, ProxyStatus, WorkloadReport, node_report, workload_report};
use service::report::Reporter;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A burst of changes is one report.
const SETTLE: Duration = Duration::from_millis(250);
/// After a start: how long what is attached is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// What only the loop knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) proxy_connected: bool,
    /// Everything attached is answered.
    pub(super) is_settled: bool,
    /// Both views of who is attached are known.
    pub(super) is_complete: bool,
    /// What is wrong, for a person.
    pub(super) problems: Vec<String>,
}

/// Reports when due.
#[derive(Debug)]
pub(super) struct Reporting {
    reporter: Reporter,
    /// When to look next.
    due: Option<Instant>,
    /// Since when it is known who is attached.
    complete: Option<Instant>,
    /// The first reports were sent.
    is_open: bool,
    told: BTreeSet<String>,
}

impl Reporting {
    pub(super) fn new(reporter: Reporter) -> Self {
        Self { reporter, due: None, complete: None, is_open: false, told: BTreeSet::new() }
    }

    /// Something changed.
    pub(super) fn touch(&mut self, now: Instant) {
        self.due.get_or_insert(now + SETTLE);
    }

    /// When to look without an event.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due
    }

    /// Whether it is time to look.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// Looks, and reports once there is enough to tell.
    pub(super) fn look(&mut self, now: Instant, shared: &Shared, facts: Facts) {
        self.due = None;
        if facts.is_complete {
            self.complete.get_or_insert(now);
        }
        let waited = self.complete.is_some_and(|complete| now >= complete + PATIENCE);
        self.is_open |= facts.is_settled || waited;
        match self.is_open {
            true => self.report(now, shared, facts),
            false => self.due = self.complete.map(|complete| complete + PATIENCE),
        }
    }

    fn report(&mut self, now: Instant, shared: &Shared, facts: Facts) {
        let is_fresh = Cell::new(false);
        let stream = |member: &Member| {
            let trouble = standing::obstacle(shared, member)?;
            let is_denied = trouble.is_settled_denial(now);
            is_fresh.set(is_fresh.get() || trouble.is_denied && !is_denied);
            Some((trouble.reason, is_denied))
        };
        let obstacles = |member: &Member| Obstacles { stream: stream(member), proxy_is_away: !facts.proxy_connected };
        let aggregate = shared.aggregate();
        let reports: Vec<WorkloadReport> = aggregate
            .configurations(obstacles)
            .map(|(pod, configuration)| WorkloadReport {
                namespace: pod.workload.namespace.clone(),
                name: pod.workload.name.clone(),
                uid: pod.uid().to_owned(),
                part: Some(workload_report::Part::Configuration(configuration)),
            })
            .collect();
        // A refusal that lasts is told as one.
        self.due = is_fresh.get().then(|| now + FRESH);
        let node = proxy(&aggregate, facts);
        drop(aggregate);
        let current: BTreeSet<String> = reports.iter().map(|one| format!("{}/{}", one.namespace, one.name)).collect();
        self.told.difference(&current).for_each(|name| self.reporter.remove(name));
        self.told = current;
        reports.into_iter().for_each(|report| self.reporter.workload(report));
        self.reporter.node(NodeReport { part: Some(node_report::Part::Proxy(node)) });
    }
}

fn proxy(aggregate: &Aggregate, facts: Facts) -> ProxyStatus {
    ProxyStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        proxy_connected: facts.proxy_connected,
        streams_open: u32::try_from(aggregate.connected()).unwrap_or(u32::MAX),
        streams_wanted: u32::try_from(aggregate.members()).unwrap_or(u32::MAX),
        resources_received: aggregate.members.values().map(|member| member.sidecar.held().resources).sum(),
        resources_stored: aggregate.store.resources().count() as u64,
        problems: facts.problems,
    }
}
