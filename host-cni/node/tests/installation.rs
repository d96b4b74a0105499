//! Plugin and conflist on the host: when they come, that they stay as they are, and when they go. The API
//! server is one that knows a single DaemonSet. Needs root.

mod host;

use host::{Host, run};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const DAEMONSET: &str = "/apis/apps/v1/namespaces/dpumesh-system/daemonsets/dpumesh-cni-node";
const OTHER: &str = r#"{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"bridge"}]}"#;

/// What the API server says of the DaemonSet: status and body.
#[derive(Clone)]
struct ApiServer(Arc<Mutex<(u16, Value)>>);

impl ApiServer {
    fn start(listener: TcpListener) -> Self {
        listener.set_nonblocking(false).expect("blocking");
        let api = Self(Arc::new(Mutex::new(there(false))));
        let answers = api.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut request = [0; 4096];
                let length = stream.read(&mut request).unwrap_or_default();
                let asked = String::from_utf8_lossy(&request[..length]).into_owned();
                let (status, body) = match asked.starts_with(&format!("GET {DAEMONSET}")) {
                    true => answers.0.lock().expect("lock").clone(),
                    false => refused(405, "only the DaemonSet may be asked for"),
                };
                let body = body.to_string();
                let head = "Content-Type: application/json\r\nConnection: close";
                // The caller may have gone.
                let _ = write!(stream, "HTTP/1.1 {status} X\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            }
        });
        api
    }

    fn says(&self, answer: (u16, Value)) {
        *self.0.lock().expect("lock") = answer;
    }
}

fn there(deleted: bool) -> (u16, Value) {
    let mut metadata = json!({ "name": "dpumesh-cni-node", "namespace": "dpumesh-system" });
    if deleted {
        metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    (200, json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata }))
}

fn refused(code: u16, message: &str) -> (u16, Value) {
    let reason = if code == 404 { "NotFound" } else { "Forbidden" };
    let status = json!({ "apiVersion": "v1", "kind": "Status", "status": "Failure", "message": message, "reason": reason, "code": code });
    (code, status)
}

/// A host with an API server, and a daemon that is told to install.
struct Installed {
    host: Host,
    api: ApiServer,
}

impl Installed {
    async fn start() -> Self {
        let mut host = Host::start().await;
        let listener = host.listen();
        let address = listener.local_addr().expect("bound");
        let cluster = json!({ "name": "c", "cluster": { "server": format!("http://{address}") } });
        let context = json!({ "name": "c", "context": { "cluster": "c", "user": "u" } });
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [cluster], "contexts": [context], "users": [{ "name": "u", "user": {} }],
        });
        fs::write(host.folder.path().join("kubeconfig"), config.to_string()).expect("written");
        for folder in ["bin", "net.d"] {
            fs::create_dir(host.folder.path().join(folder)).expect("folder");
        }
        let path = |name: &str| host.folder.path().join(name).display().to_string();
        fs::write(path("net.d/10-other.conflist"), OTHER).expect("written");
        fs::write(path("plugin"), "the plugin").expect("written");
        let arguments = [
            ("--install-bin-dir", path("bin")),
            ("--install-conf-dir", path("net.d")),
            ("--plugin", path("plugin")),
            ("--ipam-data-dir", path("ipam")),
            ("--daemonset", "dpumesh-cni-node".to_owned()),
            ("--daemonset-namespace", "dpumesh-system".to_owned()),
        ];
        host.arguments = arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
        Self { host, api: ApiServer::start(listener) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.host.folder.path().join(name)
    }

    fn conflist(&self) -> Option<Value> {
        let text = fs::read(self.path("net.d/00-dpumesh.conflist")).ok()?;
        Some(serde_json::from_slice(&text).expect("whole at any moment"))
    }

    fn has_plugin(&self) -> bool {
        fs::read(self.path("bin/istio-dpu-cni")).is_ok_and(|content| content == b"the plugin")
    }

    fn is_installed(&self) -> bool {
        self.conflist().is_some() && self.has_plugin()
    }

    /// Starts the daemon, waits until it has installed and seen its DaemonSet, and stops it.
    async fn run_once(&mut self, last: impl FnOnce(&ApiServer)) {
        self.api.says(there(false));
        self.host.restart().await;
        self.eventually("installed", || self.is_installed()).await;
        // It has asked by now, or does so at once: it asks at its start.
        tokio::time::sleep(Duration::from_millis(500)).await;
        last(&self.api);
        run(&format!("kill -TERM {}", self.host.pid()));
        assert!(self.host.wait().success());
        assert_eq!(fs::read_to_string(self.path("net.d/10-other.conflist")).expect("left alone"), OTHER);
    }

    async fn eventually(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < deadline, "not in time: {what}; {}", self.host.get("/readyz"));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_runtime_is_told_of_the_plugin_once_it_can_be_called_and_for_as_long() {
    let mut installed = Installed::start().await;
    installed.host.dataplane.set_down(true);
    installed.host.launch();
    installed.eventually("the plugin", || installed.has_plugin()).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(installed.conflist(), None, "nobody can be attached yet");
    let ready = installed.host.get("/readyz");
    assert!(ready.contains("00-dpumesh.conflist waits: the dataplane at"), "{ready}");
    installed.host.dataplane.set_down(false);
    installed.eventually("the conflist", || installed.is_installed()).await;

    // What the runtime does with it.
    let conflist = installed.conflist().expect("there");
    let (plugin, netns) = (conflist["plugins"][0].clone(), installed.host.pod("a"));
    let merge = |conf: &mut Value| {
        *conf = plugin.clone();
        conf["name"] = conflist["name"].clone();
        conf["cniVersion"] = conflist["cniVersion"].clone();
    };
    let result = installed.host.call("ADD", "a", &netns, merge).await.expect("attached");
    assert_eq!(result["ips"][0]["address"], "10.244.1.2/32", "of the node's pod CIDR");

    fs::remove_file(installed.path("net.d/00-dpumesh.conflist")).expect("removed by somebody");
    fs::write(installed.path("bin/istio-dpu-cni"), "another").expect("changed by somebody");
    installed
        .eventually("as it was", || installed.is_installed() && installed.conflist().as_ref() == Some(&conflist))
        .await;
    installed.host.dataplane.set_down(true);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(installed.is_installed(), "without it the node would count as unfit");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_installed_goes_with_its_daemonset_and_stays_over_restarts() {
    let mut installed = Installed::start().await;
    installed.run_once(|_| {}).await;
    assert!(installed.is_installed(), "the DaemonSet is there: this was a restart");
    installed.run_once(|api| api.says((500, json!({ "code": 500 })))).await;
    assert!(installed.is_installed(), "nobody told");
    for (why, answer) in
        [("deleted", refused(404, "not found")), ("going", there(true)), ("no permission any more", refused(403, "no"))]
    {
        installed.run_once(|api| api.says(answer)).await;
        assert!(installed.conflist().is_none() && !installed.has_plugin(), "{why}");
        assert!(!installed.path("cni.sock").exists() && !installed.path("attachments.sock").exists(), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_keep_their_network_when_the_daemon_is_uninstalled_by_hand_or_not() {
    let mut installed = Installed::start().await;
    installed.api.says(there(false));
    installed.host.restart().await;
    installed.eventually("installed", || installed.is_installed()).await;
    let netns = installed.host.pod("a");
    installed.host.add("a", &netns).await.expect("attached");
    let before = installed.host.audit();
    installed.host.kill();
    let mut uninstall = std::process::Command::new(env!("CARGO_BIN_EXE_istio-dpu-cni-node"));
    uninstall.args(["uninstall", "--state-dir"]).arg(installed.path("state"));
    for (flag, name) in [
        ("--install-bin-dir", "bin"),
        ("--install-conf-dir", "net.d"),
        ("--plugin", "plugin"),
        ("--socket", "cni.sock"),
        ("--attachments", "attachments.sock"),
    ] {
        uninstall.arg(flag).arg(installed.path(name));
    }
    let output = uninstall.output().expect("run");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.contains("n/a"), "{said}");
    assert!(!installed.is_installed() && !installed.path("cni.sock").exists());
    assert_eq!(installed.host.audit(), before, "the pod works on");
    // Deleted by whoever comes next.
    installed.host.restart().await;
    installed.host.del("a", &netns).await.expect("detached");
}
