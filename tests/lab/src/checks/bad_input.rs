//! What is malformed, unknown or hostile is refused with a reason, and everything else goes on.

use super::Check;
use super::wait::{get, pod};
use crate::cni::{self, Called};
use crate::lab::Lab;
use crate::pods::vip;
use crate::programs::{self, Program};
use crate::topology::{CONTROL_PLANE_NAMESPACE, HOSTS, Host};
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
    Check { name: "an_identity_that_is_not_attached_here_gets_no_certificate", run: foreign_identity },
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

/// ADD of a pod that is not attached, with a change of its configuration; it is attached as before afterwards.
fn changed_add(lab: &mut Lab, change: impl FnOnce(&mut serde_json::Value)) -> Result<Called> {
    let details = pod("details-v1")?;
    lab.detach(details)?;
    let host = details.host.namespace();
    let before = shell::run_in(&host, "ip -br link show")?;
    let mut netconf = cni::netconf(details);
    change(&mut netconf);
    let called = cni::call(&lab.binaries, "ADD", details, &netconf)?;
    let in_pod = shell::run_in(&details.namespace(), "ip -br link show")?;
    let after = shell::run_in(&host, "ip -br link show")?;
    lab.attach(details)?;
    ensure!(!in_pod.contains("eth0"), "a refused ADD left a link in the pod: {in_pod}");
    ensure!(before == after, "a refused ADD changed the host's links: {before}\n{after}");
    Ok(called)
}

fn unknown_vf(lab: &mut Lab) -> Result<()> {
    refused(&changed_add(lab, |netconf| netconf["deviceID"] = json!("vf77"))?, 100, "vf77")
}

fn unknown_ipam(lab: &mut Lab) -> Result<()> {
    refused(&changed_add(lab, |netconf| netconf["ipam"] = json!({ "type": "no-such-ipam" }))?, 102, "no-such-ipam")
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

/// Details runs on the other host: this DPU may not have its identity, whoever asks on it.
fn foreign_identity(_: &mut Lab) -> Result<()> {
    let [one, _] = HOSTS;
    let details = pod("details-v1")?;
    let status = sign(one, &details.identity())?;
    ensure!(status.code() == tonic::Code::PermissionDenied, "the adapter of {} answered {status:?}", one.node());
    ensure!(status.message().contains("/sa/details"), "no word of the identity: {}", status.message());
    Ok(())
}

/// What the adapter says when the host's own proxy asks it for a certificate of `identity`.
fn sign(host: Host, identity: &str) -> Result<tonic::Status> {
    use mesh_api::ca::{SignRequest, certificate_relay_client::CertificateRelayClient};
    let tls = Program::DpuProxy(host).tls_args();
    let uri = format!("https://{}:15110", host.management());
    let csr_pem = programs::signing_request(identity)?;
    let request = SignRequest { identity: identity.to_owned(), csr_pem, validity_seconds: 3600 };
    probe::inside(&host.dpu(), move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let channel = service::grpc::channel(&uri, &tls, "adapter").await?;
            match CertificateRelayClient::new(channel).sign(request).await {
                Ok(_) => anyhow::bail!("it was signed"),
                Err(status) => Ok(status),
            }
        })
    })
}
