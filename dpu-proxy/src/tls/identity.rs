//! Identities of the workloads on this DPU: a key is made here, a certificate is asked for, and both
//! are renewed in time.
//!
//! In: the identities that are wanted, and a way to have a request signed. Out: `IdentitySecret`s.
//! Keys stay in this process's memory: they are neither logged nor written nor sent.

use super::TlsError;
use super::secrets::{IdentitySecret, KeyPair, Roots};
use futures_util::future::BoxFuture;
use mesh_model::Identity;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, PKCS_ECDSA_P256_SHA256, SanType};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use xds::Backoff;

/// Validity that is asked for.
pub const VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// Requests that are under way at once.
const CONCURRENT: usize = 8;

/// A request for a signature.
#[derive(Clone, Debug)]
pub struct SigningRequest {
    pub identity: Identity,
    pub csr_pem: String,
    pub validity: Duration,
}

/// Has a request signed: the chain in PEM, leaf first, root last.
pub type Sign = Box<dyn Fn(SigningRequest) -> BoxFuture<'static, Result<Vec<String>, String>> + Send>;

/// What became of an identity.
#[derive(Clone, Debug)]
pub enum Event {
    /// A certificate with its key, new or renewed.
    Signed(Identity, IdentitySecret),
    /// There is none (yet); the last one stays as long as it is valid.
    Failed(Identity, String),
}

/// Says which identities are wanted. They are kept until this is dropped.
#[derive(Debug)]
pub struct Identities {
    wanted: watch::Sender<BTreeSet<Identity>>,
}

impl Identities {
    /// Replaces the set.
    pub fn want(&self, identities: BTreeSet<Identity>) {
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != identities;
            *wanted = identities;
            changed
        });
    }
}

/// Starts the task that keeps identities signed.
pub fn start(sign: Sign) -> (Identities, mpsc::Receiver<Event>) {
    let (wanted, wishes) = watch::channel(BTreeSet::new());
    let (events, receiver) = mpsc::channel(64);
    let keeper = Keeper { sign, wishes, events, entries: BTreeMap::new(), running: JoinSet::new() };
    tokio::spawn(keeper.run());
    (Identities { wanted }, receiver)
}

#[derive(Debug)]
struct Entry {
    /// `None` while a request is under way.
    due: Option<Instant>,
    backoff: Backoff,
    /// Why there was no certificate the last time.
    failure: String,
}

type Answer = (Identity, Result<IdentitySecret, String>);

struct Keeper {
    sign: Sign,
    wishes: watch::Receiver<BTreeSet<Identity>>,
    events: mpsc::Sender<Event>,
    entries: BTreeMap<Identity, Entry>,
    running: JoinSet<Answer>,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            self.follow_wishes();
            self.begin_due();
            let next = self.next_due();
            let sleep = async move {
                match next {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.wishes.changed() => if changed.is_err() { return },
                () = sleep => {}
                Some(answer) = self.running.join_next() => {
                    // A request that panicked is lost; its identity is asked for again when it is next wanted.
                    if let Ok((identity, result)) = answer && self.answered(identity, result).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn follow_wishes(&mut self) {
        let wanted = self.wishes.borrow_and_update().clone();
        self.entries.retain(|identity, _| wanted.contains(identity));
        for identity in wanted {
            let new = || Entry { due: Some(Instant::now()), backoff: Backoff::default(), failure: String::new() };
            self.entries.entry(identity).or_insert_with(new);
        }
    }

    fn begin_due(&mut self) {
        let now = Instant::now();
        for (identity, entry) in &mut self.entries {
            if self.running.len() >= CONCURRENT {
                return;
            }
            if entry.due.is_some_and(|due| due <= now) {
                entry.due = None;
                let identity = identity.clone();
                match Request::new(&identity) {
                    Ok(request) => {
                        let signing = (self.sign)(request.wire());
                        self.running.spawn(async move { (identity, request.finish(signing.await)) });
                    }
                    Err(error) => {
                        self.running.spawn(async move { (identity, Err(error.to_string())) });
                    }
                }
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let has_room = self.running.len() < CONCURRENT;
        self.entries.values().filter_map(|entry| entry.due).min().filter(|_| has_room)
    }

    async fn answered(&mut self, identity: Identity, result: Result<IdentitySecret, String>) -> Result<(), ()> {
        // Not wanted any more: the answer is of no use.
        let Some(entry) = self.entries.get_mut(&identity) else { return Ok(()) };
        let event = match result {
            Ok(secret) => {
                entry.backoff.reset();
                entry.failure.clear();
                let wait = renewal(SystemTime::now(), secret.not_after, fastrand::f64());
                entry.due = Some(Instant::now() + wait);
                tracing::info!(%identity, renewed_in_s = wait.as_secs(), "certificate signed");
                Event::Signed(identity, secret)
            }
            Err(reason) => {
                let wait = entry.backoff.next(fastrand::f64());
                entry.due = Some(Instant::now() + wait);
                if entry.failure != reason {
                    tracing::warn!(%identity, reason, "no certificate; trying again until there is one");
                    entry.failure.clone_from(&reason);
                }
                Event::Failed(identity, reason)
            }
        };
        self.events.send(event).await.map_err(|_| ())
    }
}

/// When to renew: around half of what is left, so that many don't come at once.
fn renewal(now: SystemTime, not_after: SystemTime, random: f64) -> Duration {
    let left = not_after.duration_since(now).unwrap_or_default();
    left.mul_f64(0.45 + random.clamp(0.0, 1.0) / 10.0)
}

/// A key with the request for its certificate.
struct Request {
    identity: Identity,
    key: rcgen::KeyPair,
    csr_pem: String,
}

impl Request {
    fn new(identity: &Identity) -> Result<Self, rcgen::Error> {
        let key = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_string())?)];
        let csr_pem = params.serialize_request(&key)?.pem()?;
        Ok(Self { identity: identity.clone(), key, csr_pem })
    }

    fn wire(&self) -> SigningRequest {
        SigningRequest { identity: self.identity.clone(), csr_pem: self.csr_pem.clone(), validity: VALIDITY }
    }

    fn finish(self, chain: Result<Vec<String>, String>) -> Result<IdentitySecret, String> {
        self.secret(&chain?).map_err(|error| error.to_string())
    }

    fn secret(&self, chain: &[String]) -> Result<IdentitySecret, TlsError> {
        let chain = split(&chain.concat());
        let [shown @ .., root] = chain.as_slice() else {
            return Err(TlsError::Unusable("the signed chain is empty".to_owned()));
        };
        let key_pair = KeyPair::from_pem(shown.concat().as_bytes(), self.key.serialize_pem().as_bytes())?;
        let expected = self.identity.to_string();
        if !key_pair.uri_sans.contains(&expected) {
            let shown = key_pair.uri_sans.join(", ");
            return Err(TlsError::Unusable(format!("the certificate is for [{shown}], not for {expected}")));
        }
        let not_after = UNIX_EPOCH + Duration::from_secs(key_pair.description.not_after_seconds.max(0) as u64);
        Ok(IdentitySecret { key_pair, roots: Roots::from_pem(root.as_bytes())?, not_after })
    }
}

/// One PEM certificate each, however they were packed.
fn split(pem: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    pem.split_inclusive(END).filter(|part| part.contains(END)).map(|part| format!("{}\n", part.trim())).collect()
}

#[cfg(test)]
mod tests;
