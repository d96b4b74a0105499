//! One call at a time for each container; calls for different containers run side by side.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Held while a call works on a container.
pub type Held = OwnedMutexGuard<()>;

/// Locks by container id. A lock exists for as long as somebody holds it or waits for it.
#[derive(Debug, Default)]
pub struct Locks {
    all: Mutex<HashMap<String, Weak<AsyncMutex<()>>>>,
}

impl Locks {
    /// Waits for its turn.
    pub async fn lock(&self, container_id: &str) -> Held {
        self.of(container_id).lock_owned().await
    }

    /// `None` when a call works on the container now.
    pub fn try_lock(&self, container_id: &str) -> Option<Held> {
        self.of(container_id).try_lock_owned().ok()
    }

    fn of(&self, container_id: &str) -> Arc<AsyncMutex<()>> {
        let mut all = self.guard();
        if let Some(lock) = all.get(container_id).and_then(Weak::upgrade) {
            return lock;
        }
        all.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        all.insert(container_id.to_owned(), Arc::downgrade(&lock));
        lock
    }

    fn guard(&self) -> MutexGuard<'_, HashMap<String, Weak<AsyncMutex<()>>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_container_has_one_call_at_a_time_and_others_are_not_kept_waiting() {
        let locks = Locks::default();
        let held = locks.lock("a").await;
        assert!(locks.try_lock("a").is_none());
        assert!(locks.try_lock("b").is_some());
        drop(held);
        assert!(locks.try_lock("a").is_some());
        locks.try_lock("c");
        assert!(locks.guard().len() <= 1, "what nobody holds is forgotten");
    }
}
