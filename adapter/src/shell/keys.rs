//! Keys of workloads, which the DPU has: used here without having them.
//!
//! In: what dpu-proxy tells of its keys (`holder` is the wire), and whose keys are needed. Out: the
//! certificates, and signatures under handshakes with istiod. While no dpu-proxy is connected there
//! are none, and connections that are open go on. Inputs and signatures are never logged.

use mesh_api::ca::{HeldKeys, Signature, ToHolder, Transcript, Wanted, to_holder};
use mesh_model::Identity;
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};

/// A transcript that is not signed by then is not signed.
const SIGN_TIMEOUT: Duration = Duration::from_secs(5);

/// A key on the DPU: its certificate, and what it can sign.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    pub identity: Identity,
    id: u64,
    chain: Vec<CertificateDer<'static>>,
    schemes: Vec<SignatureScheme>,
    pub not_after: SystemTime,
}

/// All of them. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    held: watch::Sender<Held>,
    calls: AtomicU64,
    transcripts: AtomicU64,
    /// Who waits for which signature, with the call on which it was asked for.
    waiting: Mutex<HashMap<u64, (u64, Waiter)>>,
}

type Waiter = std::sync::mpsc::SyncSender<Signature>;

/// What there is now.
#[derive(Debug, Default)]
pub(super) struct Held {
    holder: Option<Holder>,
    keys: BTreeMap<Identity, Arc<Key>>,
    /// `None`: not known yet.
    wanted: Option<BTreeSet<Identity>>,
}

/// The dpu-proxy that is connected.
#[derive(Debug)]
struct Holder {
    call: u64,
    sender: mpsc::UnboundedSender<ToHolder>,
}

impl Held {
    fn tell_wanted(&self) {
        if let (Some(holder), Some(wanted)) = (&self.holder, &self.wanted) {
            let wanted = Wanted { identities: wanted.iter().map(ToString::to_string).collect() };
            holder.send(to_holder::Message::Wanted(wanted));
        }
    }
}

impl Holder {
    /// Whether the call is still there.
    fn send(&self, message: to_holder::Message) -> bool {
        self.sender.send(ToHolder { message: Some(message) }).is_ok()
    }
}

impl Keys {
    /// Whose keys are needed from now on.
    pub fn want(&self, identities: &BTreeSet<Identity>) {
        self.inner.held.send_if_modified(|held| {
            if held.wanted.as_ref() == Some(identities) {
                return false;
            }
            held.wanted = Some(identities.clone());
            held.tell_wanted();
            false
        });
    }

    /// Whether a dpu-proxy is connected.
    pub fn is_connected(&self) -> bool {
        self.inner.held.borrow().holder.is_some()
    }

    /// The key of an identity, if there is one now.
    pub fn get(&self, identity: &Identity) -> Option<Arc<Key>> {
        self.inner.held.borrow().keys.get(identity).cloned()
    }

    /// Waits until there is a key of an identity, for as long as it takes.
    pub async fn wait(&self, identity: &Identity) {
        let mut held = self.inner.held.subscribe();
        // The sender lives in `self`.
        let _ = held.wait_for(|held| held.keys.contains_key(identity)).await;
    }

    /// Tells that something changed: a call, or a key.
    pub(super) fn changes(&self) -> watch::Receiver<Held> {
        self.inner.held.subscribe()
    }

    /// A dpu-proxy called: it takes the place of one that called before. Returns the number of the call.
    pub(super) fn connected(&self, sender: mpsc::UnboundedSender<ToHolder>) -> u64 {
        let call = self.inner.calls.fetch_add(1, Ordering::Relaxed) + 1;
        self.inner.held.send_modify(|held| {
            held.holder = Some(Holder { call, sender });
            held.keys.clear();
            held.tell_wanted();
        });
        call
    }

    /// A call ended: its keys cannot be used any more.
    pub(super) fn disconnected(&self, call: u64) {
        self.inner.held.send_if_modified(|held| {
            let is_current = held.holder.as_ref().is_some_and(|holder| holder.call == call);
            if is_current {
                held.holder = None;
                held.keys.clear();
            }
            is_current
        });
        self.waiting().retain(|_, (other, _)| *other != call);
    }

    /// Ends the call that there is.
    pub(super) fn close(&self) {
        let call = self.inner.held.borrow().holder.as_ref().map(|holder| holder.call);
        if let Some(call) = call {
            self.disconnected(call);
        }
    }

    /// Keys that a call tells of.
    pub(super) fn held(&self, call: u64, keys: HeldKeys) {
        let changed: Vec<Key> = keys.changed.into_iter().filter_map(readable).collect();
        self.inner.held.send_if_modified(|held| {
            if held.holder.as_ref().is_none_or(|holder| holder.call != call) {
                return false;
            }
            for identity in keys.removed.iter().filter_map(|text| text.parse().ok()) {
                held.keys.remove::<Identity>(&identity);
            }
            held.keys.extend(changed.into_iter().map(|key| (key.identity.clone(), Arc::new(key))));
            true
        });
    }

    /// An answer of a call.
    pub(super) fn signed(&self, signature: Signature) {
        if let Some((_, waiter)) = self.waiting().remove(&signature.id) {
            // Who no longer waits needs no answer.
            let _ = waiter.try_send(signature);
        }
    }

    /// Has a transcript signed; blocks for as long as that takes.
    fn sign(&self, key: &Key, scheme: SignatureScheme, input: &[u8]) -> Result<Vec<u8>, String> {
        let id = self.inner.transcripts.fetch_add(1, Ordering::Relaxed) + 1;
        let (waiter, answer) = std::sync::mpsc::sync_channel(1);
        let transcript = Transcript {
            id,
            identity: key.identity.to_string(),
            key_id: key.id,
            input: input.to_vec(),
            scheme: u16::from(scheme).into(),
        };
        self.ask(transcript, waiter)?;
        let answer = answer.recv_timeout(SIGN_TIMEOUT);
        self.waiting().remove(&id);
        let signature = answer.map_err(|_| "dpu-proxy did not sign in time or went away".to_owned())?;
        match signature.error.is_empty() {
            true => Ok(signature.signature),
            false => Err(format!("dpu-proxy refused to sign: {}", signature.error)),
        }
    }

    fn ask(&self, transcript: Transcript, waiter: Waiter) -> Result<(), String> {
        let held = self.inner.held.borrow();
        let holder = held.holder.as_ref().ok_or("no dpu-proxy is connected")?;
        let id = transcript.id;
        self.waiting().insert(id, (holder.call, waiter));
        if holder.send(to_holder::Message::Transcript(transcript)) {
            return Ok(());
        }
        self.waiting().remove(&id);
        Err("the stream of dpu-proxy has ended".to_owned())
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, (u64, Waiter)>> {
        self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A key for rustls. Its signatures block: handshake where that is allowed.
    pub(super) fn certified(&self, key: &Arc<Key>) -> CertifiedKey {
        let remote = RemoteKey { keys: self.clone(), key: Arc::clone(key) };
        CertifiedKey::new(key.chain.clone(), Arc::new(remote))
    }
}

/// A key as it was told, if its certificate can be read.
fn readable(told: mesh_api::ca::HeldKey) -> Option<Key> {
    let leaf = told.chain_der.first().map(Vec::as_slice).unwrap_or_default();
    let Some((identity, not_after)) = told.identity.parse().ok().zip(not_after(leaf)) else {
        tracing::warn!(identity = told.identity, "dpu-proxy told of a key whose certificate cannot be read");
        return None;
    };
    let scheme = |number: u32| u16::try_from(number).ok().map(SignatureScheme::from);
    Some(Key {
        identity,
        id: told.key_id,
        chain: told.chain_der.into_iter().map(CertificateDer::from).collect(),
        schemes: told.schemes.into_iter().filter_map(scheme).collect(),
        not_after,
    })
}

fn not_after(der: &[u8]) -> Option<SystemTime> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let seconds = certificate.validity().not_after.timestamp().max(0).unsigned_abs();
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// A key that signs on the DPU.
#[derive(Debug)]
struct RemoteKey {
    keys: Keys,
    key: Arc<Key>,
}

#[derive(Debug)]
struct RemoteSigner {
    keys: Keys,
    key: Arc<Key>,
    scheme: SignatureScheme,
}

impl SigningKey for RemoteKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = self.key.schemes.iter().copied().find(|scheme| offered.contains(scheme))?;
        Some(Box::new(RemoteSigner { keys: self.keys.clone(), key: Arc::clone(&self.key), scheme }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.key.schemes.first() {
            Some(&SignatureScheme::ED25519) => SignatureAlgorithm::ED25519,
            Some(
                &SignatureScheme::RSA_PSS_SHA256 | &SignatureScheme::RSA_PSS_SHA384 | &SignatureScheme::RSA_PSS_SHA512,
            ) => SignatureAlgorithm::RSA,
            _ => SignatureAlgorithm::ECDSA,
        }
    }
}

impl Signer for RemoteSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.keys.sign(&self.key, self.scheme, message).map_err(rustls::Error::General)
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}
