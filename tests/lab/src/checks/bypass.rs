//! A pod is root in its own namespace: whatever it does there, nothing ungoverned gets out.

use super::Check;
use super::wait::{get, pod};
use crate::capture::Capture;
use crate::fabric::Seen;
use crate::lab::Lab;
use crate::pods::{PODS, vip};
use crate::topology::HOSTS;
use crate::{probe, shell, traffic};
use anyhow::{Context, Result, ensure};

pub const CHECKS: &[Check] = &[
    Check { name: "the_fabric_carries_no_plaintext", run: no_plaintext },
    Check { name: "a_pod_that_spoofs_an_address_gets_nothing_out", run: spoofed_address },
    Check { name: "a_pod_that_spoofs_a_mac_gets_nothing_out", run: spoofed_mac },
    Check { name: "a_pod_that_flushes_every_rule_of_its_own_is_still_governed", run: flushed_rules },
    Check { name: "a_pod_that_calls_another_by_its_own_address_is_still_governed", run: direct_address },
];

/// Traffic of every kind while the fabric is watched.
pub fn watched(lab: &Lab) -> Result<Seen> {
    let capture = Capture::start()?;
    for _ in 0..10 {
        get("curl", vip::PRODUCTPAGE, "productpage", "/productpage", &[])?;
        get("curl", vip::DETAILS, "details", "/details/0?bytes=65536", &[])?;
        get("reviews-v3", vip::RATINGS, "ratings", "/ratings/0", &["--http2-prior-knowledge"])?;
        traffic::client(&lab.binaries, pod("ratings-v1")?, &["tcp-ask", vip::MONGODB, "get", "ratings/0"])?;
    }
    Ok(capture.seen())
}

fn no_plaintext(lab: &mut Lab) -> Result<()> {
    let seen = watched(lab)?;
    ensure!(seen.tls_bytes > 10_000, "almost nothing was seen on the fabric: {seen:?}");
    clean(&seen)
}

/// Nothing ungoverned was on the fabric.
pub fn clean(seen: &Seen) -> Result<()> {
    ensure!(seen.plaintext_bytes == 0, "{} bytes of plaintext: {:?}", seen.plaintext_bytes, seen.suspects);
    ensure!(seen.marker_frames == 0, "{} frames with the applications' text", seen.marker_frames);
    let known = |address: &std::net::Ipv4Addr| {
        let text = address.to_string();
        PODS.iter().any(|pod| pod.address == text) || HOSTS.iter().any(|host| host.underlay() == text)
    };
    let strange: Vec<_> = seen.sources.keys().filter(|address| !known(address)).collect();
    ensure!(strange.is_empty(), "frames from {strange:?}, which no pod has");
    Ok(())
}

/// Sum of the dataplane's dropped packets on a host, over all reasons.
pub fn drops(host: crate::topology::Host) -> Result<f64> {
    let text = probe::get(&host.dpu(), "127.0.0.1:15131", "/metrics")?;
    let lines = text.lines().filter(|line| !line.starts_with('#') && line.contains("drop"));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

/// Tries to send as another pod and as nobody: what got out, and how many packets the dataplane dropped.
pub fn spoof_addresses() -> Result<(Seen, f64)> {
    let (curl, host) = (pod("curl")?, HOSTS[0]);
    let before = drops(host)?;
    let capture = Capture::start()?;
    for address in ["10.244.1.11", "10.99.99.99"] {
        shell::run_in(&curl.namespace(), &format!("ip address add {address}/32 dev eth0"))?;
        let answer = traffic::curl(
            curl,
            vip::RATINGS,
            "ratings:9080",
            "/ratings/0",
            &["--interface", address, "--max-time", "2"],
        );
        let udp = bound_udp(curl, address);
        shell::run_in(&curl.namespace(), &format!("ip address del {address}/32 dev eth0"))?;
        let answer = answer?;
        ensure!(answer.status == 0, "a connection from {address} was answered: {answer:?}");
        udp?;
    }
    Ok((capture.seen(), drops(host)? - before))
}

/// Sends a datagram from the given source address.
fn bound_udp(from: &crate::pods::Pod, address: &str) -> Result<()> {
    let (source, target) = (format!("{address}:0"), format!("{}:5353", pod("details-v1")?.address));
    probe::inside(&from.namespace(), move || {
        let socket = std::net::UdpSocket::bind(&source).with_context(|| format!("cannot bind {source}"))?;
        // Refused locally is as good as dropped.
        let _ = socket.send_to(b"spoofed", &target);
        Ok(())
    })
}

fn spoofed_address(_: &mut Lab) -> Result<()> {
    let (seen, dropped) = spoof_addresses()?;
    clean(&seen)?;
    ensure!(dropped >= 2.0, "the dataplane counted only {dropped} dropped packets");
    let answer = get("curl", vip::DETAILS, "details", "/details/0", &[])?;
    ensure!(answer.status == 200, "the pod no longer works with its own address: {answer:?}");
    Ok(())
}

fn spoofed_mac(_: &mut Lab) -> Result<()> {
    let curl = pod("curl")?;
    let before = drops(HOSTS[0])?;
    let shown = shell::run_in(&curl.namespace(), "ip -br link show eth0")?;
    let mac = shown.split_whitespace().nth(2).context("eth0 has no MAC")?.to_owned();
    shell::run_in(&curl.namespace(), "ip link set eth0 address 02:00:00:66:66:66")?;
    let answer = get("curl", vip::DETAILS, "details", "/details/0", &["--max-time", "2"]);
    shell::run_in(&curl.namespace(), &format!("ip link set eth0 address {mac}"))?;
    ensure!(answer?.status == 0, "a pod with another MAC was answered");
    ensure!(drops(HOSTS[0])? > before, "the dataplane counted no drop");
    shell::wait_for("the pod with its own MAC again", std::time::Duration::from_secs(10), || {
        let answer = get("curl", vip::DETAILS, "details", "/details/0", &[])?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })
}

/// Flushes what a sidecar's redirection would live on; the status that ratings answers afterwards.
pub fn flush_rules() -> Result<u16> {
    let namespace = pod("curl")?.namespace();
    for line in ["nft flush ruleset", "ip rule flush", "ip rule add lookup main pref 7"] {
        shell::run_in(&namespace, line)?;
    }
    let answer = get("curl", vip::RATINGS, "ratings", "/ratings/0", &[]);
    for line in ["ip rule flush", "ip rule add lookup main pref 32766", "ip rule add lookup default pref 32767"] {
        shell::run_in(&namespace, line)?;
    }
    Ok(answer?.status)
}

fn flushed_rules(_: &mut Lab) -> Result<()> {
    let capture = Capture::start()?;
    let status = flush_rules()?;
    ensure!(status == 403, "ratings answered {status}, and the policy denies curl");
    clean(&capture.seen())
}

/// Past the service, the recorded routes pass a call through as it is; the callee's strict rules refuse it.
fn direct_address(_: &mut Lab) -> Result<()> {
    for target in ["ratings-v1:9080", "mongodb-v1:27017", "details-v1:9080"] {
        let (name, port) = target.split_once(':').context("a constant")?;
        let address = format!("{}:{port}", pod(name)?.address);
        let answer = get("curl", &address, "nobody", "/ratings/0", &["--max-time", "3"])?;
        ensure!(answer.status != 200, "{target} was reached without mutual TLS: {answer:?}");
    }
    Ok(())
}
