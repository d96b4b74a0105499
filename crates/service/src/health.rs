//! Health: a program is alive when it answers, and ready when every condition that it named holds.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shared, cheap to clone.
#[derive(Clone, Debug)]
pub struct Health {
    program: &'static str,
    conditions: Arc<Mutex<BTreeMap<String, Result<(), String>>>>,
    /// Shown beside them.
    facts: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Health {
    /// Ready at once, until a condition is required.
    pub fn new(program: &'static str) -> Self {
        Self { program, conditions: Arc::default(), facts: Arc::default() }
    }

    /// The program's name.
    pub fn program(&self) -> &'static str {
        self.program
    }

    /// Names conditions that must hold; each is "not yet" until `set`.
    pub fn require(&self, conditions: &[&str]) {
        let mut all = self.lock();
        for condition in conditions {
            all.entry((*condition).to_owned()).or_insert_with(|| Err("not yet".to_owned()));
        }
    }

    /// Says whether a condition holds, or why not.
    pub fn set(&self, condition: &str, state: Result<(), String>) {
        let previous = self.lock().insert(condition.to_owned(), state.clone());
        if previous.as_ref() != Some(&state) {
            log_change(condition, &state);
        }
    }

    /// Why a condition does not hold; `None` when it does, or nobody asked for it.
    pub fn reason(&self, condition: &str) -> Option<String> {
        self.lock().get(condition)?.clone().err()
    }

    /// Shows a fact that makes the program neither ready nor not, e.g. who leads.
    pub fn tell(&self, what: &str, text: &str) {
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        facts.insert(what.to_owned(), text.to_owned());
    }

    /// `Ok` when all hold, else every condition with its state, a line each.
    pub fn ready(&self) -> Result<String, String> {
        let all = self.lock();
        let mut text = String::new();
        for (condition, state) in all.iter() {
            let state = state.as_ref().map_or_else(|reason| format!("NOT READY: {reason}"), |()| "ok".to_owned());
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{condition}: {state}");
        }
        for (what, fact) in self.facts.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(text, "{what}: {fact}");
        }
        match all.values().all(Result::is_ok) {
            true => Ok(text),
            false => Err(text),
        }
    }

    /// Conditions that do not hold, each with its reason, `CONDITION: REASON`.
    pub fn problems(&self) -> Vec<String> {
        let told = |(condition, state): (&String, &Result<(), String>)| {
            state.as_ref().err().map(|reason| format!("{condition}: {reason}"))
        };
        self.lock().iter().filter_map(told).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Result<(), String>>> {
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log_change(condition: &str, state: &Result<(), String>) {
    match state {
        Ok(()) => tracing::info!(condition, "condition holds"),
        Err(reason) => tracing::warn!(condition, reason, "condition does not hold"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_ready_when_every_condition_that_it_named_holds() {
        let health = Health::new("test");
        assert!(health.ready().is_ok());
        health.require(&["istiod", "proxy"]);
        health.set("istiod", Ok(()));
        let reasons = health.ready().expect_err("proxy is missing");
        assert!(reasons.contains("proxy: NOT READY: not yet"), "{reasons}");
        assert_eq!((health.reason("proxy").as_deref(), health.reason("istiod")), (Some("not yet"), None));
        assert_eq!(health.problems(), ["proxy: not yet"]);
        health.set("proxy", Ok(()));
        assert!(health.ready().is_ok());
        health.set("istiod", Err("connection refused".to_owned()));
        assert!(health.ready().expect_err("istiod went away").contains("connection refused"));
        health.set("istiod", Ok(()));
        health.tell("leader", "another");
        assert!(health.ready().expect("a fact is no condition").contains("leader: another"));
    }
}
