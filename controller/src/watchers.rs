//! Watches on the API server: lists, then follows, each kind in a task of its own.
//!
//! Each object is reduced to what is used before it is handed on, so that a large cluster takes the
//! memory of its tables and no more.

use crate::cluster::Seen;
use crate::crd;
use crate::kubernetes::Convert;
use crate::object::{Key, Kind};
use crate::reports::peer_authentication::{KIND, PeerAuthentication, PeerAuthentications};
use crate::reports::writer::Shared;
use futures_util::{Stream, StreamExt};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use service::backoff::Backoff;
use std::fmt::Debug;
use std::time::Duration;
use tokio::sync::mpsc;

/// A watch that failed is tried again after this long at the latest.
const RETRY_LIMIT: Duration = Duration::from_secs(10);
/// A watch that neither failed again nor told anything for this long works.
const RECOVERED: Duration = Duration::from_secs(12);

/// Starts all watches. They end when the receiver is dropped.
pub fn start(client: &Client) -> mpsc::Receiver<Seen> {
    let (seen, receiver) = mpsc::channel(1024);
    objects::<Namespace>(client, Kind::Namespace, &seen);
    objects::<Node>(client, Kind::Node, &seen);
    objects::<DeserializeGuard<crd::Network>>(client, Kind::Network, &seen);
    objects::<DeserializeGuard<crd::DpuNode>>(client, Kind::DpuNode, &seen);
    objects::<Pod>(client, Kind::Pod, &seen);
    objects::<Service>(client, Kind::Service, &seen);
    objects::<EndpointSlice>(client, Kind::EndpointSlice, &seen);
    objects::<PartialObjectMeta<ReplicaSet>>(client, Kind::ReplicaSet, &seen);
    receiver
}

fn objects<K>(client: &Client, kind: Kind, seen: &mpsc::Sender<Seen>)
where
    K: Resource<DynamicType = ()> + Convert + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let events = watcher(Api::<K>::all(client.clone()), watcher::Config::default());
    tokio::spawn(follow(kind, events.backoff(Retry::default()), seen.clone()));
}

async fn follow<K: Resource + Convert>(
    kind: Kind,
    events: impl Stream<Item = Result<Event<K>, watcher::Error>>,
    seen: mpsc::Sender<Seen>,
) {
    let (mut events, mut works) = (std::pin::pin!(events), true);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = tokio::time::sleep(RECOVERED), if !works => None,
            () = seen.closed() => return,
        };
        works = !matches!(event, Some(Err(_)));
        let told = match event {
            // The stream itself never ends.
            None => Some(Seen::Recovered(kind)),
            Some(Ok(event)) => reduce(kind, event),
            // It lists anew by itself.
            Some(Err(watcher::Error::WatchError(status))) if status.code == 410 => None,
            Some(Err(error)) => Some(Seen::Failed(kind, failure(kind, &error))),
        };
        if let Some(told) = told
            && seen.send(told).await.is_err()
        {
            return;
        }
    }
}

fn reduce<K: Resource + Convert>(kind: Kind, event: Event<K>) -> Option<Seen> {
    match event {
        Event::Init => Some(Seen::ListBegins(kind)),
        Event::InitDone => Some(Seen::ListEnds(kind)),
        Event::Delete(object) => Some(Seen::Gone(key(kind, &object))),
        Event::InitApply(object) | Event::Apply(object) => {
            let key = key(kind, &object);
            is_used(kind, &object).then(|| Seen::Put(key, object.convert().map(|(_, object)| object)))
        }
    }
}

fn key<K: Resource>(kind: Kind, object: &K) -> Key {
    Key::new(kind, &object.namespace().unwrap_or_default(), &object.name_any())
}

/// Endpoint slices without a service are somebody else's, and no mistake.
fn is_used<K: Resource>(kind: Kind, object: &K) -> bool {
    kind != Kind::EndpointSlice || object.labels().contains_key("kubernetes.io/service-name")
}

fn failure(kind: Kind, error: &watcher::Error) -> String {
    let reason = explain(error);
    tracing::warn!(kind = kind.as_str(), reason, "the API server is not followed; what was known stays in force");
    reason
}

/// Follows Istio's PeerAuthentications until the runtime ends. Only statuses need them: where they are not served, or
/// may not be read, they are not named, and nothing waits for them.
pub fn peer_authentications(client: Client, shared: Shared) {
    let kind = GroupVersionKind::gvk("security.istio.io", "v1", KIND);
    let kind = ApiResource::from_gvk_with_plural(&kind, "peerauthentications");
    let events = watcher(Api::<DynamicObject>::all_with(client, &kind), watcher::Config::default());
    tokio::spawn(follow_peer_authentications(events.backoff(Retry::default()), shared));
}

async fn follow_peer_authentications(
    events: impl Stream<Item = Result<Event<DynamicObject>, watcher::Error>>,
    shared: Shared,
) {
    let (mut events, mut told) = (std::pin::pin!(events), String::new());
    while let Some(event) = events.next().await {
        let reason = match event {
            Ok(event) => match shared.change_peer_authentications(|all| take(all, event)) {
                true => String::new(),
                false => continue,
            },
            Err(error) => {
                if is_withheld(&error) {
                    shared.change_peer_authentications(PeerAuthentications::withheld);
                }
                explain(&error)
            }
        };
        if !reason.is_empty() && reason != told {
            tracing::warn!(kind = KIND, reason, "it is not followed; statuses may not name what is in force");
        }
        told = reason;
    }
}

/// Whether what is known may be another now: not before a list is complete.
fn take(all: &mut PeerAuthentications, event: Event<DynamicObject>) -> bool {
    let is_change = !matches!(event, Event::Init | Event::InitApply(_));
    match event {
        Event::Init => all.list_begins(),
        Event::InitApply(object) => all.listed(PeerAuthentication::of(&object)),
        Event::InitDone => all.list_ends(),
        Event::Apply(object) => all.put(PeerAuthentication::of(&object)),
        Event::Delete(object) => all.remove(&PeerAuthentication::of(&object).0),
    }
    is_change
}

/// The kind is not served, or may not be read.
fn is_withheld(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if matches!(status.code, 403 | 404))
}

/// kube's backoff over ours.
struct Retry(Backoff);

impl Default for Retry {
    fn default() -> Self {
        Self(Backoff::new(Duration::from_millis(500), RETRY_LIMIT))
    }
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.0.next(fastrand::f64()))
    }
}

impl kube::runtime::utils::Backoff for Retry {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// An answer of the API server is told by its message alone; kube's text has it twice, and all of its fields.
fn one(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(kube::Error::Api(status)) = error.downcast_ref() {
        return status.message.clone();
    }
    match error.downcast_ref() {
        Some(watcher::Error::InitialListFailed(_)) => "it cannot be listed".to_owned(),
        Some(watcher::Error::WatchStartFailed(_) | watcher::Error::WatchFailed(_)) => {
            "it cannot be followed".to_owned()
        }
        Some(watcher::Error::WatchError(status)) => status.message.clone(),
        Some(watcher::Error::NoResourceVersion) | None => error.to_string(),
    }
}

/// With the cause, which names the host, the certificate or the missing permission.
pub fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = one(error);
    let mut last = error;
    while let Some(cause) = last.source().filter(|_| !is_answer(last)) {
        let cause_text = one(cause);
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        last = cause;
    }
    text
}

/// Nothing stands behind what the API server says.
fn is_answer(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(kube::Error::Api(_)))
        || matches!(error.downcast_ref(), Some(watcher::Error::WatchError(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_in_the_api_servers_words_and_once() {
        let status = || kube::core::Status { code: 403, message: "may not list pods".to_owned(), ..Default::default() };
        let refused = watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status())));
        assert_eq!(explain(&refused), "it cannot be listed: may not list pods");
        assert_eq!(explain(&watcher::Error::WatchError(Box::new(status()))), "may not list pods");
        let away = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let away = watcher::Error::WatchStartFailed(kube::Error::Service(Box::new(away)));
        assert_eq!(explain(&away), "it cannot be followed: ServiceError: connection refused");
    }
}
