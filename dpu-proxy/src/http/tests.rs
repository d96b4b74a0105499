//! The HTTP path over real sockets: a worker with a configuration made by hand, a backend, a client.

use super::serve_connection;
use crate::connection::{Connection, Gate};
use crate::io::Stream;
use crate::shared::{Phase, Report, Settings, Shared, State};
use crate::upstream::dns::Names;
use crate::worker::Worker;
use dpu_proxy_core::model::*;
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

mod callee;
mod forward;
mod h2;
mod hostile;
mod mirror;

/// A proxy in this process.
struct Proxy {
    worker: Rc<Worker>,
    scope: Arc<Scope>,
    manager: Arc<HttpConnectionManager>,
    /// The client is a workload of this host.
    workload: Option<Arc<Workload>>,
}

fn manager(routes: RouteConfig) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: "test".into(),
        codec: CodecType::Auto,
        routes: RouteSource::Inline(Arc::new(routes)),
        filters: Vec::new(),
        router: RouterOptions::default(),
        server_name: "envoy".into(),
        server_header: ServerHeader::Overwrite,
        use_remote_address: false,
        xff_num_trusted_hops: 0,
        skip_xff_append: false,
        via: String::new(),
        generate_request_id: true,
        preserve_external_request_id: false,
        always_set_request_id_in_response: false,
        forward_client_cert: ForwardClientCert::Sanitize,
        set_client_cert_details: ClientCertDetails::default(),
        proxy_100_continue: false,
        normalize_path: false,
        merge_slashes: false,
        escaped_slashes: EscapedSlashes::KeepUnchanged,
        strip_matching_host_port: false,
        strip_any_host_port: false,
        upgrades: vec!["websocket".into()],
        access_logs: Vec::new(),
        stream_idle_timeout: Some(Duration::from_secs(300)),
        request_timeout: None,
        request_headers_timeout: None,
        idle_timeout: Some(Duration::from_secs(3600)),
        max_connection_duration: None,
        max_requests_per_connection: None,
        delayed_close_timeout: Duration::from_secs(1),
        max_request_headers_kb: 60,
        max_headers_count: 100,
        underscores_in_headers: UnderscoresInHeaders::Allow,
        http1: Http1Options { allow_absolute_url: true, ..Http1Options::default() },
        http2: Http2Options::default(),
    }
}

fn forward(cluster: &str) -> RouteAction {
    RouteAction {
        cluster: ClusterSpecifier::Single(cluster.into()),
        cluster_not_found_status: 503,
        prefix_rewrite: None,
        regex_rewrite: None,
        host_rewrite: HostRewrite::Keep,
        append_x_forwarded_host: false,
        timeout: Some(Duration::from_secs(15)),
        idle_timeout: None,
        grpc_timeout_header_max: None,
        grpc_timeout_header_offset: Duration::ZERO,
        grpc_timeout_is_of_stream: false,
        max_stream_duration: None,
        retry: None,
        hash_policy: Vec::new(),
        upgrades: Vec::new(),
        mirrors: Vec::new(),
    }
}

fn route(prefix: &str, action: RouteAction) -> Arc<Route> {
    Arc::new(Route {
        name: prefix.into(),
        matches: RouteMatch {
            path: PathMatch::Prefix(prefix.into()),
            case_sensitive: true,
            headers: Vec::new(),
            query: Vec::new(),
            grpc_only: false,
            runtime_fraction: None,
        },
        action: RouteActionKind::Forward(Box::new(action)),
        headers: HeaderEdits::default(),
        cors: None,
        overrides: FilterOverrides::default(),
    })
}

fn routes(routes: Vec<Arc<Route>>) -> RouteConfig {
    let host = VirtualHost { name: "all".into(), routes, ..VirtualHost::default() };
    RouteConfig { virtual_hosts: vec![Arc::new(host)], default_virtual_host: Some(0), ..RouteConfig::default() }
}

fn cluster(id: u64, name: &str, address: SocketAddr, protocol: UpstreamProtocol) -> Arc<ScopedCluster> {
    let endpoint = Endpoint {
        address,
        hostname: String::new(),
        weight: 1,
        health: EndpointHealth::Healthy,
        transport_match: Vec::new(),
        istio_workload: String::new(),
    };
    let locality = LocalityEndpoints { endpoints: vec![Arc::new(endpoint)], ..LocalityEndpoints::default() };
    let endpoints = Arc::new(EndpointSet {
        priorities: vec![Priority { localities: vec![locality] }],
        overprovisioning_factor_percent: 140,
    });
    let cluster = Cluster {
        name: name.into(),
        discovery: Discovery::Static(Arc::clone(&endpoints)),
        lb_policy: LbPolicy::RoundRobin,
        connect_timeout: Duration::from_secs(1),
        protocol,
        transport: TransportSockets::default(),
        circuit_breakers: CircuitBreakers::default(),
        outlier_detection: None,
        healthy_panic_threshold_percent: 50.0,
        http: UpstreamHttp::default(),
        per_connection_buffer_limit_bytes: 1 << 20,
        bind_source: None,
        tcp_keepalive: None,
        locality_weighted: false,
        delivers_to_workload: false,
    };
    Arc::new(ScopedCluster { id, cluster: Arc::new(cluster), endpoints })
}

fn shared(scope: &Arc<Scope>) -> Arc<Shared> {
    let snapshot = Snapshot { version: 1, root: Arc::clone(scope), ..Snapshot::default() };
    Arc::new(Shared {
        settings: Settings {
            workers: 1,
            drain_time: Duration::from_secs(1),
            successor_wait: Duration::ZERO,
            hop_log: None,
            log_flush: Duration::from_millis(20),
            hostname: "test".into(),
            cluster_id: "Kubernetes".into(),
            started: Instant::now(),
        },
        state: watch::Sender::new(State { snapshot: Arc::new(snapshot), ..State::default() }),
        phase: watch::Sender::new(Phase::Serving),
        report: watch::Sender::new(Arc::new(Report::default())),
        names: Names::new(tokio::runtime::Handle::current()),
        log_files: crate::access_log::LogFiles::new(Duration::from_millis(20)),
    })
}

impl Proxy {
    fn new(manager: HttpConnectionManager, clusters: Vec<Arc<ScopedCluster>>) -> Self {
        let clusters: HashMap<_, _> = clusters.into_iter().map(|c| (c.cluster.name.clone(), c)).collect();
        let scope = Arc::new(Scope { clusters, ..Scope::default() });
        Self { worker: Worker::new(0, shared(&scope)), scope, manager: Arc::new(manager), workload: None }
    }

    /// Listens; every connection is served.
    async fn listen(self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        tokio::task::spawn_local(async move {
            loop {
                let (tcp, remote) = listener.accept().await.expect("accept");
                tcp.set_nodelay(true).expect("nodelay");
                let connection = self.connection(address, remote);
                let (worker, manager) = (Rc::clone(&self.worker), Arc::clone(&self.manager));
                tokio::task::spawn_local(serve_connection(worker, connection, manager, Stream::from(tcp)));
            }
        });
        address
    }

    fn connection(&self, local: SocketAddr, remote: SocketAddr) -> Connection {
        let chain = FilterChain {
            name: String::new(),
            matches: FilterChainMatch::default(),
            tls: None,
            network_rbac: Vec::new(),
            terminal: TerminalFilter::Http(Arc::clone(&self.manager)),
            transport_socket_connect_timeout: None,
        };
        Connection {
            id: 1,
            gate: match &self.workload {
                Some(workload) => Gate::Outbound(workload.port.clone()),
                None => Gate::Bound("listener".into()),
            },
            direction: TrafficDirection::Unspecified,
            original_destination: local,
            remote,
            direct_remote: remote,
            sni: String::new(),
            is_tls: false,
            offered_protocols: Vec::new(),
            tls: None,
            workload: self.workload.clone(),
            scope: Arc::clone(&self.scope),
            listener: Arc::new(listener(local)),
            chain: Arc::new(chain),
            snapshot_version: 1,
            started: Instant::now(),
            started_wall: SystemTime::now(),
        }
    }
}

fn listener(address: SocketAddr) -> Listener {
    Listener {
        name: "listener".into(),
        address,
        bind_to_port: true,
        use_original_dst: false,
        transparent: false,
        direction: TrafficDirection::Unspecified,
        filters: ListenerFilters::default(),
        listener_filters_timeout: None,
        continue_on_listener_filters_timeout: false,
        filter_chains: Vec::new(),
        default_filter_chain: None,
        access_logs: Vec::new(),
        per_connection_buffer_limit_bytes: 1 << 20,
        backlog: None,
    }
}

/// Runs a test on one thread, as a worker is.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let limited = async { tokio::time::timeout(Duration::from_secs(20), test).await.expect("the test hangs") };
    tokio::task::LocalSet::new().block_on(&runtime, limited);
}

/// A backend whose every connection is given to `serve`.
async fn backend<F: Future<Output = ()> + 'static>(serve: impl Fn(TcpStream) -> F + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::task::spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.expect("accept");
            tokio::task::spawn_local(serve(tcp));
        }
    });
    address
}

/// Reads until the bytes end with `end`; what was read.
async fn read_until(tcp: &mut TcpStream, end: &str) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end.as_bytes()) {
        let read = tokio::time::timeout(Duration::from_secs(5), tcp.read_buf(&mut bytes)).await;
        match read.map(|count| count.expect("read")) {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => panic!("nothing more comes after {:?}", String::from_utf8_lossy(&bytes)),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A proxy that sends everything to `address`.
async fn proxy_to(address: SocketAddr, protocol: UpstreamProtocol) -> SocketAddr {
    let manager = manager(routes(vec![route("/", forward("a"))]));
    Proxy::new(manager, vec![cluster(1, "a", address, protocol)]).listen().await
}

async fn send(address: SocketAddr, text: &str) -> TcpStream {
    let mut client = TcpStream::connect(address).await.expect("connect");
    client.write_all(text.as_bytes()).await.expect("write");
    client
}
