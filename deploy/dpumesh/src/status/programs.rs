//! The programs that the chart runs: how many are ready, and why others are not.

use crate::problem::Problem;
use crate::seen::{Seen, ago, all};
use k8s_openapi::api::core::v1::Pod;
use kube_api::objects;
use serde::Serialize;

/// A lease that was not renewed for this long has no holder, in seconds.
const LEASE_IS_STALE_S: i64 = 60;

/// A Deployment or DaemonSet of the release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Program {
    /// "controller", "adapter", "cni-node".
    pub name: String,
    pub ready: i32,
    pub wanted: i32,
    /// Pod that leads, where one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
}

/// All three; one that is not there is left out.
pub fn lines(seen: &Seen) -> Vec<Program> {
    let controller =
        all(&seen.deployments).iter().filter(|one| named(&one.metadata.name, objects::CONTROLLER)).map(|one| {
            let ready = one.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
            let wanted = one.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            Program { name: "controller".into(), ready, wanted, leader: leader(seen) }
        });
    let daemons =
        [("adapter", objects::ADAPTER), ("cni-node", objects::CNI_NODE)].into_iter().filter_map(|(name, object)| {
            let one = all(&seen.daemon_sets).iter().find(|one| named(&one.metadata.name, object))?;
            let status = one.status.clone().unwrap_or_default();
            let (ready, wanted) = (status.number_ready, status.desired_number_scheduled);
            Some(Program { name: name.into(), ready, wanted, leader: None })
        });
    controller.chain(daemons).collect()
}

fn named(name: &Option<String>, wanted: &str) -> bool {
    name.as_deref() == Some(wanted)
}

fn leader(seen: &Seen) -> Option<String> {
    let lease = all(&seen.leases).iter().find(|lease| named(&lease.metadata.name, objects::LEASE))?;
    let spec = lease.spec.as_ref()?;
    let age = seen.now.as_second() - spec.renew_time.as_ref()?.0.as_second();
    spec.holder_identity.clone().filter(|holder| !holder.is_empty() && age < LEASE_IS_STALE_S)
}

/// What is not as it should be.
pub fn problems(seen: &Seen, programs: &[Program]) -> Vec<Problem> {
    let namespace = &seen.system_namespace;
    let mut problems = Vec::new();
    if let (Ok(_), Ok(_)) = (&seen.deployments, &seen.daemon_sets) {
        for name in ["controller", "adapter", "cni-node"] {
            if !programs.iter().any(|program| program.name == name) {
                let advice = "helm upgrade --install, or --system-namespace if it is elsewhere";
                problems.push(Problem::new(name, format!("is not installed in namespace {namespace}"), advice));
            }
        }
    }
    for program in programs {
        problems.extend(unready(seen, program));
        if program.name == "controller" && program.ready > 0 && program.leader.is_none() && seen.leases.is_ok() {
            let advice = format!("kubectl -n {namespace} logs deployment/dpumesh-controller --all-pods");
            problems.push(Problem::new("controller", "none leads: no status is written", advice));
        }
    }
    problems
}

fn unready(seen: &Seen, program: &Program) -> Vec<Problem> {
    let pods = all(&seen.system_pods).iter().filter(|pod| component(pod) == program.name);
    let unready: Vec<Problem> = pods.filter(|pod| !is_ready(pod)).map(|pod| of_pod(seen, program, pod)).collect();
    if unready.is_empty() && program.ready < program.wanted {
        let what = format!("{} of {} are ready", program.ready, program.wanted);
        let advice = format!("kubectl -n {} get events --sort-by=.lastTimestamp", seen.system_namespace);
        return vec![Problem::new(&program.name, what, advice)];
    }
    unready
}

fn component(pod: &Pod) -> &str {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get("app.kubernetes.io/component")).map_or("", String::as_str)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    pod.metadata.deletion_timestamp.is_some()
        || conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn of_pod(seen: &Seen, program: &Program, pod: &Pod) -> Problem {
    let (name, namespace) = (pod.metadata.name.clone().unwrap_or_default(), &seen.system_namespace);
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_else(|| "no node yet".to_owned());
    let (why, has_started) = why(pod);
    let since = pod.metadata.creation_timestamp.as_ref().map(|time| seen.now.as_second() - time.0.as_second());
    let what = format!("is not ready ({why}); its pod is {} old", ago(since.unwrap_or_default()));
    let advice = match has_started {
        true => format!("kubectl -n {namespace} logs {name}"),
        false => format!("kubectl -n {namespace} describe pod {name}"),
    };
    Problem::new(format!("{} on {node}", program.name), what, advice)
}

/// Why it is not ready, and whether it has a log that may tell more.
fn why(pod: &Pod) -> (String, bool) {
    let status = pod.status.clone().unwrap_or_default();
    let Some(container) = status.container_statuses.unwrap_or_default().into_iter().next() else {
        let scheduled = status.conditions.unwrap_or_default().into_iter().find(|one| one.type_ == "PodScheduled");
        let reason = scheduled.and_then(|condition| condition.message).unwrap_or_else(|| "not started".to_owned());
        return (reason, false);
    };
    let state = container.state.unwrap_or_default();
    match (state.waiting, state.terminated) {
        (Some(waiting), _) => {
            let reason = waiting.reason.unwrap_or_else(|| "waiting".to_owned());
            (reason, container.restart_count > 0)
        }
        (None, Some(terminated)) => (format!("ended with code {}", terminated.exit_code), true),
        (None, None) => ("it runs, and its /readyz says no".to_owned(), true),
    }
}
