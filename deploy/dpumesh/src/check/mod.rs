//! `dpumesh check`: what an installation needs, looked at piece by piece, each with what to do. Pure.

mod cluster;
mod installation;
mod istio;
mod nodes;

#[cfg(test)]
mod tests;

use crate::run::Outcome;
use crate::seen::Seen;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use std::fmt::Write;

/// What was seen, and more than `status` looks at.
#[derive(Clone, Debug)]
pub struct Checked {
    pub seen: Seen,
    /// Address of the API server.
    pub server: String,
    /// Version of the API server.
    pub version: Result<String, String>,
    /// Kinds that it serves of our group.
    pub kinds: Result<Vec<String>, String>,
    /// The release's namespace.
    pub system: Result<Option<Namespace>, String>,
    /// ConfigMap of the authority.
    pub authority: Result<Option<ConfigMap>, String>,
    /// ConfigMap by which istiod tells its authority.
    pub istio_root: Result<Option<ConfigMap>, String>,
    /// Deployments of istiod in all namespaces.
    pub istiods: Result<Vec<Deployment>, String>,
}

/// One piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub finding: Finding,
}

/// How it is with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Good(String),
    /// It works, and somebody should know.
    Odd(String, String),
    Bad(String, String),
    /// Why it cannot be told.
    Unknown(String),
}

impl Finding {
    fn good(what: impl Into<String>) -> Self {
        Self::Good(what.into())
    }

    fn bad(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Bad(what.into(), advice.into())
    }

    fn odd(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Odd(what.into(), advice.into())
    }
}

/// All, in the order in which an installation comes about.
pub fn checks(checked: &Checked) -> Vec<Check> {
    let mut all = Vec::new();
    let mut add = |name: &'static str, finding: Finding| all.push(Check { name, finding });
    add("API server", cluster::api_server(checked));
    add("kinds", cluster::kinds(checked));
    add("namespace", installation::namespace(checked));
    add("programs", installation::programs(checked));
    add("authority", installation::authority(checked));
    add("istiod trust", istio::trust(checked));
    add("istiod root", istio::root(checked));
    add("sidecars", istio::sidecars(checked));
    add("DPUs", nodes::dpus(checked));
    add("underlay", nodes::underlay(checked));
    add("pod addresses", nodes::pod_cidrs(checked));
    all
}

/// The exit code.
pub fn outcome(checks: &[Check]) -> Outcome {
    let any = |is: fn(&Finding) -> bool| checks.iter().any(|check| is(&check.finding));
    if any(|finding| matches!(finding, Finding::Bad(..))) {
        Outcome::Bad
    } else if any(|finding| matches!(finding, Finding::Unknown(_))) {
        Outcome::Unknown
    } else {
        Outcome::Good
    }
}

/// For a person: a line each, and below it what to do.
pub fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    for Check { name, finding } in checks {
        let (mark, what, advice) = match finding {
            Finding::Good(what) => ("ok  ", what, None),
            Finding::Odd(what, advice) => ("note", what, Some(advice)),
            Finding::Bad(what, advice) => ("BAD ", what, Some(advice)),
            Finding::Unknown(why) => ("?   ", why, None),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{mark}  {name:<14}{what}");
        if let Some(advice) = advice {
            let _ = writeln!(text, "                    -> {advice}");
        }
    }
    text
}
