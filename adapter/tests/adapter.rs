//! The whole adapter in one process: a controller, a node daemon and a control plane that plays the
//! recordings on one side, a proxy on the other.

mod support;

use mesh_api::attach::Attachment;
use mesh_api::ca::SignRequest;
use mesh_api::ca::certificate_relay_client::CertificateRelayClient;
use mesh_api::envoy::config::cluster::v3::Cluster;
use mesh_api::type_url;
use std::time::Duration;
use support::world::{FakeProxy, HOST1, World, anywhere, get, node_id};
use support::{SHIFT, attachment, workload};
use tonic::Code;
use xds::Resource;
use xds::server::Transaction;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_host_are_served_once_and_follow_the_control_plane() {
    let world = World::new().await;
    let (addresses, stop) = world.adapter(anywhere()).await;
    let mut proxy = FakeProxy::connect(addresses.grpc, "host1");
    proxy.until("all pods are there", |proxy| proxy.count(type_url::PROXY_WORKLOAD) == 4).await;
    assert_eq!(proxy.count(type_url::SCOPE), 4);
    let (before, clusters) = (proxy.scope("curl"), proxy.count(type_url::CLUSTER));
    for pod in HOST1 {
        world.play(SHIFT, pod);
    }
    proxy
        .until("every scope changed", |proxy| proxy.scope("curl") != before && proxy.count(type_url::SCOPE) == 4)
        .await;
    assert_eq!(proxy.count(type_url::CLUSTER), clusters);
    let aggregation: serde_json::Value =
        serde_json::from_str(&get(addresses.health, "/aggregation").await).expect("JSON");
    assert_eq!(aggregation["received"]["resources"], 128);
    assert!(aggregation["ratio"]["resources"].as_f64().expect("ratio") > 3.0, "{aggregation}");
    world.detach("curl");
    proxy.until("curl is gone", |proxy| proxy.scope("curl").is_empty()).await;
    let metrics = get(addresses.health, "/metrics").await;
    assert!(metrics.contains("adapter_resources_received_total{type=\"cluster\"}"), "{metrics}");
    assert!(metrics.contains("adapter_resources_stored"), "{metrics}");
    assert!(get(addresses.health, "/readyz").await.starts_with("ready"));
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_adapter_withdraws_nothing() {
    let world = World::new().await;
    let (addresses, stop) = world.adapter(anywhere()).await;
    let mut proxy = FakeProxy::connect(addresses.grpc, "host1");
    proxy.until("all pods are there", |proxy| proxy.count(type_url::PROXY_WORKLOAD) == 4).await;
    proxy.watch(Duration::from_millis(300)).await;
    let (held, removed) = (proxy.held.clone(), proxy.removed.len());
    stop.cancel();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (_, stop) = world.adapter(addresses.grpc).await;
    proxy.watch(Duration::from_secs(3)).await;
    assert_eq!(proxy.removed.len(), removed, "{:?}", proxy.removed);
    assert_eq!(proxy.held.keys().collect::<Vec<_>>(), held.keys().collect::<Vec<_>>());
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_whose_stream_is_refused_fails_alone() {
    let world = World::new().await;
    let lost = mesh_api::workload::Workload {
        uid: "uid-unreachable".to_owned(),
        name: "unreachable".to_owned(),
        ..workload("curl")
    };
    let attached =
        Attachment { pod_uid: lost.uid.clone(), addresses: vec!["10.244.1.99".to_owned()], ..attachment("curl") };
    world.attach("unreachable", lost, attached);
    let (addresses, stop) = world.adapter(anywhere()).await;
    let mut proxy = FakeProxy::connect(addresses.grpc, "host1");
    proxy.until("the other pods are there", |proxy| proxy.count(type_url::PROXY_WORKLOAD) == 4).await;
    let workloads = get(addresses.health, "/workloads").await;
    assert!(workloads.contains("no such proxy"), "{workloads}");
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_proxy_refuses_is_shown_with_the_workloads_that_use_it() {
    let world = World::new().await;
    let (addresses, stop) = world.adapter(anywhere()).await;
    let mut proxy = FakeProxy::connect(addresses.grpc, "host1");
    proxy.until("all pods are there", |proxy| proxy.count(type_url::PROXY_WORKLOAD) == 4).await;
    let before = proxy.scope("curl");
    proxy.refuses = "bad@";
    let mut transaction = Transaction::new();
    transaction.put(type_url::CLUSTER, Resource::new("bad", &Cluster { name: "bad".to_owned(), ..Cluster::default() }));
    world.istiod.store.commit(&node_id("curl"), transaction);
    proxy.watch(Duration::from_secs(1)).await;
    let rejections = get(addresses.health, "/rejections").await;
    assert!(rejections.contains("not for me") && rejections.contains("bookinfo/curl"), "{rejections}");
    assert!(!rejections.contains("bookinfo/reviews-v1"), "{rejections}");
    assert_eq!(proxy.scope("curl"), before, "the last good one stays");
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_of_another_node_is_refused() {
    let world = World::new().await;
    let (addresses, stop) = world.adapter(anywhere()).await;
    let mut stranger = FakeProxy::connect(addresses.grpc, "host2");
    stranger.watch(Duration::from_secs(1)).await;
    assert!(stranger.held.is_empty());
    stop.cancel();
}

fn signing_request(names: &[&str]) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names =
        names.iter().map(|name| rcgen::SanType::URI((*name).try_into().expect("name"))).collect();
    let key = rcgen::KeyPair::generate().expect("key");
    params.serialize_request(&key).expect("request").pem().expect("PEM")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_signed_for_attached_identities_only() {
    let world = World::new().await;
    let (addresses, stop) = world.adapter(anywhere()).await;
    let mut proxy = FakeProxy::connect(addresses.grpc, "host1");
    proxy.until("all pods are there", |proxy| proxy.count(type_url::PROXY_WORKLOAD) == 4).await;
    let mut relay = CertificateRelayClient::connect(format!("http://{}", addresses.grpc)).await.expect("connected");
    let (own, other) =
        ("spiffe://cluster.local/ns/bookinfo/sa/reviews", "spiffe://cluster.local/ns/bookinfo/sa/mongodb");
    let request = |identity: &str, csr_pem: String| SignRequest {
        identity: identity.to_owned(),
        csr_pem,
        validity_seconds: 3600,
    };
    let answer = relay.sign(request(own, signing_request(&[own]))).await.expect("signed").into_inner();
    assert!(answer.chain_pem[0].starts_with("-----BEGIN CERTIFICATE-----"));
    let refused = relay.sign(request(other, signing_request(&[other]))).await.expect_err("not attached");
    assert_eq!(refused.code(), Code::PermissionDenied);
    for csr in [signing_request(&[other]), signing_request(&[own, other]), signing_request(&[]), "garbage".to_owned()] {
        let refused = relay.sign(request(own, csr)).await.expect_err("another request");
        assert_eq!(refused.code(), Code::InvalidArgument, "{}", refused.message());
    }
    stop.cancel();
}
