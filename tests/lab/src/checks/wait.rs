//! Waiting until the lab is as a check expects it to be.

use crate::hops::Hop;
use crate::lab::Lab;
use crate::pods::{Pod, vip};
use crate::replay::Scenario;
use crate::topology::{HOSTS, Host};
use crate::traffic::{self, Response};
use crate::{hops, probe, shell};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// The pod of that name.
pub fn pod(name: &str) -> Result<&'static Pod> {
    Pod::named(name).with_context(|| format!("no pod {name}"))
}

/// GET from a pod to a service of HTTP port 9080.
pub fn get(from: &str, address: &str, service: &str, path: &str, options: &[&str]) -> Result<Response> {
    traffic::curl(pod(from)?, address, &format!("{service}:9080"), path, options)
}

/// The page answers, and every version of the reviews has been seen: all is configured.
pub fn until_served(_: &Lab) -> Result<()> {
    shell::wait_for("the product page", Duration::from_secs(30), || {
        let page = get("curl", vip::PRODUCTPAGE, "productpage", "/productpage", &[])?;
        ensure!(page.status == 200, "it answers {}: {} {}", page.status, page.text.trim(), page.error);
        Ok(())
    })
}

/// The configuration that each pod's proxy has accepted: a name made of its content.
pub type Scopes = BTreeMap<String, String>;

/// What the adapters of both hosts say of each pod.
pub fn scopes() -> Result<Scopes> {
    let mut scopes = Scopes::new();
    for host in HOSTS {
        let page = json(&host.namespace(), "127.0.0.1:15111", "/workloads")?;
        for workload in page["workloads"].as_array().into_iter().flatten() {
            let text = |field: &str| workload[field].as_str().unwrap_or_default().to_owned();
            scopes.insert(text("name"), text("accepted_scope"));
        }
    }
    Ok(scopes)
}

/// As recorded again, whatever a check has changed: the control plane, and every pod's proxy.
pub fn restored(lab: &Lab, recorded: &Scopes) -> Result<()> {
    lab.push(Scenario::Demo)?;
    shell::wait_for("the recorded configuration", Duration::from_secs(20), || {
        let now = scopes()?;
        ensure!(now == *recorded, "in force is {now:?}, recorded {recorded:?}");
        Ok(())
    })
}

/// A page of a program, parsed.
pub fn json(namespace: &str, address: &str, path: &str) -> Result<Value> {
    let text = probe::get(namespace, address, path)?;
    serde_json::from_str(&text).with_context(|| format!("http://{address}{path} is no JSON: {text}"))
}

/// Sum of a host's proxy's metric over all labels.
pub fn proxy_metric(host: Host, name: &str) -> Result<f64> {
    let text = probe::get(&host.dpu(), "127.0.0.1:15000", "/stats/prometheus")?;
    let lines = text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

/// A request with an id of its own, and its hops, those of these passes over its path among them.
pub fn traced(
    from: &str,
    address: &str,
    service: &str,
    path: &str,
    options: &[&str],
    passes: &[&str],
) -> Result<(Response, Vec<Hop>)> {
    let id = request_id();
    let header = format!("x-request-id: {id}");
    let mut all = vec!["-H", header.as_str()];
    all.extend(options);
    let response = get(from, address, service, path, &all)?;
    let expected: Vec<_> = passes.iter().map(|pass| (*pass, path)).collect();
    Ok((response, hops::of_request(&id, &expected)?))
}

/// In the form that proxies keep.
pub fn request_id() -> String {
    use std::hash::{BuildHasher, Hasher};
    let random = || std::hash::RandomState::new().build_hasher().finish();
    let (high, low) = (random(), random());
    format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        low >> 52,
        low & 0xffff_ffff_ffff
    )
}
