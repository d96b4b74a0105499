//! What a person is told of a change of a pod's status. Pure.

use super::Part;
use crate::crd::{AttachmentState, ConfigurationState, DpuWorkloadStatus};

/// Longest note that the API server takes, in bytes.
const NOTE_LIMIT_BYTES: usize = 1024;
/// So many refusals are spelled out.
const REFUSALS: usize = 3;

/// An event of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    pub is_warning: bool,
    pub reason: &'static str,
    pub action: &'static str,
    pub note: String,
}

/// Of a part's status as it was and as it is.
pub fn event(part: Part, before: &DpuWorkloadStatus, now: &DpuWorkloadStatus) -> Option<Event> {
    match part {
        Part::Host => attachment(before, now),
        Part::Proxy => configuration(before, now),
    }
}

fn attachment(before: &DpuWorkloadStatus, now: &DpuWorkloadStatus) -> Option<Event> {
    let same = before.state == now.state;
    match now.state? {
        AttachmentState::Open if !same || before.vf != now.vf => {
            let of = |text: &Option<String>| text.clone().unwrap_or_default();
            let mesh = if now.governed == Some(true) { "in the mesh" } else { "outside the mesh" };
            let note = format!("{} of {} with {}, {mesh}", of(&now.vf), of(&now.node), now.addresses.join(", "));
            Some(Event::normal("Attached", "Attach", &note))
        }
        AttachmentState::Failed if !same || before.reason != now.reason => {
            Some(Event::warning("AttachFailed", "Attach", now.reason.as_deref().unwrap_or("no reason was told")))
        }
        _ => None,
    }
}

fn configuration(before: &DpuWorkloadStatus, now: &DpuWorkloadStatus) -> Option<Event> {
    let same = before.configuration == now.configuration;
    let reason = now.configuration_reason.as_deref().unwrap_or("no reason was told");
    match now.configuration? {
        ConfigurationState::Accepted
            if !same || before.istio_objects != now.istio_objects || before.mutual_tls != now.mutual_tls =>
        {
            Some(Event::normal("Configured", "Configure", &configured(now)))
        }
        ConfigurationState::Refused if !same || before.refusals != now.refusals => {
            let note = format!("{reason}; {}the configuration before stays in force", refusals(now));
            Some(Event::warning("ConfigurationRefused", "Configure", &note))
        }
        ConfigurationState::Denied if !same || before.configuration_reason != now.configuration_reason => {
            Some(Event::warning("IdentityDenied", "Authenticate", reason))
        }
        _ => None,
    }
}

fn configured(now: &DpuWorkloadStatus) -> String {
    let mutual_tls = now.mutual_tls.map(|mode| format!("mutual TLS {mode:?}; ")).unwrap_or_default();
    let objects = match now.istio_objects.as_slice() {
        [] => "no Istio object concerns it".to_owned(),
        objects => objects.join(", "),
    };
    format!("{mutual_tls}{objects}")
}

fn refusals(now: &DpuWorkloadStatus) -> String {
    let each = now.refusals.iter().take(REFUSALS);
    let mut text: String = each.map(|refusal| format!("{}: {}; ", refusal.resource, refusal.reason)).collect();
    if now.refusals.len() > REFUSALS {
        text.push_str(&format!("and {} more; ", now.refusals.len() - REFUSALS));
    }
    text
}

impl Event {
    /// Something went as it should.
    pub fn normal(reason: &'static str, action: &'static str, note: &str) -> Self {
        Self { is_warning: false, reason, action, note: limited(note) }
    }

    /// A person should look.
    pub fn warning(reason: &'static str, action: &'static str, note: &str) -> Self {
        Self { is_warning: true, reason, action, note: limited(note) }
    }
}

fn limited(note: &str) -> String {
    if note.len() <= NOTE_LIMIT_BYTES {
        return note.to_owned();
    }
    let end = note.floor_char_boundary(NOTE_LIMIT_BYTES - '…'.len_utf8());
    format!("{}…", &note[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crd::{MutualTls, Refusal};

    fn attached(state: AttachmentState, reason: &str) -> DpuWorkloadStatus {
        DpuWorkloadStatus {
            node: Some("host1".to_owned()),
            vf: Some("vf3".to_owned()),
            addresses: vec!["10.0.0.1".to_owned()],
            governed: Some(true),
            state: Some(state),
            reason: Some(reason.to_owned()),
            ..DpuWorkloadStatus::default()
        }
    }

    fn configured(state: ConfigurationState, objects: &[&str]) -> DpuWorkloadStatus {
        DpuWorkloadStatus {
            configuration: Some(state),
            mutual_tls: Some(MutualTls::Strict),
            istio_objects: objects.iter().map(|object| (*object).to_owned()).collect(),
            ..DpuWorkloadStatus::default()
        }
    }

    #[test]
    fn an_attachment_is_told_when_it_opens_and_when_it_fails() {
        let none = DpuWorkloadStatus::default();
        let attaching = attached(AttachmentState::Attaching, "");
        assert_eq!(event(Part::Host, &none, &attaching), None);
        let open = attached(AttachmentState::Open, "");
        let told = event(Part::Host, &attaching, &open).expect("an event");
        assert_eq!((told.is_warning, told.reason), (false, "Attached"));
        assert_eq!(told.note, "vf3 of host1 with 10.0.0.1, in the mesh");
        assert_eq!(event(Part::Host, &open, &open), None);
        let failed = attached(AttachmentState::Failed, "no VF is left");
        let told = event(Part::Host, &attaching, &failed).expect("an event");
        assert_eq!((told.is_warning, told.reason, told.note.as_str()), (true, "AttachFailed", "no VF is left"));
        assert_eq!(event(Part::Host, &failed, &failed), None);
    }

    #[test]
    fn a_configuration_is_told_with_its_istio_objects_and_again_when_they_change() {
        let waiting = configured(ConfigurationState::Waiting, &[]);
        let plain = configured(ConfigurationState::Accepted, &[]);
        let told = event(Part::Proxy, &waiting, &plain).expect("an event");
        assert_eq!((told.reason, told.note.as_str()), ("Configured", "mutual TLS Strict; no Istio object concerns it"));
        let scope = DpuWorkloadStatus { scope: Some("scope@1".to_owned()), ..plain.clone() };
        assert_eq!(event(Part::Proxy, &plain, &scope), None, "endpoints come and go");
        let routed = configured(ConfigurationState::Accepted, &["VirtualService n/r"]);
        assert!(event(Part::Proxy, &plain, &routed).expect("an event").note.contains("VirtualService n/r"));
    }

    #[test]
    fn a_refusal_names_the_resources_and_a_denial_the_reason_within_the_limit() {
        let mut refused = configured(ConfigurationState::Refused, &[]);
        refused.configuration_reason = Some("the proxy refused it".to_owned());
        refused.refusals =
            (0..5).map(|number| Refusal { resource: format!("cluster{number}"), reason: "ä".repeat(400) }).collect();
        let told = event(Part::Proxy, &DpuWorkloadStatus::default(), &refused).expect("an event");
        assert_eq!((told.is_warning, told.reason), (true, "ConfigurationRefused"));
        assert!(told.note.contains("cluster0") && told.note.ends_with('…') && told.note.len() <= NOTE_LIMIT_BYTES);
        let mut denied = configured(ConfigurationState::Denied, &[]);
        denied.configuration_reason = Some("token expired".to_owned());
        let told = event(Part::Proxy, &refused, &denied).expect("an event");
        assert_eq!((told.reason, told.note.as_str()), ("IdentityDenied", "token expired"));
    }
}
