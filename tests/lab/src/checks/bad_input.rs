//! What is malformed, unknown or hostile is refused with a reason, and everything else goes on.

use super::Check;
use super::wait::{get, pod};
use crate::cni::{self, Called};
use crate::lab::Lab;
use crate::pods::vip;
use crate::programs;
use crate::topology::{CONTROL_PLANE_NAMESPACE, HOSTS, build, pod_namespace};
use crate::{probe, shell};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "a_malformed_netconf_is_refused_with_the_code_of_the_specification", run: malformed_netconf },
    Check { name: "an_unknown_vf_is_refused_by_name_and_leaves_nothing", run: unknown_vf },
    Check { name: "an_unknown_ipam_is_refused_and_leaves_nothing", run: unknown_ipam },
    Check { name: "a_client_that_speaks_garbage_is_refused_and_harms_nobody", run: garbage },
    Check { name: "the_programs_refuse_callers_without_a_certificate", run: no_certificate },
    Check { name: "the_control_plane_saw_no_refusal", run: no_refusals },
];

fn refused(called: &Called, code: u64, mention: &str) -> Result<()> {
    ensure!(!called.success, "it was accepted: {}", called.output);
    ensure!(called.output["code"] == code, "code {} instead of {code}: {}", called.output["code"], called.output);
    ensure!(called.output.to_string().contains(mention), "no word of {mention:?}: {}", called.output);
    Ok(())
}

fn malformed_netconf(lab: &mut Lab) -> Result<()> {
    let curl = pod("curl")?;
    let environment = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "malformed"),
        ("CNI_NETNS", "/run/netns/dm-lab-pod-curl"),
        ("CNI_IFNAME", "eth9"),
        ("CNI_PATH", "/usr/lib/cni"),
    ];
    let call = |input: &[u8]| cni::call_raw(&lab.binaries, curl, &environment, input);
    refused(&call(b"{\"cniVersion\": \"1.0.0\", ")?, 6, "JSON")?;
    refused(&call(b"{\"cniVersion\": \"9.9.9\", \"name\": \"x\", \"type\": \"istio-dpu-cni\"}")?, 1, "9.9.9")?;
    refused(&cni::call_raw(&lab.binaries, curl, &[("CNI_COMMAND", "ADD")], b"{}")?, 4, "CNI_CONTAINERID")
}

/// ADD of a pod that doesn't exist otherwise, with a change of the configuration.
fn stranger(lab: &Lab, change: impl FnOnce(&mut serde_json::Value)) -> Result<Called> {
    let namespace = pod_namespace("stranger");
    build::namespace(&namespace)?;
    let mut netconf = cni::netconf(pod("curl")?);
    netconf["args"] = json!({});
    change(&mut netconf);
    let environment = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "stranger"),
        ("CNI_NETNS", &format!("/run/netns/{namespace}")),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni"),
        (
            "CNI_ARGS",
            "K8S_POD_NAMESPACE=bookinfo;K8S_POD_NAME=stranger;K8S_POD_UID=00000000-0000-4000-8000-000000000099",
        ),
    ];
    let called = cni::call_raw(&lab.binaries, pod("curl")?, &environment, netconf.to_string().as_bytes());
    let left = shell::run_in(&namespace, "ip -br link show")?;
    shell::run(&format!("ip netns delete {namespace}"))?;
    ensure!(!left.contains("eth0"), "a refused ADD left a link in the pod: {left}");
    called
}

fn unknown_vf(lab: &mut Lab) -> Result<()> {
    let before = shell::run_in(&HOSTS[0].namespace(), "ip -br link show")?;
    refused(&stranger(lab, |netconf| netconf["deviceID"] = json!("vf77"))?, 100, "vf77")?;
    ensure!(
        before == shell::run_in(&HOSTS[0].namespace(), "ip -br link show")?,
        "a refused ADD changed the host's links"
    );
    Ok(())
}

fn unknown_ipam(lab: &mut Lab) -> Result<()> {
    let called = stranger(lab, |netconf| netconf["ipam"] = json!({ "type": "no-such-ipam" }))?;
    ensure!(!called.success && called.output.to_string().contains("no-such-ipam"), "{}", called.output);
    Ok(())
}

fn garbage(_: &mut Lab) -> Result<()> {
    for input in [
        &b"\x00\xff\x00\xff nonsense \r\n\r\n"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    ] {
        let (to, input) = (vip::PRODUCTPAGE, input.to_vec());
        let answer = probe::inside(&pod("curl")?.namespace(), move || {
            let mut stream = TcpStream::connect(to).context("connect")?;
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            stream.write_all(&input)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut answer = Vec::new();
            // A reset is an answer, too.
            let _ = stream.read_to_end(&mut answer);
            Ok(String::from_utf8_lossy(&answer).into_owned())
        })?;
        ensure!(!answer.starts_with("HTTP/1.1 200"), "garbage was answered: {answer}");
    }
    let answer = get("curl", vip::PRODUCTPAGE, "productpage", "/productpage", &[])?;
    ensure!(answer.status == 200, "after garbage: {answer:?}");
    Ok(())
}

fn no_certificate(_: &mut Lab) -> Result<()> {
    let [one, _] = HOSTS;
    for (namespace, address) in [
        (CONTROL_PLANE_NAMESPACE.to_owned(), "172.30.0.1:15100".to_owned()),
        (one.namespace(), format!("{}:15110", one.management())),
        (one.dpu(), format!("{}:15130", one.dpu_management())),
    ] {
        let mut command = shell::command_in(&namespace, "curl");
        command.args(["-sSk", "--max-time", "3", "--http2", &format!("https://{address}/")]);
        let output = shell::output(&mut command)?;
        ensure!(
            !output.status.success(),
            "{address} answered a caller without certificate: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(())
}

/// The adapters took every recorded resource.
fn no_refusals(_: &mut Lab) -> Result<()> {
    let log: serde_json::Value =
        serde_json::from_str(&probe::get(CONTROL_PLANE_NAMESPACE, "127.0.0.1:15011", "/log")?)?;
    ensure!(
        log["nacks"].as_array().is_some_and(Vec::is_empty),
        "refused: {}\n{}",
        log["nacks"],
        programs::tail("adapter-host1")
    );
    Ok(())
}
