//! One proxy follows another on a DPU without a pause; pure, time is passed in.
//!
//! `Arrival`: a new process opens the socket for connections from the fabric only when it can serve all that it will
//! get there, for until then an older one does. `Departure`: a process that was told to stop serves on until a newer
//! one has taken over, then closes its listening sockets and lets its connections finish.

use crate::steering::Others;
use std::time::{Duration, Instant};

/// What an older proxy serves and we cannot is not waited for any longer.
const SUCCEED_LIMIT: Duration = Duration::from_secs(20);
/// Alone on the DPU: a workload that never becomes complete must not keep the others from being reached.
const ALONE_LIMIT: Duration = Duration::from_secs(2);
/// A newer proxy that is here, but has not taken over by then, is not waited for.
const SUCCESSOR_LIMIT: Duration = Duration::from_secs(30);

/// The beginning of a process's life.
#[derive(Debug, Default)]
pub(super) struct Arrival {
    /// When the dataplane first spoke.
    since: Option<Instant>,
    is_over: bool,
}

impl Arrival {
    /// The dataplane has spoken.
    pub fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// Whether all is open from now on, which is never taken back. `is_complete`: everything that is expected of this
    /// process it can serve.
    pub fn step(&mut self, now: Instant, others: &Others, is_complete: bool) -> bool {
        let is_late = self.deadline(others).is_some_and(|deadline| now >= deadline);
        self.is_over |= self.since.is_some() && (is_complete || is_late);
        self.is_over
    }

    /// When to look again.
    pub fn deadline(&self, others: &Others) -> Option<Instant> {
        let limit = if others.served_by_older.is_empty() { ALONE_LIMIT } else { SUCCEED_LIMIT };
        self.since.filter(|_| !self.is_over).map(|since| since + limit)
    }
}

/// Limits of the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How long to serve on while no newer proxy is here.
    pub successor_wait: Duration,
    /// How long connections may go on once nothing new is accepted.
    pub drain_time: Duration,
}

/// The end of a process's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Departure {
    /// Nobody has told it to stop.
    #[default]
    None,
    /// It was told, and serves on.
    Waiting { since: Instant },
    /// Its listening sockets are closed.
    Draining { since: Instant },
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Stay,
    CloseListeners,
    End,
}

impl Departure {
    /// It was told to stop.
    pub fn begin(&mut self, now: Instant) {
        if *self == Self::None {
            *self = Self::Waiting { since: now };
        }
    }

    /// Goes on by one step. `connections` are those that are open.
    pub fn step(&mut self, now: Instant, others: &Others, connections: u64, limits: Limits) -> Step {
        match *self {
            Self::Waiting { .. } if others.has_newer_taken_over || self.is_late(now, others, limits) => {
                *self = Self::Draining { since: now };
                Step::CloseListeners
            }
            Self::Draining { .. } if connections == 0 || self.is_late(now, others, limits) => Step::End,
            _ => Step::Stay,
        }
    }

    fn is_late(self, now: Instant, others: &Others, limits: Limits) -> bool {
        self.deadline(others, limits).is_some_and(|deadline| now >= deadline)
    }

    /// When to look again at the latest.
    pub fn deadline(self, others: &Others, limits: Limits) -> Option<Instant> {
        match self {
            Self::None => None,
            Self::Waiting { since } if others.is_newer_here => Some(since + SUCCESSOR_LIMIT),
            Self::Waiting { since } => Some(since + limits.successor_wait),
            Self::Draining { since } => Some(since + limits.drain_time),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_model::PortId;
    use std::collections::BTreeSet;

    const LIMITS: Limits = Limits { successor_wait: Duration::from_secs(5), drain_time: Duration::from_secs(60) };

    fn seconds(after: Instant, count: u64) -> Instant {
        after + Duration::from_secs(count)
    }

    fn older() -> Others {
        Others { served_by_older: BTreeSet::from([PortId("vf1".to_owned())]), ..Others::default() }
    }

    fn newer(has_newer_taken_over: bool) -> Others {
        Others { is_newer_here: true, has_newer_taken_over, ..Others::default() }
    }

    #[test]
    fn a_new_proxy_opens_when_it_can_serve_what_the_old_one_does_or_when_that_takes_too_long() {
        let start = Instant::now();
        let mut arrival = Arrival::default();
        assert!(!arrival.step(start, &older(), true), "the dataplane has not spoken");
        arrival.begin(start);
        assert!(!arrival.step(seconds(start, 19), &older(), false));
        assert!(arrival.step(seconds(start, 19), &older(), true));
        assert!(arrival.step(seconds(start, 19), &older(), false), "it is not taken back");
        let mut late = Arrival::default();
        late.begin(start);
        assert_eq!(late.deadline(&older()), Some(seconds(start, 20)));
        assert!(late.step(seconds(start, 20), &older(), false));
    }

    #[test]
    fn a_proxy_that_is_alone_does_not_wait_long_for_a_workload() {
        let start = Instant::now();
        let mut arrival = Arrival::default();
        arrival.begin(start);
        assert!(!arrival.step(seconds(start, 1), &Others::default(), false));
        assert!(arrival.step(seconds(start, 2), &Others::default(), false));
        assert_eq!(arrival.deadline(&Others::default()), None);
    }

    #[test]
    fn a_proxy_that_is_told_to_stop_serves_on_until_another_has_taken_over() {
        let start = Instant::now();
        let mut departure = Departure::default();
        assert_eq!(departure.step(start, &newer(true), 3, LIMITS), Step::Stay, "nobody has told it");
        departure.begin(start);
        assert_eq!(departure.step(seconds(start, 4), &Others::default(), 3, LIMITS), Step::Stay);
        assert_eq!(departure.step(seconds(start, 9), &newer(false), 3, LIMITS), Step::Stay, "one is coming");
        assert_eq!(departure.step(seconds(start, 10), &newer(true), 3, LIMITS), Step::CloseListeners);
        assert_eq!(departure.step(seconds(start, 11), &newer(true), 1, LIMITS), Step::Stay);
        assert_eq!(departure.step(seconds(start, 12), &newer(true), 0, LIMITS), Step::End);
    }

    #[test]
    fn nobody_is_waited_for_forever() {
        let start = Instant::now();
        let mut alone = Departure::Waiting { since: start };
        assert_eq!(alone.step(seconds(start, 5), &Others::default(), 1, LIMITS), Step::CloseListeners);
        assert_eq!(alone.step(seconds(start, 64), &Others::default(), 1, LIMITS), Step::Stay);
        assert_eq!(alone.step(seconds(start, 65), &Others::default(), 1, LIMITS), Step::End);
        let mut hopeless = Departure::Waiting { since: start };
        assert_eq!(hopeless.deadline(&newer(false), LIMITS), Some(seconds(start, 30)));
        assert_eq!(hopeless.step(seconds(start, 30), &newer(false), 1, LIMITS), Step::CloseListeners);
    }

    #[test]
    fn to_be_told_twice_changes_nothing() {
        let start = Instant::now();
        let mut departure = Departure::default();
        departure.begin(start);
        departure.begin(seconds(start, 3));
        assert_eq!(departure, Departure::Waiting { since: start });
    }
}
