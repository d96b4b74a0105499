//! When to publish: once the control plane pauses, or a burst has lasted long enough. One push of
//! the control plane is several responses; a scope made in the middle of it would mix old and new.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A pause of this length ends a push.
const PAUSE: Duration = Duration::from_millis(30);
/// A push that lasts longer is published as it stands.
const LONGEST: Duration = Duration::from_millis(300);

/// Workloads with unpublished changes.
#[derive(Debug, Default)]
pub struct Quiet {
    /// First and last change.
    dirty: BTreeMap<String, (Instant, Instant)>,
}

impl Quiet {
    /// Something changed for a workload.
    pub fn touch(&mut self, uid: &str, now: Instant) {
        self.dirty.entry(uid.to_owned()).or_insert((now, now)).1 = now;
    }

    /// When the next workload is due.
    pub fn next(&self) -> Option<Instant> {
        self.dirty.values().map(due).min()
    }

    /// Workloads that are due; they are no longer remembered.
    pub fn take_due(&mut self, now: Instant) -> Vec<String> {
        let is_due = |times: &(Instant, Instant)| due(times) <= now;
        let ready: Vec<String> =
            self.dirty.iter().filter(|(_, times)| is_due(times)).map(|(uid, _)| uid.clone()).collect();
        self.dirty.retain(|_, times| !is_due(times));
        ready
    }
}

fn due((first, last): &(Instant, Instant)) -> Instant {
    (*last + PAUSE).min(*first + LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_published_once_after_a_pause_or_when_it_lasts_too_long() {
        let (mut quiet, start) = (Quiet::default(), Instant::now());
        quiet.touch("a", start);
        quiet.touch("a", start + PAUSE / 2);
        assert!(quiet.take_due(start + PAUSE).is_empty());
        assert_eq!(quiet.take_due(start + PAUSE * 2), ["a"]);
        assert_eq!(quiet.next(), None);
        for step in 0..20 {
            quiet.touch("b", start + PAUSE / 2 * step);
        }
        assert_eq!(quiet.next(), Some(start + LONGEST.min(PAUSE / 2 * 19 + PAUSE)));
    }
}
