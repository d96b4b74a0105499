//! What a person is told of a workload's configuration; pure.
//!
//! In: the workload, what the proxy refuses, and what stands in the way of its stream. Out: the state,
//! its reason, and what the acknowledged scope was made from.

use super::aggregate::{Member, Rejections, is_refused};
use super::assembly::Assembly;
use mesh_api::report::{Configuration, ConfigurationState as State, MutualTls, Refusal};
use std::collections::BTreeSet;

/// What keeps the control plane or the proxy from answering.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Obstacles {
    /// Why the stream is not open, and whether it is refused.
    pub stream: Option<(String, bool)>,
    pub proxy_is_away: bool,
}

/// The report of a workload.
pub fn configuration(member: &Member, rejections: &Rejections, obstacles: &Obstacles) -> Configuration {
    let (state, reason) = state(member, rejections, obstacles);
    let accepted = member.accepted.as_deref();
    Configuration {
        state: state.into(),
        reason,
        identity: member.pod.identity.to_string(),
        scope: accepted.map(|scope| scope.name().to_owned()).unwrap_or_default(),
        refusals: refusals(member, rejections),
        istio_objects: accepted.map(objects).unwrap_or_default(),
        mutual_tls: accepted.map_or(MutualTls::Unspecified, mutual_tls).into(),
        acknowledged_unix_ms: member.accepted_unix_ms,
    }
}

fn state(member: &Member, rejections: &Rejections, obstacles: &Obstacles) -> (State, String) {
    match &obstacles.stream {
        Some((reason, true)) => (State::Denied, reason.clone()),
        Some((reason, false)) if member.desired.is_none() => (State::Waiting, reason.clone()),
        _ => answered(member, rejections, obstacles),
    }
}

/// The control plane's answer is here, or on its way.
fn answered(member: &Member, rejections: &Rejections, obstacles: &Obstacles) -> (State, String) {
    let Some(desired) = &member.desired else {
        return (State::Waiting, format!("awaited from istiod: {}", some(&member.sidecar.missing())));
    };
    let kept = match member.accepted {
        Some(_) => "the one before stays in force",
        None => "there is none before it",
    };
    if is_refused(desired, rejections) {
        return (State::Refused, format!("dpu-proxy refuses the newest configuration; {kept}"));
    }
    if !member.unfit.is_empty() {
        return (State::Refused, format!("what istiod sent cannot be served; of that {kept}"));
    }
    match &member.accepted {
        Some(accepted) if accepted.name() == desired.name() => (State::Accepted, String::new()),
        _ if obstacles.proxy_is_away => (State::Waiting, "dpu-proxy is not connected".to_owned()),
        _ => (State::Waiting, "dpu-proxy's answer is awaited".to_owned()),
    }
}

/// The first of them, and how many more there are.
fn some(all: &[String]) -> String {
    const TOLD: usize = 3;
    let told = all.iter().take(TOLD).cloned().collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(TOLD) {
        0 => told,
        more => format!("{told} and {more} more"),
    }
}

fn refusals(member: &Member, rejections: &Rejections) -> Vec<Refusal> {
    let by_proxy = rejections.iter().filter(|((type_url, name), _)| member.names(type_url, name));
    let by_proxy = by_proxy.map(|((_, name), reason)| Refusal { resource: name.clone(), reason: reason.clone() });
    let here = member.unfit.iter();
    let here = here.map(|((_, name), reason)| Refusal { resource: name.clone(), reason: reason.clone() });
    by_proxy.chain(here).collect()
}

/// Istio objects that the resources of a scope were made from, sorted.
pub fn objects(scope: &Assembly) -> Vec<String> {
    let all: BTreeSet<&String> = scope.contents().iter().flat_map(|content| &content.origin().objects).collect();
    all.into_iter().cloned().collect()
}

/// How the workload of a scope takes connections.
pub fn mutual_tls(scope: &Assembly) -> MutualTls {
    let told = scope.contents().iter().find_map(|content| content.origin().mutual_tls);
    told.unwrap_or(MutualTls::Unspecified)
}
