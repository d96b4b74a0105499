//! Served by a control plane: resources that come, change, are bad, and go.

use clap::Parser;
use dpu_proxy::program::{self, Arguments};
use mesh_api::Any;
use mesh_api::envoy::config::cluster::v3 as cluster;
use mesh_api::envoy::config::core::v3 as core;
use mesh_api::envoy::config::endpoint::v3 as endpoint;
use mesh_api::envoy::config::listener::v3 as listener;
use mesh_api::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_proxy;
use mesh_api::type_url;
use prost::{Message, Name};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use xds::Resource;
use xds::server::{self, Event, Peer, Store, Transaction};

fn address(of: SocketAddr) -> core::Address {
    let socket = core::SocketAddress {
        address: of.ip().to_string(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(of.port().into())),
        ..Default::default()
    };
    core::Address { address: Some(core::address::Address::SocketAddress(socket)) }
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn eds_cluster(name: &str) -> Resource {
    let ads = core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(Default::default())),
        resource_api_version: core::ApiVersion::V3.into(),
        ..Default::default()
    };
    let eds = cluster::cluster::EdsClusterConfig { eds_config: Some(ads), ..Default::default() };
    let kind = cluster::cluster::ClusterDiscoveryType::Type(cluster::cluster::DiscoveryType::Eds.into());
    let message = cluster::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(kind),
        eds_cluster_config: Some(eds),
        ..Default::default()
    };
    Resource::new(name, &message)
}

fn endpoints(name: &str, at: SocketAddr) -> Resource {
    let one = endpoint::Endpoint { address: Some(address(at)), ..Default::default() };
    let one = endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(one)),
        ..Default::default()
    };
    let locality = endpoint::LocalityLbEndpoints { lb_endpoints: vec![one], ..Default::default() };
    let message = endpoint::ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![locality],
        ..Default::default()
    };
    Resource::new(name, &message)
}

fn tcp_listener(name: &str, at: SocketAddr, cluster: &str) -> Resource {
    let proxy = tcp_proxy::TcpProxy {
        stat_prefix: "t".to_owned(),
        cluster_specifier: Some(tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    };
    let filter = listener::Filter {
        name: "tcp".to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(any(&proxy))),
    };
    let chain = listener::FilterChain { filters: vec![filter], ..Default::default() };
    let message = listener::Listener {
        name: name.to_owned(),
        address: Some(address(at)),
        filter_chains: vec![chain],
        ..Default::default()
    };
    Resource::new(name, &message)
}

/// Answers every connection with a name.
async fn named(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(name.as_bytes()).await;
            });
        }
    });
    address
}

struct ControlPlane {
    store: Store,
    address: SocketAddr,
    verdicts: mpsc::UnboundedReceiver<Event>,
}

impl ControlPlane {
    async fn start() -> Self {
        let store = Store::new();
        let (events, verdicts) = mpsc::unbounded_channel();
        let authorize = |_: &Peer| Ok("view".to_owned());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(server::service(store.clone(), authorize, events));
        tokio::spawn(server.serve_with_incoming(incoming));
        Self { store, address, verdicts }
    }

    fn put(&self, resources: Vec<(&str, Resource)>) {
        let mut transaction = Transaction::new();
        for (kind, resource) in resources {
            transaction.put(kind, resource);
        }
        self.store.commit("view", transaction);
    }

    async fn next_refusal(&mut self) -> (String, String) {
        loop {
            let event = tokio::time::timeout(Duration::from_secs(10), self.verdicts.recv()).await.expect("in time");
            if let Event::Nacked { rejected, .. } = event.expect("the server lives") {
                return (rejected[0].name.clone(), rejected[0].reason.clone());
            }
        }
    }
}

fn bootstrap(control_plane: SocketAddr, api_type: &str) -> String {
    format!(
        r#"
node: {{id: test, cluster: test}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
dynamic_resources:
  ads_config: {{api_type: {api_type}, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: control}}}}]}}
  cds_config: {{ads: {{}}, resource_api_version: V3}}
  lds_config: {{ads: {{}}, resource_api_version: V3}}
static_resources:
  clusters:
  - name: control
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment: {{cluster_name: control, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}
"#,
        port = control_plane.port()
    )
}

async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("address")
}

/// What is read from the proxy until it closes; tried again until it is as expected.
async fn until_answers(at: SocketAddr, expected: &str) {
    let mut last = String::new();
    for _ in 0..300 {
        last.clear();
        if let Ok(mut stream) = TcpStream::connect(at).await
            && stream.read_to_string(&mut last).await.is_ok()
            && last == expected
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{at} answers {last:?}, not {expected:?}");
}

async fn follows_its_control_plane(api_type: &str) {
    let mut plane = ControlPlane::start().await;
    let (one, two) = (named("one").await, named("two").await);
    let at = free_address().await;
    plane.put(vec![
        (type_url::CLUSTER, eds_cluster("up")),
        (type_url::CLUSTER_LOAD_ASSIGNMENT, endpoints("up", one)),
        (type_url::LISTENER, tcp_listener("in", at, "up")),
    ]);
    let yaml = bootstrap(plane.address, api_type);
    let arguments =
        Arguments::parse_from(["dpu-proxy", "--config-yaml", &yaml, "--concurrency", "2", "--drain-time-s", "0"]);
    let stop = CancellationToken::new();
    let serving = program::serve(&arguments, stop.clone(), |_| {});
    let testing = async {
        until_answers(at, "one").await;
        plane.put(vec![(type_url::CLUSTER_LOAD_ASSIGNMENT, endpoints("up", two))]);
        until_answers(at, "two").await;
        let mut bad: listener::Listener = tcp_listener("in", at, "up").decode().expect("own encoding");
        bad.filter_chains[0].filters[0].config_type = None;
        plane.put(vec![(type_url::LISTENER, Resource::new("in", &bad))]);
        let (name, reason) = plane.next_refusal().await;
        assert_eq!(name, "in");
        assert!(!reason.is_empty());
        until_answers(at, "two").await;
        let elsewhere = free_address().await;
        plane.put(vec![(type_url::LISTENER, tcp_listener("in", elsewhere, "up"))]);
        until_answers(elsewhere, "two").await;
        stop.cancel();
    };
    let (served, ()) = tokio::join!(serving, testing);
    served.expect("served to the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_come_incrementally_and_a_bad_one_leaves_the_last_good_in_force() {
    follows_its_control_plane("DELTA_GRPC").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_come_as_the_state_of_the_world() {
    follows_its_control_plane("GRPC").await;
}
