//! What a server says to one stream and when; pure.
//!
//! In: requests, and a look at the `View`. Out: responses (`poll`), and what the client accepted or
//! refused. One response of a type is in flight at a time; what changes meanwhile is sent together
//! afterwards. Make before break: additions go out type by type in `MAKE_ORDER`, each type once the
//! ones before it are acknowledged; removals follow when all additions are, in the reverse order.

use super::store::make_rank;
use super::view::View;
use crate::client::Mode;
use crate::client::core::{Request, Response};
use crate::resource::{Rejected, Resource};
use mesh_api::envoy::service::discovery::v3 as discovery;
use mesh_api::envoy_pb::google::rpc::Status;
use mesh_api::xds::Rejections;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a client said of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Acked { type_url: String, resources: Vec<(String, String)>, removed: Vec<String> },
    Nacked { type_url: String, rejected: Vec<Rejected>, message: String },
}

/// The state of one stream.
#[derive(Debug)]
pub struct StreamCore {
    mode: Mode,
    nonce: u64,
    /// In the order in which they are made.
    subscriptions: Vec<Subscription>,
}

#[derive(Debug)]
struct Subscription {
    type_url: String,
    wildcard: bool,
    names: BTreeSet<String>,
    /// What the client has, or was sent.
    sent: BTreeMap<String, Sent>,
    /// Of that, what it brought along and has not been compared with the view yet.
    brought: BTreeSet<String>,
    /// What it brought along as the view has it.
    held: Vec<(String, String)>,
    /// The log of the view is looked at up to here; `None`: everything must be compared.
    scanned: Option<u64>,
    add: BTreeSet<String>,
    remove: BTreeSet<String>,
    /// An answer is owed even if there is nothing to say.
    owed: bool,
    in_flight: Option<InFlight>,
}

#[derive(Debug)]
struct Sent {
    version: String,
    /// Kept in state of the world, where every response repeats it.
    resource: Option<Arc<Resource>>,
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    resources: Vec<(String, String)>,
    removed: Vec<String>,
}

impl Subscription {
    fn new(type_url: &str) -> Self {
        Self {
            type_url: type_url.to_owned(),
            wildcard: false,
            names: BTreeSet::new(),
            sent: BTreeMap::new(),
            brought: BTreeSet::new(),
            held: Vec::new(),
            scanned: None,
            add: BTreeSet::new(),
            remove: BTreeSet::new(),
            owed: false,
            in_flight: None,
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// Compares one name of the view with what the client has.
    fn compare(&mut self, name: &str, current: Option<&Arc<Resource>>) {
        if !self.wants(name) {
            return;
        }
        let sent = self.sent.get(name);
        let is_brought = self.brought.remove(name);
        match current {
            Some(resource) if sent.is_none_or(|sent| sent.version != resource.version) => {
                self.remove.remove(name);
                self.add.insert(name.to_owned());
            }
            Some(resource) => {
                self.add.remove(name);
                self.remove.remove(name);
                if is_brought {
                    self.held.push((name.to_owned(), resource.version.clone()));
                }
            }
            None => {
                self.add.remove(name);
                if sent.is_some() {
                    self.remove.insert(name.to_owned());
                }
            }
        }
    }

    /// Looks at what changed in the view.
    fn scan(&mut self, view: &View) {
        let sequence = view.sequence();
        if self.scanned == Some(sequence) {
            return;
        }
        let table = view.table(&self.type_url);
        let changed: Option<Vec<String>> = match (self.scanned, table) {
            (Some(scanned), Some(table)) => {
                table.changed_since(scanned).map(|names| names.map(str::to_owned).collect())
            }
            (Some(_), None) => Some(Vec::new()),
            (None, _) => None,
        };
        let names = changed.unwrap_or_else(|| self.everything(view));
        for name in names {
            self.compare(&name, table.and_then(|table| table.get(&name)));
        }
        self.scanned = Some(sequence);
    }

    fn everything(&self, view: &View) -> Vec<String> {
        let present = view.table(&self.type_url).into_iter().flat_map(|table| table.iter());
        let mut names: BTreeSet<String> = self.sent.keys().chain(&self.names).cloned().collect();
        names.extend(present.filter(|one| self.wildcard || self.names.contains(&one.name)).map(|one| one.name.clone()));
        names.into_iter().collect()
    }

    fn subscribe(&mut self, name: &str) {
        if name == "*" {
            self.wildcard = true;
            self.owed = true;
            self.scanned = None;
            return;
        }
        self.names.insert(name.to_owned());
    }

    fn unsubscribe(&mut self, name: &str) {
        if name == "*" {
            self.wildcard = false;
            let names = &self.names;
            self.sent.retain(|name, _| names.contains(name));
            self.add.retain(|name| names.contains(name));
            self.remove.retain(|name| names.contains(name));
            return;
        }
        self.names.remove(name);
        if !self.wildcard {
            self.sent.remove(name);
            self.add.remove(name);
            self.remove.remove(name);
        }
    }
}

impl StreamCore {
    /// A stream that has said nothing yet.
    pub fn new(mode: Mode) -> Self {
        Self { mode, nonce: 0, subscriptions: Vec::new() }
    }

    /// Takes a request; the verdict is on the response that it answers, if any.
    pub fn handle(&mut self, request: Request) -> Option<Verdict> {
        match request {
            Request::Delta(request) => self.handle_delta(request),
            Request::StateOfTheWorld(request) => self.handle_sotw(request),
        }
    }

    fn handle_delta(&mut self, request: discovery::DeltaDiscoveryRequest) -> Option<Verdict> {
        let is_first = self.find(&request.type_url).is_none();
        let subscription = self.subscription(&request.type_url);
        if is_first {
            let versions = request.initial_resource_versions;
            let sent = versions.into_iter().map(|(name, version)| (name, Sent { version, resource: None }));
            subscription.sent = sent.collect();
            subscription.brought = subscription.sent.keys().cloned().collect();
            let is_legacy_wildcard = request.resource_names_subscribe.is_empty();
            if is_legacy_wildcard {
                subscription.subscribe("*");
            }
        }
        for name in &request.resource_names_subscribe {
            subscription.subscribe(name);
            subscription.ask_again(name, is_first);
        }
        for name in &request.resource_names_unsubscribe {
            subscription.unsubscribe(name);
        }
        subscription.verdict(&request.response_nonce, request.error_detail)
    }

    fn handle_sotw(&mut self, request: discovery::DiscoveryRequest) -> Option<Verdict> {
        let is_first = self.find(&request.type_url).is_none();
        let subscription = self.subscription(&request.type_url);
        let current = subscription.in_flight.as_ref().map(|in_flight| in_flight.nonce.as_str());
        let is_stale =
            !request.response_nonce.is_empty() && current.is_some_and(|nonce| nonce != request.response_nonce);
        if is_stale {
            return None;
        }
        if is_first && request.resource_names.is_empty() {
            subscription.subscribe("*");
        }
        if !subscription.wildcard {
            subscription.replace_names(request.resource_names.into_iter().collect());
        }
        subscription.verdict(&request.response_nonce, request.error_detail)
    }

    /// What a client brought along, found to be as the view has it: it has accepted that, though nothing is sent to it and
    /// so nothing acknowledged. Follows `poll`.
    pub fn held(&mut self) -> Option<Verdict> {
        let subscription = self.subscriptions.iter_mut().find(|subscription| !subscription.held.is_empty())?;
        let resources = std::mem::take(&mut subscription.held);
        Some(Verdict::Acked { type_url: subscription.type_url.clone(), resources, removed: Vec::new() })
    }

    /// The next response for the wire.
    pub fn poll(&mut self, view: &View) -> Option<Response> {
        for subscription in &mut self.subscriptions {
            subscription.scan(view);
        }
        let mut is_blocked = false;
        for index in 0..self.subscriptions.len() {
            let subscription = &self.subscriptions[index];
            let is_in_flight = subscription.in_flight.is_some();
            let is_due = !subscription.add.is_empty() || subscription.owed;
            if is_due && !is_in_flight && !is_blocked {
                return Some(self.respond(index, view, false));
            }
            is_blocked |= is_due || is_in_flight;
        }
        if is_blocked {
            return None;
        }
        let index = self.subscriptions.iter().rposition(|subscription| !subscription.remove.is_empty())?;
        Some(self.respond(index, view, true))
    }

    fn respond(&mut self, index: usize, view: &View, is_removal: bool) -> Response {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        let mode = self.mode;
        let subscription = &mut self.subscriptions[index];
        subscription.owed = false;
        // Names that a client asks for by name and that do not exist are answered with the additions.
        let removed: Vec<String> = match is_removal {
            true => std::mem::take(&mut subscription.remove).into_iter().collect(),
            false => Vec::new(),
        };
        for name in &removed {
            subscription.sent.remove(name);
        }
        let table = view.table(&subscription.type_url);
        let add: Vec<Arc<Resource>> = std::mem::take(&mut subscription.add)
            .iter()
            .filter_map(|name| table.and_then(|table| table.get(name)).cloned())
            .collect();
        let is_sotw = mode == Mode::StateOfTheWorld;
        for resource in &add {
            let sent = Sent { version: resource.version.clone(), resource: is_sotw.then(|| Arc::clone(resource)) };
            subscription.sent.insert(resource.name.clone(), sent);
        }
        subscription.in_flight = Some(InFlight {
            nonce: nonce.clone(),
            resources: add.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect(),
            removed: removed.clone(),
        });
        let version = view.sequence().to_string();
        match mode {
            Mode::Delta => delta(subscription, &add, removed, nonce, version),
            Mode::StateOfTheWorld => sotw(subscription, nonce, version),
        }
    }

    fn find(&self, type_url: &str) -> Option<usize> {
        self.subscriptions.iter().position(|subscription| subscription.type_url == type_url)
    }

    fn subscription(&mut self, type_url: &str) -> &mut Subscription {
        let index = self.find(type_url).unwrap_or_else(|| {
            let rank = make_rank(type_url);
            let at = self.subscriptions.partition_point(|other| make_rank(&other.type_url) <= rank);
            self.subscriptions.insert(at, Subscription::new(type_url));
            at
        });
        &mut self.subscriptions[index]
    }
}

impl Subscription {
    /// A name that is asked for (again) is answered, also when it does not exist.
    fn ask_again(&mut self, name: &str, is_first: bool) {
        if name == "*" {
            return;
        }
        if !is_first {
            self.sent.remove(name);
        }
        // What the client does not have it must be told of: an empty version is no resource's.
        self.sent.entry(name.to_owned()).or_insert_with(|| Sent { version: String::new(), resource: None });
        self.scanned = None;
    }

    fn replace_names(&mut self, names: BTreeSet<String>) {
        if names == self.names {
            return;
        }
        let gone: Vec<String> = self.names.difference(&names).cloned().collect();
        for name in gone {
            self.unsubscribe(&name);
        }
        self.owed |= !names.is_empty();
        self.names = names;
        self.scanned = None;
    }

    fn verdict(&mut self, nonce: &str, error: Option<Status>) -> Option<Verdict> {
        let in_flight = self.in_flight.take_if(|in_flight| in_flight.nonce == nonce)?;
        let type_url = self.type_url.clone();
        Some(match error {
            None => Verdict::Acked { type_url, resources: in_flight.resources, removed: in_flight.removed },
            Some(status) => Verdict::Nacked { type_url, rejected: rejections(&status), message: status.message },
        })
    }
}

/// The refused resources, where the client names them for programs.
fn rejections(status: &Status) -> Vec<Rejected> {
    let decoded = status.details.iter().filter(|any| any.type_url.ends_with("/dpumesh.xds.v1.Rejections"));
    let decoded = decoded.filter_map(|any| Rejections::decode(any.value.as_slice()).ok());
    let all = decoded.flat_map(|rejections| rejections.rejections);
    all.map(|one| Rejected { name: one.name, reason: one.reason }).collect()
}

fn delta(
    subscription: &Subscription,
    add: &[Arc<Resource>],
    removed: Vec<String>,
    nonce: String,
    version: String,
) -> Response {
    let resource = |resource: &Arc<Resource>| discovery::Resource {
        name: resource.name.clone(),
        version: resource.version.clone(),
        resource: Some(resource.body.clone()),
        ..Default::default()
    };
    Response::Delta(discovery::DeltaDiscoveryResponse {
        system_version_info: version,
        resources: add.iter().map(resource).collect(),
        type_url: subscription.type_url.clone(),
        removed_resources: removed,
        nonce,
        ..Default::default()
    })
}

fn sotw(subscription: &Subscription, nonce: String, version: String) -> Response {
    let resources = subscription.sent.values().filter_map(|sent| sent.resource.as_ref());
    Response::StateOfTheWorld(discovery::DiscoveryResponse {
        version_info: version,
        resources: resources.map(|resource| resource.to_sotw()).collect(),
        type_url: subscription.type_url.clone(),
        nonce,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::Any;

    fn resource(name: &str, content: u8) -> Resource {
        Resource::from_any(name, Any { type_url: "t".to_owned(), value: vec![content] })
    }

    /// A client that comes back with a version of `a` and of `b`.
    fn returned(a: &Resource, b: &Resource) -> StreamCore {
        let versions = [a, b].map(|resource| (resource.name.clone(), resource.version.clone()));
        let request = discovery::DeltaDiscoveryRequest {
            type_url: "t".to_owned(),
            initial_resource_versions: versions.into(),
            ..Default::default()
        };
        let mut core = StreamCore::new(Mode::Delta);
        assert_eq!(core.handle(Request::Delta(request)), None);
        core
    }

    #[test]
    fn what_a_client_brings_along_as_it_is_now_counts_as_accepted() {
        let mut view = View::default();
        view.put("t", resource("a", 1));
        view.put("t", resource("b", 2));
        let mut core = returned(&resource("a", 1), &resource("b", 1));
        let Some(Response::Delta(response)) = core.poll(&view) else { panic!("b has changed") };
        assert_eq!(response.resources.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["b"]);
        let resources = vec![("a".to_owned(), resource("a", 1).version)];
        let expected = Verdict::Acked { type_url: "t".to_owned(), resources, removed: Vec::new() };
        assert_eq!(core.held(), Some(expected));
        assert_eq!(core.held(), None, "it is told once");
    }
}
