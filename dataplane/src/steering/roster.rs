//! Which of several connected proxies counts. Pure.
//!
//! In: what each proxy says, and that it goes. Out: whether that is in force, and what each must know of the others.
//! Proxies are ranked by when their process started, so that a dataplane that restarts in the middle of a takeover
//! still knows which one is new.

use mesh_api::steering::{Direction, Others};
use std::collections::{BTreeMap, BTreeSet};

/// Start of the process in milliseconds since 1970, then the order of connections. Greater is newer.
pub(super) type Rank = (u64, u64);

/// Which connections a socket takes: their direction, the port's id where they are of one, the IP version.
pub(super) type Listener = (Direction, String, u32);

/// The proxies that are connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Roster {
    proxies: BTreeMap<Rank, Proxy>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Proxy {
    listeners: BTreeSet<Listener>,
    /// What it said of ports last: ready for this workload, or why not.
    words: BTreeMap<String, Result<String, String>>,
    has_taken_over: bool,
    is_leaving: bool,
}

impl Proxy {
    fn is_ready(&self, port: &str, workload: &str) -> bool {
        matches!(self.words.get(port), Some(Ok(uid)) if uid == workload)
    }
}

impl Roster {
    /// A proxy says who it is.
    pub fn join(&mut self, rank: Rank) {
        self.proxies.entry(rank).or_default();
    }

    /// A proxy goes, or closes its listening sockets. Out: ports that nobody serves any more although somebody who is
    /// left could, with the reason; of what nobody has spoken, nothing is said.
    pub fn leave(&mut self, rank: Rank) -> Vec<(String, String)> {
        let Some(gone) = self.proxies.remove(&rank) else { return Vec::new() };
        let served = gone.words.into_iter().filter_map(|(port, word)| word.ok().map(|uid| (port, uid)));
        served.filter(|(port, uid)| !self.is_served(port, uid)).filter_map(|(port, _)| self.refusal(port)).collect()
    }

    /// It stays connected, but takes no new connections.
    pub fn stop_serving(&mut self, rank: Rank) -> Vec<(String, String)> {
        let lost = self.leave(rank);
        self.proxies.insert(rank, Proxy { is_leaving: true, ..Proxy::default() });
        lost
    }

    /// It serves all that older ones serve.
    pub fn take_over(&mut self, rank: Rank) {
        if let Some(proxy) = self.proxies.get_mut(&rank) {
            proxy.has_taken_over = true;
        }
    }

    /// A listening socket is registered. True when it counts: no newer proxy has one for the same.
    pub fn register(&mut self, rank: Rank, listener: Listener) -> bool {
        let is_newest = self.newer(rank).all(|proxy| !proxy.listeners.contains(&listener));
        if let Some(proxy) = self.proxies.get_mut(&rank) {
            proxy.listeners.insert(listener);
        }
        is_newest
    }

    /// A proxy speaks of a port, which has this workload now. True when it counts: one that is not ready counts only
    /// where no other is.
    pub fn say(&mut self, rank: Rank, port: &str, workload: &str, word: Result<String, String>) -> bool {
        let is_ready = word.is_ok();
        if let Some(proxy) = self.proxies.get_mut(&rank) {
            proxy.words.insert(port.to_owned(), word);
        }
        is_ready || !self.is_served(port, workload)
    }

    /// No newer one is ready for the port's workload.
    pub fn is_newest_ready(&self, rank: Rank, port: &str, workload: &str) -> bool {
        self.newer(rank).all(|proxy| !proxy.is_ready(port, workload))
    }

    /// A port is gone: what was said of it is of no account.
    pub fn forget(&mut self, port: &str) {
        for proxy in self.proxies.values_mut() {
            proxy.words.remove(port);
            proxy.listeners.retain(|(_, of, _)| of != port);
        }
    }

    /// What a proxy must know of the others.
    pub fn others(&self, rank: Rank) -> Others {
        let older = self.proxies.range(..rank).map(|(_, proxy)| proxy);
        let served = older.flat_map(|proxy| proxy.words.iter().filter(|(_, word)| word.is_ok()).map(|(port, _)| port));
        let served: BTreeSet<&String> = served.collect();
        Others {
            served_by_older: served.into_iter().cloned().collect(),
            is_newer_here: self.newer(rank).any(|proxy| !proxy.is_leaving),
            has_newer_taken_over: self.newer(rank).any(|proxy| !proxy.is_leaving && proxy.has_taken_over),
        }
    }

    fn newer(&self, rank: Rank) -> impl Iterator<Item = &Proxy> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.proxies.range((Excluded(rank), Unbounded)).map(|(_, proxy)| proxy)
    }

    fn is_served(&self, port: &str, workload: &str) -> bool {
        self.proxies.values().any(|proxy| proxy.is_ready(port, workload))
    }

    /// Why the newest that spoke of a port does not serve it.
    fn refusal(&self, port: String) -> Option<(String, String)> {
        let mut words = self.proxies.values().rev().filter_map(|proxy| proxy.words.get(&port));
        let reason = words.find_map(|word| word.clone().err())?;
        Some((port, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Rank = (1, 2);
    const NEW: Rank = (2, 1);

    fn both() -> Roster {
        let mut roster = Roster::default();
        roster.join(OLD);
        roster.join(NEW);
        roster
    }

    fn ready(roster: &mut Roster, rank: Rank) -> bool {
        roster.say(rank, "vf1", "uid", Ok("uid".to_owned()))
    }

    fn not_ready(roster: &mut Roster, rank: Rank) -> bool {
        roster.say(rank, "vf1", "uid", Err("no configuration yet".to_owned()))
    }

    #[test]
    fn a_new_proxy_that_is_not_ready_closes_no_port_of_the_old_one() {
        let mut roster = both();
        assert!(ready(&mut roster, OLD));
        assert!(!not_ready(&mut roster, NEW), "the old one serves it");
        assert_eq!(roster.others(NEW).served_by_older, ["vf1"]);
        assert_eq!(roster.leave(OLD), [("vf1".to_owned(), "no configuration yet".to_owned())]);
        assert!(ready(&mut roster, NEW));
        assert!(not_ready(&mut roster, NEW), "the only one counts");
    }

    #[test]
    fn the_newest_that_is_ready_for_this_workload_has_the_say() {
        let mut roster = both();
        ready(&mut roster, OLD);
        not_ready(&mut roster, NEW);
        assert!(roster.is_newest_ready(OLD, "vf1", "uid"));
        ready(&mut roster, NEW);
        assert!(!roster.is_newest_ready(OLD, "vf1", "uid") && roster.is_newest_ready(NEW, "vf1", "uid"));
        assert!(roster.is_newest_ready(OLD, "vf1", "other-uid"));
    }

    #[test]
    fn a_word_about_an_earlier_workload_of_a_port_is_of_no_account() {
        let mut roster = both();
        ready(&mut roster, OLD);
        assert!(roster.say(NEW, "vf1", "other-uid", Err("no configuration yet".to_owned())));
    }

    #[test]
    fn the_newest_process_has_the_listener_whoever_speaks_last() {
        let mut roster = both();
        let listener = || (Direction::Outbound, "vf1".to_owned(), 4);
        assert!(roster.register(OLD, listener()));
        assert!(roster.register(NEW, listener()));
        assert!(!roster.register(OLD, listener()));
        roster.leave(NEW);
        assert!(roster.register(OLD, listener()));
    }

    #[test]
    fn an_old_proxy_learns_of_its_successor_and_a_new_one_of_what_it_must_serve() {
        let mut roster = both();
        ready(&mut roster, OLD);
        assert_eq!(roster.others(OLD), Others { is_newer_here: true, ..Others::default() });
        ready(&mut roster, NEW);
        roster.take_over(NEW);
        assert!(roster.others(OLD).has_newer_taken_over);
        assert!(roster.stop_serving(OLD).is_empty(), "the new one serves it");
        assert_eq!(roster.others(NEW), Others::default());
        roster.leave(NEW);
        assert_eq!(roster.others(OLD), Others::default(), "it has died: there is no successor");
    }

    #[test]
    fn the_last_proxy_leaves_ports_as_they_are() {
        let mut roster = Roster::default();
        roster.join(OLD);
        ready(&mut roster, OLD);
        assert!(roster.stop_serving(OLD).is_empty());
        assert!(roster.leave(OLD).is_empty());
    }

    #[test]
    fn a_port_that_went_is_forgotten() {
        let mut roster = both();
        ready(&mut roster, OLD);
        roster.register(NEW, (Direction::Outbound, "vf1".to_owned(), 4));
        roster.forget("vf1");
        assert!(roster.others(NEW).served_by_older.is_empty());
        assert!(roster.register(OLD, (Direction::Outbound, "vf1".to_owned(), 4)));
    }
}
