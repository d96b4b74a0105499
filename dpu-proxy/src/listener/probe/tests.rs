//! Connections of the host to a pod whose application is a socket of this process.

use super::super::accept::admit;
use super::*;
use crate::connection::Gate;
use crate::testing::{self, run};
use dpu_proxy_core::model::*;
use std::sync::Arc;
use tokio::net::TcpListener;

/// The pod's address.
const POD: &str = "127.0.0.20";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const ACK: [u8; 9] = [0, 0, 0, 4, 1, 0, 0, 0, 0];

/// How the pod's inbound side treats a plain client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Strict,
    Permissive,
}

fn inbound(mode: Mode) -> Listener {
    let proxy = TcpProxy {
        stat_prefix: "inbound".into(),
        clusters: TcpCluster::Single("inbound".into()),
        idle_timeout: None,
        max_connect_attempts: 1,
        max_downstream_connection_duration: None,
        access_logs: Vec::new(),
    };
    let chain = FilterChain::new("plain", TerminalFilter::Tcp(Arc::new(proxy)));
    Listener {
        direction: TrafficDirection::Inbound,
        filter_chains: if mode == Mode::Permissive { vec![Arc::new(chain)] } else { Vec::new() },
        ..Listener::new("virtualInbound", "0.0.0.0:15006".parse().expect("address"))
    }
}

fn cluster() -> Arc<ScopedCluster> {
    let cluster = Cluster {
        lb_policy: LbPolicy::ClusterProvided,
        connect_timeout: Duration::from_secs(1),
        delivers_to_workload: true,
        ..Cluster::new("inbound", Discovery::OriginalDst { port_override: None })
    };
    Arc::new(ScopedCluster { id: 1, cluster: Arc::new(cluster), endpoints: Arc::default() })
}

fn snapshot(port: u16, kinds: &[ProbeKind], mode: Mode) -> Snapshot {
    let scope = Arc::new(Scope {
        clusters: [("inbound".to_owned(), cluster())].into(),
        listeners: vec![Arc::new(inbound(mode))],
        ..Scope::default()
    });
    let identity = "spiffe://cluster.local/ns/demo/sa/w1".parse().expect("identity");
    let workload = Workload {
        probes: kinds.iter().map(|kind| Probe { port, kind: kind.clone() }).collect(),
        ..testing::workload("w1", &identity, POD.parse().expect("address"), &scope)
    };
    let by_address = [(workload.addresses[0], Arc::new(workload))].into();
    Snapshot { version: 1, root: scope, by_address, ..Snapshot::default() }
}

/// A pod with an application that tells what it was sent before it answers `pong`.
struct Pod {
    worker: Rc<Worker>,
    application: TcpListener,
    hops: tempfile::TempDir,
}

impl Pod {
    async fn new(kinds: &[ProbeKind], mode: Mode) -> Self {
        let application = TcpListener::bind((POD, 0)).await.expect("bind");
        let port = application.local_addr().expect("address").port();
        let hops = tempfile::tempdir().expect("folder");
        let worker = Worker::new(0, testing::shared(snapshot(port, kinds, mode), Some(hops.path().join("hops"))));
        Self { worker, application, hops }
    }

    /// The client's end of a connection by that gate.
    async fn call(&self, gate: Gate) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
        let (accepted, remote) = listener.accept().await.expect("accept");
        let destination = self.application.local_addr().expect("address");
        tokio::task::spawn_local(admit(Rc::clone(&self.worker), gate, accepted, destination, remote));
        client
    }

    /// What the application gets of that, and its answer at the client; `None` when neither comes.
    async fn exchange(&self, gate: Gate, sent: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut client = self.call(gate).await;
        client.write_all(sent).await.expect("write");
        let mut answer = Vec::new();
        tokio::select! {
            accepted = self.application.accept() => {
                let (mut application, _) = accepted.expect("accept");
                let mut received = vec![0; sent.len()];
                application.read_exact(&mut received).await.expect("read");
                application.write_all(b"pong").await.expect("write");
                drop(application);
                client.read_to_end(&mut answer).await.expect("answer");
                Some((received, answer))
            }
            // Refused: closed without a byte.
            read = client.read_to_end(&mut answer) => {
                assert!(read.is_err() || answer.is_empty());
                None
            }
        }
    }

    fn counted(&self, kind: &'static str, result: &'static str) -> u64 {
        self.worker.stats.counter("dpu_proxy_probes_total", &[("kind", kind), ("result", result)]).get()
    }
}

fn http() -> ProbeKind {
    ProbeKind::Http { path: "/healthz".to_owned() }
}

const GET: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n";
const OTHER: &[u8] = b"GET /admin HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream], payload].concat()
}

fn headers(path: &str) -> Vec<u8> {
    frame(1, 4, 1, &[&[0x83, 0x86, 0x44, path.len() as u8], path.as_bytes()].concat())
}

#[test]
fn a_probe_of_the_host_passes_where_a_plain_client_is_refused() {
    run(async {
        let pod = Pod::new(&[http()], Mode::Strict).await;
        assert_eq!(pod.exchange(Gate::Host, GET).await, Some((GET.to_vec(), b"pong".to_vec())));
        assert_eq!(pod.exchange(Gate::Host, OTHER).await, None, "another path");
        assert_eq!(pod.exchange(Gate::Inbound, GET).await, None, "the fabric asks the same");
        assert_eq!((pod.counted("http", "relayed"), pod.counted("http", "unreachable")), (1, 0));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let hops = std::fs::read_to_string(pod.hops.path().join("hops")).expect("hop log");
        let line: serde_json::Value = serde_json::from_str(hops.lines().next().expect("a line")).expect("JSON");
        let address = pod.application.local_addr().expect("address").to_string();
        assert_eq!(
            (&line["pass"], &line["workload"], &line["endpoint"]),
            (&"probe".into(), &"w1".into(), &address.into())
        );
    });
}

#[test]
fn what_is_no_probe_goes_through_the_inbound_chain_whole() {
    run(async {
        let pod = Pod::new(&[http(), ProbeKind::Tcp, ProbeKind::Grpc], Mode::Permissive).await;
        for sent in [OTHER, b"x", &[PREFACE, &frame(4, 0, 0, &[]), &headers("/other")].concat()] {
            let passed = pod.exchange(Gate::Host, sent).await;
            assert_eq!(passed, Some((sent.to_vec(), b"pong".to_vec())), "{:?}", String::from_utf8_lossy(sent));
        }
        assert_eq!(pod.counted("http", "relayed") + pod.counted("tcp", "relayed") + pod.counted("grpc", "relayed"), 0);
    });
}

#[test]
fn a_client_that_waits_for_the_server_to_speak_is_served() {
    run(async {
        let pod = Pod::new(&[http()], Mode::Permissive).await;
        let mut client = pod.call(Gate::Host).await;
        let (mut application, _) = pod.application.accept().await.expect("after a while");
        application.write_all(b"hello").await.expect("write");
        client.read_exact(&mut [0; 5]).await.expect("the server's word");
    });
}

#[test]
fn nothing_may_follow_the_request_of_a_probe() {
    run(async {
        let pod = Pod::new(&[http()], Mode::Strict).await;
        let mut client = pod.call(Gate::Host).await;
        client.write_all(GET).await.expect("write");
        let (mut application, _) = pod.application.accept().await.expect("accept");
        application.read_exact(&mut vec![0; GET.len()]).await.expect("the probe");
        client.write_all(OTHER).await.expect("write");
        let mut more = Vec::new();
        let _ = application.read_to_end(&mut more).await;
        assert!(more.is_empty(), "{:?}", String::from_utf8_lossy(&more));
    });
}

#[test]
fn a_tcp_probe_is_told_of_whether_anybody_listens() {
    run(async {
        let pod = Pod::new(&[ProbeKind::Tcp], Mode::Strict).await;
        drop(pod.call(Gate::Host).await);
        pod.application.accept().await.expect("the pod is asked, too");
        assert_eq!(pod.exchange(Gate::Host, b"x").await, None, "who says something is no probe");
        let Pod { worker, application, hops } = pod;
        let address = application.local_addr().expect("address");
        drop(application);
        let pod = Pod { worker, application: TcpListener::bind((POD, 0)).await.expect("bind"), hops };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
        let (accepted, remote) = listener.accept().await.expect("accept");
        drop(client);
        admit(Rc::clone(&pod.worker), Gate::Host, accepted, address, remote).await;
        assert_eq!((pod.counted("tcp", "relayed"), pod.counted("tcp", "unreachable")), (1, 1));
    });
}

#[test]
fn a_health_check_passes_also_from_a_client_that_waits_for_settings_and_no_other_call_does() {
    run(async {
        let pod = Pod::new(&[ProbeKind::Grpc], Mode::Strict).await;
        let mut client = pod.call(Gate::Host).await;
        let opening = [PREFACE, &frame(4, 0, 0, &[])].concat();
        client.write_all(&opening).await.expect("write");
        let mut settings = [0; 9];
        client.read_exact(&mut settings).await.expect("SETTINGS");
        assert_eq!(settings, http2::SETTINGS);
        let check = headers("/grpc.health.v1.Health/Check");
        client.write_all(&[ACK.as_slice(), &check].concat()).await.expect("write");
        let (mut application, _) = pod.application.accept().await.expect("accept");
        let expected = [opening.as_slice(), &check].concat();
        let mut received = vec![0; expected.len()];
        application.read_exact(&mut received).await.expect("read");
        assert_eq!(received, expected, "the pod hears nothing of SETTINGS that it did not send");
        client.write_all(&frame(0, 1, 1, b"12345")).await.expect("write");
        application.read_exact(&mut [0; 14]).await.expect("the request");
        application.write_all(b"answer").await.expect("write");
        client.read_exact(&mut [0; 6]).await.expect("the answer");
        client.write_all(&headers("/grpc.health.v1.Health/Check")).await.expect("write");
        let mut more = Vec::new();
        let _ = application.read_to_end(&mut more).await;
        assert!(more.is_empty(), "a second call passed");
        let other = [opening.as_slice(), &headers("/other")].concat();
        assert_eq!(pod.exchange(Gate::Host, &other).await, None);
    });
}
