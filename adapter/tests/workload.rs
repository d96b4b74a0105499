//! The adapter as a client of a control plane that asks who it is: as each workload, by a key that is
//! elsewhere; for certificates, by a token. And what it says when it is refused.

mod support;

use mesh_api::ca::Transcript;
use mesh_api::report::{ConfigurationState as State, MutualTls};
use mesh_api::type_url;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;
use support::holder::FakeHolder;
use support::istiod::TOKEN;
use support::reports::Heard;
use support::world::{FakeProxy, World, anywhere, get};

const CURL: &str = "spiffe://cluster.local/ns/bookinfo/sa/curl";
const REVIEWS: &str = "spiffe://cluster.local/ns/bookinfo/sa/reviews";

/// Waits until a page of the adapter says so.
async fn until(address: SocketAddr, path: &str, what: &str, holds: impl Fn(&str) -> bool) -> String {
    for _ in 0..200 {
        let page = get(address, path).await;
        if holds(&page) {
            return page;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("waited in vain until {what}: {}", get(address, path).await);
}

fn workload(page: &str, name: &str) -> Value {
    let page: Value = serde_json::from_str(page).expect("JSON");
    let all = page["workloads"].as_array().expect("workloads");
    all.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name} is not in {page}")).clone()
}

/// Waits until the controller heard so.
async fn heard(heard: Heard, what: &str, holds: impl Fn(&Heard) -> bool) {
    for _ in 0..300 {
        if holds(&heard) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("waited in vain until the controller heard that {what}: {:?}", heard.pods);
}

async fn everything(proxy: &mut FakeProxy, pods: usize) {
    proxy.until("the pods are there", |proxy| proxy.count(type_url::PROXY_WORKLOAD) == pods).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_pod_is_asked_for_as_itself_and_the_key_stays_where_it_is() {
    let world = World::secured().await;
    let (addresses, stop) = world.adapter(anywhere()).await;
    let holder = FakeHolder::start(addresses.grpc);
    let mut proxy = FakeProxy::connect(addresses.grpc, "host1");
    everything(&mut proxy, 4).await;
    let streams = world.istiod.with(|istiod| istiod.streams.clone());
    let identities: BTreeSet<&String> = streams.iter().map(|(identity, _)| identity).collect();
    assert_eq!((streams.len(), identities.len()), (4, 4), "{streams:?}");
    assert!(identities.contains(&CURL.to_owned()));
    let signed = holder.signed.lock().expect("not poisoned").clone();
    assert_eq!(signed.len(), 4, "one handshake for each identity");
    assert!(signed.iter().all(|one| one.input.starts_with(&[0x20; 64])));
    assert!(get(addresses.health, "/readyz").await.starts_with("ready"));
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_adapter_goes_on_with_the_keys_that_there_are() {
    let world = World::secured().await;
    let (addresses, stop) = world.adapter(anywhere()).await;
    let _holder = FakeHolder::start(addresses.grpc);
    let mut proxy = FakeProxy::connect(addresses.grpc, "host1");
    everything(&mut proxy, 4).await;
    proxy.watch(Duration::from_millis(300)).await;
    let (removed, signed) = (proxy.removed.len(), world.istiod.with(|istiod| istiod.signed.len()));
    stop.cancel();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (again, stop) = world.adapter(addresses.grpc).await;
    until(again.health, "/readyz", "it is ready", |page| page.starts_with("ready")).await;
    proxy.watch(Duration::from_secs(1)).await;
    assert_eq!(proxy.removed.len(), removed, "nothing is withdrawn: {:?}", proxy.removed);
    assert_eq!(world.istiod.with(|istiod| istiod.signed.len()), signed, "no certificate is asked for again");
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_leaves_connections_alone_and_is_shown_by_the_next() {
    let world = World::secured().await;
    let (addresses, stop) = world.adapter(anywhere()).await;
    let holder = FakeHolder::start(addresses.grpc);
    let mut proxy = FakeProxy::connect(addresses.grpc, "host1");
    everything(&mut proxy, 4).await;
    let key_of = |signed: &[Transcript]| -> Vec<u64> {
        signed.iter().filter(|one| one.identity == CURL).map(|one| one.key_id).collect()
    };
    let signed = || holder.signed.lock().expect("not poisoned").clone();
    holder.renew(CURL).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(signed().len(), 4, "nothing is connected again");
    world.istiod.restart();
    until(addresses.health, "/workloads", "all are connected again", |page| {
        !page.contains("\"disconnected\"") && signed().len() >= 8
    })
    .await;
    let keys = key_of(&signed());
    assert!(keys.len() == 2 && keys[0] != keys[1], "{keys:?}");
    assert_eq!(proxy.removed.len(), 0, "and the proxy is told nothing of it: {:?}", proxy.removed);
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_identity_is_alone_in_failing_and_is_told_what_istiod_said() {
    let world = World::secured().await;
    world.istiod.with(|istiod| istiod.refused.push(CURL.to_owned()));
    world.istiod.with(|istiod| istiod.expired.push(REVIEWS.to_owned()));
    let (addresses, stop) = world.adapter(anywhere()).await;
    let _holder = FakeHolder::start(addresses.grpc);
    let mut proxy = FakeProxy::connect(addresses.grpc, "host1");
    everything(&mut proxy, 2).await;
    let page = until(addresses.health, "/workloads", "both are refused", |page| {
        workload(page, "curl")["denied"] == true && workload(page, "reviews-v1")["denied"] == true
    })
    .await;
    let words = |name: &str| workload(&page, name)["error"].as_str().unwrap_or_default().to_owned();
    assert!(words("curl").contains(&format!("{CURL} is not welcome")), "{}", words("curl"));
    let expired = words("reviews-v1");
    assert!(expired.contains("expired") && expired.contains(REVIEWS), "{expired}");
    assert!(get(addresses.health, "/readyz").await.starts_with("ready"), "the others are served");

    let heard = |what: &'static str, holds: fn(&Heard) -> bool| heard(world.heard.clone(), what, holds);
    heard("curl is denied", |heard| heard.of("curl").state() == State::Denied).await;
    assert!(world.heard.of("curl").reason.contains("is not welcome"), "{:?}", world.heard.of("curl"));
    heard("the others are accepted", |heard| heard.of("ratings-v1").state() == State::Accepted).await;
    let ratings = world.heard.of("ratings-v1");
    assert_eq!((ratings.scope.clone(), ratings.mutual_tls()), (proxy.scope("ratings-v1"), MutualTls::Strict));
    let node = world.heard.node.lock().expect("not poisoned").clone();
    assert!(node.proxy_connected && (node.streams_open, node.streams_wanted) == (2, 4), "{node:?}");

    world.istiod.with(|istiod| istiod.refused.clear());
    everything(&mut proxy, 3).await;
    proxy.watch(Duration::from_millis(200)).await;
    heard("curl is welcome again", |heard| heard.of("curl").state() == State::Accepted).await;
    world.detach("curl");
    heard("curl is gone", |heard| !heard.pods.lock().expect("not poisoned").contains_key("curl")).await;
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_is_named_and_a_right_one_is_used_without_a_restart() {
    let world = World::secured().await;
    let token = world.folder.path().join("token");
    std::fs::write(&token, "another token").expect("written");
    let (addresses, stop) = world.adapter(anywhere()).await;
    let _holder = FakeHolder::start(addresses.grpc);
    let page = until(addresses.health, "/readyz", "the token is refused", |page| page.contains("audience")).await;
    assert!(page.contains("request authenticate failure") && page.contains("no workload's stream is open"), "{page}");
    assert!(page.contains(&token.display().to_string()) && page.contains("--istio-token"), "{page}");
    std::fs::remove_file(&token).expect("removed");
    until(addresses.health, "/readyz", "there is no token", |page| page.contains("No such file")).await;
    std::fs::write(&token, format!("{TOKEN}\n")).expect("written");
    until(addresses.health, "/workloads", "all are connected", |page| !page.contains("\"disconnected\"")).await;
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_is_unreachable_or_somebody_else_is_named_and_waited_for() {
    let world = World::secured().await;
    let (addresses, stop) = world.adapter(anywhere()).await;
    let _holder = FakeHolder::start(addresses.grpc);
    let mut proxy = FakeProxy::connect(addresses.grpc, "host1");
    everything(&mut proxy, 4).await;
    stop.cancel();
    tokio::time::sleep(Duration::from_millis(300)).await;

    // Another root than istiod's, read when it is needed.
    let mut args = world.args(addresses.grpc);
    let stranger = rcgen::generate_simple_self_signed(vec!["nobody".to_owned()]).expect("certificate").cert.pem();
    let authority = world.folder.path().join("other-root.pem");
    std::fs::write(&authority, stranger).expect("written");
    args.control_plane_ca = Some(authority.clone());
    let (addresses, stop) = world.start(args).await;
    let page =
        until(addresses.health, "/readyz", "the root is wrong", |page| page.contains("--control-plane-ca")).await;
    assert!(page.contains("invalid peer certificate") && page.contains("istio-ca-root-cert"), "{page}");
    std::fs::write(&authority, world.istiod.root()).expect("written");
    until(addresses.health, "/readyz", "the root is right", |page| page.starts_with("ready")).await;
    stop.cancel();
    tokio::time::sleep(Duration::from_millis(300)).await;

    let mut args = world.args(addresses.grpc);
    args.control_plane = "https://127.0.0.1:1".to_owned();
    let (addresses, stop) = world.start(args).await;
    let page = until(addresses.health, "/readyz", "nobody is there", |page| page.contains("refused")).await;
    assert!(page.contains("cannot reach istiod at 127.0.0.1:1"), "{page}");
    stop.cancel();
}
