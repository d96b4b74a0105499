//! How each workload stands with the control plane: connected, or what stands in the way.

use super::Shared;
use super::troubles::Trouble;
use crate::translate::aggregate::Member;

/// What keeps a workload's stream from being open; `None` when it is.
pub(super) fn obstacle(shared: &Shared, member: &Member) -> Option<Trouble> {
    let (stream, identity) = (&member.stream, &member.pod.identity);
    if stream.is_connected {
        return None;
    }
    let failed = || Trouble { reason: stream.error.clone(), is_denied: stream.is_denied };
    let waiting = |reason: String| Trouble { reason, is_denied: false };
    let trouble = shared.troubles.of(identity).or_else(|| (!stream.error.is_empty()).then(failed));
    trouble.or_else(|| match (shared.keys.is_connected(), shared.keys.get(identity)) {
        (false, _) => Some(waiting(format!("dpu-proxy, which holds the key of {identity}, is not connected"))),
        (true, None) => Some(waiting(format!("the certificate of {identity} is awaited"))),
        (true, Some(_)) => Some(waiting("the control plane's answer is awaited".to_owned())),
    })
}

/// Whether the control plane serves this node: every workload that it does not refuse.
pub(super) fn control_plane(shared: &Shared) -> Result<(), String> {
    let aggregate = shared.aggregate();
    let obstacles: Vec<(String, Trouble)> = aggregate
        .members
        .values()
        .filter_map(|member| obstacle(shared, member).map(|trouble| (member.pod.name(), trouble)))
        .collect();
    let (all, connected) = (aggregate.members(), aggregate.connected());
    drop(aggregate);
    let is_served = connected > 0 && obstacles.iter().all(|(_, trouble)| trouble.is_denied);
    // Of several, one that may pass says most about the control plane.
    let told = obstacles.iter().find(|(_, trouble)| !trouble.is_denied).or(obstacles.first());
    match told {
        Some((pod, trouble)) if !is_served => {
            let text = "workload streams are open; see /workloads.";
            Err(format!("{connected} of {all} {text} {pod}: {}", trouble.reason))
        }
        _ => Ok(()),
    }
}
