//! The recorded policies, decided by the identity of the caller's port.

use super::Check;
use super::wait::{get, pod, traced};
use crate::lab::Lab;
use crate::pods::vip;
use crate::replay::Scenario;
use crate::{shell, traffic};
use anyhow::{Result, ensure};
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "inbound_rules_admit_the_identity_of_the_policy", run: admitted },
    Check { name: "inbound_rules_deny_any_other_identity_on_the_same_host", run: denied_same_host },
    Check { name: "inbound_rules_deny_any_other_identity_on_the_other_host", run: denied_other_host },
    Check { name: "a_method_that_no_rule_admits_is_denied", run: denied_method },
    Check { name: "grpc_that_no_rule_admits_is_denied_as_grpc_denies", run: denied_grpc },
    Check { name: "tcp_of_any_other_identity_is_closed", run: denied_tcp },
    Check { name: "deleting_a_policy_admits_and_restoring_it_denies_again", run: deleted_policy },
];

fn admitted(_: &mut Lab) -> Result<()> {
    for caller in ["reviews-v1", "reviews-v2", "reviews-v3"] {
        let answer = get(caller, vip::RATINGS, "ratings", "/ratings/0", &[])?;
        ensure!(answer.status == 200 && answer.json["stars"]["Reviewer1"] == 5, "{caller}: {answer:?}");
        let certificate = answer.json["caller"]["certificate"].as_str().unwrap_or_default();
        ensure!(certificate.contains("/sa/reviews"), "{caller} was seen as {certificate:?}");
    }
    Ok(())
}

fn denied_same_host(_: &mut Lab) -> Result<()> {
    let (answer, hops) = traced("curl", vip::RATINGS, "ratings", "/ratings/0", &[], &["outbound"])?;
    ensure!(answer.status == 403 && answer.text.contains("RBAC: access denied"), "{answer:?}");
    ensure!(hops.iter().any(|hop| hop.status() == "403"), "no hop tells of the denial: {hops:#?}");
    Ok(())
}

fn denied_other_host(_: &mut Lab) -> Result<()> {
    let answer = get("details-v1", vip::RATINGS, "ratings", "/ratings/0", &[])?;
    ensure!(answer.status == 403, "{answer:?}");
    Ok(())
}

fn denied_method(_: &mut Lab) -> Result<()> {
    let answer = get("reviews-v1", vip::RATINGS, "ratings", "/ratings/0", &["-X", "DELETE"])?;
    ensure!(answer.status == 403, "{answer:?}");
    Ok(())
}

fn denied_grpc(lab: &mut Lab) -> Result<()> {
    for caller in ["reviews-v1", "reviews-v2"] {
        let answer = traffic::client(&lab.binaries, pod(caller)?, &["grpc-get", vip::RATINGS_GRPC])?;
        ensure!(answer["code"] == "PermissionDenied", "{caller}: {answer}");
    }
    Ok(())
}

fn denied_tcp(lab: &mut Lab) -> Result<()> {
    for caller in ["reviews-v2", "curl"] {
        let answer = traffic::client(&lab.binaries, pod(caller)?, &["tcp-ask", vip::MONGODB, "get", "ratings/0"]);
        ensure!(answer.is_err(), "{caller} got {answer:?} from mongodb");
    }
    Ok(())
}

fn deleted_policy(lab: &mut Lab) -> Result<()> {
    for (scenario, expected) in [(Scenario::Open, 200), (Scenario::Demo, 403)] {
        lab.push(scenario)?;
        shell::wait_for(&format!("{expected} under {}", scenario.as_str()), Duration::from_secs(10), || {
            let answer = get("curl", vip::RATINGS, "ratings", "/ratings/0", &[])?;
            ensure!(answer.status == expected, "{answer:?}");
            Ok(())
        })?;
    }
    Ok(())
}
