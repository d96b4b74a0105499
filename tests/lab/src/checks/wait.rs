//! Waiting until the lab is as a check expects it to be.

use crate::hops::Hop;
use crate::lab::Lab;
use crate::pods::{Pod, vip};
use crate::replay::Scenario;
use crate::traffic::{self, Response};
use crate::{hops, shell};
use anyhow::{Context, Result, ensure};
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

/// As recorded again, whatever a check has changed.
pub fn restored(lab: &Lab) -> Result<()> {
    lab.push(Scenario::Demo)
}

/// A request with an id of its own, and its hops.
pub fn traced(
    from: &str,
    address: &str,
    service: &str,
    path: &str,
    options: &[&str],
    hops: usize,
) -> Result<(Response, Vec<Hop>)> {
    let id = request_id();
    let header = format!("x-request-id: {id}");
    let mut all = vec!["-H", header.as_str()];
    all.extend(options);
    let response = get(from, address, service, path, &all)?;
    Ok((response, hops::of_request(&id, hops)?))
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
