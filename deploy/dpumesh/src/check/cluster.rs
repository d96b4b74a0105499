//! The API server and our kinds.

use super::{Checked, Finding};

/// The oldest minor version of Kubernetes 1 that the chart takes.
const OLDEST_MINOR: u32 = 30;

pub(super) fn api_server(checked: &Checked) -> Finding {
    let version = match &checked.version {
        Ok(version) => version,
        Err(reason) => {
            return Finding::bad(
                format!("{} does not answer: {reason}", checked.server),
                "is the kubeconfig right (KUBECONFIG, --context)?",
            );
        }
    };
    let minor = version.trim_start_matches('v').split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
    match minor {
        Some(minor) if minor < OLDEST_MINOR => {
            Finding::bad(format!("{version} is too old"), format!("Kubernetes 1.{OLDEST_MINOR} or later is needed"))
        }
        _ => Finding::good(format!("{version} at {}", checked.server)),
    }
}

pub(super) fn kinds(checked: &Checked) -> Finding {
    let served = match &checked.kinds {
        Ok(served) => served,
        Err(reason) => return Finding::Unknown(reason.clone()),
    };
    let missing: Vec<String> = kube_api::definitions()
        .into_iter()
        .map(|definition| definition.spec.names.kind)
        .filter(|kind| !served.contains(kind))
        .collect();
    match missing.is_empty() {
        true => Finding::good(format!("{} are served", served.join(", "))),
        false => Finding::bad(
            format!("not served: {}", missing.join(", ")),
            "kubectl apply --server-side --force-conflicts -f deploy/helm/dpumesh/crds (helm does not do it on upgrade)",
        ),
    }
}
