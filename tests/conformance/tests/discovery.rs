//! Our discovery server, with a stock Envoy and `dpu-proxy` as its clients, in both variants of the
//! protocol: configuration arrives, changes, is refused alone, and is withdrawn.

use conformance::program::{Kind, Programs, Running, free_port};
use mesh_api::envoy::config::core::v3 as core;
use mesh_api::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use mesh_api::envoy::config::route::v3 as route;
use mesh_api::envoy::extensions::filters::http::router::v3::Router;
use mesh_api::envoy::extensions::filters::network::http_connection_manager::v3 as manager;
use mesh_api::{Any, type_url};
use prost::{Message, Name};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use xds::server::{Event, Peer, Store, Transaction};
use xds::{Rejected, Resource};

/// Longest wait for a change to show.
const SOON: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug)]
enum Variant {
    Delta,
    StateOfTheWorld,
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_follows_an_incremental_stream() {
    follow(Kind::Envoy, Variant::Delta).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_follows_a_state_of_the_world_stream() {
    follow(Kind::Envoy, Variant::StateOfTheWorld).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dpu_proxy_follows_an_incremental_stream() {
    follow(Kind::DpuProxy, Variant::Delta).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dpu_proxy_follows_a_state_of_the_world_stream() {
    follow(Kind::DpuProxy, Variant::StateOfTheWorld).await;
}

async fn follow(kind: Kind, variant: Variant) {
    let world = World::start(kind, variant).await;
    world.say("one");
    world.expect(Some("one")).await;
    world.say("two");
    world.expect(Some("two")).await;
    world.refuses_a_bad_listener_alone().await;
    world.expect(Some("two")).await;
    world.withdraw();
    world.expect(None).await;
}

/// A discovery server and a proxy that follows it.
struct World {
    store: Store,
    verdicts: tokio::sync::Mutex<mpsc::UnboundedReceiver<Event>>,
    listener: u16,
    proxy: Running,
    _folder: tempfile::TempDir,
}

impl World {
    async fn start(kind: Kind, variant: Variant) -> Self {
        let programs = Programs::find().expect("programs");
        let store = Store::new();
        let (server, verdicts) = serve(store.clone()).await;
        let (listener, admin) = (free_port().expect("port"), free_port().expect("port"));
        let folder = tempfile::tempdir().expect("folder");
        let config = folder.path().join("bootstrap.yaml");
        std::fs::write(&config, bootstrap(variant, server, admin)).expect("bootstrap");
        put(&store, listener_resource("main", listener));
        put(&store, routes("none yet"));
        let output = folder.path().join("out");
        // Starting waits for readiness, which needs the server's answers: not on its threads.
        let start = move || Running::start(kind, &programs, &config, admin, &output);
        let proxy = tokio::task::spawn_blocking(start).await.expect("task").expect("proxy");
        Self { store, verdicts: verdicts.into(), listener, proxy, _folder: folder }
    }

    fn say(&self, text: &str) {
        put(&self.store, routes(text));
    }

    fn withdraw(&self) {
        let mut transaction = Transaction::new();
        transaction.remove(type_url::LISTENER, "main");
        self.store.commit("view", transaction);
    }

    /// `None`: nobody answers.
    async fn expect(&self, text: Option<&str>) {
        let end = Instant::now() + SOON;
        loop {
            let listener = self.listener;
            let answer = tokio::task::spawn_blocking(move || ask(listener)).await.expect("task");
            if answer.as_deref() == text {
                return;
            }
            assert!(
                Instant::now() < end,
                "expected {text:?}, got {answer:?}; the proxy says:\n{}",
                self.proxy.last_lines()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn refuses_a_bad_listener_alone(&self) {
        let empty = Listener { name: "bad".to_owned(), ..Listener::default() };
        put(&self.store, Resource::new("bad", &empty));
        let mut verdicts = self.verdicts.lock().await;
        let refused = async {
            while let Some(event) = verdicts.recv().await {
                if let Event::Nacked { rejected, message, .. } = event {
                    return (rejected, message);
                }
            }
            panic!("the server ended");
        };
        let (rejected, message) = tokio::time::timeout(SOON, refused).await.expect("a refusal");
        let named = rejected.iter().any(|Rejected { name, .. }| name == "bad") || message.contains("bad");
        assert!(named, "the refusal names the resource: {message:?} {rejected:?}");
    }
}

async fn serve(store: Store) -> (SocketAddr, mpsc::UnboundedReceiver<Event>) {
    let (events, receiver) = mpsc::unbounded_channel();
    let authorize = |_: &Peer| Ok("view".to_owned());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service = xds::server::service(store, authorize, events);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    (address, receiver)
}

fn put(store: &Store, resource: Resource) {
    let mut transaction = Transaction::new();
    transaction.put(&resource.body.type_url.clone(), resource);
    store.commit("view", transaction);
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn ads() -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(Default::default())),
        ..Default::default()
    }
}

fn listener_resource(name: &str, port: u16) -> Resource {
    let rds = manager::Rds { config_source: Some(ads()), route_config_name: "routes".to_owned() };
    let router = manager::HttpFilter {
        name: "router".to_owned(),
        config_type: Some(manager::http_filter::ConfigType::TypedConfig(any(&Router::default()))),
        ..Default::default()
    };
    let manager = manager::HttpConnectionManager {
        stat_prefix: name.to_owned(),
        http_filters: vec![router],
        route_specifier: Some(manager::http_connection_manager::RouteSpecifier::Rds(rds)),
        ..Default::default()
    };
    let filter = Filter { name: "http".to_owned(), config_type: Some(filter::ConfigType::TypedConfig(any(&manager))) };
    let socket = core::SocketAddress {
        address: "127.0.0.1".to_owned(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port.into())),
        ..Default::default()
    };
    let listener = Listener {
        name: name.to_owned(),
        address: Some(core::Address { address: Some(core::address::Address::SocketAddress(socket)) }),
        filter_chains: vec![FilterChain { filters: vec![filter], ..Default::default() }],
        ..Default::default()
    };
    Resource::new(name, &listener)
}

fn routes(text: &str) -> Resource {
    let body = core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString(text.to_owned())),
        ..Default::default()
    };
    let all = route::RouteMatch {
        path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".to_owned())),
        ..Default::default()
    };
    let answer = route::DirectResponseAction { status: 200, body: Some(body), ..Default::default() };
    let host = route::VirtualHost {
        name: "all".to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route::Route {
            r#match: Some(all),
            action: Some(route::route::Action::DirectResponse(answer)),
            ..Default::default()
        }],
        ..Default::default()
    };
    let config =
        route::RouteConfiguration { name: "routes".to_owned(), virtual_hosts: vec![host], ..Default::default() };
    Resource::new("routes", &config)
}

/// The body of the answer; `None` when nobody answers with 200.
fn ask(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
}

fn bootstrap(variant: Variant, server: SocketAddr, admin: u16) -> String {
    let api_type = match variant {
        Variant::Delta => "DELTA_GRPC",
        Variant::StateOfTheWorld => "GRPC",
    };
    format!(
        r#"
node: {{id: node, cluster: test}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
dynamic_resources:
  ads_config:
    api_type: {api_type}
    transport_api_version: V3
    grpc_services: [{{envoy_grpc: {{cluster_name: control-plane}}}}]
  lds_config: {{ads: {{}}, resource_api_version: V3}}
  cds_config: {{ads: {{}}, resource_api_version: V3}}
static_resources:
  clusters:
  - name: control-plane
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: control-plane
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}]}}]
"#,
        server.ip(),
        server.port()
    )
}
