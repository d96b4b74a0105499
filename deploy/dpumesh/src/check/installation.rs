//! What the chart makes.

use super::{Checked, Finding};
use crate::status;
use x509_parser::pem::parse_x509_pem;

/// Label by which the API server lets pods of the host's network and with capabilities in.
const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
/// An authority that ends sooner is worth a word, in days.
const ENDS_SOON_DAYS: i64 = 60;

pub(super) fn namespace(checked: &Checked) -> Finding {
    let name = &checked.seen.system_namespace;
    let label = format!("kubectl label namespace {name} {ENFORCE}=privileged");
    match &checked.system {
        Err(reason) => Finding::Unknown(reason.clone()),
        Ok(None) => Finding::bad(format!("{name} is not there"), format!("kubectl create namespace {name}; {label}")),
        Ok(Some(namespace)) => {
            let labels = namespace.metadata.labels.clone().unwrap_or_default();
            match labels.get(ENFORCE).map(String::as_str) {
                Some("privileged") => Finding::good(format!("{name} admits the programs")),
                Some(other) => {
                    Finding::bad(format!("{name} has {ENFORCE}={other}: the programs' pods are refused"), label)
                }
                None => {
                    Finding::odd(format!("{name} has no label {ENFORCE}: it depends on the cluster's default"), label)
                }
            }
        }
    }
}

pub(super) fn programs(checked: &Checked) -> Finding {
    let seen = &checked.seen;
    if let Some(reason) = seen.deployments.as_ref().err().or(seen.daemon_sets.as_ref().err()) {
        return Finding::Unknown(reason.clone());
    }
    let (lines, problems) = status::programs(seen);
    match problems.first() {
        None => {
            let all: Vec<String> =
                lines.iter().map(|one| format!("{} {}/{}", one.name, one.ready, one.wanted)).collect();
            Finding::good(all.join(", "))
        }
        Some(problem) => Finding::bad(format!("{} {}", problem.place, problem.what), problem.advice.clone()),
    }
}

pub(super) fn authority(checked: &Checked) -> Finding {
    let map = match &checked.authority {
        Err(reason) => return Finding::Unknown(reason.clone()),
        Ok(None) => return Finding::bad("the ConfigMap dpumesh-ca is not there", "helm upgrade makes it"),
        Ok(Some(map)) => map,
    };
    let pem = map.data.as_ref().and_then(|data| data.get("ca.crt")).cloned().unwrap_or_default();
    let Some(days) = days_left(&pem, checked.seen.now.as_second()) else {
        return Finding::bad("ca.crt of the ConfigMap dpumesh-ca is no certificate", "helm upgrade writes it again");
    };
    let advice = "docs/install.md, \"Rotate\"";
    match days {
        days if days < 0 => {
            Finding::bad(format!("its certificate ended {} days ago: no program trusts another", -days), advice)
        }
        days if days < ENDS_SOON_DAYS => Finding::odd(format!("its certificate ends in {days} days"), advice),
        days => Finding::good(format!("its certificate is valid for {days} days")),
    }
}

fn days_left(pem: &str, now: i64) -> Option<i64> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).ok()?;
    let end = pem.parse_x509().ok()?.validity().not_after.timestamp();
    Some((end - now).div_euclid(86_400))
}
