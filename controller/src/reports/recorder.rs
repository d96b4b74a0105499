//! Sends events of pods. The same again is counted, not sent again; a pod has a budget.

use super::event::Event;
use super::write::{CONTROLLER, Failure};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event as ApiEvent, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Who tells.
const REPORTING_CONTROLLER: &str = "dpumesh.io/controller";
/// The same event within this time is counted up.
const SAME: Duration = Duration::from_secs(600);
/// A count is written no more often, unless something else was told in between.
const COUNT_INTERVAL: Duration = Duration::from_secs(10);
/// A pod gets so many different events within `SAME`.
const BUDGET: usize = 20;

/// The pod that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Regarding {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// Sends events.
#[allow(missing_debug_implementations)]
pub struct Recorder {
    client: Client,
    replica: String,
    sent: Mutex<Sent>,
}

/// What was sent lately. Pure.
#[derive(Debug, Default)]
struct Sent {
    known: HashMap<(Regarding, Event), Known>,
    /// Number of what was told last, of any pod.
    told: u64,
}

#[derive(Debug)]
struct Known {
    name: String,
    count: i32,
    first: Instant,
    written: Instant,
    /// Number of its last telling.
    told: u64,
}

/// What to do about an event.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Create { name: String },
    Count { name: String, count: i32 },
    Nothing,
}

impl Sent {
    fn decide(&mut self, pod: &Regarding, event: &Event, fresh_name: String, now: Instant) -> Action {
        self.known.retain(|_, known| now.duration_since(known.first) < SAME);
        self.told += 1;
        let of_pod = self.known.iter().filter(|((other, _), _)| other == pod);
        let newest = of_pod.map(|(_, known)| known.told).max();
        if let Some(known) = self.known.get_mut(&(pod.clone(), event.clone())) {
            let is_newest = newest == Some(known.told);
            (known.count, known.told) = (known.count + 1, self.told);
            // When another was told since, people must see that it is as before.
            if is_newest && now.duration_since(known.written) < COUNT_INTERVAL {
                return Action::Nothing;
            }
            known.written = now;
            return Action::Count { name: known.name.clone(), count: known.count };
        }
        if self.known.keys().filter(|(other, _)| other == pod).count() >= BUDGET {
            return Action::Nothing;
        }
        let known = Known { name: fresh_name.clone(), count: 1, first: now, written: now, told: self.told };
        self.known.insert((pod.clone(), event.clone()), known);
        Action::Create { name: fresh_name }
    }
}

impl Recorder {
    /// Of the replica of that name.
    pub fn new(client: Client, replica: &str) -> Self {
        Self { client, replica: replica.to_owned(), sent: Mutex::default() }
    }

    /// An event that cannot be sent is in the log.
    pub async fn publish(&self, pod: &Regarding, event: &Event) {
        tracing::info!(namespace = pod.namespace, pod = pod.name, reason = event.reason, note = event.note, "event");
        let now = Timestamp::now();
        let fresh_name = format!("{}.{:x}", pod.name, now.as_nanosecond());
        let action = self.sent().decide(pod, event, fresh_name, Instant::now());
        let events = Api::<ApiEvent>::namespaced(self.client.clone(), &pod.namespace);
        let sent = match action {
            Action::Nothing => return,
            Action::Create { name } => {
                events.create(&PostParams::default(), &self.made(name, pod, event, now)).await.map(drop)
            }
            Action::Count { name, count } => {
                let series = EventSeries { count, last_observed_time: MicroTime(now) };
                let patch = Patch::Merge(json!({"series": series}));
                events.patch(&name, &PatchParams::default(), &patch).await.map(drop)
            }
        };
        match sent.map_err(Failure::from) {
            // The namespace or the event is gone.
            Ok(()) | Err(Failure::Unknown) => {}
            Err(Failure::Retry(reason) | Failure::Forbidden(reason) | Failure::Final(reason)) => {
                tracing::warn!(namespace = pod.namespace, pod = pod.name, reason, "the event was not sent");
            }
        }
    }

    fn made(&self, name: String, pod: &Regarding, event: &Event, now: Timestamp) -> ApiEvent {
        let text = |text: &str| Some(text.to_owned());
        ApiEvent {
            metadata: ObjectMeta { name: Some(name), namespace: text(&pod.namespace), ..ObjectMeta::default() },
            event_time: Some(MicroTime(now)),
            type_: text(if event.is_warning { "Warning" } else { "Normal" }),
            reason: text(event.reason),
            action: text(event.action),
            note: text(&event.note),
            reporting_controller: text(REPORTING_CONTROLLER),
            reporting_instance: text(&format!("{CONTROLLER}/{}", self.replica)),
            regarding: Some(ObjectReference {
                api_version: text("v1"),
                kind: text("Pod"),
                namespace: text(&pod.namespace),
                name: text(&pod.name),
                uid: text(&pod.uid),
                ..ObjectReference::default()
            }),
            ..ApiEvent::default()
        }
    }

    fn sent(&self) -> MutexGuard<'_, Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(note: &str) -> Event {
        Event { is_warning: true, reason: "AttachFailed", action: "Attach", note: note.to_owned() }
    }

    #[test]
    fn the_same_again_is_counted_and_a_pod_has_a_budget() {
        let (mut sent, start) = (Sent::default(), Instant::now());
        let pod = |uid: &str| Regarding { namespace: "n".to_owned(), name: "p".to_owned(), uid: uid.to_owned() };
        let mut decide = |uid: &str, note: &str, seconds: u64| {
            sent.decide(
                &pod(uid),
                &event(note),
                format!("{uid}.{note}.{seconds}"),
                start + Duration::from_secs(seconds),
            )
        };
        assert_eq!(decide("u", "a", 0), Action::Create { name: "u.a.0".to_owned() });
        assert_eq!((decide("u", "a", 1), decide("u", "a", 2)), (Action::Nothing, Action::Nothing));
        assert_eq!(decide("u", "a", 11), Action::Count { name: "u.a.0".to_owned(), count: 4 });
        for number in 1..BUDGET {
            assert!(matches!(decide("u", &number.to_string(), 12), Action::Create { .. }));
        }
        assert_eq!(decide("u", "one too many", 12), Action::Nothing);
        assert!(matches!(decide("other", "a", 12), Action::Create { .. }), "another pod has its own");
        assert!(matches!(decide("u", "a", 601), Action::Create { .. }), "it is an old story");
    }
    #[test]
    fn what_is_as_before_is_told_at_once_after_something_else() {
        let (mut sent, start) = (Sent::default(), Instant::now());
        let pod = Regarding { namespace: "n".to_owned(), name: "p".to_owned(), uid: "u".to_owned() };
        let mut decide = |note: &str, seconds: u64| {
            sent.decide(&pod, &event(note), note.to_owned(), start + Duration::from_secs(seconds))
        };
        let create = |note: &str| Action::Create { name: note.to_owned() };
        assert_eq!((decide("before", 0), decide("after", 1)), (create("before"), create("after")));
        assert_eq!(decide("before", 2), Action::Count { name: "before".to_owned(), count: 2 });
        assert_eq!(
            (decide("before", 3), decide("after", 3)),
            (Action::Nothing, Action::Count { name: "after".to_owned(), count: 2 })
        );
    }
}
