//! A machine on the fabric that is no DPU of the mesh: nobody's pod, with whatever certificate and bytes it has.

use super::Check;
use super::wait::{get, pod, proxy_metric};
use crate::lab::Lab;
use crate::pods::{Pod, vip};
use crate::programs::Authority;
use crate::state::FOLDER;
use crate::topology::{FABRIC_NAMESPACE, HOSTS, build};
use crate::{hops, probe, shell};
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "a_caller_on_the_fabric_needs_a_certificate_of_the_mesh", run: certificates },
    Check { name: "plaintext_from_the_fabric_is_refused_and_counted", run: plaintext },
    Check { name: "garbage_from_the_fabric_is_refused_and_harms_nobody", run: garbage },
];

const NAMESPACE: &str = "dm-lab-stranger";
const PORT: &str = "stranger";
const REFUSED_TLS: &str = "envoy_listener_ssl_connection_error";
const REFUSED_CHAIN: &str = "envoy_listener_no_filter_chain_match";

/// The machine; unplugged when dropped.
struct Stranger;

impl Stranger {
    /// On the fabric, with a route to the pods of host2.
    fn plug_in() -> Result<Self> {
        build::namespace(NAMESPACE)?;
        let stranger = Self;
        build::plug(FABRIC_NAMESPACE, PORT, (NAMESPACE, "uplink"))?;
        build::address(NAMESPACE, "uplink", "192.168.90.66")?;
        shell::run(&format!("ip -n {NAMESPACE} route add 10.244.2.0/24 via {}", HOSTS[1].underlay()))?;
        Ok(stranger)
    }

    /// HTTPS to a pod's own address; the status, 0 when refused.
    fn https(&self, to: &Pod, certificate: Option<&str>) -> Result<u16> {
        let mut command = shell::command_in(NAMESPACE, "curl");
        command.args(["-sk", "--max-time", "3", "-o", "/dev/null", "-w", "%{http_code}"]);
        if let Some(name) = certificate {
            let file = |end: &str| format!("{}/{name}{end}", folder().display());
            command.args(["--cert", &file(".pem"), "--key", &file("-key.pem")]);
        }
        let output = shell::output(command.arg(format!("https://{}:9080/details/0", to.address)))?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim().parse().with_context(|| format!("curl printed {text:?}"))
    }

    /// Sends bytes and half-closes; what came back before the end.
    fn say(&self, to: &Pod, bytes: &[u8]) -> Result<Vec<u8>> {
        let (to, bytes) = (format!("{}:9080", to.address), bytes.to_vec());
        probe::inside(NAMESPACE, move || {
            let mut stream = TcpStream::connect_timeout(&to.parse()?, Duration::from_secs(3)).context("connect")?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut answer = Vec::new();
            // A reset is an answer, too.
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut answer);
            Ok(answer)
        })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        shell::attempt(&format!("ip -n {FABRIC_NAMESPACE} link delete {PORT}"));
        shell::attempt(&format!("ip netns delete {NAMESPACE}"));
    }
}

fn folder() -> std::path::PathBuf {
    Path::new(FOLDER).join("stranger")
}

/// None, one that nobody knows, and one of a known authority but outside the mesh's trust domain are refused;
/// one of the mesh is not, so it was the certificate.
fn certificates(_: &mut Lab) -> Result<()> {
    let (stranger, details) = (Stranger::plug_in()?, pod("details-v1")?);
    let (mesh, unknown) = (Authority::load(&Path::new(FOLDER).join("mesh-ca"))?, Authority::new("nobody")?);
    let member = pod("curl")?.identity();
    mesh.issue(&folder(), "member", &member, &[])?;
    unknown.issue(&folder(), "unknown", &member, &[])?;
    mesh.issue(&folder(), "outside", "spiffe://elsewhere.example/ns/bookinfo/sa/curl", &[])?;
    for certificate in [None, Some("unknown"), Some("outside")] {
        let before = proxy_metric(HOSTS[1], REFUSED_TLS)?;
        let status = stranger.https(details, certificate)?;
        ensure!(status == 0, "with certificate {certificate:?} it was answered {status}");
        counted(before, 1, || proxy_metric(HOSTS[1], REFUSED_TLS)).with_context(|| format!("{certificate:?}"))?;
    }
    let status = stranger.https(details, Some("member"))?;
    ensure!(status == 200, "with a certificate of the mesh: {status}");
    logged(details)?;
    unharmed()
}

fn plaintext(_: &mut Lab) -> Result<()> {
    let (stranger, before) = (Stranger::plug_in()?, proxy_metric(HOSTS[1], REFUSED_CHAIN)?);
    let answer = stranger.say(pod("details-v1")?, b"GET /details/0 HTTP/1.1\r\nhost: details\r\n\r\n")?;
    ensure!(answer.is_empty(), "it was answered: {}", String::from_utf8_lossy(&answer));
    counted(before, 1, || proxy_metric(HOSTS[1], REFUSED_CHAIN))?;
    unharmed()
}

/// Bytes that begin like TLS, like HTTP/2, and like nothing, and none at all.
fn garbage(_: &mut Lab) -> Result<()> {
    let (stranger, details) = (Stranger::plug_in()?, pod("details-v1")?);
    let refusals = || Ok(proxy_metric(HOSTS[1], REFUSED_CHAIN)? + proxy_metric(HOSTS[1], REFUSED_TLS)?);
    let before = refusals()?;
    let noise: Vec<u8> = (0..4096_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let hello = [&[22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3][..], &noise].concat();
    let inputs = [&noise[..], &hello, b"\x16\x03\x01\x00\x05\xff\xff\xff\xff\xff", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"];
    for input in inputs {
        let answer = stranger.say(details, input)?;
        // At most an alert (RFC 8446, section 6).
        ensure!(answer.is_empty() || answer[0] == 21, "garbage was answered: {}", answer.escape_ascii());
    }
    counted(before, inputs.len(), refusals)?;
    unharmed()
}

/// The hop log of the callee's host says whose connection was refused, and why.
fn logged(pod: &Pod) -> Result<()> {
    shell::wait_for("the refusal in the hop log", Duration::from_secs(5), || {
        let refusal = hops::all()?.into_iter().rfind(|hop| hop.details == "tls_handshake_failed");
        let refusal = refusal.context("it is not there")?;
        ensure!(refusal.workload == pod.uid(), "it is logged of another pod: {refusal:?}");
        Ok(())
    })
}

/// So many refusals since `before`, as soon as the worker has counted them.
fn counted(before: f64, expected: usize, count: impl Fn() -> Result<f64>) -> Result<()> {
    shell::wait_for("the refusals in the proxy's counters", Duration::from_secs(3), || {
        let refused = count()? - before;
        ensure!(refused == expected as f64, "{refused} were counted, not {expected}");
        Ok(())
    })
}

fn unharmed() -> Result<()> {
    for caller in ["curl", "productpage-v1"] {
        let answer = get(caller, vip::DETAILS, "details", "/details/0", &[])?;
        ensure!(answer.status == 200, "details no longer answers {caller}: {answer:?}");
    }
    Ok(())
}
