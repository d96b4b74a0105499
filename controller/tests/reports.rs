//! From reports to statuses and events, through the real client, with an API server that forgets nothing.

mod fake_api;

use fake_api::FakeApi;
use http::StatusCode;
use istio_dpu_controller::Controller;
use istio_dpu_controller::cluster::Seen;
use istio_dpu_controller::keeper::Keeper;
use istio_dpu_controller::metrics::Metrics;
use istio_dpu_controller::object::{Key, Kind, Object, Pod};
use istio_dpu_controller::reports::Part;
use istio_dpu_controller::reports::peer_authentication::PeerAuthentication;
use istio_dpu_controller::reports::writer::{Shared, Writer};
use mesh_api::report::workload_report::Part as Wire;
use mesh_api::report::{
    Attachment, AttachmentState, Configuration, ConfigurationState, HostStatus, MutualTls, NodeReport, Report,
    WorkloadReport, node_report,
};
use prometheus_client::registry::Registry;
use serde_json::json;
use service::health::Health;
use service::signal::CancellationToken;
use std::time::Duration;
use tokio::sync::mpsc;

const LIMIT: Duration = Duration::from_secs(10);
const WORKLOAD: &str = "/apis/dpumesh.io/v1/namespaces/n/dpuworkloads/p";
const NODE: &str = "/apis/dpumesh.io/v1/dpunodes/host1";

struct World {
    api: FakeApi,
    shared: Shared,
    seen: mpsc::Sender<Seen>,
    keeper: Keeper,
    stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    async fn start() -> Self {
        let (api, shared, stop) = (FakeApi::default(), Shared::default(), CancellationToken::new());
        let metrics = Metrics::register(&mut Registry::default());
        let controller = Controller::of_cluster(xds::server::Store::new());
        let keeper = Keeper::new(controller, Health::new("test"), metrics.clone());
        let (seen, receiver) = mpsc::channel(64);
        let following = keeper.clone();
        let stopped = stop.clone();
        tokio::spawn(async move { following.follow_cluster(receiver, stopped).await });
        let writer = Writer::new(shared.clone(), api.client(), keeper.clone(), "c1", metrics);
        tokio::spawn(writer.run(stop.clone()));
        let world = Self { api, shared, seen, keeper, stop };
        for kind in Kind::ALL {
            world.seen.send(Seen::ListEnds(kind)).await.expect("followed");
        }
        world
    }

    /// The pod `n/p` of that UID runs on host1.
    async fn pod(&self, uid: &str) {
        let pod = Pod { uid: uid.to_owned(), node: "host1".to_owned(), ..Pod::default() };
        let before = self.keeper.controller().version();
        let put = Seen::Put(Key::new(Kind::Pod, "n", "p"), Ok(Object::Pod(Box::new(pod))));
        self.seen.send(put).await.expect("followed");
        self.keeper.version().wait_for(|version| *version > before).await.expect("kept");
    }

    /// Sends a message and waits until it is answered.
    async fn tell(&self, part: Part, report: Report) {
        let message = self.shared.change(|board| board.take(part, "host1", report));
        tokio::time::timeout(LIMIT, self.shared.written(message)).await.expect("written in time");
    }

    /// Waits until the status names these of Istio's objects.
    async fn objects(&self, expected: &[&str]) {
        let named = || self.api.get(WORKLOAD).map(|object| object["status"]["istioObjects"].clone());
        let waited = tokio::time::timeout(LIMIT, async {
            while named() != Some(json!(expected)) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{expected:?} are not named, but {:?}", named()));
    }

    fn reasons(&self) -> Vec<String> {
        let events = &self.api.state().events;
        events.iter().map(|event| event["reason"].as_str().expect("a reason").to_owned()).collect()
    }
}

fn report(uid: &str, part: Wire) -> Report {
    let part = Some(part);
    let workload = WorkloadReport { namespace: "n".to_owned(), name: "p".to_owned(), uid: uid.to_owned(), part };
    Report { workloads: vec![workload], ..Report::default() }
}

fn attached(uid: &str, state: AttachmentState) -> Report {
    report(uid, Wire::Attachment(Attachment { state: state.into(), vf: "vf3".to_owned(), ..Attachment::default() }))
}

fn configured(uid: &str) -> Report {
    let istio_objects = vec!["VirtualService n/p".to_owned()];
    let state = ConfigurationState::Accepted.into();
    report(uid, Wire::Configuration(Configuration { state, istio_objects, ..Configuration::default() }))
}

fn removed() -> Report {
    Report { removed: vec!["n/p".to_owned()], ..Report::default() }
}

#[tokio::test]
async fn two_programs_write_one_status_and_the_pods_events() {
    let world = World::start().await;
    world.pod("u").await;
    world.tell(Part::Host, attached("u", AttachmentState::Open)).await;
    world.tell(Part::Proxy, configured("u")).await;
    let object = world.api.get(WORKLOAD).expect("it was made");
    assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "u");
    let status = &object["status"];
    assert_eq!((&status["state"], &status["configuration"]), (&json!("Open"), &json!("Accepted")));
    assert_eq!((&status["node"], status["conditions"].as_array().map(Vec::len)), (&json!("host1"), Some(2)));
    assert_eq!(world.reasons(), ["Attached", "Configured"]);
    world.tell(Part::Host, attached("u", AttachmentState::Open)).await;
    let patches = world.api.state().status_patches;
    assert_eq!((patches, world.reasons().len()), (2, 2), "nothing changed");

    world.tell(Part::Host, removed()).await;
    assert_eq!(world.api.get(WORKLOAD).expect("the adapter's part is left")["status"]["state"], json!(null));
    world.tell(Part::Proxy, removed()).await;
    assert_eq!(world.api.get(WORKLOAD), None);
}

#[tokio::test]
async fn a_peer_authentication_in_force_is_named_with_what_istiod_names_until_it_is_deleted() {
    let world = World::start().await;
    world.pod("u").await;
    let strict = || {
        let (state, mutual_tls) = (ConfigurationState::Accepted.into(), MutualTls::Strict.into());
        let istio_objects = vec!["VirtualService n/p".to_owned()];
        report("u", Wire::Configuration(Configuration { state, mutual_tls, istio_objects, ..Configuration::default() }))
    };
    world.tell(Part::Proxy, strict()).await;
    let name = ("n".to_owned(), "default".to_owned());
    let one = PeerAuthentication { mode: Some(istio_dpu_controller::crd::MutualTls::Strict), ..Default::default() };
    world.shared.change_peer_authentications(|all| {
        all.listed((name.clone(), one));
        all.list_ends();
        true
    });
    world.objects(&["PeerAuthentication n/default", "VirtualService n/p"]).await;
    world.shared.change_peer_authentications(|all| {
        all.remove(&name);
        true
    });
    world.objects(&["VirtualService n/p"]).await;
    let notes: Vec<String> = world.api.state().events.iter().map(|event| event["note"].to_string()).collect();
    let named: Vec<bool> = notes.iter().map(|note| note.contains("PeerAuthentication n/default")).collect();
    assert!(named.starts_with(&[false, true]), "{notes:?}");
}

#[tokio::test]
async fn a_pod_that_is_not_known_there_is_not_written_and_holds_nobody_up() {
    let world = World::start().await;
    world.tell(Part::Host, attached("u", AttachmentState::Open)).await;
    assert_eq!(world.api.get(WORKLOAD), None);
    world.pod("another").await;
    world.tell(Part::Proxy, configured("u")).await;
    assert_eq!(world.api.get(WORKLOAD), None, "that is another pod of this name");
    world.pod("u").await;
    tokio::time::timeout(LIMIT, async {
        while world.reasons().len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("what was postponed is written");
}

#[tokio::test]
async fn what_the_api_server_does_not_take_is_written_later_and_answered_then() {
    let world = World::start().await;
    world.pod("u").await;
    world.api.state().failures = Some((3, StatusCode::SERVICE_UNAVAILABLE));
    world.tell(Part::Host, attached("u", AttachmentState::Open)).await;
    assert_eq!(world.api.get(WORKLOAD).expect("written in the end")["status"]["state"], "Open");
    world.api.state().failures = Some((1, StatusCode::FORBIDDEN));
    world.tell(Part::Host, attached("u", AttachmentState::Closed)).await;
    assert_eq!(world.api.get(WORKLOAD).expect("there")["status"]["state"], "Open", "nobody waits for a right");
    world.tell(Part::Host, attached("u", AttachmentState::Failed)).await;
    assert_eq!(world.api.get(WORKLOAD).expect("there")["status"]["state"], "Failed", "the next one does");
}

#[tokio::test]
async fn a_status_of_an_older_pod_of_that_name_is_not_taken_over() {
    let world = World::start().await;
    world.pod("new").await;
    let metadata = json!({"name": "p", "namespace": "n", "uid": "old-object",
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "old"}]});
    world.api.put(WORKLOAD, json!({"apiVersion": "dpumesh.io/v1", "kind": "DpuWorkload", "metadata": metadata}));
    world.tell(Part::Host, attached("new", AttachmentState::Open)).await;
    let object = world.api.get(WORKLOAD).expect("made again");
    assert_eq!(
        (&object["metadata"]["ownerReferences"][0]["uid"], &object["status"]["vf"]),
        (&json!("new"), &json!("vf3"))
    );
}

#[tokio::test]
async fn a_node_says_who_hears_it_and_whether_it_is_ready() {
    let world = World::start().await;
    let metadata = json!({"name": "host1", "uid": "n1"});
    world.api.put(NODE, json!({"apiVersion": "dpumesh.io/v1", "kind": "DpuNode", "metadata": metadata, "spec": {}}));
    let session = world.shared.change(|board| board.connect(Part::Host, "host1"));
    let host = HostStatus { vfs_total: 8, vfs_free: 3, dataplane_connected: true, ..HostStatus::default() };
    let node = Some(NodeReport { part: Some(node_report::Part::Host(host)) });
    world.tell(Part::Host, Report { node, snapshot: true, ..Report::default() }).await;
    let condition = |kind: &str| {
        let object = world.api.get(NODE).expect("there");
        let all = object["status"]["conditions"].as_array().expect("conditions").clone();
        all.into_iter().find(|condition| condition["type"] == kind).expect("the condition")
    };
    assert_eq!(world.api.get(NODE).expect("there")["status"]["vfsFree"], 3);
    assert_eq!(
        (&condition("Host")["message"], &condition("Ready")["reason"]),
        (&json!("reports to c1"), &json!("ProxyNotReporting"))
    );
    world.shared.change(|board| board.disconnected(Part::Host, "host1", session));
    world.tell(Part::Proxy, removed()).await;
    assert_eq!(
        (&condition("Host")["status"], &condition("Ready")["reason"]),
        (&json!("Unknown"), &json!("HostNotReporting"))
    );
    assert_eq!(world.api.get(NODE).expect("there")["status"]["vfsFree"], 3, "what was told is still shown");
}
