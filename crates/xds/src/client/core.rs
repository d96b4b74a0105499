//! What a client of the discovery service says and when; pure.
//!
//! In: `connected`, `disconnected`, responses, the consumer's replies and changes of interest. Out:
//! `Update`s for the consumer and requests for the wire (`poll`). Updates of different types are
//! delivered in the order of arrival. What the consumer was told is remembered over disconnections,
//! so that the server need not send it again, and says what has gone meanwhile.

use crate::resource::{Rejected, Resource, content_hash};
use mesh_api::Any;
use mesh_api::envoy::config::core::v3::Node;
use mesh_api::envoy::service::discovery::v3 as discovery;
use mesh_api::envoy_pb::google::rpc::Status;
use prost::{Message, Name};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Of google.rpc.Code.
const INVALID_ARGUMENT: i32 = 3;

/// Which variant of the protocol is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Delta,
    StateOfTheWorld,
}

/// Which resources of a type are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interest {
    Wildcard,
    Names(BTreeSet<String>),
}

/// Names the update that a reply is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    type_url: String,
    nonce: String,
    connection: u64,
    version: String,
}

/// What changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    pub type_url: String,
    pub changed: Vec<Resource>,
    pub removed: Vec<String>,
    pub system_version: String,
    pub token: Token,
}

/// A message for the wire.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    Delta(discovery::DeltaDiscoveryRequest),
    StateOfTheWorld(discovery::DiscoveryRequest),
}

/// A message from the wire.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    Delta(discovery::DeltaDiscoveryResponse),
    StateOfTheWorld(discovery::DiscoveryResponse),
}

/// What the consumer was last told of a resource. After a refusal both fields are blank, so that
/// the server says it again after a reconnection, and also says when it is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Told {
    version: String,
    hash: u64,
}

#[derive(Debug)]
struct TypeState {
    wildcard: bool,
    names: BTreeSet<String>,
    told: BTreeMap<String, Told>,
    /// Last version that was accepted as a whole (state of the world).
    version: String,
    nonce: String,
    subscribe: BTreeSet<String>,
    unsubscribe: BTreeSet<String>,
    /// The first request of this connection is still to be made.
    fresh: bool,
    /// State of the world: the interest changed.
    changed: bool,
    /// State of the world: a name was withdrawn on this connection. The server may not have heard of it, and a request
    /// that names it again would change nothing for that server.
    has_withdrawn: bool,
    /// State of the world: wanted, but left out of the next request, so that naming them in the one after it is a change.
    held_back: BTreeSet<String>,
    /// State of the world: the consumer has not replied to the response of `nonce`. A request with that nonce would
    /// accept it, so a change of interest waits.
    is_unanswered: bool,
}

impl TypeState {
    fn new(interest: Interest) -> Self {
        let (wildcard, names) = match interest {
            Interest::Wildcard => (true, BTreeSet::new()),
            Interest::Names(names) => (false, names),
        };
        Self {
            wildcard,
            names,
            told: BTreeMap::new(),
            version: String::new(),
            nonce: String::new(),
            subscribe: BTreeSet::new(),
            unsubscribe: BTreeSet::new(),
            fresh: true,
            changed: false,
            has_withdrawn: false,
            held_back: BTreeSet::new(),
            is_unanswered: false,
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    fn tell(&mut self, changed: &[Resource], removed: &[String]) {
        for name in removed {
            self.told.remove(name);
        }
        for resource in changed {
            let told = Told { version: resource.version.clone(), hash: content_hash(&resource.body) };
            self.told.insert(resource.name.clone(), told);
        }
    }

    fn is_idle(&self) -> bool {
        !self.wildcard && self.names.is_empty()
    }
}

struct Acknowledgement {
    type_url: String,
    nonce: String,
    error: Option<Status>,
}

/// The state of one client.
pub struct ClientCore {
    mode: Mode,
    node: Node,
    /// In the order in which the types were named.
    types: Vec<(String, TypeState)>,
    acknowledgements: VecDeque<Acknowledgement>,
    connection: u64,
    is_connected: bool,
    node_sent: bool,
}

impl std::fmt::Debug for ClientCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientCore").field("node", &self.node.id).field("connection", &self.connection).finish()
    }
}

impl ClientCore {
    /// A client that is not connected yet.
    pub fn new(mode: Mode, node: Node, interests: Vec<(String, Interest)>) -> Self {
        let types = interests.into_iter().map(|(type_url, interest)| (type_url, TypeState::new(interest))).collect();
        Self {
            mode,
            node,
            types,
            acknowledgements: VecDeque::new(),
            connection: 0,
            is_connected: false,
            node_sent: false,
        }
    }

    /// A new stream: everything wanted is asked for again, with what is held already.
    pub fn connected(&mut self) {
        self.connection += 1;
        self.is_connected = true;
        self.node_sent = false;
        self.acknowledgements.clear();
        for (_, state) in &mut self.types {
            state.fresh = true;
            state.changed = false;
            state.has_withdrawn = false;
            state.held_back.clear();
            state.is_unanswered = false;
            state.nonce.clear();
            state.subscribe.clear();
            state.unsubscribe.clear();
        }
    }

    /// The stream is gone.
    pub fn disconnected(&mut self) {
        self.is_connected = false;
    }

    /// Wants these too (all of the type with [`Interest::Wildcard`]'s name `*`).
    pub fn subscribe(&mut self, type_url: &str, names: impl IntoIterator<Item = String>) {
        let is_sotw = self.mode == Mode::StateOfTheWorld;
        let state = self.type_state(type_url);
        for name in names {
            if name == "*" {
                state.changed |= !state.wildcard;
                state.wildcard = true;
                state.subscribe.insert(name);
            } else if state.names.insert(name.clone()) {
                state.changed = true;
                state.unsubscribe.remove(&name);
                if is_sotw && state.has_withdrawn {
                    state.held_back.insert(name.clone());
                }
                state.subscribe.insert(name);
            }
        }
    }

    /// No longer wants these; what was held of them is forgotten.
    pub fn unsubscribe(&mut self, type_url: &str, names: impl IntoIterator<Item = String>) {
        let state = self.type_state(type_url);
        for name in names {
            if state.names.remove(&name) {
                state.changed = true;
                state.has_withdrawn = true;
                state.held_back.remove(&name);
                state.told.remove(&name);
                if !state.subscribe.remove(&name) {
                    state.unsubscribe.insert(name);
                }
            }
        }
    }

    /// Takes a response. `None`: it was for nothing that is wanted.
    pub fn handle(&mut self, response: Response) -> Option<Update> {
        match response {
            Response::Delta(response) => self.handle_delta(response),
            Response::StateOfTheWorld(response) => self.handle_sotw(response),
        }
    }

    fn handle_delta(&mut self, response: discovery::DeltaDiscoveryResponse) -> Option<Update> {
        let connection = self.connection;
        let state = self.known(&response.type_url)?;
        state.nonce.clone_from(&response.nonce);
        let mut changed: Vec<Resource> = response.resources.into_iter().filter_map(from_delta).collect();
        changed.retain(|resource| state.wants(&resource.name));
        state.tell(&changed, &response.removed_resources);
        let version = response.system_version_info;
        let token =
            Token { type_url: response.type_url.clone(), nonce: response.nonce, connection, version: version.clone() };
        let removed = response.removed_resources;
        Some(Update { type_url: response.type_url, changed, removed, system_version: version, token })
    }

    fn handle_sotw(&mut self, response: discovery::DiscoveryResponse) -> Option<Update> {
        let connection = self.connection;
        let state = self.known(&response.type_url)?;
        state.nonce.clone_from(&response.nonce);
        let decoded: Result<Vec<Resource>, _> = response.resources.into_iter().map(Resource::from_sotw).collect();
        let mut changed = match decoded {
            Ok(resources) => resources,
            Err(error) => {
                tracing::warn!(type_url = response.type_url, %error, "a response could not be decoded and is refused");
                state.is_unanswered = false;
                let error = Status { code: INVALID_ARGUMENT, message: error.to_string(), details: Vec::new() };
                let (type_url, nonce) = (response.type_url, response.nonce);
                self.acknowledgements.push_back(Acknowledgement { type_url, nonce, error: Some(error) });
                return None;
            }
        };
        state.is_unanswered = true;
        changed.retain(|resource| state.wants(&resource.name));
        let present: BTreeSet<&str> = changed.iter().map(|resource| resource.name.as_str()).collect();
        let is_gone = |name: &&String| state.wildcard && !present.contains(name.as_str());
        let removed: Vec<String> = state.told.keys().filter(is_gone).cloned().collect();
        changed.retain(|resource| {
            state.told.get(&resource.name).map(|told| told.hash) != Some(content_hash(&resource.body))
        });
        state.tell(&changed, &removed);
        let version = response.version_info;
        let token =
            Token { type_url: response.type_url.clone(), nonce: response.nonce, connection, version: version.clone() };
        Some(Update { type_url: response.type_url, changed, removed, system_version: version, token })
    }

    /// The consumer's verdict on an update. Refused resources keep what was held before.
    pub fn reply(&mut self, token: Token, result: Result<(), Vec<Rejected>>) {
        let rejected = result.err().unwrap_or_default();
        let (is_current, is_clean) = (token.connection == self.connection && self.is_connected, rejected.is_empty());
        let Some(state) = self.known(&token.type_url) else { return };
        for rejected in &rejected {
            if let Some(told) = state.told.get_mut(&rejected.name) {
                *told = Told::default();
            }
        }
        if is_clean {
            state.version = token.version;
        }
        if is_current {
            state.is_unanswered &= token.nonce != state.nonce;
            let error = (!is_clean).then(|| refusal(&rejected));
            self.acknowledgements.push_back(Acknowledgement { type_url: token.type_url, nonce: token.nonce, error });
        }
    }

    /// The next request for the wire.
    pub fn poll(&mut self) -> Option<Request> {
        if !self.is_connected {
            return None;
        }
        let index = self.types.iter().position(|(_, state)| state.fresh && !state.is_idle());
        if let Some(index) = index {
            return Some(self.first_request(index));
        }
        if let Some(acknowledgement) = self.acknowledgements.pop_front() {
            return Some(self.acknowledge(acknowledgement));
        }
        let mode = self.mode;
        let is_due = |state: &TypeState| match mode {
            Mode::Delta => !state.subscribe.is_empty() || !state.unsubscribe.is_empty(),
            Mode::StateOfTheWorld => state.changed && !state.is_unanswered,
        };
        let index = self.types.iter().position(|(_, state)| !state.fresh && is_due(state))?;
        let type_url = self.types[index].0.clone();
        Some(self.request(index, Acknowledgement { type_url, nonce: String::new(), error: None }))
    }

    fn first_request(&mut self, index: usize) -> Request {
        let mode = self.mode;
        let node = self.first_node();
        let (type_url, state) = &mut self.types[index];
        state.fresh = false;
        state.changed = false;
        state.has_withdrawn = false;
        state.held_back.clear();
        state.unsubscribe.clear();
        state.subscribe.clear();
        let mut names: Vec<String> = state.names.iter().cloned().collect();
        match mode {
            Mode::Delta => {
                if state.wildcard {
                    names.insert(0, "*".to_owned());
                }
                let versions = state.told.iter().map(|(name, told)| (name.clone(), told.version.clone()));
                Request::Delta(discovery::DeltaDiscoveryRequest {
                    node,
                    type_url: type_url.clone(),
                    resource_names_subscribe: names,
                    initial_resource_versions: versions.collect(),
                    ..Default::default()
                })
            }
            Mode::StateOfTheWorld => Request::StateOfTheWorld(discovery::DiscoveryRequest {
                node,
                type_url: type_url.clone(),
                version_info: state.version.clone(),
                resource_names: sotw_names(state),
                ..Default::default()
            }),
        }
    }

    fn acknowledge(&mut self, acknowledgement: Acknowledgement) -> Request {
        match self.types.iter().position(|(type_url, _)| *type_url == acknowledgement.type_url) {
            Some(index) => self.request(index, acknowledgement),
            None => Request::Delta(discovery::DeltaDiscoveryRequest {
                type_url: acknowledgement.type_url,
                response_nonce: acknowledgement.nonce,
                ..Default::default()
            }),
        }
    }

    /// A later request: an acknowledgement, a change of interest, or both.
    fn request(&mut self, index: usize, acknowledgement: Acknowledgement) -> Request {
        let (type_url, state) = &mut self.types[index];
        match self.mode {
            Mode::Delta => Request::Delta(discovery::DeltaDiscoveryRequest {
                type_url: type_url.clone(),
                resource_names_subscribe: std::mem::take(&mut state.subscribe).into_iter().collect(),
                resource_names_unsubscribe: std::mem::take(&mut state.unsubscribe).into_iter().collect(),
                response_nonce: acknowledgement.nonce,
                error_detail: acknowledgement.error,
                ..Default::default()
            }),
            Mode::StateOfTheWorld => {
                let nonce = if acknowledgement.nonce.is_empty() { state.nonce.clone() } else { acknowledgement.nonce };
                let names = sotw_names(state);
                state.changed = !state.held_back.is_empty();
                // A server that has sent more since disregards the request.
                if nonce == state.nonce {
                    state.held_back.clear();
                }
                Request::StateOfTheWorld(discovery::DiscoveryRequest {
                    type_url: type_url.clone(),
                    version_info: state.version.clone(),
                    resource_names: names,
                    response_nonce: nonce,
                    error_detail: acknowledgement.error,
                    ..Default::default()
                })
            }
        }
    }

    fn first_node(&mut self) -> Option<Node> {
        let is_first = !std::mem::replace(&mut self.node_sent, true);
        is_first.then(|| self.node.clone())
    }

    fn known(&mut self, type_url: &str) -> Option<&mut TypeState> {
        self.types.iter_mut().find(|(other, _)| other == type_url).map(|(_, state)| state)
    }

    fn type_state(&mut self, type_url: &str) -> &mut TypeState {
        let index = self.types.iter().position(|(other, _)| other == type_url).unwrap_or_else(|| {
            self.types.push((type_url.to_owned(), TypeState::new(Interest::Names(BTreeSet::new()))));
            self.types.len() - 1
        });
        &mut self.types[index].1
    }
}

/// Empty for all of a type.
fn sotw_names(state: &TypeState) -> Vec<String> {
    match state.wildcard {
        true => Vec::new(),
        false => state.names.difference(&state.held_back).cloned().collect(),
    }
}

fn from_delta(resource: discovery::Resource) -> Option<Resource> {
    Some(Resource { name: resource.name, version: resource.version, body: resource.resource? })
}

/// A NACK that names each refused resource, in words and for programs.
fn refusal(rejected: &[Rejected]) -> Status {
    use mesh_api::xds::{Rejection, Rejections};
    let words: Vec<String> =
        rejected.iter().map(|rejected| format!("{}: {}", rejected.name, rejected.reason)).collect();
    let rejections = rejected.iter().map(|one| Rejection { name: one.name.clone(), reason: one.reason.clone() });
    let details = Rejections { rejections: rejections.collect() };
    Status {
        code: INVALID_ARGUMENT,
        message: words.join("; "),
        details: vec![Any { type_url: Rejections::type_url(), value: details.encode_to_vec() }],
    }
}
