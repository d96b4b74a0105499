//! How each workload stands with the control plane: connected, or what stands in the way.

use super::Shared;
use super::troubles::Trouble;
use crate::translate::aggregate::Member;
use std::time::Instant;

/// What keeps a workload's stream from being open; `None` when it is.
pub(super) fn obstacle(shared: &Shared, member: &Member) -> Option<Trouble> {
    let (stream, identity) = (&member.stream, &member.pod.identity);
    if stream.is_connected {
        return None;
    }
    let failed = || Trouble {
        reason: stream.error.clone(),
        is_denied: stream.denied_since.is_some(),
        since: stream.denied_since.unwrap_or_else(Instant::now),
    };
    let waiting = |reason: String| Trouble::new(reason, false);
    let trouble = shared.troubles.of(identity).or_else(|| (!stream.error.is_empty()).then(failed));
    trouble.or_else(|| match (shared.keys.is_connected(), shared.keys.get(identity)) {
        (false, _) => Some(waiting(format!("dpu-proxy, which holds the key of {identity}, is not connected"))),
        (true, None) => Some(waiting(format!("the certificate of {identity} is awaited"))),
        (true, Some(_)) => Some(waiting("the control plane's answer is awaited".to_owned())),
    })
}

/// Whether the control plane serves this node at all; what stands in the way of a single workload is told by
/// `/workloads` and by its report. The text changes with the reason only: it is logged when it changes.
pub(super) fn control_plane(shared: &Shared) -> Result<(), String> {
    let aggregate = shared.aggregate();
    if aggregate.connected() > 0 {
        return Ok(());
    }
    let obstacles = || aggregate.members.values().filter_map(|member| obstacle(shared, member));
    // Of several, one that was not refused says most about the control plane.
    let told = obstacles().find(|trouble| !trouble.is_denied).or_else(|| obstacles().next());
    told.map_or(Ok(()), |trouble| {
        Err(format!("no workload's stream is open, see /workloads; the first: {}", trouble.reason))
    })
}
