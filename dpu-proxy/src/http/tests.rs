//! The HTTP path over real sockets: a worker with a configuration made by hand, a backend, a client.

use super::serve_connection;
use crate::connection::{Connection, Gate};
use crate::io::Stream;
use crate::shared::State;
use crate::testing::{self, run};
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
    let routes = RouteSource::Inline(Arc::new(routes));
    HttpConnectionManager { upgrades: vec!["websocket".into()], ..HttpConnectionManager::new("test", routes) }
}

fn forward(cluster: &str) -> RouteAction {
    RouteAction::new(ClusterSpecifier::Single(cluster.into()))
}

fn route(prefix: &str, action: RouteAction) -> Arc<Route> {
    Arc::new(Route {
        name: prefix.into(),
        matches: RouteMatch::new(PathMatch::Prefix(prefix.into())),
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
    let discovery = Discovery::Static(Arc::clone(&endpoints));
    let cluster = Cluster { protocol, connect_timeout: Duration::from_secs(1), ..Cluster::new(name, discovery) };
    Arc::new(ScopedCluster { id, cluster: Arc::new(cluster), endpoints })
}

impl Proxy {
    fn new(manager: HttpConnectionManager, clusters: Vec<Arc<ScopedCluster>>) -> Self {
        let clusters: HashMap<_, _> = clusters.into_iter().map(|c| (c.cluster.name.clone(), c)).collect();
        let scope = Arc::new(Scope { clusters, ..Scope::default() });
        let snapshot = Snapshot { version: 1, root: Arc::clone(&scope), ..Snapshot::default() };
        Self {
            worker: Worker::new(0, testing::shared(snapshot, None)),
            scope,
            manager: Arc::new(manager),
            workload: None,
        }
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
        let chain = FilterChain::new("", TerminalFilter::Http(Arc::clone(&self.manager)));
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
            listener: Arc::new(Listener::new("listener", local)),
            chain: Arc::new(chain),
            snapshot_version: 1,
            started: Instant::now(),
            started_wall: SystemTime::now(),
        }
    }
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
