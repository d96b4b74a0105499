//! What went wrong on the way to a workload's stream, by identity: what the certificate service said, and
//! how connecting went. Each step keeps its last word only, and every change is logged once.

use mesh_model::Identity;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The steps before a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Certificate,
    Connection,
}

/// Why a step failed last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub reason: String,
    /// It was refused; to try again helps only when something has changed.
    pub is_denied: bool,
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
        let trouble = outcome.err().map(|(reason, is_denied)| Trouble { reason, is_denied });
        let before = match &trouble {
            Some(trouble) => self.lock().insert(key, trouble.clone()),
            None => self.lock().remove(&key),
        };
        if before == trouble {
            return;
        }
        match &trouble {
            Some(Trouble { reason, is_denied }) => tracing::warn!(%identity, ?step, is_denied, reason, "it failed"),
            None => tracing::info!(%identity, ?step, "it works again"),
        }
        self.changed.notify_one();
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
        assert_eq!(troubles.of(&one), Some(Trouble { reason: "unreachable".to_owned(), is_denied: false }));
        assert_eq!(troubles.of(&Identity::new("td", "ns", "two").expect("valid")), None);
        troubles.note(&one, Step::Certificate, Ok(()));
        assert_eq!(troubles.of(&one).expect("connection").reason, "expired");
        troubles.retain(&BTreeSet::new());
        assert_eq!(troubles.of(&one), None);
    }
}
