//! `Stream`: one connection's bytes, plain or in TLS, with bytes already peeked from it.
//!
//! In: a TCP socket (and what an inspector read from it). Out: `AsyncRead` and `AsyncWrite`, and
//! `try_read`, `try_write`, `readable` and `writable`, so that a data path that owns its buffers
//! needs one system call where bytes are there. After `try_write*` on TLS call `flush`.

use bytes::{Buf, Bytes};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// A TCP socket and the bytes that were read from it before its reader came.
#[derive(Debug)]
pub struct Plain {
    tcp: TcpStream,
    peeked: Bytes,
}

impl Plain {
    /// A socket from which nothing was read.
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, peeked: Bytes::new() }
    }

    /// A socket from which `peeked` was read; readers see it first.
    pub fn with_peeked(tcp: TcpStream, peeked: Bytes) -> Self {
        Self { tcp, peeked }
    }

    /// The socket itself.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    fn take_peeked(&mut self, buffer: &mut [u8]) -> Option<usize> {
        if self.peeked.is_empty() || buffer.is_empty() {
            return None;
        }
        let length = self.peeked.len().min(buffer.len());
        self.peeked.copy_to_slice(&mut buffer[..length]);
        Some(length)
    }
}

impl AsyncRead for Plain {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.peeked.is_empty() {
            return Pin::new(&mut this.tcp).poll_read(cx, buffer);
        }
        let length = this.peeked.len().min(buffer.remaining());
        buffer.put_slice(&this.peeked.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Plain {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

/// A connection's bytes.
#[derive(Debug)]
pub enum Stream {
    Plain(Plain),
    Tls(Box<TlsStream<Plain>>),
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self::Plain(Plain::new(tcp))
    }
}

impl Stream {
    /// The socket below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(plain) => &plain.tcp,
            Self::Tls(tls) => &tls.get_ref().0.tcp,
        }
    }

    /// True in TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The socket's own address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().local_addr()
    }

    /// The application protocol that TLS agreed on.
    pub fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => tls.get_ref().1.alpn_protocol(),
        }
    }

    /// Takes what was peeked and not yet read, so that the bare socket can be used (splice). `None` in TLS.
    pub fn take_peeked(&mut self) -> Option<Bytes> {
        match self {
            Self::Plain(plain) => Some(std::mem::take(&mut plain.peeked)),
            Self::Tls(_) => None,
        }
    }

    /// Reads without waiting: `WouldBlock` when nothing is there, 0 at the end.
    pub fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(plain) => match plain.take_peeked(buffer) {
                Some(length) => Ok(length),
                None => plain.tcp.try_read(buffer),
            },
            Self::Tls(tls) => {
                let mut target = ReadBuf::new(buffer);
                now(Pin::new(&mut **tls).poll_read(&mut noop(), &mut target))?;
                Ok(target.filled().len())
            }
        }
    }

    /// Writes without waiting: `WouldBlock` when the socket takes nothing.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(plain) => plain.tcp.try_write(bytes),
            Self::Tls(tls) => now(Pin::new(&mut **tls).poll_write(&mut noop(), bytes)),
        }
    }

    /// The same of several slices.
    pub fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(plain) => plain.tcp.try_write_vectored(slices),
            Self::Tls(tls) => now(Pin::new(&mut **tls).poll_write_vectored(&mut noop(), slices)),
        }
    }

    /// Waits until `try_read` is worth a try.
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Plain(plain) if !plain.peeked.is_empty() => Ok(()),
            _ => self.tcp().readable().await,
        }
    }

    /// Waits until `try_write` is worth a try.
    pub async fn writable(&self) -> io::Result<()> {
        self.tcp().writable().await
    }

    /// `readable` in the form of a poll; shares its waker with `AsyncRead`.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(plain) if !plain.peeked.is_empty() => Poll::Ready(Ok(())),
            _ => self.tcp().poll_read_ready(cx),
        }
    }

    /// Writes everything of the slices, then flushes.
    pub async fn write_all_vectored(&mut self, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut rest = slices;
        while !rest.is_empty() {
            let written = std::future::poll_fn(|cx| Pin::new(&mut *self).poll_write_vectored(cx, rest)).await?;
            if written == 0 && rest.iter().any(|slice| !slice.is_empty()) {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut rest, written);
            while rest.first().is_some_and(|slice| slice.is_empty()) {
                rest = &mut rest[1..];
            }
        }
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_flush(cx)).await
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp().as_fd()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(plain) => Pin::new(plain).poll_read(cx, buffer),
            Self::Tls(tls) => {
                // A peer that closes without close_notify ends the stream, as with plain TCP: framing
                // above says whether something is missing.
                match ready!(Pin::new(&mut **tls).poll_read(cx, buffer)) {
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
                    result => Poll::Ready(result),
                }
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(plain) => Pin::new(plain).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(plain) => Pin::new(plain).poll_write_vectored(cx, slices),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(plain) => Pin::new(plain).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
        }
    }
}

fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn now<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
        (client, listener.accept().await.expect("accept").0)
    }

    #[tokio::test]
    async fn what_was_peeked_is_read_first_and_once() {
        let (mut client, server) = pair().await;
        client.write_all(b" world").await.expect("write");
        client.shutdown().await.expect("shutdown");
        let mut stream = Stream::Plain(Plain::with_peeked(server, Bytes::from_static(b"hello")));
        let mut three = [0; 3];
        assert_eq!(stream.try_read(&mut three).expect("peeked"), 3);
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("read");
        assert_eq!((&three[..], &rest[..]), (&b"hel"[..], &b"lo world"[..]));
    }

    #[tokio::test]
    async fn every_slice_is_written_however_little_the_socket_takes() {
        let (mut client, server) = pair().await;
        let mut stream = Stream::from(server);
        let (first, second) = (vec![1u8; 3_000_000], vec![2u8; 2_000_000]);
        let write = async {
            let mut slices = [IoSlice::new(&first), IoSlice::new(&[]), IoSlice::new(&second)];
            stream.write_all_vectored(&mut slices).await.expect("write");
            stream.shutdown().await.expect("shutdown");
        };
        let mut got = Vec::new();
        let (_, read) = tokio::join!(write, client.read_to_end(&mut got));
        assert_eq!(read.expect("read"), 5_000_000);
    }
}
