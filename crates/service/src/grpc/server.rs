//! What a server listens with: TLS whose certificate renews, and who the caller is.

use super::certificate::subject_alt_names;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;

/// A caller that has not said who it is by then is hung up on.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept, e.g. without file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// TLS of a server.
#[derive(Clone, Debug)]
pub struct ServerTls {
    pub(super) config: Arc<rustls::ServerConfig>,
}

/// Who opened a connection; in the extensions of each of its requests.
#[derive(Clone, Debug, Default)]
pub struct PeerInfo {
    pub address: Option<SocketAddr>,
    /// URI SANs, then DNS SANs, of its certificate; empty without one.
    pub identities: Arc<[String]>,
}

/// Connections for `Router::serve_with_incoming`. Handshakes do not wait for one another; one that
/// fails is logged with its reason. Ends when it is dropped.
pub fn incoming(listener: TcpListener, tls: Option<ServerTls>) -> ReceiverStream<std::io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(accept(listener, tls, sender));
    ReceiverStream::new(receiver)
}

type Accepted = mpsc::Sender<std::io::Result<Connection>>;

async fn accept(listener: TcpListener, tls: Option<ServerTls>, accepted: Accepted) {
    loop {
        let stream = tokio::select! {
            stream = listener.accept() => stream,
            () = accepted.closed() => return,
        };
        match stream {
            Ok((stream, address)) => {
                tokio::spawn(hand_over(stream, address, tls.clone(), accepted.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn hand_over(stream: TcpStream, address: SocketAddr, tls: Option<ServerTls>, accepted: Accepted) {
    match Connection::open(stream, address, tls).await {
        // A server that is gone needs no connection.
        Ok(connection) => drop(accepted.send(Ok(connection)).await),
        // Probes of load balancers connect and hang up.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            tracing::debug!(%address, "a caller hung up before it said who it is");
        }
        Err(error) => tracing::warn!(%address, %error, "TLS with a caller failed"),
    }
}

/// A connection of a caller that is known.
#[derive(Debug)]
pub struct Connection {
    stream: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    peer: PeerInfo,
}

impl Connection {
    async fn open(stream: TcpStream, address: SocketAddr, tls: Option<ServerTls>) -> std::io::Result<Self> {
        stream.set_nodelay(true)?;
        let peer = PeerInfo { address: Some(address), ..PeerInfo::default() };
        let Some(tls) = tls else { return Ok(Self { stream: Either::Left(stream), peer }) };
        let handshake = TlsAcceptor::from(tls.config).accept(stream);
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_| std::io::Error::new(std::io::ErrorKind::TimedOut, "the handshake did not end in time"))??;
        let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let identities = leaf.map(|leaf| subject_alt_names(leaf)).unwrap_or_default().into();
        Ok(Self { stream: Either::Right(Box::new(stream)), peer: PeerInfo { identities, ..peer } })
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
