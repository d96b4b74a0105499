//! `dpumesh describe pod`: everything that is known of one pod. Pure.

use crate::seen::ago;
use crate::table::columns;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube_api::{AttachmentState, ConfigurationState, DpuWorkload, DpuWorkloadStatus};
use std::fmt::Write;

/// The pod's workload and the events about it.
#[derive(Clone, Debug)]
pub struct Described {
    pub workload: DpuWorkload,
    pub events: Vec<Event>,
    pub now: Timestamp,
}

impl Described {
    /// Whether it is attached and has its newest configuration.
    pub fn is_good(&self) -> bool {
        let status = self.workload.status.clone().unwrap_or_default();
        let is_configured = status.configuration == Some(ConfigurationState::Accepted);
        status.state == Some(AttachmentState::Open) && (is_configured || status.governed == Some(false))
    }

    /// For a person.
    pub fn text(&self) -> String {
        let status = self.workload.status.clone().unwrap_or_default();
        let metadata = &self.workload.metadata;
        let name = format!(
            "{}/{}",
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default()
        );
        let mut text = format!("{name} on {}\n", known(status.node.as_deref()));
        for (field, value) in self.fields(&status) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {:<15}{value}", format!("{field}:"));
        }
        list(&mut text, "Istio objects", &status.istio_objects);
        let refusals: Vec<String> =
            status.refusals.iter().map(|one| format!("{}: {}", one.resource, one.reason)).collect();
        list(&mut text, "Refused", &refusals);
        let conditions: Vec<String> = status.conditions.iter().map(|one| self.condition(one)).collect();
        list(&mut text, "Conditions", &conditions);
        let events = self.events();
        if !events.is_empty() {
            let _ = write!(text, "\n{events}");
        }
        text
    }

    fn fields(&self, status: &DpuWorkloadStatus) -> Vec<(&'static str, String)> {
        let state = status.state.map_or_else(|| "not reported".to_owned(), |state| format!("{state:?}"));
        let network = status.network.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
        let mut fields = vec![
            ("State", state),
            (
                "VF",
                format!(
                    "{}, port {}, MAC {}",
                    known(status.vf.as_deref()),
                    known(status.port.as_deref()),
                    known(status.mac.as_deref())
                ),
            ),
            ("Addresses", known(Some(&status.addresses.join(", ")))),
            ("Network", network.to_owned()),
        ];
        if status.governed == Some(false) {
            fields.push(("Governed", "no: it has not asked for the mesh".to_owned()));
        } else {
            fields.push(("Configuration", self.configuration(status)));
            fields.push(("Scope", known(status.scope.as_deref())));
            fields.push(("Identity", known(status.identity.as_deref())));
            let mode = status.mutual_tls.map_or_else(|| known(None), |mode| format!("{mode:?}"));
            fields.push(("Mutual TLS", mode));
        }
        let reasons = [&status.reason, &status.configuration_reason].into_iter().flatten();
        fields.extend(reasons.filter(|reason| !reason.is_empty()).map(|reason| ("Reason", reason.clone())));
        fields
    }

    fn configuration(&self, status: &DpuWorkloadStatus) -> String {
        let state = status.configuration.map_or_else(|| "not reported".to_owned(), |state| format!("{state:?}"));
        let then = status.acknowledged_at.as_ref().and_then(|text| text.parse::<Timestamp>().ok());
        match then {
            Some(then) => format!("{state}, acknowledged {} ago", self.since(then)),
            None => format!("{state}, never acknowledged"),
        }
    }

    fn condition(&self, condition: &kube_api::Condition) -> String {
        let since =
            condition.last_transition_time.parse::<Timestamp>().map(|then| format!(" since {}", self.since(then)));
        let message = if condition.message.is_empty() { &condition.reason } else { &condition.message };
        format!("{} is {:?}{}: {message}", condition.kind, condition.status, since.unwrap_or_default())
    }

    fn events(&self) -> String {
        let mut events: Vec<(Timestamp, &Event)> = self.events.iter().map(|event| (last(event), event)).collect();
        events.sort_by_key(|(then, _)| *then);
        let rows = events.into_iter().map(|(then, event)| {
            let word = |text: &Option<String>| text.clone().unwrap_or_default();
            [self.since(then), word(&event.type_), word(&event.reason), word(&event.message).trim().replace('\n', " ")]
        });
        columns(["LAST SEEN", "TYPE", "REASON", "MESSAGE"], rows)
    }

    fn since(&self, then: Timestamp) -> String {
        ago(self.now.as_second() - then.as_second())
    }
}

/// When it was seen last: events are counted in one of three ways.
fn last(event: &Event) -> Timestamp {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let counted = event.last_timestamp.as_ref().map(|time| time.0);
    let once = event.event_time.as_ref().map(|time| time.0);
    series.or(counted).or(once).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn list(text: &mut String, name: &str, lines: &[String]) {
    for (index, line) in lines.iter().enumerate() {
        let field = if index == 0 { format!("{name}:") } else { String::new() };
        let _ = writeln!(text, "  {field:<15}{line}");
    }
}

fn known(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn described(status: serde_json::Value, events: serde_json::Value) -> Described {
        let workload = json!({"apiVersion": "dpumesh.io/v1", "kind": "DpuWorkload", "metadata": {"name": "reviews-v1", "namespace": "bookinfo"}, "status": status});
        Described {
            workload: serde_json::from_value(workload).expect("workload"),
            events: serde_json::from_value(events).expect("events"),
            now: "2026-10-02T12:00:30Z".parse().expect("time"),
        }
    }

    #[test]
    fn a_refused_pod_says_what_was_refused_and_why() {
        let described = described(
            json!({
                "node": "node1", "vf": "vf3", "port": "vf3", "mac": "02:00:00:00:00:03", "addresses": ["10.244.1.14"],
                "state": "Open", "configuration": "Refused", "mutualTLS": "Strict", "scope": "scope@1f3a",
                "identity": "spiffe://cluster.local/ns/bookinfo/sa/reviews", "acknowledgedAt": "2026-10-02T12:00:18Z",
                "istioObjects": ["DestinationRule bookinfo/reviews", "VirtualService bookinfo/reviews"],
                "refusals": [{"resource": "virtualInbound", "reason": "filter jwt_authn is not supported"}],
                "conditions": [{"type": "Configured", "status": "False", "lastTransitionTime": "2026-10-02T11:58:00Z",
                    "reason": "Refused", "message": "1 resource was refused"}],
            }),
            json!([{"metadata": {}, "involvedObject": {}, "type": "Warning", "reason": "ConfigurationRefused", "message": "virtualInbound: no",
                "eventTime": "2026-10-02T11:55:00Z", "series": {"count": 4, "lastObservedTime": "2026-10-02T12:00:00Z"}}]),
        );
        assert!(!described.is_good());
        let expected = "\
bookinfo/reviews-v1 on node1
  State:         Open
  VF:            vf3, port vf3, MAC 02:00:00:00:00:03
  Addresses:     10.244.1.14
  Network:       default
  Configuration: Refused, acknowledged 12 s ago
  Scope:         scope@1f3a
  Identity:      spiffe://cluster.local/ns/bookinfo/sa/reviews
  Mutual TLS:    Strict
  Istio objects: DestinationRule bookinfo/reviews
                 VirtualService bookinfo/reviews
  Refused:       virtualInbound: filter jwt_authn is not supported
  Conditions:    Configured is False since 2 min: 1 resource was refused

LAST SEEN  TYPE     REASON                MESSAGE
30 s       Warning  ConfigurationRefused  virtualInbound: no
";
        assert_eq!(described.text(), expected);
    }

    #[test]
    fn a_pod_outside_the_mesh_needs_no_configuration() {
        let described = described(json!({"node": "node1", "state": "Open", "governed": false}), json!([]));
        assert!(described.is_good());
        assert!(described.text().contains("has not asked for the mesh"), "{}", described.text());
    }
}
