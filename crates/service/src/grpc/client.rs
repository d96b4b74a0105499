//! Channels to other programs: over TLS whose own certificate renews, or over a Unix socket.

use super::certificate::Source;
use super::{GrpcError, TlsArgs};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Uri};

/// TLS of a client.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<rustls::ClientConfig>,
    /// Its own certificate, where it is ours to check before it is shown.
    own: Option<Arc<Source>>,
}

impl ClientTls {
    /// Of any rustls settings; the protocol is set to HTTP/2.
    pub fn new(mut config: rustls::ClientConfig) -> Self {
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self { config: Arc::new(config), own: None }
    }

    pub(super) fn showing(self, own: Arc<Source>) -> Self {
        Self { own: Some(own), ..self }
    }

    async fn connect(self, uri: &Uri, name: ServerName<'static>) -> std::io::Result<TlsStream<TcpStream>> {
        if let Some(own) = &self.own {
            // A server would refuse it without saying to us which one and since when.
            own.check(SystemTime::now()).map_err(std::io::Error::other)?;
        }
        let stream = connect_tcp(uri).await?;
        TlsConnector::from(self.config).connect(name, stream).await
    }
}

async fn connect_tcp(uri: &Uri) -> std::io::Result<TcpStream> {
    let host = uri.host().unwrap_or("").trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Where a server is and how it is spoken to; makes channels.
#[derive(Clone, Debug)]
pub struct Endpoint {
    uri: String,
    inner: tonic::transport::Endpoint,
    tls: Option<(ClientTls, ServerName<'static>)>,
}

impl Endpoint {
    /// Connects now.
    pub async fn connect(&self) -> Result<Channel, GrpcError> {
        let connected = match self.tls.clone() {
            None => self.inner.connect().await,
            Some((tls, name)) => self.inner.connect_with_connector(connector(tls, name)).await,
        };
        connected.map_err(|error| connect_error(&self.uri, &error))
    }

    /// Connects at the first call, and again whenever the connection was lost.
    pub fn connect_lazy(&self) -> Channel {
        match self.tls.clone() {
            None => self.inner.connect_lazy(),
            Some((tls, name)) => self.inner.connect_with_connector_lazy(connector(tls, name)),
        }
    }

    /// As it was given.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Over these TLS settings to `https://HOST:PORT`, whose certificate must carry `server_name`.
    pub fn over(uri: &str, tls: ClientTls, server_name: &str) -> Result<Self, GrpcError> {
        let parsed = parse(uri)?;
        let name = ServerName::try_from(server_name.to_owned())
            .map_err(|_| GrpcError::ServerName { name: server_name.to_owned() })?;
        // tonic itself must not speak TLS: the connector does.
        let mut plain = parsed.clone().into_parts();
        plain.scheme = Some(tonic::codegen::http::uri::Scheme::HTTP);
        let plain = Uri::from_parts(plain).map_err(|_| GrpcError::Address { uri: uri.to_owned() })?;
        let inner = tuned(tonic::transport::Endpoint::from(plain)).origin(parsed);
        Ok(Self { uri: uri.to_owned(), inner, tls: Some((tls, name)) })
    }
}

/// tonic's connector: gets the address, gives a stream.
fn connector(
    tls: ClientTls,
    name: ServerName<'static>,
) -> impl tower::Service<
    Uri,
    Response = TokioIo<TlsStream<TcpStream>>,
    Error = std::io::Error,
    Future = impl Future<Output = std::io::Result<TokioIo<TlsStream<TcpStream>>>> + Send + 'static,
> + Send
+ 'static {
    tower::service_fn(move |uri: Uri| {
        let (tls, name) = (tls.clone(), name.clone());
        async move { tls.connect(&uri, name).await.map(TokioIo::new) }
    })
}

/// Connects to `https://HOST:PORT` (or `http://` on loopback). `server_name` is the DNS SAN that the
/// server's certificate must carry, e.g. `adapter`.
pub async fn channel(uri: &str, tls: &TlsArgs, server_name: &str) -> Result<Channel, GrpcError> {
    endpoint(uri, tls, server_name)?.connect().await
}

/// The endpoint of `channel`, for callers that connect when they choose.
pub fn endpoint(uri: &str, tls: &TlsArgs, server_name: &str) -> Result<Endpoint, GrpcError> {
    let parsed = parse(uri)?;
    match parsed.scheme_str() {
        Some("https") => {
            let client = tls.client()?.ok_or_else(|| GrpcError::NoCertificate { uri: uri.to_owned() })?;
            Endpoint::over(uri, client, server_name)
        }
        Some("http") if tls.insecure || is_loopback(&parsed) => {
            Ok(Endpoint { uri: uri.to_owned(), inner: tuned(tonic::transport::Endpoint::from(parsed)), tls: None })
        }
        _ => Err(GrpcError::Plaintext { uri: uri.to_owned() }),
    }
}

fn parse(uri: &str) -> Result<Uri, GrpcError> {
    let parsed = uri.parse::<Uri>().ok().filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")));
    parsed.filter(|uri| uri.host().is_some()).ok_or_else(|| GrpcError::Address { uri: uri.to_owned() })
}

/// Connects to a gRPC server on a Unix socket.
pub async fn unix_channel(path: &Path) -> Result<Channel, GrpcError> {
    let path = path.to_owned();
    let uri = format!("unix:{}", path.display());
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = tuned(tonic::transport::Endpoint::from_static("http://unix.invalid"));
    endpoint.connect_with_connector(connector).await.map_err(|error| connect_error(&uri, &error))
}

fn tuned(endpoint: tonic::transport::Endpoint) -> tonic::transport::Endpoint {
    endpoint
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(8 * 1024 * 1024)
}

fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or("").trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn connect_error(uri: &str, error: &tonic::transport::Error) -> GrpcError {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    GrpcError::Connect { uri: uri.to_owned(), reason }
}
