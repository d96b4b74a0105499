//! The plugin as a runtime calls it: environment and standard input in, JSON on standard output and exit code out.

use istio_dpu_cni::error::code;
use istio_dpu_cni::netconf::DAEMON_SOCKET;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

fn call(command: &str, stdin: &str) -> (bool, Value) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_istio-dpu-cni"))
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_NETNS", "/run/netns/none")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/usr/lib/cni")
        .env("CNI_ARGS", "K8S_POD_NAME=p;K8S_POD_NAMESPACE=n")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the plugin starts");
    child.stdin.take().expect("piped").write_all(stdin.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    let printed =
        if output.stdout.is_empty() { Value::Null } else { serde_json::from_slice(&output.stdout).expect("JSON") };
    (output.status.success(), printed)
}

fn conf(socket: &Path) -> Value {
    json!({ "cniVersion": "1.0.0", "name": "mesh", "type": "istio-dpu-cni", "daemonSocket": socket, "ipam": { "type": "host-local" } })
}

fn refused(command: &str, stdin: &str, code: u32, word: &str) {
    let (ok, printed) = call(command, stdin);
    assert!(!ok, "{printed}");
    assert_eq!(printed["code"], code, "{printed}");
    let text = format!("{} {}", printed["msg"], printed["details"]);
    assert!(text.contains(word), "{word:?} is not in {printed}");
    assert!(printed["cniVersion"].is_string(), "{printed}");
}

#[test]
fn bad_configurations_are_refused_on_standard_output() {
    let mut conf = conf(Path::new("/nonexistent"));
    refused("ADD", "{", code::DECODE, "not JSON");
    refused("ADD", "", code::DECODE, "not JSON");
    refused("add", &conf.to_string(), code::INVALID_ENVIRONMENT, "CNI_COMMAND");
    conf["cniVersion"] = json!("0.2.0");
    refused("ADD", &conf.to_string(), code::INCOMPATIBLE_VERSION, "1.1.0");
    conf["cniVersion"] = json!("1.0.0");
    refused("GC", &conf.to_string(), code::INCOMPATIBLE_VERSION, "needs CNI 1.1.0");
    refused("CHECK", &conf.to_string(), code::INVALID_CONFIG, "prevResult");
    conf.as_object_mut().expect("object").remove("ipam");
    refused("ADD", &conf.to_string(), code::INVALID_CONFIG, "ipam is missing");
}

#[test]
fn a_daemon_that_is_not_there_is_a_reason_to_try_again() {
    let mut conf = conf(Path::new("/nonexistent/cni.sock"));
    refused("ADD", &conf.to_string(), code::TRY_AGAIN_LATER, "istio-dpu-cni-node");
    conf["cniVersion"] = json!("1.1.0");
    refused("STATUS", &conf.to_string(), code::NOT_AVAILABLE, "/nonexistent/cni.sock");
    assert_eq!(DAEMON_SOCKET, "/run/dpumesh/cni.sock");
}

#[test]
fn a_daemon_that_dies_in_the_middle_is_a_reason_to_try_again() {
    let folder = tempfile::tempdir().expect("folder");
    let socket = folder.path().join("cni.sock");
    let listener = UnixListener::bind(&socket).expect("bound");
    let server = std::thread::spawn(move || drop(listener.accept().expect("called")));
    refused("DEL", &conf(&socket).to_string(), code::TRY_AGAIN_LATER, "in the middle");
    server.join().expect("served");
}

#[test]
fn what_the_daemon_answers_is_printed() {
    let folder = tempfile::tempdir().expect("folder");
    let socket = folder.path().join("cni.sock");
    let listener = UnixListener::bind(&socket).expect("bound");
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("called");
        let mut request = String::new();
        stream.read_to_string(&mut request).expect("read");
        let answer =
            json!({ "failed": { "code": code::UNKNOWN_VF, "msg": "vf9 is no VF of this host", "details": "d" } });
        stream.write_all(answer.to_string().as_bytes()).expect("written");
        serde_json::from_str::<Value>(&request).expect("JSON")
    });
    refused("ADD", &conf(&socket).to_string(), code::UNKNOWN_VF, "vf9");
    let request = server.join().expect("served");
    assert_eq!(request["environment"]["args"]["pod_name"], "p");
    assert_eq!(request["netconf"]["ipam"]["type"], "host-local");
}

#[test]
fn versions_are_told_without_a_daemon() {
    let (ok, printed) = call("VERSION", r#"{"cniVersion":"1.0.0"}"#);
    assert!(ok);
    assert_eq!(printed["cniVersion"], "1.0.0");
    assert!(printed["supportedVersions"].as_array().expect("list").contains(&json!("1.1.0")));
}
