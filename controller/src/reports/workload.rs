//! From a report to the part of a DpuWorkload's status that it is about. Pure.

use super::Part;
use crate::crd::{AttachmentState, Condition, ConfigurationState, DpuWorkloadStatus, MutualTls, Refusal};
use k8s_openapi::jiff::Timestamp;
use mesh_api::report::workload_report::Part as Wire;
use mesh_api::report::{self as wire, WorkloadReport};

/// Condition: the port passes traffic.
pub const ATTACHED: &str = "Attached";
/// Condition: the newest configuration is in force.
pub const CONFIGURED: &str = "Configured";

/// The part of the status; empty when the report says nothing.
pub fn status(node: &str, report: &WorkloadReport, before: &DpuWorkloadStatus, now: Timestamp) -> DpuWorkloadStatus {
    let mut status = match &report.part {
        Some(Wire::Attachment(attachment)) => attached(attachment, now),
        Some(Wire::Configuration(configuration)) => configured(configuration, now),
        None => return DpuWorkloadStatus::default(),
    };
    status.node = text(node);
    status.conditions = status.conditions.into_iter().map(|condition| condition.since(&before.conditions)).collect();
    status
}

fn attached(attachment: &wire::Attachment, now: Timestamp) -> DpuWorkloadStatus {
    let state = match attachment.state() {
        wire::AttachmentState::Unspecified => None,
        wire::AttachmentState::Attaching => Some(AttachmentState::Attaching),
        wire::AttachmentState::Closed => Some(AttachmentState::Closed),
        wire::AttachmentState::Open => Some(AttachmentState::Open),
        wire::AttachmentState::Failed => Some(AttachmentState::Failed),
        wire::AttachmentState::Detaching => Some(AttachmentState::Detaching),
    };
    let word = state.map_or_else(|| "Unknown".to_owned(), |state| format!("{state:?}"));
    let holds = state.map(|state| state == AttachmentState::Open);
    DpuWorkloadStatus {
        vf: text(&attachment.vf),
        port: text(&attachment.port_id),
        addresses: attachment.addresses.clone(),
        mac: text(&attachment.mac),
        network: text(&attachment.network),
        governed: Some(attachment.governed),
        state,
        reason: text(&attachment.reason),
        conditions: vec![Condition::new(ATTACHED, holds, &word, &attachment.reason, now)],
        ..DpuWorkloadStatus::default()
    }
}

fn configured(configuration: &wire::Configuration, now: Timestamp) -> DpuWorkloadStatus {
    let state = match configuration.state() {
        wire::ConfigurationState::Unspecified => None,
        wire::ConfigurationState::Waiting => Some(ConfigurationState::Waiting),
        wire::ConfigurationState::Accepted => Some(ConfigurationState::Accepted),
        wire::ConfigurationState::Refused => Some(ConfigurationState::Refused),
        wire::ConfigurationState::Denied => Some(ConfigurationState::Denied),
    };
    let mutual_tls = match configuration.mutual_tls() {
        wire::MutualTls::Unspecified => None,
        wire::MutualTls::Disabled => Some(MutualTls::Disabled),
        wire::MutualTls::Permissive => Some(MutualTls::Permissive),
        wire::MutualTls::Strict => Some(MutualTls::Strict),
    };
    let refusals = configuration.refusals.iter();
    let refusals =
        refusals.map(|refusal| Refusal { resource: refusal.resource.clone(), reason: refusal.reason.clone() });
    let word = state.map_or_else(|| "Unknown".to_owned(), |state| format!("{state:?}"));
    let holds = state.map(|state| state == ConfigurationState::Accepted);
    DpuWorkloadStatus {
        configuration: state,
        configuration_reason: text(&configuration.reason),
        identity: text(&configuration.identity),
        mutual_tls,
        scope: text(&configuration.scope),
        istio_objects: configuration.istio_objects.clone(),
        refusals: refusals.collect(),
        acknowledged_at: acknowledged(configuration.acknowledged_unix_ms),
        conditions: vec![Condition::new(CONFIGURED, holds, &word, &configuration.reason, now)],
        ..DpuWorkloadStatus::default()
    }
}

fn acknowledged(unix_ms: u64) -> Option<String> {
    let time = Timestamp::from_millisecond(i64::try_from(unix_ms).ok()?).ok()?;
    (unix_ms > 0).then(|| time.to_string())
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

/// What of a whole status belongs to a part.
pub fn part_of(status: &DpuWorkloadStatus, part: Part) -> DpuWorkloadStatus {
    let mut own = status.clone();
    let (foreign, condition) = match part {
        Part::Host => {
            (own.configuration, own.configuration_reason, own.identity, own.mutual_tls) = (None, None, None, None);
            (own.scope, own.acknowledged_at) = (None, None);
            (&mut own.istio_objects, ATTACHED)
        }
        Part::Proxy => {
            (own.vf, own.port, own.mac, own.network, own.reason) = (None, None, None, None, None);
            (own.governed, own.state) = (None, None);
            (&mut own.addresses, CONFIGURED)
        }
    };
    foreign.clear();
    if part == Part::Host {
        own.refusals.clear();
    }
    own.conditions.retain(|other| other.kind == condition);
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("time")
    }

    fn report(part: Wire) -> WorkloadReport {
        WorkloadReport { namespace: "n".to_owned(), name: "p".to_owned(), uid: "u".to_owned(), part: Some(part) }
    }

    fn attachment(state: wire::AttachmentState) -> WorkloadReport {
        report(Wire::Attachment(wire::Attachment {
            state: state.into(),
            vf: "vf3".to_owned(),
            addresses: vec!["10.0.0.1".to_owned()],
            ..wire::Attachment::default()
        }))
    }

    fn configuration() -> WorkloadReport {
        report(Wire::Configuration(wire::Configuration {
            state: wire::ConfigurationState::Accepted.into(),
            mutual_tls: wire::MutualTls::Strict.into(),
            istio_objects: vec!["VirtualService n/p".to_owned()],
            refusals: vec![wire::Refusal { resource: "r".to_owned(), reason: "why".to_owned() }],
            acknowledged_unix_ms: 1_700_000_000_123,
            ..wire::Configuration::default()
        }))
    }

    #[test]
    fn the_two_parts_meet_in_the_node_only() {
        let none = DpuWorkloadStatus::default();
        let host = status("host1", &attachment(wire::AttachmentState::Open), &none, now(1));
        let proxy = status("host1", &configuration(), &none, now(1));
        let whole = DpuWorkloadStatus {
            conditions: [host.conditions.clone(), proxy.conditions.clone()].concat(),
            vf: host.vf.clone(),
            addresses: host.addresses.clone(),
            governed: host.governed,
            state: host.state,
            ..proxy.clone()
        };
        assert_eq!(part_of(&whole, Part::Host), host);
        assert_eq!(part_of(&whole, Part::Proxy), proxy);
        assert_eq!(proxy.acknowledged_at.as_deref(), Some("2023-11-14T22:13:20.123Z"));
    }

    #[test]
    fn a_condition_keeps_the_time_of_its_last_change() {
        let none = DpuWorkloadStatus::default();
        let open = status("host1", &attachment(wire::AttachmentState::Open), &none, now(1));
        let still = status("host1", &attachment(wire::AttachmentState::Open), &open, now(2));
        assert_eq!(still, open);
        let closed = status("host1", &attachment(wire::AttachmentState::Closed), &open, now(3));
        assert_eq!(closed.conditions[0].last_transition_time, "1970-01-01T00:00:03Z");
    }
}
