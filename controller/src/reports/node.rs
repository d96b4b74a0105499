//! From a report to the part of a DpuNode's status that it is about, and whether the node is ready. Pure.

use super::Part;
use crate::crd::{Condition, ConditionStatus, DpuNodeStatus, Resources, Versions};
use k8s_openapi::jiff::Timestamp;
use mesh_api::report::{HostStatus, NodeReport, ProxyStatus, node_report};

/// Condition: pods can be attached and governed.
pub const READY: &str = "Ready";
const TOLD_TO: &str = "reports to ";

/// Condition of a part: its program reports.
pub fn condition_of(part: Part) -> &'static str {
    match part {
        Part::Host => "Host",
        Part::Proxy => "Proxy",
    }
}

/// The part of the status. `replica` is the controller that is told.
pub fn status(report: &NodeReport, replica: &str, before: &DpuNodeStatus, now: Timestamp) -> DpuNodeStatus {
    let (part, mut status) = match &report.part {
        Some(node_report::Part::Host(report)) => (Part::Host, host(report, before)),
        Some(node_report::Part::Proxy(report)) => (Part::Proxy, proxy(report)),
        None => return DpuNodeStatus::default(),
    };
    let condition = Condition::new(condition_of(part), Some(true), "Reporting", &told_to(replica), now);
    status.conditions = vec![condition.since(&before.conditions)];
    status
}

/// The part as it is, when its program has left `replica`; `None` if it reports to another by now.
pub fn away(whole: &DpuNodeStatus, part: Part, replica: &str, now: Timestamp) -> Option<DpuNodeStatus> {
    let own = whole.conditions.iter().find(|condition| condition.kind == condition_of(part))?;
    if own.status != ConditionStatus::True || own.message != told_to(replica) {
        return None;
    }
    let message = format!("it reported to {replica} last");
    let gone = Condition::new(condition_of(part), None, "NotReporting", &message, now);
    Some(DpuNodeStatus { conditions: vec![gone], ..part_of(whole, part) })
}

/// What of a whole status belongs to a part, without conditions. Problems are nobody's any more.
fn part_of(whole: &DpuNodeStatus, part: Part) -> DpuNodeStatus {
    let versions = whole.versions.clone().unwrap_or_default();
    let none = DpuNodeStatus::default();
    match part {
        Part::Host => DpuNodeStatus {
            underlay_address: whole.underlay_address.clone(),
            vfs_total: whole.vfs_total,
            vfs_free: whole.vfs_free,
            dataplane_connected: whole.dataplane_connected,
            versions: Some(Versions { adapter: None, ..versions }),
            ..none
        },
        Part::Proxy => DpuNodeStatus {
            proxy_connected: whole.proxy_connected,
            streams: whole.streams.clone(),
            resources: whole.resources.clone(),
            versions: Some(Versions { cni_node: None, ..versions }),
            ..none
        },
    }
}

/// Whether the part's program reports to another replica than this one.
pub fn told_to_another(whole: &DpuNodeStatus, part: Part, own: &str) -> bool {
    let condition = whole.conditions.iter().find(|condition| condition.kind == condition_of(part));
    condition.and_then(replica).is_some_and(|replica| replica != own)
}

/// Replica that a part's condition names.
pub fn replica(condition: &Condition) -> Option<&str> {
    condition.message.strip_prefix(TOLD_TO).filter(|_| condition.status == ConditionStatus::True)
}

/// Message of a part's condition: another replica that finds another name leaves it alone.
fn told_to(replica: &str) -> String {
    format!("{TOLD_TO}{replica}")
}

fn host(report: &HostStatus, before: &DpuNodeStatus) -> DpuNodeStatus {
    let underlay_address = Some(report.underlay_address.clone()).filter(|address| !address.is_empty());
    DpuNodeStatus {
        // While a dataplane restarts it tells none, and the routes of all other nodes lead there.
        underlay_address: underlay_address.or_else(|| before.underlay_address.clone()),
        vfs_total: Some(report.vfs_total.into()),
        vfs_free: Some(report.vfs_free.into()),
        dataplane_connected: Some(report.dataplane_connected),
        versions: Some(Versions { cni_node: Some(report.version.clone()), adapter: None }),
        problems: distinct(&report.problems),
        ..DpuNodeStatus::default()
    }
}

fn proxy(report: &ProxyStatus) -> DpuNodeStatus {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    DpuNodeStatus {
        proxy_connected: Some(report.proxy_connected),
        streams: Some(format!("{}/{}", report.streams_open, report.streams_wanted)),
        resources: Some(Resources {
            received: number(report.resources_received),
            stored: number(report.resources_stored),
        }),
        versions: Some(Versions { cni_node: None, adapter: Some(report.version.clone()) }),
        problems: distinct(&report.problems),
        ..DpuNodeStatus::default()
    }
}

/// The API server refuses a set with the same twice.
fn distinct(problems: &[String]) -> Vec<String> {
    let mut all = problems.to_vec();
    all.sort();
    all.dedup();
    all
}

/// Whether pods can be attached and governed, of the whole status.
pub fn ready(status: &DpuNodeStatus, now: Timestamp) -> Condition {
    let reports = |part: Part| {
        let own = status.conditions.iter().find(|condition| condition.kind == condition_of(part));
        own.is_some_and(|condition| condition.status == ConditionStatus::True)
    };
    let problems = status.problems.join("; ");
    let (holds, word, message) = match status {
        _ if !reports(Part::Host) => (None, "HostNotReporting", "the node daemon does not report"),
        _ if !reports(Part::Proxy) => (None, "ProxyNotReporting", "the adapter does not report"),
        _ if status.dataplane_connected != Some(true) => {
            (Some(false), "DataplaneNotConnected", "the dataplane does not answer the node daemon")
        }
        _ if status.proxy_connected != Some(true) => {
            (Some(false), "ProxyNotConnected", "dpu-proxy does not follow the adapter")
        }
        _ if !problems.is_empty() => (Some(false), "Problems", problems.as_str()),
        _ => (Some(true), "Ready", ""),
    };
    Condition::new(READY, holds, word, message, now).since(&status.conditions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1).expect("time")
    }

    fn merged(host: &HostStatus, proxy: &ProxyStatus) -> DpuNodeStatus {
        let none = DpuNodeStatus::default();
        let report = NodeReport { part: Some(node_report::Part::Host(host.clone())) };
        let host = status(&report, "c1", &none, now());
        let report = NodeReport { part: Some(node_report::Part::Proxy(proxy.clone())) };
        let proxy = status(&report, "c2", &none, now());
        DpuNodeStatus {
            proxy_connected: proxy.proxy_connected,
            streams: proxy.streams,
            resources: proxy.resources,
            conditions: [host.conditions, proxy.conditions].concat(),
            problems: [host.problems, proxy.problems].concat(),
            ..host
        }
    }

    #[test]
    fn a_node_is_ready_when_both_report_and_nothing_is_wrong() {
        let host = HostStatus { dataplane_connected: true, vfs_total: 8, ..HostStatus::default() };
        let proxy = ProxyStatus { proxy_connected: true, streams_open: 1, streams_wanted: 2, ..ProxyStatus::default() };
        let status = merged(&host, &proxy);
        assert_eq!((status.streams.as_deref(), status.vfs_total), (Some("1/2"), Some(8)));
        assert_eq!(ready(&status, now()).reason, "Ready");
        let mut gone = status.clone();
        gone.conditions.retain(|condition| condition.kind != condition_of(Part::Proxy));
        assert_eq!(ready(&gone, now()).reason, "ProxyNotReporting");
        let away = ProxyStatus { proxy_connected: false, ..proxy.clone() };
        assert_eq!(ready(&merged(&host, &away), now()).reason, "ProxyNotConnected");
        let ill = HostStatus { problems: vec!["b".to_owned(), "a".to_owned(), "b".to_owned()], ..host };
        let condition = ready(&merged(&ill, &proxy), now());
        assert_eq!((condition.reason.as_str(), condition.message.as_str()), ("Problems", "a; b"));
        assert_eq!(ready(&DpuNodeStatus::default(), now()).reason, "HostNotReporting");
    }

    #[test]
    fn an_address_that_is_not_told_for_a_while_stays() {
        let address = "10.0.0.1".to_owned();
        let told = merged(&HostStatus { underlay_address: address, ..HostStatus::default() }, &ProxyStatus::default());
        let report = NodeReport { part: Some(node_report::Part::Host(HostStatus::default())) };
        assert_eq!(status(&report, "c1", &told, now()).underlay_address.as_deref(), Some("10.0.0.1"));
    }

    #[test]
    fn a_part_whose_program_left_keeps_what_was_told_unless_another_replica_hears_it() {
        let host = HostStatus { underlay_address: "10.0.0.1".to_owned(), vfs_total: 8, ..HostStatus::default() };
        let whole = merged(&host, &ProxyStatus::default());
        assert_eq!(whole.conditions.iter().filter_map(replica).collect::<Vec<_>>(), ["c1", "c2"]);
        assert_eq!(away(&whole, Part::Host, "c2", now()), None);
        assert!(told_to_another(&whole, Part::Host, "c2") && !told_to_another(&whole, Part::Host, "c1"));
        let left = away(&whole, Part::Host, "c1", now()).expect("it reported there");
        assert_eq!((left.underlay_address.as_deref(), left.vfs_total, left.streams), (Some("10.0.0.1"), Some(8), None));
        assert_eq!((left.conditions[0].status, left.conditions.len()), (ConditionStatus::Unknown, 1));
    }
}
