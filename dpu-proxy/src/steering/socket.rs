//! A SOCK_SEQPACKET socket: one datagram a message, a file descriptor beside it where needed.

use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, recv, sendmsg, socket_with,
};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Largest message that is taken, in bytes: a snapshot of some thousand ports.
const MESSAGE_BYTES: usize = 1024 * 1024;

/// A connected socket. Tokio's stream only waits for it; what is sent and received are datagrams.
#[derive(Debug)]
pub(super) struct SeqPacket {
    socket: UnixStream,
    buffer: Vec<u8>,
}

impl SeqPacket {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self { socket: UnixStream::from_std(socket.into())?, buffer: vec![0; MESSAGE_BYTES] })
    }

    /// Sends a message, with a file descriptor if there is one.
    pub async fn send(&self, message: &[u8], carried: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let send = || send(self.socket.as_fd(), message, carried);
        self.socket.async_io(Interest::WRITABLE, send).await
    }

    /// The next message; `None` when the peer has closed.
    pub async fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        let (socket, buffer) = (&self.socket, self.buffer.as_mut_slice());
        let receive = || Ok(recv(socket, &mut *buffer, RecvFlags::empty())?.0);
        let length = socket.async_io(Interest::READABLE, receive).await?;
        Ok((length > 0).then(|| &self.buffer[..length]))
    }
}

fn send(socket: BorrowedFd<'_>, message: &[u8], carried: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: &[BorrowedFd<'_>] = carried.as_slice();
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("no room for a file descriptor"));
    }
    let sent = sendmsg(socket, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    match sent == message.len() {
        true => Ok(()),
        // SEQPACKET sends a message whole or not at all.
        false => Err(io::ErrorKind::WriteZero.into()),
    }
}
