//! On a DPU: an adapter that serves workloads and signs, a dataplane that has a port, and two
//! workloads, of which one calls the other. In a network namespace of its own, on its loopback device.

use clap::Parser;
use dpu_proxy::program::{self, Arguments};
use dpu_proxy_core::config::json;
use dpu_proxy_core::config::report::Subject;
use mesh_api::ca::certificate_relay_server::{CertificateRelay, CertificateRelayServer};
use mesh_api::ca::{SignRequest, SignResponse};
use mesh_api::envoy::config::{cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener};
use mesh_api::proxy::{Reference, Scope, Workload};
use mesh_api::steering::{self, FromDataplane, FromProxy, from_dataplane, from_proxy};
use mesh_api::type_url;
use prost::{Message, Name};
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType, accept, bind, listen, recv, send, socket,
};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use xds::Resource;
use xds::server::{self, Peer, Store, Transaction};

const CALLER: &str = "spiffe://cluster.local/ns/demo/sa/caller";
const CALLEE: &str = "spiffe://cluster.local/ns/demo/sa/callee";
const CALLEE_ADDRESS: &str = "127.0.0.20";

/// A message of its YAML.
fn of<M: Message + Name + Default>(text: &str) -> M {
    let read = |_: &str| Err(std::io::ErrorKind::NotFound.into());
    let subject = Subject::new("test", &read);
    json::message(subject.root(), text).unwrap_or_else(|error| panic!("{error}"))
}

fn tls(kind: &str, more: &str) -> String {
    format!(
        r#"{{name: tls, typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}, {more}
  common_tls_context: {{
    tls_certificate_sds_secret_configs: [{{name: default, sds_config: {{ads: {{}}}}}}],
    combined_validation_context: {{
      default_validation_context: {{match_typed_subject_alt_names: [{{san_type: URI, matcher: {{prefix: "spiffe://cluster.local/"}}}}]}},
      validation_context_sds_secret_config: {{name: ROOTCA, sds_config: {{ads: {{}}}}}}}}}}}}}}"#
    )
}

fn tcp_filter(cluster: &str) -> String {
    format!(
        r#"{{name: tcp, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: "{cluster}"}}}}"#
    )
}

/// Only this identity may call.
fn allow(identity: &str) -> String {
    format!(
        r#"{{name: envoy.filters.network.rbac, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: r,
  rules: {{action: ALLOW, policies: {{only: {{permissions: [{{any: true}}], principals: [{{authenticated: {{principal_name: {{exact: "{identity}"}}}}}}]}}}}}}}}}}"#
    )
}

struct Parts {
    outbound: Cluster,
    endpoints: ClusterLoadAssignment,
    inbound: Cluster,
    virtual_outbound: Listener,
    virtual_inbound: Listener,
}

fn parts(callee_port: u16, allowed: &str) -> Parts {
    let endpoint = format!("{{socket_address: {{address: {CALLEE_ADDRESS}, port_value: {callee_port}}}}}");
    Parts {
        outbound: of(&format!(
            r#"{{name: "outbound|9000||callee", type: EDS, connect_timeout: 2s, eds_cluster_config: {{eds_config: {{ads: {{}}}}}}, transport_socket: {}}}"#,
            tls("UpstreamTlsContext", "")
        )),
        endpoints: of(&format!(
            r#"{{cluster_name: "outbound|9000||callee", endpoints: [{{lb_endpoints: [{{endpoint: {{address: {endpoint}}}}}]}}]}}"#
        )),
        inbound: of(
            r#"{name: "inbound|9000||", type: ORIGINAL_DST, connect_timeout: 2s, lb_policy: CLUSTER_PROVIDED}"#,
        ),
        virtual_outbound: of(&format!(
            r#"{{name: virtualOutbound, address: {{socket_address: {{address: 0.0.0.0, port_value: 15001}}}}, use_original_dst: true, traffic_direction: OUTBOUND, filter_chains: [{{filters: [{}]}}]}}"#,
            tcp_filter("outbound|9000||callee")
        )),
        virtual_inbound: of(&format!(
            r#"{{name: virtualInbound, address: {{socket_address: {{address: 0.0.0.0, port_value: 15006}}}}, traffic_direction: INBOUND, filter_chains: [{{filter_chain_match: {{transport_protocol: tls}}, filters: [{}, {}], transport_socket: {}}}]}}"#,
            allow(allowed),
            tcp_filter("inbound|9000||"),
            tls("DownstreamTlsContext", "require_client_certificate: true,")
        )),
    }
}

fn publish(store: &Store, parts: &Parts, version: &str) {
    let mut transaction = Transaction::new();
    let scope_name = format!("scope@{version}");
    let at = |name: &str| format!("{name}@{version}");
    let reference = |name: &str| Reference { name: name.to_owned(), resource: at(name) };
    transaction.put(type_url::CLUSTER, Resource::new(at(&parts.outbound.name), &parts.outbound));
    transaction.put(type_url::CLUSTER, Resource::new(at(&parts.inbound.name), &parts.inbound));
    let endpoints = Resource::new(at(&parts.endpoints.cluster_name), &parts.endpoints);
    transaction.put(type_url::CLUSTER_LOAD_ASSIGNMENT, endpoints);
    transaction.put(type_url::LISTENER, Resource::new(at("virtualOutbound"), &parts.virtual_outbound));
    transaction.put(type_url::LISTENER, Resource::new(at("virtualInbound"), &parts.virtual_inbound));
    let scope = Scope {
        listeners: vec![reference("virtualOutbound"), reference("virtualInbound")],
        routes: vec![],
        clusters: vec![reference(&parts.outbound.name), reference(&parts.inbound.name)],
        endpoints: vec![reference(&parts.endpoints.cluster_name)],
        ..Scope::default()
    };
    transaction.put(type_url::SCOPE, Resource::new(scope_name.clone(), &scope));
    for (uid, identity, address, port) in [("w1", CALLER, "127.0.0.10", "vf1"), ("w2", CALLEE, CALLEE_ADDRESS, "vf2")] {
        let workload = Workload {
            uid: uid.to_owned(),
            namespace: "demo".to_owned(),
            name: uid.to_owned(),
            identity: identity.to_owned(),
            addresses: vec![address.to_owned()],
            port_id: port.to_owned(),
            scope: scope_name.clone(),
            workload_name: uid.to_owned(),
            ..Workload::default()
        };
        transaction.put(type_url::PROXY_WORKLOAD, Resource::new(uid, &workload));
    }
    store.commit("view", transaction);
}

struct Relay {
    pem: String,
    issuer: Issuer<'static, rcgen::KeyPair>,
}

impl Relay {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("root").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }
}

#[tonic::async_trait]
impl CertificateRelay for Relay {
    async fn sign(&self, request: tonic::Request<SignRequest>) -> Result<tonic::Response<SignResponse>, tonic::Status> {
        let request = CertificateSigningRequestParams::from_pem(&request.into_inner().csr_pem).expect("a request");
        let leaf = request.signed_by(&self.issuer).expect("signed").pem();
        Ok(tonic::Response::new(SignResponse { chain_pem: vec![leaf, self.pem.clone()] }))
    }
}

async fn adapter(store: Store) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (events, mut verdicts) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(event) = verdicts.recv().await {
            if let server::Event::Nacked { rejected, .. } = event {
                eprintln!("refused: {rejected:?}");
            }
        }
    });
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let discovery = server::service(store, |_: &Peer| Ok("view".to_owned()), events);
    let relay = CertificateRelayServer::new(Relay::new());
    let server = tonic::transport::Server::builder().add_service(discovery).add_service(relay);
    tokio::spawn(server.serve_with_incoming(incoming));
    address
}

/// Says that it has one port on the loopback device; passes on what it is told of readiness.
fn dataplane(path: &Path) -> mpsc::Receiver<from_proxy::Message> {
    let listener = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("socket");
    bind(&listener, &SocketAddrUnix::new(path).expect("path")).expect("bind");
    listen(&listener, 1).expect("listen");
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let peer = accept(&listener).expect("the proxy connects");
        let port = steering::Port {
            id: "vf1".to_owned(),
            workload_uid: "w1".to_owned(),
            representor: "lo".to_owned(),
            ifindex: 1,
            addresses: vec!["127.0.0.10".to_owned()],
            ..steering::Port::default()
        };
        let ports = steering::Ports {
            snapshot: true,
            changed: vec![port],
            removed_ids: vec![],
            uplink: "lo".to_owned(),
            host: String::new(),
        };
        say(&peer, &FromDataplane { message: Some(from_dataplane::Message::Ports(ports)) });
        let mut buffer = vec![0; 65_536];
        while let Ok((_, length @ 1..)) = recv(&peer, &mut buffer[..], RecvFlags::empty()) {
            let message = FromProxy::decode(&buffer[..length]).expect("a message of ours");
            let answer = steering::Answer { sequence: message.sequence, error: String::new() };
            say(&peer, &FromDataplane { message: Some(from_dataplane::Message::Answer(answer)) });
            if let Some(message) = message.message {
                let _ = tell.send(message);
            }
        }
    });
    told
}

fn say(peer: &OwnedFd, message: &FromDataplane) {
    let _ = send(peer, &message.encode_to_vec(), SendFlags::empty());
}

/// Waits until a message fits.
fn wait_for(told: &mpsc::Receiver<from_proxy::Message>, fits: impl Fn(&from_proxy::Message) -> bool) {
    loop {
        let message = told.recv_timeout(Duration::from_secs(20)).expect("the proxy says more");
        if fits(&message) {
            return;
        }
    }
}

/// A callee that answers with who it thinks is calling.
async fn callee() -> SocketAddr {
    let listener = TcpListener::bind((CALLEE_ADDRESS, 0)).await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut stream, peer)) = listener.accept().await {
            let _ = stream.write_all(peer.ip().to_string().as_bytes()).await;
        }
    });
    address
}

fn bootstrap(adapter: SocketAddr) -> String {
    format!(
        r#"
node: {{id: host1, cluster: dpu, metadata: {{DPUMESH: "true"}}}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
dynamic_resources:
  ads_config: {{api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: adapter}}}}]}}
static_resources:
  clusters:
  - name: adapter
    type: STATIC
    connect_timeout: 1s
    load_assignment: {{cluster_name: adapter, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}
"#,
        port = adapter.port()
    )
}

/// What the caller reads through the proxy from `own` address.
async fn call() -> String {
    let socket = tokio::net::TcpSocket::new_v4().expect("socket");
    socket.bind("127.0.0.10:0".parse().expect("address")).expect("bind");
    let mut stream = socket.connect("127.0.0.1:15001".parse().expect("address")).await.expect("steered");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

async fn call_until(expected: &str) {
    let mut last = String::new();
    for _ in 0..200 {
        last = call().await;
        if last == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the caller reads {last:?}, not {expected:?}");
}

async fn get(admin: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(admin).await.expect("admin");
    let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    answer
}

/// A connection is counted when both of its ends have closed.
async fn until_told(admin: SocketAddr, text: &str) {
    for _ in 0..200 {
        if get(admin, "/stats/prometheus").await.contains(text) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no {text} in {}", get(admin, "/stats/prometheus").await);
}

async fn scenario(folder: &Path) {
    let (store, at) = (Store::new(), callee().await);
    let adapter = adapter(store.clone()).await;
    let steering = folder.join("steering.sock");
    let told = dataplane(&steering);
    let (yaml, hops) = (bootstrap(adapter), folder.join("hops.jsonl"));
    let arguments = Arguments::parse_from([
        "dpu-proxy",
        "--config-yaml",
        &yaml,
        "--concurrency",
        "1",
        "--drain-time-s",
        "0",
        "--file-flush-interval-msec",
        "10",
        "--steering-socket",
        &steering.display().to_string(),
        "--hop-log",
        &hops.display().to_string(),
    ]);
    let stop = CancellationToken::new();
    let (tell, admin) = tokio::sync::oneshot::channel();
    let serving = program::serve(&arguments, stop.clone(), |address| {
        let _ = tell.send(address);
    });
    let testing = async {
        let admin = admin.await.expect("started").expect("address");
        let told = tokio::task::spawn_blocking(move || {
            wait_for(&told, |message| matches!(message, from_proxy::Message::PortNotReady(_)));
            told
        });
        let told = told.await.expect("not ready without a configuration");
        publish(&store, &parts(at.port(), CALLER), "1");
        let ready = |message: &from_proxy::Message| matches!(message, from_proxy::Message::PortReady(ready) if ready.workload_uid == "w1");
        tokio::task::spawn_blocking(move || wait_for(&told, ready)).await.expect("ready");
        // The callee sees the caller's own address: the call passed both sides' rules, unencrypted.
        call_until("127.0.0.10").await;
        let certificates = get(admin, "/certs").await;
        assert!(certificates.contains(CALLER) && !certificates.contains("PRIVATE KEY"), "{certificates}");
        until_told(admin, "istio_tcp_connections_opened_total{reporter=\"source\"").await;
        until_told(admin, "connection_security_policy=\"mutual_tls\"").await;
        // Now only somebody else may call: the same pass is denied.
        publish(&store, &parts(at.port(), "spiffe://cluster.local/ns/demo/sa/other"), "2");
        call_until("").await;
        stop.cancel();
    };
    let (served, ()) = tokio::join!(serving, testing);
    served.expect("served to the end");
    let hops = std::fs::read_to_string(&hops).expect("hop log");
    assert!(hops.contains(r#""pass":"local","workload":"w2""#), "{hops}");
    assert!(
        hops.contains(r#""local_callee":"w2""#) && hops.contains(&format!(r#""downstream_peer":"{CALLER}""#)),
        "{hops}"
    );
    assert!(hops.contains("rbac_access_denied"), "{hops}");
}

#[test]
fn a_workload_calls_another_in_one_pass_under_the_rules_of_both() {
    if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
        eprintln!("SKIPPED: this test needs root to make a network namespace ({error})");
        return;
    }
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip");
    assert!(up.success());
    let folder = tempfile::tempdir().expect("folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(scenario(folder.path()));
}
