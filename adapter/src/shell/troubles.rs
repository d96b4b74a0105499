//! What went wrong on the way to a workload's stream, by identity: what the certificate service said, and
//! how connecting went. Each step keeps its last word only, and every change is logged once.

use mesh_model::Identity;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The steps before a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Certificate,
    Connection,
}

/// How long a refusal may be that of a control plane which has not seen the pod yet.
pub const FRESH: Duration = Duration::from_secs(3);

/// Why a step failed last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub reason: String,
    /// It was refused; to try again helps only when something has changed.
    pub is_denied: bool,
    /// When that was said first.
    pub since: Instant,
}

impl Trouble {
    /// A reason from now on.
    pub fn new(reason: String, is_denied: bool) -> Self {
        Self { reason, is_denied, since: Instant::now() }
    }

    /// It is refused, and has been for long enough to mean it.
    pub fn is_settled_denial(&self, now: Instant) -> bool {
        self.is_denied && now >= self.since + FRESH
    }

    fn says_the_same(&self, other: &Self) -> bool {
        (&self.reason, self.is_denied) == (&other.reason, other.is_denied)
    }
}

/// Of all identities. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Troubles {
    all: Arc<Mutex<BTreeMap<(Identity, Step), Trouble>>>,
    changed: Arc<Notify>,
}

impl Troubles {
    /// How a step went: a reason, and whether it was refused.
    pub fn note(&self, identity: &Identity, step: Step, outcome: Result<(), (String, bool)>) {
        let key = (identity.clone(), step);
        let trouble = outcome.err().map(|(reason, is_denied)| Trouble::new(reason, is_denied));
        if self.replace(key, trouble.clone()) {
            match &trouble {
                Some(Trouble { reason, is_denied, .. }) => {
                    tracing::warn!(%identity, ?step, is_denied, reason, "it failed");
                }
                None => tracing::info!(%identity, ?step, "it works again"),
            }
            self.changed.notify_one();
        }
    }

    /// Whether that is something new.
    fn replace(&self, key: (Identity, Step), trouble: Option<Trouble>) -> bool {
        let mut all = self.lock();
        match (all.get(&key), trouble) {
            (None, None) => false,
            (Some(before), Some(trouble)) if before.says_the_same(&trouble) => false,
            (_, Some(trouble)) => {
                all.insert(key, trouble);
                true
            }
            (Some(_), None) => all.remove(&key).is_some(),
        }
    }

    /// The trouble of an identity: the first step that fails.
    pub fn of(&self, identity: &Identity) -> Option<Trouble> {
        let all = self.lock();
        let of = |step| all.get(&(identity.clone(), step)).cloned();
        of(Step::Certificate).or_else(|| of(Step::Connection))
    }

    /// Forgets identities that are gone.
    pub fn retain(&self, identities: &BTreeSet<Identity>) {
        self.lock().retain(|(identity, _), _| identities.contains(identity));
    }

    /// Until something changes. For one waiter.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Identity, Step), Trouble>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_has_the_trouble_of_its_first_step_that_fails() {
        let (troubles, one) = (Troubles::default(), Identity::new("td", "ns", "one").expect("valid"));
        troubles.note(&one, Step::Connection, Err(("expired".to_owned(), true)));
        troubles.note(&one, Step::Certificate, Err(("unreachable".to_owned(), false)));
        let first = troubles.of(&one).expect("the certificate");
        assert_eq!((first.reason.as_str(), first.is_denied), ("unreachable", false));
        assert_eq!(troubles.of(&Identity::new("td", "ns", "two").expect("valid")), None);
        troubles.note(&one, Step::Certificate, Ok(()));
        assert_eq!(troubles.of(&one).expect("connection").reason, "expired");
        let (refused, now) = (troubles.of(&one).expect("refused"), Instant::now());
        assert!(!refused.is_settled_denial(now) && refused.is_settled_denial(now + FRESH));
        troubles.note(&one, Step::Connection, Err(("expired".to_owned(), true)));
        assert_eq!(troubles.of(&one).expect("again").since, refused.since, "what is said again is not new");
        troubles.retain(&BTreeSet::new());
        assert_eq!(troubles.of(&one), None);
    }
}
