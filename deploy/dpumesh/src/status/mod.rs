//! `dpumesh status`: what was seen, judged. `Status` is also what `-o json` prints.

mod nodes;
mod programs;
mod text;
mod workloads;

#[cfg(test)]
mod tests;

pub use nodes::NodeLine;
pub use programs::Program;
pub use text::text;
pub use workloads::{Health, IstioObject, WorkloadLine};

use crate::problem::Problem;
use crate::run::Outcome;
use crate::seen::{Seen, all};
use kube_api::condition;
use serde::Serialize;

/// The state of an installation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Namespace of the release.
    pub system_namespace: String,
    /// The namespace that was asked for; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub programs: Vec<Program>,
    pub nodes: Vec<NodeLine>,
    pub workloads: Vec<WorkloadLine>,
    /// Istio objects in force, each with the number of workloads that it shapes.
    pub istio_objects: Vec<IstioObject>,
    pub problems: Vec<Problem>,
    /// What could not be seen.
    pub unseen: Vec<String>,
}

impl Status {
    /// The exit code.
    pub fn outcome(&self) -> Outcome {
        match (self.problems.is_empty(), self.unseen.is_empty()) {
            (false, _) => Outcome::Bad,
            (true, false) => Outcome::Unknown,
            (true, true) => Outcome::Good,
        }
    }
}

/// Judges. An error says why there is nothing to judge.
pub fn judge(seen: &Seen) -> Result<Status, String> {
    seen.dpu_nodes.as_ref().map_err(Clone::clone)?;
    seen.workloads.as_ref().map_err(Clone::clone)?;
    let (programs, mut problems) = programs(seen);
    let nodes = nodes::lines(seen);
    let workloads = workloads::lines(seen);
    problems.extend(nodes::problems(seen));
    problems.extend(networks(seen));
    problems.extend(workloads::problems(seen, &workloads));
    Ok(Status {
        system_namespace: seen.system_namespace.clone(),
        namespace: seen.namespace.clone(),
        istio_objects: workloads::istio_objects(&workloads),
        programs,
        nodes,
        workloads,
        problems,
        unseen: seen.unseen(),
    })
}

/// The programs alone, and what is wrong with them.
pub fn programs(seen: &Seen) -> (Vec<Program>, Vec<Problem>) {
    let lines = programs::lines(seen);
    let problems = programs::problems(seen, &lines);
    (lines, problems)
}

fn networks(seen: &Seen) -> Vec<Problem> {
    let refused = all(&seen.networks).iter().filter_map(|network| {
        let conditions = &network.status.as_ref()?.conditions;
        let accepted = condition(conditions, "Accepted")?;
        (accepted.status == kube_api::ConditionStatus::False).then(|| {
            let name = network.metadata.name.clone().unwrap_or_default();
            Problem::new(format!("network {name}"), &accepted.message, format!("kubectl edit network {name}"))
        })
    });
    refused.collect()
}
