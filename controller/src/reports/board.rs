//! The newest of what nodes told, and what of it is not written yet. Pure.

use super::{Part, Target};
use mesh_api::report::workload_report::Part as WorkloadPart;
use mesh_api::report::{NodeReport, Report, WorkloadReport, node_report};
use std::collections::{BTreeMap, BTreeSet};

/// Everything that is told here.
#[derive(Debug, Default)]
pub struct Board {
    programs: BTreeMap<(Part, String), Program>,
    /// Number of the last message.
    sequence: u64,
    /// What is to be written, with the message that said so.
    dirty: BTreeMap<Target, u64>,
    /// The same, being written now.
    writing: BTreeMap<Target, u64>,
    /// What cannot be written until the tables change: its object is not known.
    waiting: BTreeSet<Target>,
    /// What may not be written.
    forbidden: BTreeSet<Target>,
}

#[derive(Debug, Default)]
struct Program {
    /// The stream that counts.
    session: u64,
    connected: bool,
    node: Option<NodeReport>,
    /// It is only to be written again.
    again: bool,
    workloads: BTreeMap<(String, String), WorkloadReport>,
}

/// What should be written of a target.
#[derive(Clone, Debug, PartialEq)]
pub enum Wanted {
    /// As it was told last; `connected` is false when the program went away, `again` is true when it
    /// was written before and told nothing since.
    Node {
        report: NodeReport,
        connected: bool,
        again: bool,
    },
    Workload(WorkloadReport),
    /// It is gone.
    Nothing,
}

impl Board {
    /// A stream begins. Its number tells it from an older one of the same program.
    pub fn connect(&mut self, part: Part, node: &str) -> u64 {
        let program = self.programs.entry((part, node.to_owned())).or_default();
        program.session += 1;
        program.connected = true;
        program.session
    }

    /// A stream ended a while ago. Nothing happens if another took its place.
    pub fn disconnected(&mut self, part: Part, node: &str, session: u64) {
        let Some(program) = self.programs.get_mut(&(part, node.to_owned())) else { return };
        if program.session == session {
            program.connected = false;
            self.sequence += 1;
            self.dirty.insert(Target::Node { part, node: node.to_owned() }, self.sequence);
        }
    }

    /// Takes a message; returns its number. What the program may not tell is left out.
    pub fn take(&mut self, part: Part, node: &str, report: Report) -> u64 {
        self.sequence += 1;
        let program = self.programs.entry((part, node.to_owned())).or_default();
        let mut changed = BTreeSet::new();
        let told = report.workloads.into_iter().filter(|workload| owns(part, workload));
        let told: BTreeMap<_, _> = told.map(|workload| (name_of(&workload), workload)).collect();
        let mut removed: BTreeSet<_> = report.removed.iter().filter_map(|path| split(path)).collect();
        if report.snapshot {
            removed.extend(program.workloads.keys().filter(|name| !told.contains_key(*name)).cloned());
        }
        for name in removed {
            if program.workloads.remove(&name).is_some() {
                changed.insert(name);
            }
        }
        for (name, workload) in told {
            if program.workloads.get(&name) != Some(&workload) {
                program.workloads.insert(name.clone(), workload);
                changed.insert(name);
            }
        }
        let status = report.node.filter(|status| owns_node(part, status));
        // After a reconnect it says again that it is there.
        if status.is_some() && (report.snapshot || program.node != status) {
            program.node = status;
            program.again = false;
            self.dirty.insert(Target::Node { part, node: node.to_owned() }, self.sequence);
        }
        for (namespace, name) in changed {
            self.dirty.insert(Target::Workload { part, node: node.to_owned(), namespace, name }, self.sequence);
        }
        self.sequence
    }

    /// All that is to be written now.
    pub fn start_writing(&mut self) -> Vec<Target> {
        let targets: Vec<Target> = self.dirty.keys().cloned().collect();
        self.writing.append(&mut self.dirty);
        targets
    }

    /// It is written, or never will be.
    pub fn written(&mut self, target: &Target) {
        self.writing.remove(target);
        self.waiting.remove(target);
        self.forbidden.remove(target);
    }

    /// It must be tried again.
    pub fn failed(&mut self, target: Target) {
        if let Some(sequence) = self.writing.remove(&target) {
            self.dirty.entry(target).or_insert(sequence);
        }
    }

    /// Its object is not known yet; nobody waits for it meanwhile.
    pub fn postponed(&mut self, target: Target) {
        self.writing.remove(&target);
        self.waiting.insert(target);
    }

    /// It may not be written for now; nobody waits for it meanwhile.
    pub fn forbidden(&mut self, target: Target) {
        self.writing.remove(&target);
        self.forbidden.insert(target);
    }

    /// The tables changed: what was postponed may work now.
    pub fn tables_changed(&mut self) {
        for target in std::mem::take(&mut self.waiting) {
            self.dirty.entry(target).or_insert(self.sequence);
        }
    }

    /// What is said of all configurations may be another now, though nobody told anything.
    pub fn configurations_changed(&mut self) {
        for ((part, node), program) in self.programs.iter().filter(|((part, _), _)| *part == Part::Proxy) {
            for (namespace, name) in program.workloads.keys().cloned() {
                let target = Target::Workload { part: *part, node: node.clone(), namespace, name };
                self.dirty.entry(target).or_insert(self.sequence);
            }
        }
    }

    /// The same of one, as a node tells it.
    pub fn configuration_changed(&mut self, node: &str, namespace: &str, name: &str) {
        let place = (namespace.to_owned(), name.to_owned());
        let program = self.programs.get(&(Part::Proxy, node.to_owned()));
        if program.is_some_and(|program| program.workloads.contains_key(&place)) {
            let (namespace, name) = place;
            let target = Target::Workload { part: Part::Proxy, node: node.to_owned(), namespace, name };
            self.dirty.entry(target).or_insert(self.sequence);
        }
    }

    /// Nodes are written again, since what somebody removed comes back; so is what was forbidden.
    pub fn refresh(&mut self) {
        for target in std::mem::take(&mut self.forbidden) {
            self.dirty.entry(target).or_insert(self.sequence);
        }
        let present = self.programs.iter_mut().filter(|(_, program)| program.connected && program.node.is_some());
        for ((part, node), program) in present {
            let target = Target::Node { part: *part, node: node.clone() };
            // What is still to be written for the first time is told anyway.
            self.dirty.entry(target).or_insert_with(|| {
                program.again = true;
                self.sequence
            });
        }
    }

    /// Whether there is anything to be written.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Every message up to this one is written.
    pub fn done(&self) -> u64 {
        let oldest = self.dirty.values().chain(self.writing.values()).min();
        oldest.map_or(self.sequence, |oldest| oldest - 1)
    }

    /// What a target should say.
    pub fn wanted(&self, target: &Target) -> Wanted {
        let found = match target {
            Target::Node { part, node } => self.programs.get(&(*part, node.clone())).and_then(|program| {
                let report = program.node.clone()?;
                Some(Wanted::Node { report, connected: program.connected, again: program.again })
            }),
            Target::Workload { part, node, namespace, name } => self
                .programs
                .get(&(*part, node.clone()))
                .and_then(|program| program.workloads.get(&(namespace.clone(), name.clone())))
                .map(|workload| Wanted::Workload(workload.clone())),
        };
        found.unwrap_or(Wanted::Nothing)
    }
}

fn owns(part: Part, report: &WorkloadReport) -> bool {
    match (&report.part, part) {
        (Some(WorkloadPart::Attachment(_)), Part::Host) | (Some(WorkloadPart::Configuration(_)), Part::Proxy) => true,
        _ => {
            tracing::warn!(?part, workload = ?name_of(report), "a program tells what is not its own; left out");
            false
        }
    }
}

fn owns_node(part: Part, report: &NodeReport) -> bool {
    matches!(
        (&report.part, part),
        (Some(node_report::Part::Host(_)), Part::Host) | (Some(node_report::Part::Proxy(_)), Part::Proxy)
    )
}

fn name_of(report: &WorkloadReport) -> (String, String) {
    (report.namespace.clone(), report.name.clone())
}

fn split(path: &str) -> Option<(String, String)> {
    let (namespace, name) = path.split_once('/')?;
    Some((namespace.to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::report::{Attachment, Configuration, HostStatus};

    fn workload(name: &str, vf: &str) -> WorkloadReport {
        let part = Some(WorkloadPart::Attachment(Attachment { vf: vf.to_owned(), ..Attachment::default() }));
        WorkloadReport { namespace: "n".to_owned(), name: name.to_owned(), uid: "u".to_owned(), part }
    }

    fn target(name: &str) -> Target {
        let (namespace, name, node) = ("n".to_owned(), name.to_owned(), "host1".to_owned());
        Target::Workload { part: Part::Host, node, namespace, name }
    }

    fn snapshot(workloads: Vec<WorkloadReport>) -> Report {
        Report { workloads, snapshot: true, ..Report::default() }
    }

    fn write_all(board: &mut Board) -> Vec<Target> {
        let targets = board.start_writing();
        targets.iter().for_each(|target| board.written(target));
        targets
    }

    #[test]
    fn what_changed_is_written_once_and_a_message_is_done_when_all_of_it_is() {
        let mut board = Board::default();
        let first = board.take(Part::Host, "host1", snapshot(vec![workload("a", "0"), workload("b", "1")]));
        assert_eq!((board.start_writing(), board.done()), (vec![target("a"), target("b")], first - 1));
        board.written(&target("a"));
        board.failed(target("b"));
        assert_eq!((board.done(), board.is_dirty()), (first - 1, true), "b is to be tried again");
        write_all(&mut board);
        assert_eq!(board.done(), first);
        let report = Report { workloads: vec![workload("a", "0"), workload("b", "2")], ..Report::default() };
        board.take(Part::Host, "host1", report);
        assert_eq!(write_all(&mut board), [target("b")], "a is as it was");
        assert_eq!(board.wanted(&target("b")), Wanted::Workload(workload("b", "2")));
    }

    #[test]
    fn what_a_snapshot_does_not_name_is_gone_for_that_program_of_that_node_only() {
        let mut board = Board::default();
        board.take(Part::Host, "host1", snapshot(vec![workload("a", "0"), workload("b", "1")]));
        board.take(Part::Host, "host2", snapshot(vec![workload("c", "0")]));
        write_all(&mut board);
        board.take(Part::Host, "host1", snapshot(vec![workload("b", "1")]));
        assert_eq!((write_all(&mut board), board.wanted(&target("a"))), (vec![target("a")], Wanted::Nothing));
        board.take(
            Part::Host,
            "host1",
            Report { removed: vec!["n/b".to_owned(), "n/x".to_owned()], ..Report::default() },
        );
        assert_eq!(write_all(&mut board), [target("b")]);
    }

    #[test]
    fn a_program_tells_its_own_part_only() {
        let mut board = Board::default();
        let foreign =
            WorkloadReport { part: Some(WorkloadPart::Configuration(Configuration::default())), ..workload("a", "") };
        board.take(Part::Host, "host1", snapshot(vec![foreign, workload("b", "1")]));
        assert_eq!(write_all(&mut board), [target("b")]);
    }

    #[test]
    fn what_is_postponed_holds_nobody_up_and_comes_back_with_the_tables() {
        let mut board = Board::default();
        let message = board.take(Part::Host, "host1", snapshot(vec![workload("a", "0")]));
        board.start_writing();
        board.postponed(target("a"));
        assert_eq!((board.done(), board.is_dirty()), (message, false));
        board.tables_changed();
        assert_eq!(board.start_writing(), [target("a")]);
        board.forbidden(target("a"));
        board.tables_changed();
        assert_eq!((board.done(), board.is_dirty()), (message, false));
        board.refresh();
        assert_eq!(write_all(&mut board), [target("a")]);
    }

    #[test]
    fn configurations_are_looked_at_again_when_what_else_shapes_them_changes() {
        let mut board = Board::default();
        let part = Some(WorkloadPart::Configuration(Configuration::default()));
        let configured = WorkloadReport { part, ..workload("a", "") };
        board.take(Part::Proxy, "host1", snapshot(vec![configured]));
        board.take(Part::Host, "host1", snapshot(vec![workload("a", "0")]));
        write_all(&mut board);
        let (namespace, name, node) = ("n".to_owned(), "a".to_owned(), "host1".to_owned());
        let expected = [Target::Workload { part: Part::Proxy, node, namespace, name }];
        board.configurations_changed();
        assert_eq!(write_all(&mut board), expected);
        board.configuration_changed("host1", "n", "a");
        board.configuration_changed("host2", "n", "a");
        board.configuration_changed("host1", "n", "b");
        assert_eq!(write_all(&mut board), expected);
    }

    #[test]
    fn only_the_end_of_the_newest_stream_is_one() {
        let mut board = Board::default();
        let host = NodeReport { part: Some(node_report::Part::Host(HostStatus::default())) };
        let node = Target::Node { part: Part::Host, node: "host1".to_owned() };
        let (old, new) = (board.connect(Part::Host, "host1"), board.connect(Part::Host, "host1"));
        board.take(Part::Host, "host1", Report { node: Some(host.clone()), ..snapshot(vec![]) });
        write_all(&mut board);
        board.disconnected(Part::Host, "host1", old);
        assert!(!board.is_dirty());
        let wanted = |connected, again| Wanted::Node { report: host.clone(), connected, again };
        assert_eq!(board.wanted(&node), wanted(true, false));
        board.refresh();
        assert_eq!((write_all(&mut board), board.wanted(&node)), (vec![node.clone()], wanted(true, true)));
        board.disconnected(Part::Host, "host1", new);
        assert_eq!(write_all(&mut board), std::slice::from_ref(&node));
        assert_eq!(board.wanted(&node), wanted(false, true));
    }
}
