//! A controller, a node daemon and a control plane that plays the recordings, around an adapter in
//! this process; and a proxy.

use super::istiod::Istiod;
use super::reports::Heard;
use super::{DEMO, attachment, recorded, workload};
use clap::Parser;
use istio_dpu_adapter::shell::{Addresses, Args, start};
use istio_dpu_adapter::translate::Kind;
use mesh_api::attach::Attachment;
use mesh_api::envoy::config::core::v3::Node;
use mesh_api::{proxy, type_url};
use service::signal::CancellationToken;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use xds::client::{self, Event, Handle, Interest, Mode, Options};
use xds::server::{Peer, Store, Transaction};
use xds::{Backoff, Rejected, Resource};

/// Pods of the first host.
pub const HOST1: [&str; 4] = ["curl", "productpage-v1", "ratings-v1", "reviews-v1"];
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Everything around the adapter.
pub struct World {
    controller: Store,
    attachments: Store,
    pub istiod: Istiod,
    pub heard: Heard,
    listening: SocketAddr,
    pub folder: tempfile::TempDir,
    stop: CancellationToken,
}

async fn listen(store: &Store, heard: &Heard, stop: &CancellationToken) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let (events, _) = mpsc::unbounded_channel();
    let service = xds::server::service(store.clone(), |_: &Peer| Ok("host1".to_owned()), events);
    let server = tonic::transport::Server::builder().add_service(service).add_service(heard.service());
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
    /// The control plane in plaintext, where nobody is asked who he is.
    pub async fn new() -> Self {
        let stop = CancellationToken::new();
        Self::around(Istiod::plain(), stop).await
    }

    /// The control plane as istiod is: TLS, and a certificate of the workload or a token.
    pub async fn secured() -> Self {
        let stop = CancellationToken::new();
        Self::around(Istiod::secured(), stop).await
    }

    async fn around(istiod: Istiod, stop: CancellationToken) -> Self {
        let (controller, attachments) = (Store::new(), Store::new());
        let folder = tempfile::tempdir().expect("folder");
        let heard = Heard::default();
        let listening = listen(&controller, &heard, &stop).await;
        listen_unix(&attachments, folder.path().join("attachments.sock"), &stop);
        let world = Self { controller, attachments, istiod, heard, listening, folder, stop };
        for pod in HOST1 {
            world.attach(pod, workload(pod), attachment(pod));
            world.play(DEMO, pod);
        }
        world
    }

    pub fn attach(&self, pod: &str, workload: mesh_api::workload::Workload, attachment: Attachment) {
        let name = format!("bookinfo/{pod}");
        let mut transaction = Transaction::new();
        transaction.put(type_url::WORKLOAD, Resource::new(name.clone(), &workload));
        self.controller.commit("host1", transaction);
        let mut transaction = Transaction::new();
        transaction.put(type_url::ATTACHMENT, Resource::new(name, &attachment));
        self.attachments.commit("host", transaction);
    }

    pub fn detach(&self, pod: &str) {
        let mut transaction = Transaction::new();
        transaction.remove(type_url::ATTACHMENT, &format!("bookinfo/{pod}"));
        self.attachments.commit("host", transaction);
    }

    pub fn play(&self, scenario: &str, pod: &str) {
        let mut transaction = Transaction::new();
        for kind in Kind::ALL {
            for resource in recorded(scenario, pod, kind) {
                transaction.put(kind.type_url(), resource);
            }
        }
        self.istiod.store.commit(&node_id(pod), transaction);
    }

    pub async fn adapter(&self, listen: SocketAddr) -> (Addresses, CancellationToken) {
        self.start(self.args(listen)).await
    }

    pub async fn start(&self, args: Args) -> (Addresses, CancellationToken) {
        let stop = CancellationToken::new();
        let (addresses, _) = start(args, stop.clone()).await.expect("started");
        (addresses, stop)
    }

    pub fn args(&self, listen: SocketAddr) -> Args {
        let (controller, istiod) = (format!("http://{}", self.listening), self.istiod.uri());
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        std::fs::write(file("root-cert.pem"), self.istiod.root()).expect("written");
        if !self.folder.path().join("token").exists() {
            std::fs::write(file("token"), super::istiod::TOKEN).expect("written");
        }
        let (socket, authority, token) = (file("attachments.sock"), file("root-cert.pem"), file("token"));
        let listen = listen.to_string();
        let flags = ["adapter", "--node", "host1", "--controller", &controller, "--control-plane", &istiod];
        let more = ["--attachments", &socket, "--listen", &listen, "--health-listen", "127.0.0.1:0"];
        let mesh = ["--control-plane-ca", &authority, "--istio-token", &token, "--sync-grace-s", "1"];
        Args::parse_from(flags.into_iter().chain(more).chain(mesh))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        self.istiod.end();
        for store in [&self.controller, &self.attachments, &self.istiod.store] {
            store.close();
        }
    }
}

pub fn node_id(pod: &str) -> String {
    let address = &attachment(pod).addresses[0];
    format!("sidecar~{address}~{pod}.bookinfo~bookinfo.svc.cluster.local")
}

/// A proxy that takes everything over, except what it is told to refuse.
pub struct FakeProxy {
    handle: Handle,
    events: mpsc::Receiver<Event>,
    pub held: BTreeMap<(String, String), Resource>,
    pub removed: Vec<(String, String)>,
    pub refuses: &'static str,
}

impl FakeProxy {
    pub fn connect(address: SocketAddr, node: &str) -> Self {
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
    pub async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !holds(self) {
            let event = tokio::time::timeout_at(deadline, self.events.recv()).await;
            let event = event.unwrap_or_else(|_| panic!("waited in vain until {what}; held: {:?}", self.held.keys()));
            self.take(event.expect("the client lives"));
        }
    }

    /// Takes updates for a while.
    pub async fn watch(&mut self, time: Duration) {
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

    pub fn count(&self, type_url: &str) -> usize {
        self.held.keys().filter(|(kind, _)| kind == type_url).count()
    }

    pub fn scope(&self, pod: &str) -> String {
        let workload = self.held.get(&(type_url::PROXY_WORKLOAD.to_owned(), format!("uid-{pod}")));
        workload.map(|one| one.decode::<proxy::Workload>().expect("workload").scope).unwrap_or_default()
    }
}

pub async fn get(address: SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("health");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answer");
    answer.split_once("\r\n\r\n").expect("head").1.to_owned()
}

pub fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().expect("address")
}
