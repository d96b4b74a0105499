//! From a report to the part of a DpuNode's status that it is about, and whether the node is ready. Pure.

use super::Part;
use crate::crd::{Condition, ConditionStatus, DpuNodeStatus, Resources, Versions};
use k8s_openapi::jiff::Timestamp;
use mesh_api::report::{HostStatus, NodeReport, ProxyStatus, node_report};

/// Condition: pods can be attached and governed.
pub const READY: &str = "Ready";

/// Condition of a part: its program reports.
pub fn condition_of(part: Part) -> &'static str {
    match part {
        Part::Host => "Host",
        Part::Proxy => "Proxy",
    }
}

/// The part of the status. `replica` is the controller that is told, `connected` whether it still is.
pub fn status(
    report: &NodeReport,
    replica: &str,
    connected: bool,
    before: &DpuNodeStatus,
    now: Timestamp,
) -> DpuNodeStatus {
    let (part, mut status) = match &report.part {
        Some(node_report::Part::Host(report)) => (Part::Host, host(report)),
        Some(node_report::Part::Proxy(report)) => (Part::Proxy, proxy(report)),
        None => return DpuNodeStatus::default(),
    };
    let (holds, word) = if connected { (Some(true), "Reporting") } else { (None, "NotReporting") };
    let condition = Condition::new(condition_of(part), holds, word, &told_to(replica), now);
    status.conditions = vec![condition.since(&before.conditions)];
    status
}

/// Message of a part's condition: another replica that finds another name leaves it alone.
pub fn told_to(replica: &str) -> String {
    format!("reports to {replica}")
}

fn host(report: &HostStatus) -> DpuNodeStatus {
    DpuNodeStatus {
        underlay_address: Some(report.underlay_address.clone()).filter(|address| !address.is_empty()),
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

    fn merged(host: &HostStatus, proxy: &ProxyStatus, connected: bool) -> DpuNodeStatus {
        let none = DpuNodeStatus::default();
        let report = NodeReport { part: Some(node_report::Part::Host(host.clone())) };
        let host = status(&report, "c1", true, &none, now());
        let report = NodeReport { part: Some(node_report::Part::Proxy(proxy.clone())) };
        let proxy = status(&report, "c2", connected, &none, now());
        DpuNodeStatus {
            proxy_connected: proxy.proxy_connected,
            streams: proxy.streams,
            conditions: [host.conditions, proxy.conditions].concat(),
            problems: [host.problems, proxy.problems].concat(),
            ..host
        }
    }

    #[test]
    fn a_node_is_ready_when_both_report_and_nothing_is_wrong() {
        let host = HostStatus { dataplane_connected: true, vfs_total: 8, ..HostStatus::default() };
        let proxy = ProxyStatus { proxy_connected: true, streams_open: 1, streams_wanted: 2, ..ProxyStatus::default() };
        let status = merged(&host, &proxy, true);
        assert_eq!((status.streams.as_deref(), status.vfs_total), (Some("1/2"), Some(8)));
        assert_eq!(ready(&status, now()).reason, "Ready");
        assert_eq!(ready(&merged(&host, &proxy, false), now()).reason, "ProxyNotReporting");
        let away = ProxyStatus { proxy_connected: false, ..proxy.clone() };
        assert_eq!(ready(&merged(&host, &away, true), now()).reason, "ProxyNotConnected");
        let ill = HostStatus { problems: vec!["b".to_owned(), "a".to_owned(), "b".to_owned()], ..host };
        let condition = ready(&merged(&ill, &proxy, true), now());
        assert_eq!((condition.reason.as_str(), condition.message.as_str()), ("Problems", "a; b"));
        assert_eq!(ready(&DpuNodeStatus::default(), now()).reason, "HostNotReporting");
    }
}
