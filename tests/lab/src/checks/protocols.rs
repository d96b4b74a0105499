//! HTTP/1.1, HTTP/2, gRPC and TCP, on one host and across hosts.

use super::Check;
use super::wait::{get, pod, traced};
use crate::hops::Hop;
use crate::lab::Lab;
use crate::pods::vip;
use crate::replay::Scenario;
use crate::{shell, traffic};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "http1_reaches_a_pod_on_the_same_host_in_one_pass", run: http1_same_host },
    Check { name: "http1_reaches_a_pod_on_the_other_host_over_mutual_tls", run: http1_other_host },
    Check { name: "http2_reaches_pods_on_both_hosts", run: http2 },
    Check { name: "large_bodies_arrive_whole", run: large_bodies },
    Check { name: "grpc_reaches_a_pod_on_the_same_host_and_from_the_other_host", run: grpc },
    Check { name: "tcp_reaches_a_pod_on_the_same_host_and_from_the_other_host", run: tcp },
    Check { name: "the_callee_sees_the_address_and_the_identity_of_the_caller", run: caller_is_seen },
];

fn http1_same_host(_: &mut Lab) -> Result<()> {
    let (page, hops) =
        traced("curl", vip::PRODUCTPAGE, "productpage", "/productpage", &["--http1.1"], &["outbound", "local"])?;
    ensure!(page.status == 200 && page.version == "1.1", "{page:?}");
    let first = hop(&hops, |hop| hop.cluster.contains("productpage"))?;
    ensure!(first.local_callee == pod("productpage-v1")?.uid(), "not in one pass: {first:?}");
    ensure!(!first.upstream_tls, "the proxy encrypted to itself: {first:?}");
    let callee = hop(&hops, |hop| hop.pass == "local")?;
    ensure!(callee.downstream_peer == pod("curl")?.identity(), "the callee's rules saw {:?}", callee.downstream_peer);
    Ok(())
}

fn http1_other_host(_: &mut Lab) -> Result<()> {
    let (details, hops) =
        traced("curl", vip::DETAILS, "details", "/details/0", &["--http1.1"], &["outbound", "inbound"])?;
    ensure!(details.status == 200, "{details:?}");
    let outbound = hop(&hops, |hop| hop.pass == "outbound")?;
    let inbound = hop(&hops, |hop| hop.pass == "inbound")?;
    ensure!(outbound.upstream_tls && inbound.downstream_tls, "not encrypted: {outbound:?} {inbound:?}");
    ensure!(outbound.own_identity.ends_with("/sa/curl"), "outbound as {:?}", outbound.own_identity);
    ensure!(outbound.peer_identity.ends_with("/sa/details"), "the peer was {:?}", outbound.peer_identity);
    ensure!(inbound.downstream_peer.ends_with("/sa/curl"), "the callee's proxy saw {:?}", inbound.downstream_peer);
    ensure!(outbound.host != inbound.host, "both passes on one host");
    Ok(())
}

fn http2(_: &mut Lab) -> Result<()> {
    for (address, service, path) in
        [(vip::PRODUCTPAGE, "productpage", "/productpage"), (vip::DETAILS, "details", "/details/0")]
    {
        let answer = get("curl", address, service, path, &["--http2-prior-knowledge"])?;
        ensure!(answer.status == 200 && answer.version == "2", "{service}: {answer:?}");
    }
    Ok(())
}

fn large_bodies(_: &mut Lab) -> Result<()> {
    let answer = get("curl", vip::DETAILS, "details", "/details/0?bytes=4194304", &[])?;
    let filler = answer.json["filler"].as_str().unwrap_or_default();
    ensure!(
        answer.status == 200 && filler.len() == 4 << 20,
        "status {}, {} bytes, {}",
        answer.status,
        filler.len(),
        answer.error
    );
    let upload = std::path::Path::new(crate::state::FOLDER).join("upload");
    std::fs::write(&upload, vec![b'x'; 4 << 20])?;
    let data = format!("@{}", upload.display());
    let answer = get(
        "curl",
        vip::DETAILS,
        "details",
        "/details/0",
        &["-H", "content-type: text/plain", "--data-binary", &data],
    )?;
    ensure!(answer.json["received"] == 4 << 20, "the callee received {}: {}", answer.json["received"], answer.error);
    Ok(())
}

fn grpc(lab: &mut Lab) -> Result<()> {
    lab.push(Scenario::Open)?;
    for caller in ["reviews-v1", "reviews-v2"] {
        let answer = shell::wait_for(&format!("gRPC from {caller}"), Duration::from_secs(10), || {
            let answer = traffic::client(&lab.binaries, pod(caller)?, &["grpc-get", vip::RATINGS_GRPC])?;
            ensure!(answer["code"] == "Ok", "{answer}");
            Ok(answer)
        })?;
        ensure!(answer["stars"]["Reviewer1"] == 5, "{answer}");
        let stream = traffic::client(&lab.binaries, pod(caller)?, &["grpc-watch", vip::RATINGS_GRPC, "20"])?;
        ensure!(stream["received"] == 20, "a stream in both directions: {stream}");
    }
    Ok(())
}

fn tcp(lab: &mut Lab) -> Result<()> {
    let other_host =
        traffic::client(&lab.binaries, pod("ratings-v1")?, &["tcp-ask", vip::MONGODB, "get", "ratings/0"])?;
    ensure!(other_host["Reviewer1"] == 5, "ratings to mongodb: {other_host}");
    lab.push(Scenario::Open)?;
    let same_host = shell::wait_for("TCP from reviews-v2", Duration::from_secs(10), || {
        traffic::client(&lab.binaries, pod("reviews-v2")?, &["tcp-ask", vip::MONGODB, "echo", "hello there"])
    })?;
    ensure!(same_host == "hello there", "reviews-v2 to mongodb: {same_host}");
    Ok(())
}

fn caller_is_seen(lab: &mut Lab) -> Result<()> {
    for (from, address, service, path) in
        [("curl", vip::PRODUCTPAGE, "productpage", "/productpage"), ("curl", vip::DETAILS, "details", "/details/0")]
    {
        let answer = get(from, address, service, path, &[])?;
        let caller = &answer.json["caller"];
        ensure!(caller["address"] == pod(from)?.address, "{service} saw the address {}", caller["address"]);
        let certificate = caller["certificate"].as_str().unwrap_or_default();
        let uri = format!("URI={}", pod(from)?.identity());
        ensure!(certificate.contains(&uri), "{service} saw x-forwarded-client-cert {certificate:?}, without {uri}");
    }
    let peer = traffic::client(&lab.binaries, pod("ratings-v1")?, &["tcp-ask", vip::MONGODB, "peer", "?"])?;
    ensure!(peer == pod("ratings-v1")?.address, "mongodb saw {peer}");
    Ok(())
}

fn hop(hops: &[Hop], is_it: impl Fn(&Hop) -> bool) -> Result<&Hop> {
    hops.iter().find(|hop| is_it(hop)).with_context(|| format!("no such hop among {hops:#?}"))
}
