//! The program itself: a folder of manifests, a client of the discovery protocol, a bad file.

use futures_util::FutureExt;
use mesh_api::envoy::config::core::v3::Node;
use mesh_api::type_url;
use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use service::grpc::TlsArgs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use xds::Backoff;
use xds::client::{Event, Handle, Interest, Mode, Options, Update};

struct Program {
    child: Child,
    listen: SocketAddr,
    health: SocketAddr,
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself, which its test then tells.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("loopback")
}

fn start(manifests: &Path) -> Program {
    start_with(manifests, &[])
}

fn start_with(manifests: &Path, more: &[String]) -> Program {
    let (listen, health) = (free_address(), free_address());
    let child = Command::new(env!("CARGO_BIN_EXE_istio-dpu-controller"))
        .args(["--manifests", manifests.to_str().expect("UTF-8")])
        .args(["--listen", &listen.to_string(), "--health-listen", &health.to_string()])
        .args(more)
        .spawn()
        .expect("the program starts");
    Program { child, listen, health }
}

fn follow(program: &Program, node: &str) -> (Handle, mpsc::Receiver<Event>) {
    follow_at(format!("http://{}", program.listen), TlsArgs::default(), node)
}

fn follow_at(uri: String, tls: TlsArgs, node: &str) -> (Handle, mpsc::Receiver<Event>) {
    let connect = move || {
        let (uri, tls) = (uri.clone(), tls.clone());
        async move { service::grpc::channel(&uri, &tls, "controller").await.map_err(|error| error.to_string()) }.boxed()
    };
    let options = Options {
        node: Node { id: node.to_owned(), ..Node::default() },
        mode: Mode::Delta,
        metadata: Vec::new(),
        interests: vec![
            (type_url::NODE.to_owned(), Interest::Wildcard),
            (type_url::WORKLOAD.to_owned(), Interest::Wildcard),
        ],
        backoff: Backoff::new(Duration::from_millis(20), Duration::from_millis(200)),
    };
    xds::client::spawn(connect, options)
}

async fn next(handle: &Handle, events: &mut mpsc::Receiver<Event>, kind: &str) -> Update {
    loop {
        let event =
            tokio::time::timeout(Duration::from_secs(20), events.recv()).await.expect("in time").expect("client");
        if let Event::Update(update) = event {
            handle.reply(update.token.clone(), Ok(()));
            if update.type_url == kind {
                return update;
            }
        }
    }
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("health listens");
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer
}

const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: host1}\n";

fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: n}}\nspec: {{nodeName: host1, containers: []}}\n"
    )
}

#[tokio::test]
async fn a_change_of_the_folder_reaches_the_node_and_a_bad_file_does_not() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("node.yaml"), NODE).expect("written");
    std::fs::write(folder.path().join("pod.yaml"), pod("a")).expect("written");
    let program = start(folder.path());
    let (handle, mut events) = follow(&program, "host1");
    let update = next(&handle, &mut events, type_url::WORKLOAD).await;
    assert_eq!(update.changed[0].name, "n/a");
    assert!(get(program.health, "/readyz").await.contains("200 OK"));

    std::fs::write(folder.path().join("pod.yaml"), "kind: [").expect("written");
    std::fs::write(folder.path().join("other.yaml"), pod("b")).expect("written");
    let update = next(&handle, &mut events, type_url::WORKLOAD).await;
    assert_eq!((update.changed[0].name.as_str(), update.removed.len()), ("n/b", 0), "n/a stays");
    assert!(get(program.health, "/refusals").await.contains("pod.yaml"));
    assert!(get(program.health, "/metrics").await.contains("controller_refused_manifests 1"));

    std::fs::remove_file(folder.path().join("other.yaml")).expect("removed");
    assert_eq!(next(&handle, &mut events, type_url::WORKLOAD).await.removed, ["n/b"]);
}

#[tokio::test]
async fn a_node_without_object_is_told_so() {
    let folder = tempfile::tempdir().expect("folder");
    let program = start(folder.path());
    let (_handle, mut events) = follow(&program, "host9");
    loop {
        let event = tokio::time::timeout(Duration::from_secs(20), events.recv()).await.expect("in time");
        if matches!(event, Some(Event::Disconnected { reason, .. }) if reason.contains("there is no Node \"host9\"")) {
            return;
        }
    }
}

/// Writes a program's certificate, with the DNS name `controller` for servers.
fn issue(folder: &Path, authority: &Issuer<'_, KeyPair>, name: &str, uri: &str) -> TlsArgs {
    let text = |text: &str| Ia5String::try_from(text.to_owned()).expect("ASCII");
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(text(uri)), SanType::DnsName(text("controller"))];
    let key = KeyPair::generate().expect("key");
    let certificate = params.signed_by(&key, authority).expect("signed");
    let file = |suffix: &str| folder.join(format!("{name}{suffix}"));
    std::fs::write(file(".pem"), certificate.pem()).expect("written");
    std::fs::write(file("-key.pem"), key.serialize_pem()).expect("written");
    TlsArgs {
        tls_certificate: Some(file(".pem")),
        tls_key: Some(file("-key.pem")),
        tls_ca: Some(folder.join("ca.pem")),
        ..TlsArgs::default()
    }
}

#[tokio::test]
async fn a_certificate_opens_the_view_of_its_own_node_and_no_other() {
    let (folder, files) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    std::fs::write(folder.path().join("node.yaml"), format!("{NODE}---\n{}", NODE.replace("host1", "host2")))
        .expect("written");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("key");
    std::fs::write(files.path().join("ca.pem"), params.self_signed(&key).expect("signed").pem()).expect("written");
    let authority = Issuer::new(params, key);
    let server = issue(files.path(), &authority, "controller", "spiffe://dpumesh/controller/control");
    let client = issue(files.path(), &authority, "client", "spiffe://dpumesh/cni-node/host1");
    let flag =
        |name: &str, path: Option<std::path::PathBuf>| [name.to_owned(), path.expect("file").display().to_string()];
    let flags = [
        flag("--tls-certificate", server.tls_certificate),
        flag("--tls-key", server.tls_key),
        flag("--tls-ca", server.tls_ca),
    ];
    let program = start_with(folder.path(), &flags.concat());
    let uri = format!("https://{}", program.listen);
    let (handle, mut events) = follow_at(uri.clone(), client.clone(), "host1");
    assert_eq!(next(&handle, &mut events, type_url::NODE).await.changed.len(), 2);
    let (_handle, mut events) = follow_at(uri, client, "host2");
    loop {
        let event = tokio::time::timeout(Duration::from_secs(20), events.recv()).await.expect("in time");
        match event.expect("client") {
            Event::Disconnected { reason, .. } if reason.contains("needs a certificate for") => return,
            Event::Update(update) => panic!("told of another node: {update:?}"),
            _ => {}
        }
    }
}
