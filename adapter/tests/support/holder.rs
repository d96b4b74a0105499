//! What dpu-proxy is to the adapter's keys: makes them, has them signed, and signs with them.

use mesh_api::ca::certificate_relay_client::CertificateRelayClient;
use mesh_api::ca::key_holder_client::KeyHolderClient;
use mesh_api::ca::{FromHolder, HeldKey, HeldKeys, SignRequest, Signature, Transcript, from_holder, to_holder};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::transport::Channel;

/// The stream to the adapter, and its connection.
type Call = (mpsc::UnboundedSender<FromHolder>, Channel);

/// Keys over all streams; survives the adapter.
#[derive(Clone, Default)]
pub struct FakeHolder {
    keys: Arc<Mutex<BTreeMap<String, (HeldKey, String)>>>,
    call: Arc<Mutex<Option<Call>>>,
    /// Transcripts that were signed.
    pub signed: Arc<Mutex<Vec<Transcript>>>,
}

impl FakeHolder {
    /// Calls the adapter, and again whenever the stream ends.
    pub fn start(address: SocketAddr) -> Self {
        let holder = Self::default();
        let running = holder.clone();
        tokio::spawn(async move {
            loop {
                let _ = running.hold(address).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        holder
    }

    async fn hold(&self, address: SocketAddr) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let channel = Channel::from_shared(format!("http://{address}"))?.connect().await?;
        let (sender, receiver) = mpsc::unbounded_channel();
        sender.send(self.keys(None))?;
        *self.call.lock().expect("not poisoned") = Some((sender.clone(), channel.clone()));
        let requests = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
        let mut incoming = KeyHolderClient::new(channel.clone()).hold(requests).await?.into_inner();
        let wanted: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        while let Some(message) = incoming.message().await? {
            match message.message.expect("a message") {
                to_holder::Message::Wanted(told) => {
                    *wanted.lock().expect("not poisoned") = told.identities.iter().cloned().collect();
                    for identity in told.identities {
                        tokio::spawn(self.clone().obtain(identity, channel.clone(), sender.clone(), wanted.clone()));
                    }
                }
                to_holder::Message::Transcript(transcript) => {
                    sender
                        .send(FromHolder { message: Some(from_holder::Message::Signature(self.sign(transcript))) })?;
                }
            }
        }
        Ok(())
    }

    /// Has a key signed, for as long as it is wanted and refused.
    async fn obtain(
        self,
        identity: String,
        channel: Channel,
        sender: mpsc::UnboundedSender<FromHolder>,
        wanted: Arc<Mutex<BTreeSet<String>>>,
    ) {
        while !self.has(&identity) && wanted.lock().expect("not poisoned").contains(&identity) && !sender.is_closed() {
            self.request(&identity, channel.clone()).await;
            let _ = sender.send(self.keys(Some(&identity)));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Renews the key of an identity, and tells.
    pub async fn renew(&self, identity: &str) {
        let (sender, channel) = self.call.lock().expect("not poisoned").clone().expect("a call");
        self.request(identity, channel).await;
        sender.send(self.keys(Some(identity))).expect("told");
    }

    /// A new key of an identity.
    async fn request(&self, identity: &str, channel: Channel) {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity.try_into().expect("text"))];
        let csr_pem = params.serialize_request(&key).expect("request").pem().expect("PEM");
        let request = SignRequest { identity: identity.to_owned(), csr_pem, validity_seconds: 3600 };
        let Ok(answer) = CertificateRelayClient::new(channel).sign(request).await else { return };
        let leaf = answer.into_inner().chain_pem.swap_remove(0);
        let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).expect("certificate");
        let held = HeldKey {
            identity: identity.to_owned(),
            key_id: fastrand::u64(1..),
            chain_der: vec![leaf.to_vec()],
            schemes: vec![u16::from(SignatureScheme::ECDSA_NISTP256_SHA256).into()],
        };
        self.keys.lock().expect("not poisoned").insert(identity.to_owned(), (held, key.serialize_pem()));
    }

    fn has(&self, identity: &str) -> bool {
        self.keys.lock().expect("not poisoned").contains_key(identity)
    }

    fn keys(&self, only: Option<&str>) -> FromHolder {
        let keys = self.keys.lock().expect("not poisoned");
        let chosen = keys.values().filter(|(key, _)| only.is_none_or(|only| key.identity == only));
        let changed = chosen.map(|(key, _)| key.clone()).collect();
        FromHolder { message: Some(from_holder::Message::Keys(HeldKeys { changed, removed: Vec::new() })) }
    }

    fn sign(&self, transcript: Transcript) -> Signature {
        let (held, pem) = self.keys.lock().expect("not poisoned")[&transcript.identity].clone();
        assert_eq!(held.key_id, transcript.key_id, "the newest certificate is shown");
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("key");
        let key = any_supported_type(&key).expect("key");
        let signer = key.choose_scheme(&[SignatureScheme::from(transcript.scheme as u16)]).expect("scheme");
        let signature = signer.sign(&transcript.input).expect("signed");
        let id = transcript.id;
        self.signed.lock().expect("not poisoned").push(transcript);
        Signature { id, signature, error: String::new() }
    }
}
