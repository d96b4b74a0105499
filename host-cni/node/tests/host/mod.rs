//! An emulated host: namespaces for it, its DPU and its pods, veth VFs, and the real daemon in it.

#![allow(dead_code)]

pub mod dataplane;

use dataplane::FakeDataplane;
use futures_util::FutureExt;
use istio_dpu_cni::error::CniError;
use mesh_api::report::reports_server::{Reports, ReportsServer};
use mesh_api::report::workload_report::Part;
use mesh_api::report::{Attachment, AttachmentState, HostStatus, Report, ReportAck, node_report};
use mesh_api::type_url;
use mesh_api::workload::{Backend, Node, OnFailure, Service, ServicePort, Workload};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use xds::Resource;
use xds::client::{Event, Handle, Update};
use xds::server::{Store, Transaction};

pub const NODE: &str = "host1";
const VFS: u32 = 4;
/// All that the daemon may use, as in the chart: links, addresses and routes of VFs; entering the
/// network namespaces of pods.
const CAPABILITIES: &str = "+net_admin,+sys_admin";

/// Runs a command line that must succeed.
pub fn run(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().expect("sh");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `work` in a namespace, on a thread of its own.
fn inside<T: Send + 'static>(netns: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let file = File::open(format!("/run/netns/{netns}")).expect("namespace");
    let enter = move || {
        setns(file, CloneFlags::CLONE_NEWNET).expect("entered");
        work()
    };
    std::thread::spawn(enter).join().expect("done")
}

fn listen_in(netns: &str) -> TcpListener {
    let listener = inside(netns, || TcpListener::bind("127.0.0.1:0").expect("bound"));
    listener.set_nonblocking(true).expect("nonblocking");
    listener
}

pub struct Host {
    name: String,
    /// More arguments of the daemon, from its next start on.
    pub arguments: Vec<String>,
    pub folder: tempfile::TempDir,
    daemon: Option<Child>,
    pub dataplane: Arc<FakeDataplane>,
    pub store: Store,
    /// What the controller was told.
    pub told: Told,
    dataplane_address: SocketAddr,
    controller_address: SocketAddr,
    pods: Vec<String>,
    /// State at the start, to compare with.
    pub before: BTreeMap<String, String>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
        for netns in self.pods.iter().map(String::as_str).chain([&*self.host(), &*self.dpu()]) {
            // A test may have removed it already.
            let _ = Command::new("ip").args(["netns", "del", netns]).stderr(Stdio::null()).status();
        }
    }
}

impl Host {
    /// A host with free VFs, a dataplane, a controller that knows the node, and a running daemon.
    pub async fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("dm-cni-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        run(&format!("ip netns add {name}-h && ip netns add {name}-d && ip -n {name}-h link set lo up"));
        for number in 0..VFS {
            run(&format!(
                "ip -n {name}-h link add vf{number} type veth peer name pf0vf{number} netns {name}-d && ip -n {name}-d link set pf0vf{number} up"
            ));
        }
        let dataplane = Arc::new(FakeDataplane::default());
        let store = Store::new();
        let (to_dataplane, to_controller) = (listen_in(&format!("{name}-h")), listen_in(&format!("{name}-h")));
        let mut host = Self {
            dataplane_address: to_dataplane.local_addr().expect("bound"),
            controller_address: to_controller.local_addr().expect("bound"),
            folder: tempfile::tempdir().expect("folder"),
            name,
            arguments: Vec::new(),
            daemon: None,
            dataplane,
            store,
            told: Told::default(),
            pods: Vec::new(),
            before: BTreeMap::new(),
        };
        tokio::spawn(Arc::clone(&host.dataplane).serve(to_dataplane));
        tokio::spawn(serve_controller(host.store.clone(), host.told.clone(), to_controller));
        host.tell_of_the_cluster();
        host.before = host.audit();
        host.restart().await;
        host
    }

    fn host(&self) -> String {
        format!("{}-h", self.name)
    }

    fn dpu(&self) -> String {
        format!("{}-d", self.name)
    }

    /// Network namespace of the host.
    pub fn netns(&self) -> String {
        self.host()
    }

    /// That of its DPU.
    pub fn dpu_netns(&self) -> String {
        self.dpu()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("cni.sock")
    }

    fn tell_of_the_cluster(&self) {
        let node = |name: &str, cidr: &str, underlay: &str| Node {
            name: name.to_owned(),
            pod_cidrs: vec![cidr.to_owned()],
            underlay_address: underlay.to_owned(),
            ..Node::default()
        };
        let mut transaction = Transaction::new();
        transaction.put(type_url::NODE, Resource::new("host1", &node("host1", "10.244.1.0/24", "192.168.100.1")));
        transaction.put(type_url::NODE, Resource::new("host2", &node("host2", "10.244.2.0/24", "192.168.100.2")));
        self.store.commit(NODE, transaction);
        self.tell_of_a_service("s", 80);
    }

    /// The controller takes a service back.
    pub fn withdraw_service(&self, name: &str) {
        let mut transaction = Transaction::new();
        transaction.remove(type_url::SERVICE, &format!("n/{name}"));
        self.store.commit(NODE, transaction);
    }

    /// The controller tells of a service with a ready backend and one that is not.
    pub fn tell_of_a_service(&self, name: &str, port: u32) {
        let backend =
            |address: &str, ready| Backend { address: address.to_owned(), port: 9080, ready, ..Backend::default() };
        let port = ServicePort {
            port,
            protocol: "TCP".to_owned(),
            backends: vec![backend("10.244.2.10", true), backend("10.244.2.11", false)],
            ..ServicePort::default()
        };
        let service = Service {
            namespace: "n".to_owned(),
            name: name.to_owned(),
            vips: vec!["10.96.0.9".to_owned()],
            ports: vec![port],
        };
        let mut transaction = Transaction::new();
        transaction.put(type_url::SERVICE, Resource::new(format!("n/{name}"), &service));
        self.store.commit(NODE, transaction);
    }

    /// The controller tells of a pod.
    pub fn schedule(&self, pod: &str, governed: bool) {
        self.schedule_in("", pod, governed);
    }

    /// The same, of a pod that asks for a network.
    pub fn schedule_in(&self, network: &str, pod: &str, governed: bool) {
        let workload = Workload {
            network: network.to_owned(),
            uid: format!("uid-{pod}"),
            namespace: "n".to_owned(),
            name: pod.to_owned(),
            node: NODE.to_owned(),
            governed,
            on_failure: OnFailure::Closed.into(),
            ..Workload::default()
        };
        let mut transaction = Transaction::new();
        transaction.put(type_url::WORKLOAD, Resource::new(format!("n/{pod}"), &workload));
        self.store.commit(NODE, transaction);
    }

    /// Makes a pod's sandbox.
    pub fn sandbox(&mut self, pod: &str) -> String {
        let netns = format!("{}-pod-{pod}", self.name);
        run(&format!("ip netns add {netns}"));
        self.pods.push(netns.clone());
        netns
    }

    /// Makes the sandbox and tells of the pod.
    pub fn pod(&mut self, pod: &str) -> String {
        self.schedule(pod, true);
        self.sandbox(pod)
    }

    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().map(Child::id).expect("the daemon runs")
    }

    /// Waits until the daemon has ended by itself.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.daemon.take().expect("the daemon runs").wait().expect("it ends")
    }

    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // A test may have killed it already.
            let _ = daemon.kill();
            daemon.wait().expect("it ends");
        }
    }

    /// Starts the daemon (again) and waits until it takes calls.
    pub async fn restart(&mut self) {
        self.launch();
        let status =
            || async { self.call("STATUS", "-", "-", |conf| conf["cniVersion"] = json!("1.1.0")).await.is_ok() };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !status().await {
            assert!(Instant::now() < deadline, "the daemon does not become available");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts the daemon (again).
    pub fn launch(&mut self) {
        self.kill();
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.host()))
            .args(["setpriv", "--no-new-privs", "--bounding-set", &format!("-all,{CAPABILITIES}")])
            .arg(env!("CARGO_BIN_EXE_istio-dpu-cni-node"))
            .args(["--node", NODE, "--vf-provider", "emulated", "--health-listen", "127.0.0.1:15121"])
            .args(["--controller", &format!("http://{}", self.controller_address)])
            .args(["--dataplane", &format!("http://{}", self.dataplane_address)])
            .args(["--socket", &path("cni.sock"), "--attachments", &path("attachments.sock")])
            .args(["--state-dir", &path("state")])
            .args(["--representor-netns", &format!("/run/netns/{}", self.dpu())])
            .args(&self.arguments)
            .env("KUBECONFIG", path("kubeconfig"))
            .spawn()
            .expect("nsenter");
        self.daemon = Some(child);
    }

    /// A listening socket on the host's loopback.
    pub fn listen(&self) -> TcpListener {
        listen_in(&self.host())
    }

    pub fn conf(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "mesh", "type": "istio-dpu-cni",
            "daemonSocket": self.socket(), "readyTimeoutMs": 10_000,
            "ipam": {
                "type": "host-local", "dataDir": self.folder.path().join("ipam"),
                "ranges": [[{ "subnet": "10.244.1.0/24", "rangeStart": "10.244.1.10" }]],
            },
        })
    }

    /// What a runtime does, by the plugin's own code: environment and configuration in, result out.
    pub async fn call(
        &self,
        command: &str,
        pod: &str,
        netns: &str,
        edit: impl FnOnce(&mut Value),
    ) -> Result<Value, CniError> {
        let mut conf = self.conf();
        edit(&mut conf);
        let environment: BTreeMap<String, String> = [
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", format!("c-{pod}")),
            ("CNI_NETNS", format!("/run/netns/{netns}")),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", "/usr/lib/cni".to_owned()),
            ("CNI_ARGS", format!("K8S_POD_UID=uid-{pod};K8S_POD_NAME={pod};K8S_POD_NAMESPACE=n")),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let work = move || istio_dpu_cni::run(|name| environment.get(name).cloned(), conf.to_string().as_bytes());
        let outcome = tokio::task::spawn_blocking(work).await.expect("the call ends");
        outcome.map(Option::unwrap_or_default)
    }

    pub async fn add(&self, pod: &str, netns: &str) -> Result<Value, CniError> {
        self.call("ADD", pod, netns, |_| {}).await
    }

    pub async fn del(&self, pod: &str, netns: &str) -> Result<Value, CniError> {
        self.call("DEL", pod, netns, |_| {}).await
    }

    /// Answer of the daemon's health server.
    pub fn get(&self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        inside(&self.host(), move || {
            let mut stream = std::net::TcpStream::connect("127.0.0.1:15121").expect("listening");
            stream.write_all(request.as_bytes()).expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("answered");
            answer
        })
    }

    /// Everything that an attachment may leave: links of host and DPU, IPAM files, records, ports.
    pub fn audit(&self) -> BTreeMap<String, String> {
        let ports: Vec<String> = self.dataplane.ports().into_iter().map(|port| port.id).collect();
        BTreeMap::from([
            ("host links".to_owned(), links(&self.host(), r"\1 \2")),
            ("dpu links".to_owned(), links(&self.dpu(), r"\1")),
            ("host addresses".to_owned(), run(&format!("ip -n {} -o addr | grep -v ' lo ' || true", self.host()))),
            ("addresses given".to_owned(), self.files("ipam/mesh")),
            ("records".to_owned(), self.files("state/records")),
            ("ports".to_owned(), ports.join(",")),
        ])
    }

    fn files(&self, folder: &str) -> String {
        let entries = std::fs::read_dir(self.folder.path().join(folder)).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> =
            names.filter(|name| name != "lock" && !name.starts_with("last_reserved_ip")).collect();
        names.sort();
        names.join(",")
    }

    /// Nothing is left of any attachment.
    pub async fn assert_clean(&self) {
        let deadline = Instant::now() + Duration::from_secs(15);
        while self.audit() != self.before && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(self.audit(), self.before);
    }
}

/// Ethernet links of a namespace, with their aliases. `show` picks name (1) and MAC (2): a representor
/// that was made again has another MAC of its own, which nobody sees.
fn links(netns: &str, show: &str) -> String {
    let names = format!(r"sed -n -E 's/^[0-9]+: ([^@:]+).*link\/ether ([0-9a-f:]+).*/{show}/p'");
    let aliases = r"sed -n -E 's/.*(alias [^\\]*).*/\1/p'";
    run(&format!("ip -n {netns} -o link | {names} | sort; ip -n {netns} -o link | {aliases}"))
}

async fn serve_controller(store: Store, told: Told, listener: TcpListener) {
    let (events, _receiver) = tokio::sync::mpsc::unbounded_channel();
    let authorize = |peer: &xds::server::Peer| Ok(peer.node.id.clone());
    let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
    let server = tonic::transport::Server::builder()
        .add_service(xds::server::service(store, authorize, events))
        .add_service(ReportsServer::new(told));
    server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)).await.expect("served");
}

/// The newest reports, as the controller would show them.
#[derive(Clone, Debug, Default)]
pub struct Told(Arc<Mutex<(BTreeMap<String, Attachment>, HostStatus)>>);

impl Told {
    /// State of a pod of namespace n, with its reason.
    pub fn pod(&self, name: &str) -> Option<(AttachmentState, String)> {
        let told = self.0.lock().expect("lock");
        told.0.get(&format!("n/{name}")).map(|attachment| (attachment.state(), attachment.reason.clone()))
    }

    pub fn host(&self) -> HostStatus {
        self.0.lock().expect("lock").1.clone()
    }

    fn take(&self, report: Report) {
        let mut told = self.0.lock().expect("lock");
        if report.snapshot {
            told.0.clear();
        }
        report.removed.iter().for_each(|name| drop(told.0.remove(name)));
        for workload in report.workloads {
            let Some(Part::Attachment(attachment)) = workload.part else { panic!("not from a node daemon") };
            told.0.insert(format!("{}/{}", workload.namespace, workload.name), attachment);
        }
        if let Some(node_report::Part::Host(host)) = report.node.and_then(|node| node.part) {
            told.1 = host;
        }
    }
}

#[tonic::async_trait]
impl Reports for Told {
    type ReportStream = ReceiverStream<Result<ReportAck, Status>>;

    async fn report(&self, request: Request<Streaming<Report>>) -> Result<Response<Self::ReportStream>, Status> {
        let (told, mut messages) = (self.clone(), request.into_inner());
        let (answers, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Ok(Some(report)) = messages.message().await {
                told.take(report);
                if answers.send(Ok(ReportAck {})).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Follows what the daemon tells the adapter.
pub fn follow(host: &Host) -> (Handle, mpsc::Receiver<Event>) {
    let path = host.folder.path().join("attachments.sock");
    let connect = move || {
        let path = path.clone();
        async move { service::grpc::unix_channel(&path).await.map_err(|error| error.to_string()) }.boxed()
    };
    let options = xds::client::Options {
        node: mesh_api::envoy::config::core::v3::Node { id: NODE.to_owned(), ..Default::default() },
        mode: xds::client::Mode::Delta,
        metadata: Vec::new(),
        interests: vec![(type_url::ATTACHMENT.to_owned(), xds::client::Interest::Wildcard)],
        backoff: xds::Backoff::new(Duration::from_millis(20), Duration::from_millis(100)),
    };
    xds::client::spawn(connect, options)
}

/// The next update, answered.
pub async fn next(handle: &Handle, events: &mut mpsc::Receiver<Event>, wait: Duration) -> Option<Update> {
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        let event = tokio::time::timeout_at(deadline, events.recv()).await.ok()?.expect("the client lives");
        if let Event::Update(update) = event {
            handle.reply(update.token.clone(), Ok(()));
            return Some(update);
        }
    }
}
