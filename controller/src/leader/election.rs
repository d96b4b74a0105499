//! Asks the API server for the lease, again and again, and tells who leads.

use super::lease::{Candidate, RENEW_DEADLINE, RETRY_INTERVAL, Step};
use crate::watchers::explain;
use anyhow::Context;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use kube_api::objects::LEASE;
use service::health::Health;
use service::signal::CancellationToken;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Line of /readyz that names the leader. Every replica is ready, whoever leads.
const LEADER: &str = "leader";
/// Longest wait for one answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);

/// Takes part in the election.
#[allow(missing_debug_implementations)]
pub struct Election {
    leases: Api<Lease>,
    candidate: Candidate,
    name: String,
    health: Health,
    leads: watch::Sender<bool>,
    /// Until then this replica leads, if it does.
    until: Instant,
}

impl Election {
    /// Of the replica `name`, by a Lease in `namespace`. The receiver says whether it leads.
    pub fn new(client: Client, namespace: &str, name: &str, health: Health) -> (Self, watch::Receiver<bool>) {
        let (leads, receiver) = watch::channel(false);
        let election = Self {
            leases: Api::namespaced(client, namespace),
            candidate: Candidate::new(name),
            name: name.to_owned(),
            health,
            leads,
            until: Instant::now(),
        };
        (election, receiver)
    }

    /// Until the stop, when the lease is given back.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let attempt = Instant::now();
            let attempted = tokio::select! {
                attempted = self.attempt_in_time() => attempted,
                () = shutdown.cancelled() => return self.release().await,
            };
            match attempted {
                Ok(None) => self.leads_from(attempt),
                Ok(Some(leader)) => self.follows(&leader),
                Err(reason) => self.unsure(&reason),
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY_INTERVAL) => {}
                () = shutdown.cancelled() => return self.release().await,
            }
        }
    }

    /// Whoever leads cannot be asked for longer than the lead lasts.
    async fn attempt_in_time(&mut self) -> Result<Option<String>, String> {
        match tokio::time::timeout(CALL_TIMEOUT, self.attempt()).await {
            Ok(attempted) => attempted.map_err(|error| error.to_string()),
            Err(_) => Err(format!("the API server did not answer within {} s", CALL_TIMEOUT.as_secs())),
        }
    }

    /// The leader, unless it is this replica.
    async fn attempt(&mut self) -> anyhow::Result<Option<String>> {
        let lease = self.leases.get_opt(LEASE).await.map_err(|error| anyhow::anyhow!(explain(&error)))?;
        let spec = lease.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        let spec = match self.candidate.step(spec.as_ref(), Instant::now(), Timestamp::now()) {
            Step::Wait { leader } => return Ok(Some(leader)),
            Step::Write(spec) => *spec,
        };
        let metadata = ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() };
        let written = match lease {
            None => self.leases.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await,
            // With the version that was read: whoever is second is refused.
            Some(lease) => {
                self.leases.replace(LEASE, &PostParams::default(), &Lease { spec: Some(spec), ..lease }).await
            }
        };
        match written {
            Ok(_) => Ok(None),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Some("another".to_owned())),
            Err(error) => Err(anyhow::anyhow!(explain(&error))),
        }
    }

    fn leads_from(&mut self, attempt: Instant) {
        self.until = attempt + RENEW_DEADLINE;
        self.set(true);
        self.health.tell(LEADER, &self.name);
    }

    fn follows(&mut self, leader: &str) {
        self.set(false);
        self.health.tell(LEADER, leader);
    }

    /// A leader goes on for a while; it is still before anybody else may begin.
    fn unsure(&mut self, reason: &str) {
        tracing::warn!(reason, "the lease could not be looked at");
        if Instant::now() + CALL_TIMEOUT + RETRY_INTERVAL > self.until {
            self.set(false);
            self.health.tell(LEADER, &format!("unknown: {reason}"));
        }
    }

    fn set(&self, leads: bool) {
        if self.leads.send_if_modified(|led| std::mem::replace(led, leads) != leads) {
            tracing::info!(leads, "leadership changed");
        }
    }

    async fn release(self) {
        let led = *self.leads.borrow();
        self.set(false);
        if led && let Err(error) = self.give_back().await {
            tracing::warn!(%error, "the lease was not given back; it runs out by itself");
        }
    }

    async fn give_back(&self) -> anyhow::Result<()> {
        let lease = self.leases.get(LEASE).await.context("it cannot be read")?;
        let Some(spec) = self.candidate.released(&lease.spec.clone().unwrap_or_default()) else { return Ok(()) };
        let released = Lease { spec: Some(spec), ..lease };
        self.leases.replace(LEASE, &PostParams::default(), &released).await.context("it cannot be written")?;
        tracing::info!("the lease was given back");
        Ok(())
    }
}
