//! The control plane of the mesh, and sidecars beside us.

use super::{Checked, Finding};
use crate::seen::all;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube_api::mesh::{Labels, asks_for_mesh};
use kube_api::{ConfigurationState, objects};

const TRUSTED: &str = "CA_TRUSTED_NODE_ACCOUNTS";
const SIDECAR: &str = "istio-proxy";

pub(super) fn trust(checked: &Checked) -> Finding {
    let account = format!("{}/{}", checked.seen.system_namespace, objects::ADAPTER);
    let istiods = match &checked.istiods {
        Err(reason) => return Finding::Unknown(reason.clone()),
        // An istiod that is elsewhere is known by what it does.
        Ok(istiods) if istiods.is_empty() => return trust_by_its_fruits(checked, &account),
        Ok(istiods) => istiods,
    };
    match istiods.iter().find(|istiod| !trusts(istiod, &account)) {
        None => Finding::good(format!("istiod lets {account} ask for certificates of workloads")),
        Some(istiod) => {
            let part = |part: &Option<String>| part.clone().unwrap_or_default();
            let (namespace, name) = (part(&istiod.metadata.namespace), part(&istiod.metadata.name));
            let what = format!("{namespace}/{name} does not let {account} ask for certificates: pods stay closed");
            Finding::bad(
                what,
                format!("set {TRUSTED} of istiod, e.g. --set pilot.env.{TRUSTED}={account} of its chart"),
            )
        }
    }
}

fn trust_by_its_fruits(checked: &Checked, account: &str) -> Finding {
    let count = |state: ConfigurationState| {
        let states = all(&checked.seen.workloads).iter().filter_map(|one| one.status.as_ref()?.configuration);
        states.filter(|one| *one == state).count()
    };
    match (count(ConfigurationState::Denied), count(ConfigurationState::Accepted)) {
        (0, 0) => Finding::Unknown(format!(
            "no Deployment with the label app=istiod is here; its {TRUSTED} must have {account}"
        )),
        (0, accepted) => Finding::good(format!("istiod serves {accepted} workloads of DPUs")),
        (denied, _) => Finding::bad(
            format!("istiod refuses {denied} workloads of DPUs"),
            format!("dpumesh status says why; {TRUSTED} of istiod must have {account}"),
        ),
    }
}

fn trusts(istiod: &Deployment, account: &str) -> bool {
    let containers = istiod.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()).map(|spec| &spec.containers);
    let variables = containers.into_iter().flatten().flat_map(|container| container.env.iter().flatten());
    let values = variables.filter(|variable| variable.name == TRUSTED).filter_map(|variable| variable.value.as_deref());
    values.flat_map(|value| value.split(',')).any(|one| one.trim() == account)
}

pub(super) fn root(checked: &Checked) -> Finding {
    let namespace = &checked.seen.system_namespace;
    match &checked.istio_root {
        Err(reason) => Finding::Unknown(reason.clone()),
        Ok(Some(_)) => Finding::good(format!("istiod wrote istio-ca-root-cert into {namespace}")),
        Ok(None) => Finding::bad(
            format!("istiod has not written istio-ca-root-cert into {namespace}: adapters do not start"),
            "is istiod running? With discoverySelectors, the namespace must match them",
        ),
    }
}

/// Two proxies in the path of a pod: it works, at twice the cost.
pub(super) fn sidecars(checked: &Checked) -> Finding {
    let seen = &checked.seen;
    if let Some(reason) = seen.pods.as_ref().err().or(seen.namespaces.as_ref().err()) {
        return Finding::Unknown(reason.clone());
    }
    let names: Vec<String> =
        all(&seen.pods).iter().filter(|pod| has_sidecar(pod) && asks(checked, pod)).map(name).collect();
    let Some(first) = names.first() else { return Finding::good("no governed pod has a sidecar, too") };
    Finding::odd(
        format!("{} governed pods have a sidecar, too, e.g. {first}", names.len()),
        "label their namespace dpumesh.io/governed=true instead of istio-injection=enabled, and restart them",
    )
}

fn has_sidecar(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|container| container.name == SIDECAR)
}

fn asks(checked: &Checked, pod: &Pod) -> bool {
    let empty = Labels::new();
    let namespace = all(&checked.seen.namespaces).iter().find(|one| one.metadata.name == pod.metadata.namespace);
    let of_namespace = namespace.and_then(|namespace| namespace.metadata.labels.as_ref()).unwrap_or(&empty);
    asks_for_mesh(pod.metadata.labels.as_ref().unwrap_or(&empty), of_namespace, false)
}

fn name(pod: &Pod) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("{}/{}", part(&pod.metadata.namespace), part(&pod.metadata.name))
}
