//! The control plane says what cannot be: each thing fails alone, with a reason, and all else goes on.

use super::Check;
use super::wait::{get, pod, traced};
use crate::hops::Hop;
use crate::lab::Lab;
use crate::pods::vip;
use crate::replay::{BROKEN_LISTENER, Scenario};
use crate::topology::CONTROL_PLANE_NAMESPACE;
use crate::{hops, probe, shell, traffic};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check {
        name: "a_resource_that_does_not_parse_is_refused_by_name_and_all_else_stays_in_force",
        run: broken_resource,
    },
    Check { name: "a_listener_that_names_a_missing_cluster_fails_alone", run: dangling_listener },
    Check { name: "a_route_that_names_a_missing_cluster_fails_alone", run: dangling_route },
    Check { name: "a_peer_with_the_certificate_of_another_identity_is_refused", run: misplaced_other_host },
    Check { name: "a_pod_of_another_identity_on_the_same_host_is_refused", run: misplaced_same_host },
];

const LIMIT: Duration = Duration::from_secs(10);

/// One listener is garbage: it alone is refused, and requests go on.
fn broken_resource(lab: &mut Lab) -> Result<()> {
    lab.push(Scenario::Broken)?;
    shell::wait_for("a refusal that names the listener", LIMIT, || {
        let log = probe::get(CONTROL_PLANE_NAMESPACE, "127.0.0.1:15011", "/log")?;
        ensure!(log.contains(BROKEN_LISTENER), "{log}");
        Ok(())
    })?;
    (0..5).try_for_each(|_| unharmed())?;
    expect("curl", vip::PRODUCTPAGE, "productpage", "/productpage", 200)
}

fn dangling_listener(lab: &mut Lab) -> Result<()> {
    let ask =
        |lab: &Lab| traffic::client(&lab.binaries, pod("ratings-v1")?, &["tcp-ask", vip::MONGODB, "get", "ratings/0"]);
    ask(lab).context("before")?;
    lab.push(Scenario::Dangling)?;
    shell::wait_for("mongodb without its cluster", LIMIT, || {
        ensure!(ask(lab).is_err(), "mongodb still answers");
        let hop = hops::all()?.into_iter().rfind(|hop| hop.listener == "10.96.10.5_27017" && hop.pass == "outbound");
        let hop = hop.context("no connection was logged")?;
        ensure!(hop.flags == "NC", "flags {:?} instead of NC: {hop:?}", hop.flags);
        Ok(())
    })?;
    unharmed()
}

fn dangling_route(lab: &mut Lab) -> Result<()> {
    lab.push(Scenario::Dangling)?;
    let hop = unavailable(vip::DETAILS, "details", "/details/0", "NC")?;
    ensure!(hop.details.contains("cluster_not_found"), "details {:?}: {hop:?}", hop.details);
    unharmed()
}

/// The endpoint of details is an address of reviews: its proxy shows the certificate of reviews.
fn misplaced_other_host(lab: &mut Lab) -> Result<()> {
    lab.push(Scenario::Misplaced)?;
    let hop = unavailable(vip::DETAILS, "details", "/details/0", "UF")?;
    ensure!(hop.endpoint.starts_with("10.244.2.11:"), "it was tried at {:?}", hop.endpoint);
    named(&hop, "/sa/reviews")
}

/// The same without a wire between: the proxy compares the identity of the callee's port.
fn misplaced_same_host(lab: &mut Lab) -> Result<()> {
    lab.push(Scenario::Misplaced)?;
    let hop = unavailable(vip::PRODUCTPAGE, "productpage", "/productpage", "UF")?;
    ensure!(hop.endpoint.starts_with("10.244.1.12:"), "it was tried at {:?}", hop.endpoint);
    named(&hop, "/sa/ratings")
}

/// The reason names the identity that was shown, and neither side of the call reached the application.
fn named(hop: &Hop, identity: &str) -> Result<()> {
    ensure!(hop.details.contains(identity), "no word of {identity} in {:?}", hop.details);
    unharmed()
}

/// Services that no bad part concerns are reached on both hosts, and policies hold.
fn unharmed() -> Result<()> {
    for caller in ["productpage-v1", "curl", "details-v1"] {
        expect(caller, vip::REVIEWS, "reviews", "/reviews/0", 200)?;
        expect(caller, vip::RATINGS, "ratings", "/ratings/0", 403)?;
    }
    Ok(())
}

fn expect(from: &str, address: &str, service: &str, path: &str, status: u16) -> Result<()> {
    let answer = get(from, address, service, path, &[])?;
    ensure!(answer.status == status, "{service} for {from}, and {status} is right: {answer:?}");
    Ok(())
}

/// Waits until curl gets 503 with this response flag; the hop that says so.
fn unavailable(address: &str, service: &str, path: &str, flag: &str) -> Result<Hop> {
    shell::wait_for(&format!("{service} with {flag}"), LIMIT, || {
        let (answer, hops) = traced("curl", address, service, path, &[], &["outbound"])?;
        ensure!(answer.status == 503, "{service} answered {}: {}", answer.status, answer.text);
        let hop = hops.into_iter().find(|hop| hop.pass == "outbound").context("no hop out of the pod")?;
        ensure!(hop.flags.split(',').any(|one| one == flag), "flags {:?} instead of {flag}: {hop:?}", hop.flags);
        Ok(hop)
    })
}
