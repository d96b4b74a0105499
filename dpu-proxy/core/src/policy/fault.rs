//! Injected faults: whether a request is delayed, and whether it is then aborted.

use crate::head::RequestHead;
use crate::matching::{header, route};
use crate::model::{Fault, FaultStatus};
use std::time::Duration;

/// Body of an abort.
pub const ABORT_BODY: &str = "fault filter abort";
/// `%RESPONSE_CODE_DETAILS%` of an abort.
pub const ABORT_DETAILS: &str = "fault_filter_abort";

/// What to inject: first the delay, then the abort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultDecision {
    pub delay: Option<Duration>,
    pub abort: Option<FaultStatus>,
}

/// Decides for a request to `cluster`, while `active` requests have a fault injected. `random` is one
/// number for the delay and one for the abort.
pub fn decide(fault: &Fault, head: &RequestHead, cluster: &str, active: u32, random: [u64; 2]) -> FaultDecision {
    let is_full = fault.max_active_faults.is_some_and(|limit| active >= limit);
    let is_other_cluster = !fault.upstream_cluster.is_empty() && fault.upstream_cluster != cluster;
    if is_full || is_other_cluster || !header::all(&fault.headers, head) {
        return FaultDecision::default();
    }
    let delay = fault.delay.as_ref().filter(|delay| route::hit(delay.percentage, random[0]));
    let abort = fault.abort.as_ref().filter(|abort| route::hit(abort.percentage, random[1]));
    FaultDecision { delay: delay.map(|delay| delay.fixed), abort: abort.map(|abort| abort.status) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FaultAbort, FaultDelay, Fraction, HeaderMatcher, HeaderValueMatch};

    fn fault(delay_percent: u32, abort_percent: u32) -> Fault {
        let percent = |numerator| Fraction { numerator, denominator: 100 };
        Fault {
            delay: Some(FaultDelay { fixed: Duration::from_secs(7), percentage: percent(delay_percent) }),
            abort: Some(FaultAbort { status: FaultStatus::Http(418), percentage: percent(abort_percent) }),
            ..Fault::default()
        }
    }

    #[test]
    fn delay_and_abort_are_drawn_apart() {
        let head = RequestHead::default();
        let at = |random| decide(&fault(100, 10), &head, "a", 0, random);
        assert_eq!(at([99, 9]).abort, Some(FaultStatus::Http(418)));
        assert_eq!(at([99, 10]), FaultDecision { delay: Some(Duration::from_secs(7)), abort: None });
        assert_eq!(decide(&fault(0, 0), &head, "a", 0, [0, 0]), FaultDecision::default());
    }

    #[test]
    fn headers_cluster_and_the_number_of_active_faults_limit_it() {
        let present = HeaderMatcher {
            name: "end-user".into(),
            value: HeaderValueMatch::Present(true),
            invert: false,
            treat_missing_as_empty: false,
        };
        let limited = Fault {
            headers: vec![present],
            upstream_cluster: "a".into(),
            max_active_faults: Some(1),
            ..fault(100, 100)
        };
        let none = FaultDecision::default();
        let mut head = RequestHead::default();
        assert_eq!(decide(&limited, &head, "a", 0, [0, 0]), none);
        head.headers.append(b"end-user", b"jason");
        assert_ne!(decide(&limited, &head, "a", 0, [0, 0]), none);
        assert_eq!(decide(&limited, &head, "b", 0, [0, 0]), none);
        assert_eq!(decide(&limited, &head, "a", 1, [0, 0]), none);
    }
}
