//! The whole adapter in one process: a controller, a node daemon and a control plane that plays the
//! recordings on one side, a proxy on the other.

mod support;

use clap::Parser;
use istio_dpu_adapter::shell::{Addresses, Args, start};
use istio_dpu_adapter::translate::Kind;
use mesh_api::attach::Attachment;
use mesh_api::ca::SignRequest;
use mesh_api::ca::certificate_relay_client::CertificateRelayClient;
use mesh_api::envoy::config::cluster::v3::Cluster;
use mesh_api::envoy::config::core::v3::Node;
use mesh_api::istio_ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use mesh_api::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};
use mesh_api::{proxy, type_url};
use service::signal::CancellationToken;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use support::{DEMO, SHIFT, attachment, recorded, workload};
use tokio::sync::mpsc;
use tonic::{Code, Request, Response, Status};
use xds::client::{self, Event, Handle, Interest, Mode, Options};
use xds::server::{Peer, Store, Transaction};
use xds::{Backoff, Rejected, Resource};

/// Pods of the first host.
const HOST1: [&str; 4] = ["curl", "productpage-v1", "ratings-v1", "reviews-v1"];
const PATIENCE: Duration = Duration::from_secs(20);

/// Everything around the adapter.
struct World {
    controller: Store,
    attachments: Store,
    control_plane: Store,
    /// Addresses of controller and control plane.
    listening: [SocketAddr; 2],
    folder: tempfile::TempDir,
    stop: CancellationToken,
}

/// Signs whatever it is asked for, as the identity that is named in the metadata.
struct Authority;

#[tonic::async_trait]
impl IstioCertificateService for Authority {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let request = request.into_inner();
        let metadata = request.metadata.unwrap_or_default();
        let named = metadata.fields.get("ImpersonatedIdentity").and_then(|value| value.kind.clone());
        assert!(matches!(named, Some(prost_types::value::Kind::StringValue(_))), "the identity is named");
        let key = rcgen::KeyPair::generate().expect("key");
        let root = rcgen::CertificateParams::default();
        let issuer = rcgen::Issuer::new(root, key);
        let csr = rcgen::CertificateSigningRequestParams::from_pem(&request.csr).expect("request");
        let leaf = csr.signed_by(&issuer).expect("signed");
        Ok(Response::new(IstioCertificateResponse { cert_chain: vec![leaf.pem()] }))
    }
}

async fn listen(store: &Store, by_node: bool, stop: &CancellationToken) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let authorize = move |peer: &Peer| match by_node {
        true if peer.node.id.contains("unreachable") => Err(Status::permission_denied("no such proxy")),
        true => Ok(peer.node.id.clone()),
        false => Ok("host1".to_owned()),
    };
    let (events, _) = mpsc::unbounded_channel();
    let server = tonic::transport::Server::builder()
        .add_service(xds::server::service(store.clone(), authorize, events))
        .add_service(IstioCertificateServiceServer::new(Authority));
    tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
    address
}

fn listen_unix(store: &Store, path: PathBuf, stop: &CancellationToken) {
    let listener = tokio::net::UnixListener::bind(path).expect("socket");
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let (events, _) = mpsc::unbounded_channel();
    let service = xds::server::service(store.clone(), |_: &Peer| Ok("host".to_owned()), events);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
}

impl World {
    async fn new() -> Self {
        let (controller, attachments, control_plane) = (Store::new(), Store::new(), Store::new());
        let (folder, stop) = (tempfile::tempdir().expect("folder"), CancellationToken::new());
        let listening = [listen(&controller, false, &stop).await, listen(&control_plane, true, &stop).await];
        listen_unix(&attachments, folder.path().join("attachments.sock"), &stop);
        let world = Self { controller, attachments, control_plane, listening, folder, stop };
        for pod in HOST1 {
            world.attach(pod, workload(pod), attachment(pod));
            world.play(DEMO, pod);
        }
        world
    }

    fn attach(&self, pod: &str, workload: mesh_api::workload::Workload, attachment: Attachment) {
        let name = format!("bookinfo/{pod}");
        let mut transaction = Transaction::new();
        transaction.put(type_url::WORKLOAD, Resource::new(name.clone(), &workload));
        self.controller.commit("host1", transaction);
        let mut transaction = Transaction::new();
        transaction.put(type_url::ATTACHMENT, Resource::new(name, &attachment));
        self.attachments.commit("host", transaction);
    }

    fn detach(&self, pod: &str) {
        let mut transaction = Transaction::new();
        transaction.remove(type_url::ATTACHMENT, &format!("bookinfo/{pod}"));
        self.attachments.commit("host", transaction);
    }

    fn play(&self, scenario: &str, pod: &str) {
        let mut transaction = Transaction::new();
        for kind in Kind::ALL {
            for resource in recorded(scenario, pod, kind) {
                transaction.put(kind.type_url(), resource);
            }
        }
        self.control_plane.commit(&node_id(pod), transaction);
    }

    async fn adapter(&self, listen: SocketAddr) -> (Addresses, CancellationToken) {
        let stop = CancellationToken::new();
        let (addresses, _) = start(self.args(listen), stop.clone()).await.expect("started");
        (addresses, stop)
    }

    fn args(&self, listen: SocketAddr) -> Args {
        let [controller, control_plane] = self.listening.map(|address| format!("http://{address}"));
        let socket = self.folder.path().join("attachments.sock");
        let listen = listen.to_string();
        let flags = ["adapter", "--node", "host1", "--controller", &controller, "--control-plane", &control_plane];
        let more =
            ["--attachments", socket.to_str().expect("text"), "--listen", &listen, "--health-listen", "127.0.0.1:0"];
        Args::parse_from(flags.into_iter().chain(more).chain(["--sync-grace-s", "1"]))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        for store in [&self.controller, &self.attachments, &self.control_plane] {
            store.close();
        }
    }
}

fn node_id(pod: &str) -> String {
    let address = &attachment(pod).addresses[0];
    format!("sidecar~{address}~{pod}.bookinfo~bookinfo.svc.cluster.local")
}

/// A proxy that takes everything over, except what it is told to refuse.
struct FakeProxy {
    handle: Handle,
    events: mpsc::Receiver<Event>,
    held: BTreeMap<(String, String), Resource>,
    removed: Vec<(String, String)>,
    refuses: &'static str,
}

impl FakeProxy {
    fn connect(address: SocketAddr, node: &str) -> Self {
        let kinds = Kind::ALL.map(Kind::type_url).into_iter().chain([type_url::SCOPE, type_url::PROXY_WORKLOAD]);
        let options = Options {
            node: Node { id: node.to_owned(), ..Node::default() },
            mode: Mode::Delta,
            metadata: Vec::new(),
            interests: kinds.map(|kind| (kind.to_owned(), Interest::Wildcard)).collect(),
            backoff: Backoff::new(Duration::from_millis(20), Duration::from_millis(100)),
        };
        let connect = move || -> futures_util::future::BoxFuture<'static, Result<tonic::transport::Channel, String>> {
            Box::pin(async move {
                let endpoint = tonic::transport::Channel::from_shared(format!("http://{address}"));
                endpoint.map_err(|error| error.to_string())?.connect().await.map_err(|error| error.to_string())
            })
        };
        let (handle, events) = client::spawn(connect, options);
        Self { handle, events, held: BTreeMap::new(), removed: Vec::new(), refuses: "\0" }
    }

    /// Takes updates until something holds.
    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !holds(self) {
            let event = tokio::time::timeout_at(deadline, self.events.recv()).await;
            let event = event.unwrap_or_else(|_| panic!("waited in vain until {what}; held: {:?}", self.held.keys()));
            self.take(event.expect("the client lives"));
        }
    }

    /// Takes updates for a while.
    async fn watch(&mut self, time: Duration) {
        let deadline = tokio::time::Instant::now() + time;
        while let Ok(Some(event)) = tokio::time::timeout_at(deadline, self.events.recv()).await {
            self.take(event);
        }
    }

    fn take(&mut self, event: Event) {
        let Event::Update(update) = event else { return };
        let kind = update.type_url;
        let (refused, taken): (Vec<Resource>, Vec<Resource>) =
            update.changed.into_iter().partition(|resource| resource.name.starts_with(self.refuses));
        self.held.extend(taken.into_iter().map(|resource| ((kind.clone(), resource.name.clone()), resource)));
        for name in update.removed {
            self.held.remove(&(kind.clone(), name.clone()));
            self.removed.push((kind.clone(), name));
        }
        let refused = refused.into_iter().map(|one| Rejected { name: one.name, reason: "not for me".to_owned() });
        let refused: Vec<Rejected> = refused.collect();
        self.handle.reply(update.token, if refused.is_empty() { Ok(()) } else { Err(refused) });
    }

    fn count(&self, type_url: &str) -> usize {
        self.held.keys().filter(|(kind, _)| kind == type_url).count()
    }

    fn scope(&self, pod: &str) -> String {
        let workload = self.held.get(&(type_url::PROXY_WORKLOAD.to_owned(), format!("uid-{pod}")));
        workload.map(|one| one.decode::<proxy::Workload>().expect("workload").scope).unwrap_or_default()
    }
}

async fn get(address: SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("health");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answer");
    answer.split_once("\r\n\r\n").expect("head").1.to_owned()
}

fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().expect("address")
}

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
    world.control_plane.commit(&node_id("curl"), transaction);
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
