//! The `CNI_*` variables of one call, checked as the specification (section 2) says.

use crate::error::{CniError, code};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest interface name: IFNAMSIZ without the terminating zero.
const INTERFACE_NAME_MAX: usize = 15;

/// What the runtime asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Command {
    Add,
    Del,
    Check,
    Version,
    Status,
    Gc,
}

/// Variables of one call. Those that a command doesn't need are empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    pub command: Command,
    pub container_id: String,
    /// Path of the network namespace; may be empty for DEL.
    pub netns: String,
    pub ifname: String,
    pub args: Arguments,
    /// Folders of plugins, separated by `:`.
    pub path: String,
}

/// `CNI_ARGS`: `KEY=VALUE;…`, in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arguments {
    pub pod_namespace: String,
    pub pod_name: String,
    pub pod_uid: String,
    pub infra_container_id: String,
    /// The whole text, for delegated plugins.
    pub raw: String,
}

impl Environment {
    /// Reads the variables through `get`.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let value = |name: &str| get(name).unwrap_or_default();
        let environment = Self {
            command: command(&value("CNI_COMMAND"))?,
            container_id: value("CNI_CONTAINERID"),
            netns: value("CNI_NETNS"),
            ifname: value("CNI_IFNAME"),
            args: Arguments::parse(&value("CNI_ARGS"))?,
            path: value("CNI_PATH"),
        };
        environment.check()?;
        Ok(environment)
    }

    /// Whether the command has what it needs, in the right form.
    pub fn check(&self) -> Result<(), CniError> {
        let required: &[(&str, &str)] = match self.command {
            Command::Add | Command::Check => &[
                ("CNI_CONTAINERID", &self.container_id),
                ("CNI_NETNS", &self.netns),
                ("CNI_IFNAME", &self.ifname),
                ("CNI_PATH", &self.path),
            ],
            Command::Del => {
                &[("CNI_CONTAINERID", &self.container_id), ("CNI_IFNAME", &self.ifname), ("CNI_PATH", &self.path)]
            }
            Command::Gc => &[("CNI_PATH", &self.path)],
            Command::Version | Command::Status => &[],
        };
        let missing: Vec<&str> = required.iter().filter(|(_, value)| value.is_empty()).map(|(name, _)| *name).collect();
        if !missing.is_empty() {
            return Err(invalid(format!("required environment variables are missing: {}", missing.join(", "))));
        }
        match self.command {
            Command::Add | Command::Check | Command::Del => {
                check_container_id(&self.container_id)?;
                check_interface_name(&self.ifname)
            }
            Command::Gc | Command::Version | Command::Status => Ok(()),
        }
    }
}

impl Arguments {
    /// Parses `CNI_ARGS`. Keys that are not ours are left to the delegates.
    pub fn parse(raw: &str) -> Result<Self, CniError> {
        let mut pairs = BTreeMap::new();
        for pair in raw.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| invalid(format!("CNI_ARGS: {pair:?} is not KEY=VALUE")))?;
            pairs.insert(key, value);
        }
        let value = |key: &str| pairs.get(key).copied().unwrap_or_default().to_owned();
        Ok(Self {
            pod_namespace: value("K8S_POD_NAMESPACE"),
            pod_name: value("K8S_POD_NAME"),
            pod_uid: value("K8S_POD_UID"),
            infra_container_id: value("K8S_POD_INFRA_CONTAINER_ID"),
            raw: raw.to_owned(),
        })
    }
}

fn command(text: &str) -> Result<Command, CniError> {
    match text {
        "ADD" => Ok(Command::Add),
        "DEL" => Ok(Command::Del),
        "CHECK" => Ok(Command::Check),
        "VERSION" => Ok(Command::Version),
        "STATUS" => Ok(Command::Status),
        "GC" => Ok(Command::Gc),
        "" => Err(invalid("CNI_COMMAND is missing").hint(
            "this is a CNI plugin, called by a container runtime; CNI_COMMAND is one of ADD, DEL, CHECK, GC, STATUS, VERSION",
        )),
        other => {
            Err(invalid(format!("CNI_COMMAND {other:?} is not one of ADD, DEL, CHECK, GC, STATUS, VERSION")))
        }
    }
}

fn check_container_id(id: &str) -> Result<(), CniError> {
    let first = id.starts_with(|c: char| c.is_ascii_alphanumeric());
    let rest = id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    match first && rest {
        true => Ok(()),
        false => Err(invalid(format!(
            "CNI_CONTAINERID {id:?} must start with a letter or digit and hold only letters, digits, '_', '.' and '-'"
        ))),
    }
}

fn check_interface_name(name: &str) -> Result<(), CniError> {
    let bad = name.len() > INTERFACE_NAME_MAX
        || matches!(name, "." | "..")
        || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    match bad {
        false => Ok(()),
        true => Err(invalid(format!(
            "CNI_IFNAME {name:?} is no interface name: at most {INTERFACE_NAME_MAX} bytes, without '/', ':' and spaces"
        ))),
    }
}

fn invalid(msg: impl Into<String>) -> CniError {
    CniError::new(code::INVALID_ENVIRONMENT, msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Environment, CniError> {
        Environment::read(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    const ADD: &[(&str, &str)] = &[
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];

    fn with(name: &'static str, value: &'static str) -> Vec<(&'static str, &'static str)> {
        ADD.iter().map(|pair| if pair.0 == name { (name, value) } else { *pair }).collect()
    }

    #[test]
    fn every_missing_variable_is_named() {
        let error = read(&[("CNI_COMMAND", "ADD")]).expect_err("incomplete");
        assert_eq!(error.code, code::INVALID_ENVIRONMENT);
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"] {
            assert!(error.msg.contains(name), "{error}");
        }
    }

    #[test]
    fn del_needs_no_namespace_and_status_needs_nothing() {
        assert!(read(&with("CNI_COMMAND", "DEL")[..]).is_ok());
        let del = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/x")];
        assert!(read(&del).is_ok());
        assert!(read(&[("CNI_COMMAND", "STATUS")]).is_ok());
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        for (name, value) in [
            ("CNI_COMMAND", "add"),
            ("CNI_COMMAND", ""),
            ("CNI_CONTAINERID", "../../etc"),
            ("CNI_IFNAME", "a-name-that-is-too-long"),
            ("CNI_IFNAME", "a/b"),
        ] {
            let error = read(&with(name, value)).expect_err(value);
            assert_eq!(error.code, code::INVALID_ENVIRONMENT);
            assert!(error.msg.contains(name), "{error}");
        }
    }

    #[test]
    fn pod_arguments_come_in_any_order() {
        let text =
            "K8S_POD_UID=u;IgnoreUnknown=1;K8S_POD_NAME=p;IP=10.0.0.1;K8S_POD_INFRA_CONTAINER_ID=i;K8S_POD_NAMESPACE=n";
        let args = Arguments::parse(text).expect("valid");
        let got = (&*args.pod_namespace, &*args.pod_name, &*args.pod_uid, &*args.infra_container_id);
        assert_eq!(got, ("n", "p", "u", "i"));
        assert_eq!(args.raw, text);
        assert_eq!(Arguments::parse("x").expect_err("no value").code, code::INVALID_ENVIRONMENT);
    }
}
