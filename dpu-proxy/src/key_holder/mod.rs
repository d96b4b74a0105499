//! The keys of this DPU, at the service of the host's adapter, which has none.
//!
//! In: the state with its secrets, and the adapter's stream. Out: to the adapter, which keys there are
//! and signatures (`proof` says under what); to `control`, whose keys the adapter needs. One stream is
//! kept open. While there is none, keys stay and are renewed.

pub mod proof;

use crate::ads::Dialer;
use crate::shared::State;
use crate::tls::secrets::{KeyPair, Secrets};
use mesh_api::ca::key_holder_client::KeyHolderClient;
use mesh_api::ca::{FromHolder, HeldKey, HeldKeys, Signature, ToHolder, Transcript, from_holder, to_holder};
use mesh_model::Identity;
use rustls::SignatureScheme;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use xds::Backoff;

/// A stream that lived this long was healthy: the next wait starts small again.
const HEALTHY: Duration = Duration::from_secs(5);
/// Schemes that a client of TLS 1.3 may prove a key with.
const SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// Starts the task that keeps the stream open while `holds`: a newer process of this DPU takes the place of an older one.
/// Out: whose keys the adapter needs, each time all of them.
pub fn start(
    dialer: Dialer,
    state: watch::Receiver<State>,
    holds: watch::Receiver<bool>,
) -> mpsc::Receiver<BTreeSet<Identity>> {
    let (wanted, receiver) = mpsc::channel(4);
    let holder = Holder { dialer, state, holds, wanted };
    tokio::spawn(holder.run());
    receiver
}

struct Holder {
    dialer: Dialer,
    state: watch::Receiver<State>,
    holds: watch::Receiver<bool>,
    wanted: mpsc::Sender<BTreeSet<Identity>>,
}

/// Why a stream ended.
enum End {
    /// The process ends.
    Finished,
    /// A newer process holds the keys now.
    Superseded,
    Failed(String),
}

impl Holder {
    async fn run(mut self) {
        let (mut backoff, mut told) = (Backoff::default(), String::new());
        loop {
            if self.holds.wait_for(|holds| *holds).await.is_err() {
                return;
            }
            let started = tokio::time::Instant::now();
            let reason = match self.session().await {
                End::Failed(reason) => reason,
                End::Superseded => continue,
                End::Finished => return,
            };
            if started.elapsed() > HEALTHY {
                backoff.reset();
                told.clear();
            }
            if reason != told {
                tracing::warn!(reason, "the adapter cannot use the keys of this DPU; trying again");
                told = reason;
            }
            tokio::time::sleep(backoff.next(fastrand::f64())).await;
        }
    }

    async fn session(&mut self) -> End {
        let mut holds = self.holds.clone();
        tokio::select! {
            held = self.hold() => match held {
                Ok(()) => End::Finished,
                Err(reason) => End::Failed(reason),
            },
            changed = holds.wait_for(|holds| !holds) => match changed {
                Ok(_) => {
                    tracing::info!("a newer proxy holds the keys of this DPU for the adapter");
                    End::Superseded
                }
                Err(_) => End::Finished,
            },
        }
    }

    /// One stream. `Ok`: nobody needs it any more.
    async fn hold(&mut self) -> Result<(), String> {
        let channel = self.dialer.clone().channel().await?;
        let (outgoing, requests) = mpsc::channel(64);
        let mut told = Told::default();
        send(&outgoing, from_holder::Message::Keys(told.update(&self.secrets()))).await?;
        let answer = KeyHolderClient::new(channel).hold(ReceiverStream::new(requests)).await;
        let mut incoming = answer.map_err(|status| xds::client::describe(&status))?.into_inner();
        tracing::info!("the adapter can use the keys of this DPU");
        loop {
            tokio::select! {
                changed = self.state.changed() => {
                    if changed.is_err() { return Ok(()) }
                    let keys = told.update(&self.secrets());
                    if !keys.changed.is_empty() || !keys.removed.is_empty() {
                        send(&outgoing, from_holder::Message::Keys(keys)).await?;
                    }
                }
                message = incoming.message() => {
                    let message = message.map_err(|status| xds::client::describe(&status))?;
                    let message = message.ok_or("the adapter ended the stream")?;
                    if self.answer(message, &outgoing).await?.is_none() { return Ok(()) }
                }
            }
        }
    }

    fn secrets(&mut self) -> std::sync::Arc<Secrets> {
        std::sync::Arc::clone(&self.state.borrow_and_update().secrets)
    }

    /// `None`: nobody wants to know whose keys are needed any more.
    async fn answer(&self, message: ToHolder, outgoing: &mpsc::Sender<FromHolder>) -> Result<Option<()>, String> {
        match message.message {
            Some(to_holder::Message::Wanted(wanted)) => Ok(self.wanted.send(identities(&wanted.identities)).await.ok()),
            Some(to_holder::Message::Transcript(transcript)) => {
                let secrets = std::sync::Arc::clone(&self.state.borrow().secrets);
                send(outgoing, from_holder::Message::Signature(signature(&secrets, &transcript))).await.map(Some)
            }
            None => Ok(Some(())),
        }
    }
}

fn identities(texts: &[String]) -> BTreeSet<Identity> {
    let parse = |text: &String| match text.parse() {
        Ok(identity) => Some(identity),
        Err(error) => {
            tracing::warn!(text, %error, "the adapter wants a key of what is no identity");
            None
        }
    };
    texts.iter().filter_map(parse).collect()
}

fn signature(secrets: &Secrets, transcript: &Transcript) -> Signature {
    match proof::sign(secrets, transcript) {
        Ok(signature) => Signature { id: transcript.id, signature, error: String::new() },
        Err(refusal) => {
            tracing::warn!(identity = transcript.identity, %refusal, "not signed for the adapter");
            Signature { id: transcript.id, signature: Vec::new(), error: refusal.to_string() }
        }
    }
}

async fn send(outgoing: &mpsc::Sender<FromHolder>, message: from_holder::Message) -> Result<(), String> {
    let sent = outgoing.send(FromHolder { message: Some(message) }).await;
    sent.map_err(|_| "the adapter closed the stream".to_owned())
}

/// Which keys the adapter knows of.
#[derive(Debug, Default)]
struct Told {
    keys: BTreeMap<Identity, u64>,
}

impl Told {
    /// What has changed since; it is told from now on.
    fn update(&mut self, secrets: &Secrets) -> HeldKeys {
        let current: BTreeMap<Identity, &KeyPair> =
            secrets.identities.iter().map(|(identity, secret)| (identity.clone(), &secret.key_pair)).collect();
        let is_new = |(identity, pair): &(&Identity, &&KeyPair)| self.keys.get(identity) != Some(&pair.id);
        let changed = current.iter().filter(is_new).map(|(identity, pair)| held(identity, pair)).collect();
        let removed = self.keys.keys().filter(|identity| !current.contains_key(identity));
        let removed = removed.map(ToString::to_string).collect();
        self.keys = current.into_iter().map(|(identity, pair)| (identity, pair.id)).collect();
        HeldKeys { changed, removed }
    }
}

fn held(identity: &Identity, pair: &KeyPair) -> HeldKey {
    let schemes = SCHEMES.into_iter().filter(|scheme| pair.certified.key.choose_scheme(&[*scheme]).is_some());
    HeldKey {
        identity: identity.to_string(),
        key_id: pair.id,
        chain_der: pair.certified.cert.iter().map(|certificate| certificate.to_vec()).collect(),
        schemes: schemes.map(|scheme| u16::from(scheme).into()).collect(),
    }
}

#[cfg(test)]
mod tests;
