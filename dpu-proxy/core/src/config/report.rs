//! Refusals and reports, and the path (`At`) by which both name the field.

use std::cell::RefCell;
use std::fmt;
use std::io;

/// Reads a file that a configuration names. The shell passes it in; nothing here opens files.
pub type ReadFile<'a> = &'a dyn Fn(&str) -> io::Result<Vec<u8>>;

/// Why a resource is refused: what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// Kind and name, e.g. `listener virtualInbound`.
    pub resource: String,
    /// Field, e.g. `filter_chains[2].filters[0].typed_config`; empty for the resource as a whole.
    pub path: String,
    pub reason: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.is_empty() {
            true => write!(f, "{}: {}", self.resource, self.reason),
            false => write!(f, "{}: {}: {}", self.resource, self.path, self.reason),
        }
    }
}

/// What a resource asks for and is not done, without harm to who may do what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Unsupported {
    pub resource: String,
    pub path: String,
    pub reason: String,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.resource, self.path, self.reason)
    }
}

/// The resource that is being converted: its name, and what was reported of it so far.
#[allow(missing_debug_implementations)]
pub struct Subject<'a> {
    name: String,
    reports: RefCell<Vec<Unsupported>>,
    required_clusters: RefCell<Vec<String>>,
    read_file: ReadFile<'a>,
}

impl<'a> Subject<'a> {
    /// `name` is kind and name, e.g. `cluster a`.
    pub fn new(name: impl Into<String>, read_file: ReadFile<'a>) -> Self {
        Self { name: name.into(), reports: RefCell::default(), required_clusters: RefCell::default(), read_file }
    }

    /// The path of the resource as a whole.
    pub fn root(&self) -> At<'_> {
        At { subject: self, parent: None, field: "", index: Index::None, depth: 0 }
    }

    /// What was reported, in order, and the clusters that must exist.
    pub fn into_parts(self) -> (Vec<Unsupported>, Vec<String>) {
        (self.reports.into_inner(), self.required_clusters.into_inner())
    }
}

#[derive(Clone, Copy)]
enum Index<'a> {
    None,
    Number(usize),
    Key(&'a str),
}

/// Where in a resource: a path that costs nothing until it is printed.
#[derive(Clone, Copy)]
#[allow(missing_debug_implementations)]
pub struct At<'a> {
    subject: &'a Subject<'a>,
    parent: Option<&'a At<'a>>,
    field: &'a str,
    index: Index<'a>,
    depth: u16,
}

/// Deeper than any configuration that means something: an `Any` in an `Any` may go on as long as a message is big.
const MAX_DEPTH: u16 = 200;

impl<'a> At<'a> {
    /// A field of this message.
    pub fn field(&'a self, field: &'a str) -> At<'a> {
        At { subject: self.subject, parent: Some(self), field, index: Index::None, depth: self.depth.saturating_add(1) }
    }

    /// An element of a repeated field.
    pub fn item(&'a self, field: &'a str, index: usize) -> At<'a> {
        At { index: Index::Number(index), ..self.field(field) }
    }

    /// An entry of a map field.
    pub fn entry(&'a self, field: &'a str, key: &'a str) -> At<'a> {
        At { index: Index::Key(key), ..self.field(field) }
    }

    /// Refuses what is nested without end.
    pub(crate) fn check_depth(&self) -> Result<(), ConfigError> {
        match self.depth > MAX_DEPTH {
            true => Err(ConfigError { path: String::new(), ..self.refuse("nested too deeply; make it flatter") }),
            false => Ok(()),
        }
    }

    /// The error that refuses the resource for this field.
    pub fn refuse(&self, reason: impl Into<String>) -> ConfigError {
        ConfigError { resource: self.subject.name.clone(), path: self.to_string(), reason: reason.into() }
    }

    /// Reports what this field asks for as not done.
    pub fn unsupported(&self, reason: impl Into<String>) {
        self.report(self.to_string(), reason.into());
    }

    /// Reports under a path that is known as text. Elements of lists are reported once for the list:
    /// a listener asks for the same thing in each of its chains.
    pub(crate) fn report(&self, path: String, reason: String) {
        let report = Unsupported { resource: self.subject.name.clone(), path: without_indices(&path), reason };
        let mut reports = self.subject.reports.borrow_mut();
        if !reports.contains(&report) {
            reports.push(report);
        }
    }

    /// Says that a cluster of this name must exist.
    pub(crate) fn require_cluster(&self, name: &str) {
        let mut required = self.subject.required_clusters.borrow_mut();
        if !required.iter().any(|known| known == name) {
            required.push(name.to_owned());
        }
    }

    /// Reads a file that this field names.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>, ConfigError> {
        let read = self.subject.read_file;
        read(path).map_err(|error| self.refuse(format!("cannot read {path}: {error}; create it or correct the path")))
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
            if parent.parent.is_some() {
                f.write_str(".")?;
            }
        }
        f.write_str(self.field)?;
        match self.index {
            Index::None => Ok(()),
            Index::Number(index) => write!(f, "[{index}]"),
            Index::Key(key) => write!(f, "[\"{key}\"]"),
        }
    }
}

/// `a[3].b["k"]` → `a[*].b["k"]`.
fn without_indices(path: &str) -> String {
    let mut parts = path.split('[');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        let is_index = rest.len() < part.len() && rest.starts_with(']');
        text.push('[');
        text.push_str(if is_index { "*" } else { "" });
        text.push_str(if is_index { rest } else { part });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_files(_: &str) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    #[test]
    fn a_refusal_names_resource_and_field() {
        let subject = Subject::new("listener a", &no_files);
        let root = subject.root();
        let chain = root.item("filter_chains", 2);
        let error = chain.field("transport_socket").refuse("unknown; use tls");
        assert_eq!(error.to_string(), "listener a: filter_chains[2].transport_socket: unknown; use tls");
        assert_eq!(root.refuse("empty").to_string(), "listener a: empty");
        assert!(root.field("f").read_file("/x").is_err_and(|e| e.to_string().contains("f: cannot read /x")));
    }

    #[test]
    fn the_same_report_is_kept_once() {
        let subject = Subject::new("cluster a", &no_files);
        let root = subject.root();
        for index in 0..2 {
            let chain = root.item("chains", index);
            chain.entry("map", "k").unsupported("not done");
        }
        let (reports, _) = subject.into_parts();
        assert_eq!(reports.len(), 1);
        assert_eq!(reports[0].path, "chains[*].map[\"k\"]");
    }
}
