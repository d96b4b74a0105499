//! Connections to istiod: as a workload, by a key on the DPU, or as nobody, for those who bring a token.
//!
//! In: istiod's address, the authority of its certificate, and who calls. Out: channels that connect
//! when they are used, and again when they were lost, each time with the newest certificate and
//! authority. TLS 1.3 only, and no session is resumed: every connection proves its key.

use super::keys::{Key, Keys};
use super::troubles::{Step, Troubles};
use hyper_util::rt::TokioIo;
use mesh_model::Identity;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// For TCP, and for TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long istiod's first words are waited for, which say whether it took the certificate.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);
/// Handshakes that wait for the DPU at once, each on a thread.
const HANDSHAKES: usize = 16;
/// istiod takes more than one ping in 15 s for an attack.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Who calls.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    /// With a certificate.
    Workload(Identity),
    /// With a token, if at all.
    Nobody,
}

/// An istiod over TLS. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Istiod {
    uri: Uri,
    /// PEM file, read at every connection.
    authority: PathBuf,
    server_name: ServerName<'static>,
    keys: Keys,
    troubles: Troubles,
    handshakes: Arc<Semaphore>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("cannot read the authority of istiod's certificate, {path}: {reason}")]
    Authority { path: PathBuf, reason: String },
    #[error("cannot reach istiod at {address}: {reason}")]
    Unreachable { address: String, reason: String },
    #[error("TLS with istiod at {address} failed: {reason}")]
    Handshake { address: String, reason: String },
    #[error("dpu-proxy holds no key of {0}: it is not connected, or the certificate was not signed yet")]
    NoKey(Identity),
    #[error(
        "the certificate of {identity} expired {ago_s} s ago and was not renewed: see what the certificate service says"
    )]
    Expired { identity: Identity, ago_s: u64 },
    #[error("istiod refuses the certificate of {identity}: {reason}")]
    Refused { identity: Identity, reason: String },
    #[error("{0}")]
    Tls(#[from] rustls::Error),
}

impl Istiod {
    pub(super) fn new(
        uri: Uri,
        authority: PathBuf,
        server_name: ServerName<'static>,
        keys: Keys,
        troubles: Troubles,
    ) -> Self {
        Self { uri, authority, server_name, keys, troubles, handshakes: Arc::new(Semaphore::new(HANDSHAKES)) }
    }

    /// A channel that connects when it is used.
    pub(super) fn channel(&self, caller: Caller) -> Channel {
        let istiod = self.clone();
        let connector = tower::service_fn(move |_: Uri| istiod.clone().connect(caller.clone()));
        // TLS is made here, so the transport sees a plain address.
        Endpoint::from_static("http://istiod.invalid")
            .origin(self.uri.clone())
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(Duration::from_secs(10))
            .initial_stream_window_size(4 * 1024 * 1024)
            .initial_connection_window_size(8 * 1024 * 1024)
            .connect_with_connector_lazy(connector)
    }

    async fn connect(self, caller: Caller) -> Result<TokioIo<TlsStream<TcpStream>>, ConnectError> {
        let result = self.open(&caller).await;
        if let Caller::Workload(identity) = &caller {
            let is_denied = matches!(result, Err(ConnectError::Refused { .. } | ConnectError::Expired { .. }));
            let outcome = result.as_ref().map(drop).map_err(|error| (error.to_string(), is_denied));
            self.troubles.note(identity, Step::Connection, outcome);
        }
        result.map(TokioIo::new)
    }

    async fn open(&self, caller: &Caller) -> Result<TlsStream<TcpStream>, ConnectError> {
        let key = self.key(caller)?;
        let config = self.config(key.as_ref())?;
        let tcp = self.reach().await?;
        let mut stream = match &key {
            Some(_) => self.handshake_with_key(config, tcp).await?,
            None => handshake(self.clone(), config, tcp).await?,
        };
        if let Some(key) = key {
            greeted(&mut stream, &key.identity).await?;
        }
        Ok(stream)
    }

    fn key(&self, caller: &Caller) -> Result<Option<Arc<Key>>, ConnectError> {
        let Caller::Workload(identity) = caller else { return Ok(None) };
        let key = self.keys.get(identity).ok_or_else(|| ConnectError::NoKey(identity.clone()))?;
        match SystemTime::now().duration_since(key.not_after) {
            Ok(ago) => Err(ConnectError::Expired { identity: identity.clone(), ago_s: ago.as_secs() }),
            Err(_) => Ok(Some(key)),
        }
    }

    fn config(&self, key: Option<&Arc<Key>>) -> Result<Arc<ClientConfig>, ConnectError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots()?);
        let mut config = match key {
            Some(key) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::new(self.keys.certified(key)))))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, ConnectError> {
        let failed = |reason: String| ConnectError::Authority { path: self.authority.clone(), reason };
        let pem = std::fs::read(&self.authority).map_err(|error| failed(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            roots.add(certificate).map_err(|error| failed(error.to_string()))?;
        }
        match roots.is_empty() {
            true => Err(failed("there is no PEM certificate in it".to_owned())),
            false => Ok(roots),
        }
    }

    async fn reach(&self) -> Result<TcpStream, ConnectError> {
        let (host, port) = (self.uri.host().unwrap_or_default(), self.uri.port_u16().unwrap_or(443));
        let failed = |reason: String| ConnectError::Unreachable { address: self.address(), reason };
        let host = host.trim_matches(['[', ']']);
        let connecting = timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port))).await;
        let tcp = connecting.map_err(|_| failed("no answer in time".to_owned()))?;
        let tcp = tcp.map_err(|error| failed(error.to_string()))?;
        tcp.set_nodelay(true).map_err(|error| failed(error.to_string()))?;
        Ok(tcp)
    }

    fn address(&self) -> String {
        self.uri.authority().map(ToString::to_string).unwrap_or_default()
    }

    /// rustls asks for a signature and waits: that happens on a thread that may block.
    async fn handshake_with_key(
        &self,
        config: Arc<ClientConfig>,
        tcp: TcpStream,
    ) -> Result<TlsStream<TcpStream>, ConnectError> {
        let failed = |reason: &str| ConnectError::Handshake { address: self.address(), reason: reason.to_owned() };
        let permit = Arc::clone(&self.handshakes).acquire_owned().await.map_err(|_| failed("stopping"))?;
        let (istiod, runtime) = (self.clone(), tokio::runtime::Handle::current());
        let shaking = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            runtime.block_on(handshake(istiod, config, tcp))
        });
        shaking.await.map_err(|_| failed("stopping"))?
    }
}

async fn handshake(
    istiod: Istiod,
    config: Arc<ClientConfig>,
    tcp: TcpStream,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let failed = |reason: String| ConnectError::Handshake { address: istiod.address(), reason };
    let shaking = TlsConnector::from(config).connect(istiod.server_name.clone(), tcp);
    let stream = timeout(HANDSHAKE_TIMEOUT, shaking).await.map_err(|_| failed("no answer in time".to_owned()))?;
    stream.map_err(|error| failed(explain(&error)))
}

/// What to do about a handshake that failed.
fn explain(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.contains("invalid peer certificate") {
        true => format!(
            "{text}; --control-plane-ca must name the root of istiod's certificate (ConfigMap istio-ca-root-cert) and --control-plane-server-name a name in it"
        ),
        false => text,
    }
}

/// In TLS 1.3 a client learns only afterwards whether its certificate was accepted: by an alert in the
/// place of the server's first words.
async fn greeted(stream: &mut TlsStream<TcpStream>, identity: &Identity) -> Result<(), ConnectError> {
    let refused = |reason: String| ConnectError::Refused { identity: identity.clone(), reason };
    match timeout(GREETING_TIMEOUT, stream.fill_buf()).await {
        Ok(Ok([])) => Err(refused("it closed the connection".to_owned())),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(refused(error.to_string())),
        // A server may also wait for the client's first words.
        Err(_) => Ok(()),
    }
}
