//! Who leads, by a Lease. Pure: the lease as it is and the time come in, what to do comes out.
//!
//! As in client-go, clocks of machines are never compared: a lease has run out when nobody changed it
//! for its duration, measured here.

use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use std::time::{Duration, Instant};

/// How long a lease stands without renewal.
pub const DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for this long leads no more; well before another may take over.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often the lease is looked at.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// One that would lead.
#[derive(Debug)]
pub struct Candidate {
    name: String,
    /// The lease as it was seen last, and since when.
    seen: Option<(LeaseSpec, Instant)>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Write this: with it, this candidate leads (on).
    Write(Box<LeaseSpec>),
    /// Another leads.
    Wait { leader: String },
}

impl Candidate {
    /// By the name of its replica.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), seen: None }
    }

    /// With the lease as it is; `None` when there is none.
    pub fn step(&mut self, lease: Option<&LeaseSpec>, now: Instant, wall_clock: Timestamp) -> Step {
        let Some(lease) = lease else { return Step::Write(Box::new(self.taken(None, wall_clock))) };
        let holder = lease.holder_identity.as_deref().unwrap_or_default();
        if holder == self.name {
            let renewed = LeaseSpec { renew_time: Some(MicroTime(wall_clock)), ..lease.clone() };
            return Step::Write(Box::new(renewed));
        }
        if holder.is_empty() || self.has_run_out(lease, now) {
            return Step::Write(Box::new(self.taken(Some(lease), wall_clock)));
        }
        Step::Wait { leader: holder.to_owned() }
    }

    fn has_run_out(&mut self, lease: &LeaseSpec, now: Instant) -> bool {
        match &self.seen {
            Some((seen, since)) if seen == lease => {
                let seconds = lease.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
                now.duration_since(*since) > seconds.map_or(DURATION, Duration::from_secs)
            }
            _ => {
                self.seen = Some((lease.clone(), now));
                false
            }
        }
    }

    fn taken(&self, from: Option<&LeaseSpec>, wall_clock: Timestamp) -> LeaseSpec {
        let transitions = from.map(|lease| lease.lease_transitions.unwrap_or(0).saturating_add(1));
        LeaseSpec {
            holder_identity: Some(self.name.clone()),
            lease_duration_seconds: Some(DURATION.as_secs() as i32),
            acquire_time: Some(MicroTime(wall_clock)),
            renew_time: Some(MicroTime(wall_clock)),
            lease_transitions: Some(transitions.unwrap_or(0)),
            ..LeaseSpec::default()
        }
    }

    /// The lease given back, so that nobody waits for it to run out; `None` if it is not held.
    pub fn released(&self, lease: &LeaseSpec) -> Option<LeaseSpec> {
        let is_held = lease.holder_identity.as_deref() == Some(self.name.as_str());
        is_held.then(|| LeaseSpec { holder_identity: None, lease_duration_seconds: Some(1), ..lease.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wall(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("time")
    }

    fn written(step: Step) -> LeaseSpec {
        match step {
            Step::Write(lease) => *lease,
            Step::Wait { leader } => panic!("{leader} leads"),
        }
    }

    #[test]
    fn the_first_takes_it_renews_it_and_the_second_waits() {
        let (mut one, mut two, start) = (Candidate::new("one"), Candidate::new("two"), Instant::now());
        let lease = written(one.step(None, start, wall(0)));
        assert_eq!(lease.holder_identity.as_deref(), Some("one"));
        assert_eq!(two.step(Some(&lease), start, wall(0)), Step::Wait { leader: "one".to_owned() });
        let renewed = written(one.step(Some(&lease), start, wall(5)));
        assert_eq!(
            (renewed.acquire_time.clone(), renewed.renew_time.clone()),
            (lease.acquire_time, Some(MicroTime(wall(5))))
        );
        // It was renewed while the second did not look: it waits anew, whatever the clocks say.
        let late = start + DURATION * 2;
        assert_eq!(two.step(Some(&renewed), late, wall(500)), Step::Wait { leader: "one".to_owned() });
    }

    #[test]
    fn a_lease_that_nobody_renews_runs_out_and_changes_hands() {
        let (mut two, start) = (Candidate::new("two"), Instant::now());
        let lease = written(Candidate::new("one").step(None, start, wall(0)));
        assert!(matches!(two.step(Some(&lease), start, wall(0)), Step::Wait { .. }));
        assert!(matches!(two.step(Some(&lease), start + DURATION, wall(15)), Step::Wait { .. }));
        let taken = written(two.step(Some(&lease), start + DURATION + Duration::from_millis(1), wall(15)));
        assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("two"), Some(1)));
        assert!(RENEW_DEADLINE + RETRY_INTERVAL < DURATION, "the old leader has stopped by then");
    }

    #[test]
    fn a_lease_that_was_given_back_is_taken_at_once_and_only_by_its_holder_given_back() {
        let (mut two, start) = (Candidate::new("two"), Instant::now());
        let lease = written(Candidate::new("one").step(None, start, wall(0)));
        assert_eq!(two.released(&lease), None);
        let released = Candidate::new("one").released(&lease).expect("held");
        assert_eq!(written(two.step(Some(&released), start, wall(1))).holder_identity.as_deref(), Some("two"));
    }
}
