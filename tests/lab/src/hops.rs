//! The proxies' hop logs: which way a request went.

use crate::programs::hop_log;
use crate::topology::{HOSTS, Host};
use crate::{pods::Pod, shell};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::time::Duration;

/// One pass of a request or connection through a proxy. What is not known is empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Hop {
    #[serde(skip)]
    pub host: Option<Host>,
    /// When it began, in seconds since 1970.
    pub time: f64,
    pub request_id: String,
    /// `outbound`; `inbound` from the fabric; `local`: the callee's rules in the caller's pass.
    pub pass: String,
    pub workload: String,
    pub identity: String,
    pub port: String,
    pub representor: String,
    pub listener: String,
    pub filter_chain: String,
    pub route_config: String,
    pub virtual_host: String,
    pub route: String,
    pub cluster: String,
    pub endpoint: String,
    pub own_identity: String,
    pub peer_identity: String,
    pub upstream_tls: bool,
    pub downstream_tls: bool,
    pub downstream_peer: String,
    pub method: String,
    pub path: String,
    pub authority: String,
    pub protocol: String,
    pub status: serde_json::Value,
    pub flags: String,
    pub details: String,
    pub duration_ms: f64,
    pub local_callee: String,
}

impl Hop {
    /// Status as text: a number or empty.
    pub fn status(&self) -> String {
        self.status.as_str().map_or_else(|| self.status.to_string(), str::to_owned)
    }

    /// The pod that its endpoint is.
    pub fn callee(&self) -> Option<&'static Pod> {
        Pod::at(&self.endpoint)
    }
}

/// All hops of both hosts, oldest first.
pub fn all() -> Result<Vec<Hop>> {
    let mut hops = Vec::new();
    for host in HOSTS {
        let path = hop_log(host);
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for line in text.lines() {
            let hop: Hop = serde_json::from_str(line).with_context(|| format!("{}: {line}", path.display()))?;
            hops.push(Hop { host: Some(host), ..hop });
        }
    }
    hops.sort_by(|one, other| one.time.total_cmp(&other.time).then_with(|| other.pass.cmp(&one.pass)));
    Ok(hops)
}

/// The hops of one request, once each of these (pass, path) is among them: proxies write their logs when they like.
pub fn of_request(id: &str, expected: &[(&str, &str)]) -> Result<Vec<Hop>> {
    shell::wait_for(&format!("the hops of request {id}"), Duration::from_secs(5), || {
        let mut hops = all()?;
        hops.retain(|hop| hop.request_id == id);
        let is_there = |pass: &str, path: &str| hops.iter().any(|hop| hop.pass == pass && hop.path == path);
        let missing: Vec<_> = expected.iter().filter(|(pass, path)| !is_there(pass, path)).collect();
        anyhow::ensure!(missing.is_empty(), "missing {missing:?} among {hops:#?}");
        Ok(hops)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_fewer_or_more_fields_is_read() {
        let hop: Hop = serde_json::from_str(r#"{"pass":"local","status":200,"endpoint":"10.244.1.12:9080","new":1}"#)
            .expect("read");
        assert_eq!((hop.pass.as_str(), hop.status().as_str()), ("local", "200"));
        assert_eq!(hop.callee().map(|pod| pod.name), Some("ratings-v1"));
    }
}
