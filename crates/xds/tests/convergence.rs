//! Client core against server core, without wire or clock: whatever happens in between, they end
//! with the same resources, less those that the client refused.

use mesh_api::envoy::config::core::v3::Node;
use mesh_api::xds::{Rejection, Rejections};
use mesh_api::{Any, type_url};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use xds::client::core::{ClientCore, Request, Response};
use xds::client::{Interest, Mode, Update};
use xds::server::core::{StreamCore, Verdict};
use xds::server::view::View;
use xds::{Rejected, Resource};

const WILDCARD: &str = type_url::CLUSTER;
const NAMED: &str = type_url::CLUSTER_LOAD_ASSIGNMENT;
/// Content that the consumer refuses.
const BAD: u8 = 9;

#[derive(Clone, Debug)]
enum Step {
    Put(bool, u8, u8),
    Remove(bool, u8),
    Want(u8),
    Unwant(u8),
    /// One message to the server, one to the client, or one reply of the consumer.
    ToServer,
    ToClient,
    Reply,
    Disconnect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (any::<bool>(), 0u8..6, 0u8..10).prop_map(|(named, name, content)| Step::Put(named, name, content)),
        (any::<bool>(), 0u8..6).prop_map(|(named, name)| Step::Remove(named, name)),
        (0u8..6).prop_map(Step::Want),
        (0u8..6).prop_map(Step::Unwant),
        Just(Step::ToServer),
        Just(Step::ToClient),
        Just(Step::Reply),
        Just(Step::ToServer),
        Just(Step::ToClient),
        Just(Step::Reply),
        Just(Step::Disconnect),
    ];
    prop::collection::vec(step, 0..120)
}

/// Both ends, the messages under way, and what the consumer holds.
struct World {
    mode: Mode,
    client: ClientCore,
    server: StreamCore,
    view: View,
    to_server: VecDeque<Request>,
    to_client: VecDeque<Response>,
    updates: VecDeque<Update>,
    consumer: BTreeMap<(String, String), u8>,
    wanted: BTreeSet<String>,
    nacked: Vec<Vec<Rejected>>,
}

impl World {
    fn new(mode: Mode) -> Self {
        let interests =
            vec![(WILDCARD.to_owned(), Interest::Wildcard), (NAMED.to_owned(), Interest::Names(BTreeSet::new()))];
        let mut client = ClientCore::new(mode, Node::default(), interests);
        client.connected();
        Self {
            mode,
            client,
            server: StreamCore::new(mode),
            view: View::default(),
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            updates: VecDeque::new(),
            consumer: BTreeMap::new(),
            wanted: BTreeSet::new(),
            nacked: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Put(named, name, content) => {
                self.view.put(kind(*named), resource(*named, *name, *content));
            }
            Step::Remove(named, name) => {
                self.view.remove(kind(*named), &text(*name));
            }
            Step::Want(name) => {
                self.wanted.insert(text(*name));
                self.client.subscribe(NAMED, [text(*name)]);
            }
            Step::Unwant(name) => {
                self.wanted.remove(&text(*name));
                self.consumer.remove(&(NAMED.to_owned(), text(*name)));
                self.client.unsubscribe(NAMED, [text(*name)]);
            }
            Step::ToServer => self.deliver_to_server(),
            Step::ToClient => self.deliver_to_client(),
            Step::Reply => self.reply(),
            Step::Disconnect => self.disconnect(),
        }
    }

    fn deliver_to_server(&mut self) {
        while let Some(request) = self.client.poll() {
            self.to_server.push_back(request);
        }
        let Some(request) = self.to_server.pop_front() else { return };
        if let Some(Verdict::Nacked { rejected, .. }) = self.server.handle(request) {
            self.nacked.push(rejected);
        }
    }

    fn deliver_to_client(&mut self) {
        while let Some(response) = self.server.poll(&self.view) {
            self.to_client.push_back(response);
        }
        if let Some(update) = self.to_client.pop_front().and_then(|response| self.client.handle(response)) {
            self.updates.push_back(update);
        }
    }

    fn reply(&mut self) {
        let Some(update) = self.updates.pop_front() else { return };
        let mut rejected = Vec::new();
        for resource in update.changed {
            if update.type_url == NAMED && !self.wanted.contains(&resource.name) {
                continue;
            }
            match resource.body.value.last() {
                Some(&BAD) => rejected.push(Rejected { name: resource.name, reason: "bad".to_owned() }),
                content => {
                    let key = (update.type_url.clone(), resource.name);
                    self.consumer.insert(key, content.copied().unwrap_or_default());
                }
            }
        }
        for name in update.removed {
            self.consumer.remove(&(update.type_url.clone(), name));
        }
        self.client.reply(update.token, if rejected.is_empty() { Ok(()) } else { Err(rejected) });
    }

    fn disconnect(&mut self) {
        self.client.disconnected();
        self.to_server.clear();
        self.to_client.clear();
        self.server = StreamCore::new(self.mode);
        self.client.connected();
    }

    /// Lets everything that is under way arrive.
    fn settle(&mut self) {
        for _ in 0..2000 {
            self.deliver_to_server();
            self.deliver_to_client();
            self.reply();
        }
    }

    /// Good resources of the view must be held; of bad ones any earlier content, or none.
    fn check(&self) {
        for named in [false, true] {
            let wanted = |name: &str| !named || self.wanted.contains(name);
            let table: Vec<_> = self.view.table(kind(named)).into_iter().flat_map(|table| table.iter()).collect();
            for resource in &table {
                let content = *resource.body.value.last().expect("one byte");
                if wanted(&resource.name) && content != BAD {
                    let held = self.consumer.get(&(kind(named).to_owned(), resource.name.clone()));
                    assert_eq!(held, Some(&content), "{} {}", kind(named), resource.name);
                }
            }
            let present: BTreeSet<&str> = table.iter().map(|resource| resource.name.as_str()).collect();
            for (type_url, name) in self.consumer.keys() {
                let is_known = type_url != kind(named) || present.contains(name.as_str());
                // State of the world never says that a named resource is gone.
                assert!(is_known || (named && self.mode == Mode::StateOfTheWorld), "{name} should be gone");
            }
        }
    }
}

fn kind(named: bool) -> &'static str {
    if named { NAMED } else { WILDCARD }
}

fn text(name: u8) -> String {
    format!("r{name}")
}

/// Field 1 is the name, as in Envoy's types; the last byte is the content.
fn resource(named: bool, name: u8, content: u8) -> Resource {
    let name = text(name);
    let mut value = vec![0x0a, name.len() as u8];
    value.extend(name.as_bytes());
    value.extend([0x10, content]);
    Resource::from_any(name, Any { type_url: kind(named).to_owned(), value })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn incremental_converges(steps in steps()) {
        run(Mode::Delta, &steps);
    }

    #[test]
    fn state_of_the_world_converges(steps in steps()) {
        run(Mode::StateOfTheWorld, &steps);
    }

    #[test]
    fn arbitrary_requests_and_responses_do_no_harm(
        nonces in prop::collection::vec("[0-9]{0,2}", 0..20),
        names in prop::collection::vec("[a-z*]{0,2}", 0..6),
    ) {
        let mut world = World::new(Mode::Delta);
        world.view.put(WILDCARD, resource(false, 1, 1));
        for nonce in nonces {
            let request = mesh_api::envoy::service::discovery::v3::DeltaDiscoveryRequest {
                type_url: WILDCARD.to_owned(),
                response_nonce: nonce.clone(),
                resource_names_subscribe: names.clone(),
                resource_names_unsubscribe: names.clone(),
                ..Default::default()
            };
            world.server.handle(Request::Delta(request));
            world.server.poll(&world.view);
            let response = mesh_api::envoy::service::discovery::v3::DeltaDiscoveryResponse {
                type_url: nonce.clone(), nonce, removed_resources: names.clone(), ..Default::default()
            };
            prop_assert!(world.client.handle(Response::Delta(response)).is_none(), "an unknown type is nobody's");
        }
    }
}

fn run(mode: Mode, steps: &[Step]) {
    let mut world = World::new(mode);
    for step in steps {
        world.step(step);
    }
    world.settle();
    world.check();
    for rejected in &world.nacked {
        assert!(rejected.iter().all(|one| one.reason == "bad"), "a refusal names its reason: {rejected:?}");
    }
}

#[test]
fn a_reconnecting_client_is_not_sent_what_it_has() {
    let mut world = World::new(Mode::Delta);
    for name in 0..4 {
        world.view.put(WILDCARD, resource(false, name, 1));
    }
    world.settle();
    world.disconnect();
    world.view.put(WILDCARD, resource(false, 2, 5));
    let mut sent = Vec::new();
    for _ in 0..20 {
        world.deliver_to_server();
        while let Some(response) = world.server.poll(&world.view) {
            if let Response::Delta(delta) = &response {
                sent.extend(delta.resources.iter().map(|resource| resource.name.clone()));
            }
            world.to_client.push_back(response);
        }
        world.deliver_to_client();
        world.reply();
    }
    assert_eq!(sent, ["r2"]);
}

/// The names on the wire are the same before and after, so a server of the state of the world would say nothing.
#[test]
fn what_is_wanted_again_at_once_is_sent_again() {
    for mode in [Mode::Delta, Mode::StateOfTheWorld] {
        let mut world = World::new(mode);
        world.step(&Step::Want(3));
        world.step(&Step::Put(true, 3, 0));
        world.settle();
        world.step(&Step::Unwant(3));
        world.step(&Step::Want(3));
        world.settle();
        world.check();
    }
}

#[test]
fn a_response_that_cannot_be_decoded_is_refused() {
    let mut world = World::new(Mode::StateOfTheWorld);
    while world.client.poll().is_some() {}
    let wrapper = "type.googleapis.com/envoy.service.discovery.v3.Resource".to_owned();
    let broken = Any { type_url: wrapper, value: vec![0xff] };
    let response = mesh_api::envoy::service::discovery::v3::DiscoveryResponse {
        type_url: WILDCARD.to_owned(),
        nonce: "7".to_owned(),
        resources: vec![broken],
        ..Default::default()
    };
    assert_eq!(world.client.handle(Response::StateOfTheWorld(response)), None);
    let Some(Request::StateOfTheWorld(request)) = world.client.poll() else { panic!("a refusal is due") };
    assert_eq!(request.response_nonce, "7");
    assert!(request.error_detail.is_some_and(|error| !error.message.is_empty()));
}

#[test]
fn removals_wait_until_additions_are_acknowledged() {
    let mut world = World::new(Mode::Delta);
    world.view.put(WILDCARD, resource(false, 1, 1));
    world.settle();
    world.view.put(WILDCARD, resource(false, 2, 1));
    world.view.remove(WILDCARD, "r1");
    let Some(Response::Delta(first)) = world.server.poll(&world.view) else { panic!("an addition is due") };
    assert_eq!((first.resources.len(), first.removed_resources.len()), (1, 0));
    assert!(world.server.poll(&world.view).is_none(), "the removal waits");
    world.to_client.push_back(Response::Delta(first));
    world.settle();
    assert!(!world.consumer.contains_key(&(WILDCARD.to_owned(), "r1".to_owned())));
}

#[test]
fn a_refusal_carries_the_names_for_programs() {
    let rejections = Rejections { rejections: vec![Rejection { name: "a".to_owned(), reason: "bad".to_owned() }] };
    assert_eq!(rejections.rejections[0].name, "a");
    let mut world = World::new(Mode::Delta);
    world.view.put(WILDCARD, resource(false, 1, BAD));
    world.view.put(WILDCARD, resource(false, 2, 1));
    world.settle();
    assert_eq!(world.nacked, [vec![Rejected { name: "r1".to_owned(), reason: "bad".to_owned() }]]);
    assert!(world.consumer.contains_key(&(WILDCARD.to_owned(), "r2".to_owned())), "the rest stays in force");
}
