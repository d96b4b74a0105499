//! Opens a connection to a target: socket options, connect, TLS handshake, all within a time limit.

use super::target::{Target, TlsTarget};
use crate::connection::PeerCertificate;
use crate::io::{Plain, Stream};
use crate::tls::peer;
use dpu_proxy_core::model::TcpKeepalive;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::ServerName;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsConnector, TlsStream};

/// An open upstream connection.
#[derive(Debug)]
pub struct Connected {
    pub stream: Stream,
    pub local_address: SocketAddr,
    /// Application protocol that TLS agreed on.
    pub alpn: Option<String>,
    /// What the upstream showed.
    pub peer: Option<Arc<PeerCertificate>>,
}

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectErrorKind {
    /// The own certificate or the trusted roots are not there (yet).
    Secret,
    /// A socket could not be made or bound: ours to fix.
    Socket,
    /// The peer refused, or is unreachable.
    Connect,
    Timeout,
    /// The TLS handshake failed, or the peer is not who it should be.
    Tls,
}

/// Why there is no connection. Nothing of a request was sent, so a retry is safe.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct ConnectError {
    pub kind: ConnectErrorKind,
    pub reason: String,
}

impl ConnectError {
    /// An error of that kind.
    pub fn new(kind: ConnectErrorKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }

    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`, in Envoy's words where it has some.
    pub fn transport_failure_reason(&self) -> String {
        match self.kind {
            ConnectErrorKind::Connect => format!("delayed connect error: {}", self.reason),
            ConnectErrorKind::Tls => format!("TLS_error:|{}:TLS_error_end", self.reason),
            ConnectErrorKind::Secret | ConnectErrorKind::Socket | ConnectErrorKind::Timeout => self.reason.clone(),
        }
    }
}

/// Connects. `timeout` covers TCP and TLS.
pub async fn connect(
    target: &Target,
    timeout: Duration,
    keepalive: Option<TcpKeepalive>,
) -> Result<Connected, ConnectError> {
    match tokio::time::timeout(timeout, open(target, keepalive)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::new(ConnectErrorKind::Timeout, "connection timeout")),
    }
}

async fn open(target: &Target, keepalive: Option<TcpKeepalive>) -> Result<Connected, ConnectError> {
    let tcp = match &target.inward {
        Some(inward) => inward.open(target.address).await.map_err(|error| connect_error(target, &error))?,
        None => {
            let socket = socket(target, keepalive).map_err(|error| socket_error(target, &error))?;
            socket.connect(target.address).await.map_err(|error| connect_error(target, &error))?
        }
    };
    let local_address = tcp.local_addr().map_err(|error| connect_error(target, &error))?;
    match &target.tls {
        None => Ok(Connected { stream: Stream::from(tcp), local_address, alpn: None, peer: None }),
        Some(tls) => handshake(tcp, local_address, tls, target.address.ip()).await,
    }
}

fn socket_error(target: &Target, error: &io::Error) -> ConnectError {
    let device = target.device.as_deref().unwrap_or("any device");
    let reason = format!("cannot make a socket from {:?} on {device}: {}", target.source, text(error));
    ConnectError::new(ConnectErrorKind::Socket, reason)
}

fn connect_error(target: &Target, error: &io::Error) -> ConnectError {
    tracing::debug!(address = %target.address, %error, "cannot connect");
    ConnectError::new(ConnectErrorKind::Connect, text(error))
}

/// The system's words without the number.
fn text(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

fn socket(target: &Target, keepalive: Option<TcpKeepalive>) -> io::Result<TcpSocket> {
    let socket = Socket::new(Domain::for_address(target.address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(device) = &target.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if let Some(source) = target.source {
        bind_source(&socket, source)?;
    }
    if let Some(keepalive) = keepalive {
        socket.set_tcp_keepalive(&keepalive_options(keepalive))?;
    }
    Ok(TcpSocket::from_std_stream(std::net::TcpStream::from(OwnedFd::from(socket))))
}

/// Binds an address that may not be ours; the port is chosen at connect, so ports don't run out early.
fn bind_source(socket: &Socket, source: IpAddr) -> io::Result<()> {
    if !source.is_loopback() {
        match source {
            IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
        }
    }
    setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))
}

fn keepalive_options(keepalive: TcpKeepalive) -> socket2::TcpKeepalive {
    let options = socket2::TcpKeepalive::new();
    let options = keepalive.time.map_or(options.clone(), |time| options.with_time(time));
    let options = keepalive.interval.map_or(options.clone(), |interval| options.with_interval(interval));
    keepalive.probes.map_or(options.clone(), |probes| options.with_retries(probes))
}

async fn handshake(
    tcp: TcpStream,
    local_address: SocketAddr,
    tls: &TlsTarget,
    ip: IpAddr,
) -> Result<Connected, ConnectError> {
    let name = ServerName::try_from(tls.server_name.to_string()).ok();
    let (config, name) = match name {
        Some(name) => (&tls.config.with_sni, name),
        None => (&tls.config.without_sni, ServerName::from(ip)),
    };
    let connecting = TlsConnector::from(Arc::clone(config)).connect(name, Plain::new(tcp));
    let stream = connecting.await.map_err(|error| ConnectError::new(ConnectErrorKind::Tls, error.to_string()))?;
    let session = stream.get_ref().1;
    let alpn = session.alpn_protocol().map(|alpn| String::from_utf8_lossy(alpn).into_owned());
    let peer = session.peer_certificates().and_then(peer::describe).map(Arc::new);
    Ok(Connected { stream: Stream::Tls(Box::new(TlsStream::from(stream))), local_address, alpn, peer })
}
