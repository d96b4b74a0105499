//! Towards the control plane: the gRPC channel that the bootstrap's ADS cluster describes, the
//! discovery client on it, and requests for signatures.
//!
//! In: a cluster of the bootstrap with its TLS context. Out: `xds::client` events; signed chains.

use crate::io::Plain;
use crate::tls::identity::{Sign, SigningRequest};
use crate::tls::secrets::Secrets;
use crate::tls::{ClientTls, TlsError};
use dpu_proxy_core::model::{Cluster, Discovery, TransportSocket, UpstreamTls};
use futures_util::FutureExt;
use hyper_util::rt::TokioIo;
use mesh_api::ca::SignRequest;
use mesh_api::ca::certificate_relay_client::CertificateRelayClient;
use mesh_api::envoy::config::core::v3::Node;
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use xds::Backoff;
use xds::client::{self, Event, Handle, Interest, Mode, Options};

/// A signing request that is not answered by then is asked again.
const SIGN_TIMEOUT: Duration = Duration::from_secs(20);

/// Makes connections to the endpoint of a cluster, with its transport socket.
#[derive(Clone, Debug)]
pub struct Dialer {
    cluster: Arc<Cluster>,
    secrets: Arc<Secrets>,
}

/// Why the bootstrap's ADS cluster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("ADS cluster {0:?} is not in static_resources.clusters: add it there")]
    Missing(String),
    #[error("ADS cluster {0:?} has no endpoint: give it one address or host name in load_assignment")]
    NoEndpoint(String),
}

type Connection = TokioIo<crate::io::Stream>;

impl Dialer {
    /// For a cluster of the bootstrap.
    pub fn new(cluster: Arc<Cluster>, secrets: Arc<Secrets>) -> Result<Self, DialError> {
        match host_and_port(&cluster) {
            Some(_) => Ok(Self { cluster, secrets }),
            None => Err(DialError::NoEndpoint(cluster.name.clone())),
        }
    }

    fn endpoint(&self) -> Endpoint {
        // The name is never resolved: connections are made by `open`.
        Endpoint::from_static("http://ads.invalid")
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(4 * 1024 * 1024)
            .initial_connection_window_size(8 * 1024 * 1024)
    }

    /// A channel that is connected now.
    pub async fn channel(self) -> Result<Channel, String> {
        let opening = self.clone();
        let connector = tower::service_fn(move |_: Uri| opening.clone().open());
        self.endpoint().connect_with_connector(connector).await.map_err(|error| causes(&error))
    }

    /// A channel that connects, and connects again, when it is used.
    pub fn lazy_channel(&self) -> Channel {
        let opening = self.clone();
        self.endpoint().connect_with_connector_lazy(tower::service_fn(move |_: Uri| opening.clone().open()))
    }

    async fn open(self) -> std::io::Result<Connection> {
        let cluster = &self.cluster;
        match tokio::time::timeout(cluster.connect_timeout, self.connect()).await {
            Ok(result) => result.map(TokioIo::new),
            Err(_) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, format!("{}: timeout", cluster.name))),
        }
    }

    async fn connect(&self) -> std::io::Result<crate::io::Stream> {
        let named =
            |error: std::io::Error| std::io::Error::new(error.kind(), format!("{}: {error}", self.cluster.name));
        let (host, port) = host_and_port(&self.cluster).unwrap_or_default();
        let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(named)?;
        tcp.set_nodelay(true)?;
        match &self.cluster.transport.default {
            TransportSocket::RawBuffer => Ok(tcp.into()),
            TransportSocket::Tls(tls) => self.secure(tls, tcp, &host).await.map_err(named),
        }
    }

    async fn secure(&self, tls: &UpstreamTls, tcp: TcpStream, host: &str) -> std::io::Result<crate::io::Stream> {
        let config = self.client_tls(tls).map_err(std::io::Error::other)?;
        let name = if tls.sni.is_empty() { host } else { &tls.sni };
        let name = ServerName::try_from(name.to_owned()).map_err(std::io::Error::other)?;
        let stream = TlsConnector::from(config).connect(name, Plain::new(tcp)).await?;
        Ok(crate::io::Stream::Tls(Box::new(stream.into())))
    }

    fn client_tls(&self, tls: &UpstreamTls) -> Result<Arc<rustls::ClientConfig>, TlsError> {
        let certificate = tls.common.certificate.as_ref();
        let pair = certificate.map(|source| self.secrets.key_pair(source, None)).transpose()?;
        let authority = tls.common.validation.trusted_ca.as_ref();
        let roots = authority.map(|source| self.secrets.roots(source, None)).transpose()?;
        let config = ClientTls::new(tls, pair.as_ref(), roots.as_ref(), &["h2".to_owned()])?;
        Ok(config.with_sni)
    }
}

fn host_and_port(cluster: &Cluster) -> Option<(String, u16)> {
    match &cluster.discovery {
        Discovery::Static(set) => {
            let localities = set.priorities.iter().flat_map(|priority| &priority.localities);
            let endpoint = localities.flat_map(|locality| &locality.endpoints).next()?;
            Some((endpoint.address.ip().to_string(), endpoint.address.port()))
        }
        Discovery::StrictDns { hosts, .. } => hosts.first().map(|host| (host.host.clone(), host.port)),
        Discovery::LogicalDns { host, .. } => Some((host.host.clone(), host.port)),
        Discovery::Eds { .. } | Discovery::OriginalDst { .. } => None,
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Starts the discovery client.
pub fn start(
    dialer: &Dialer,
    node: Node,
    mode: Mode,
    interests: Vec<(String, Interest)>,
) -> (Handle, mpsc::Receiver<Event>) {
    let dialer = dialer.clone();
    let options = Options { node, mode, metadata: Vec::new(), interests, backoff: Backoff::default() };
    client::spawn(move || dialer.clone().channel().boxed(), options)
}

/// Has requests signed by the relay on the same endpoint.
pub fn signer(dialer: &Dialer) -> Sign {
    let client = CertificateRelayClient::new(dialer.lazy_channel());
    Box::new(move |request| sign(client.clone(), request).boxed())
}

async fn sign(mut client: CertificateRelayClient<Channel>, request: SigningRequest) -> Result<Vec<String>, String> {
    let wire = SignRequest {
        identity: request.identity.to_string(),
        csr_pem: request.csr_pem,
        validity_seconds: request.validity.as_secs(),
    };
    match tokio::time::timeout(SIGN_TIMEOUT, client.sign(wire)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner().chain_pem),
        Ok(Err(status)) => Err(format!("{:?}: {}", status.code(), status.message())),
        Err(_) => Err(format!("not answered in {} s", SIGN_TIMEOUT.as_secs())),
    }
}
