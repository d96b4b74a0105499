//! Bookinfo on the cluster: ordinary manifests, and who calls whom in the checks.

use crate::kubectl;
use crate::pod::{self, Pod, Service};
use anyhow::{Context, Result, ensure};
use lab::shell;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Its namespace.
pub const NAMESPACE: &str = "bookinfo";
/// Pods of it.
pub const PODS: usize = 8;

/// What a user would apply.
pub const MANIFESTS: &str = include_str!("../manifests/bookinfo.yaml");

/// What is called in the checks. Found anew when pods were replaced.
#[derive(Clone, Debug)]
pub struct Bookinfo {
    /// A pod of its own service account that is there to call others.
    pub client: Pod,
    pub productpage: Service,
    pub reviews: Service,
    pub ratings: Service,
    pub details: Service,
}

impl Bookinfo {
    /// Applies the manifests, and waits until all pods are ready.
    pub fn deploy() -> Result<Self> {
        kubectl::apply(MANIFESTS)?;
        wait_ready(PODS)?;
        let bookinfo = Self::find()?;
        bookinfo.wait_served()?;
        Ok(bookinfo)
    }

    /// The one that runs.
    pub fn find() -> Result<Self> {
        let service = |name: &str| Service::find(NAMESPACE, name, 9080);
        Ok(Self {
            client: Pod::find(NAMESPACE, "app=curl")?,
            productpage: service("productpage")?,
            reviews: service("reviews")?,
            ratings: service("ratings")?,
            details: service("details")?,
        })
    }

    /// The page is answered, with what each other service adds to it.
    pub fn wait_served(&self) -> Result<()> {
        shell::wait_for("the product page", Duration::from_secs(30), || self.page().map(drop))
    }

    /// One page.
    pub fn page(&self) -> Result<Value> {
        let page = self.client.get(&self.productpage, "/productpage", &[])?;
        ensure!(page.status == 200, "the product page answers {}: {} {}", page.status, page.text.trim(), page.error);
        Ok(page.json)
    }
}

/// Waits until that many pods of the namespace are ready; a pod that is not is told of with its newest event.
pub fn wait_ready(count: usize) -> Result<()> {
    let waited = shell::wait_for("ready pods of bookinfo", Duration::from_secs(60), || {
        let ready = all()?;
        ensure!(ready.len() == count, "{} of {count} are ready", ready.len());
        Ok(())
    });
    waited.with_context(|| format!("events:\n{}", pod::warnings(NAMESPACE).unwrap_or_default()))
}

/// All that are ready.
pub fn all() -> Result<Vec<Value>> {
    pod::ready(NAMESPACE, "app")
}

/// Seconds until `probe` holds, which is asked again and again.
pub fn seconds_until(what: &str, limit: u64, mut probe: impl FnMut() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    let deadline = started + Duration::from_secs(limit);
    loop {
        shell::check_interrupted()?;
        match probe() {
            Ok(()) => return Ok(started.elapsed().as_secs_f64()),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("{what}: not within {limit} s")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
