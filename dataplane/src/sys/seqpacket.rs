//! Unix SOCK_SEQPACKET sockets: one datagram is one message, and a descriptor may ride on it.

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, accept_with, bind, listen, recvmsg, send, socket_with,
};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::io::unix::AsyncFd;

/// Longest message.
pub const MESSAGE_LIMIT_BYTES: usize = 64 * 1024;
const BACKLOG: i32 = 16;

/// A listening socket; its path goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<OwnedFd>,
    path: PathBuf,
}

impl Listener {
    /// Binds the path with mode 0600, in the place of a socket that an earlier process left.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listen(&socket, BACKLOG)?;
        Ok(Self { socket: registered(socket)?, path: path.to_owned() })
    }

    /// The next peer.
    pub async fn accept(&self) -> io::Result<Peer> {
        loop {
            let mut ready = self.socket.readable().await?;
            let accepted =
                ready.try_io(|socket| Ok(accept_with(socket.get_ref(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?));
            if let Ok(accepted) = accepted {
                return Ok(Peer { socket: registered(accepted?)? });
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Another process may have taken the path already; then this is its affair.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A connected peer.
#[derive(Debug)]
pub struct Peer {
    socket: AsyncFd<OwnedFd>,
}

impl Peer {
    /// The next message and the descriptors on it; `None` when the peer closed.
    pub async fn receive(&self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        loop {
            let mut ready = self.socket.readable().await?;
            if let Ok(received) = ready.try_io(|socket| receive(socket.get_ref())) {
                return received;
            }
        }
    }

    /// Sends one message.
    pub async fn send(&self, message: &[u8]) -> io::Result<()> {
        loop {
            let mut ready = self.socket.writable().await?;
            let sent = ready.try_io(|socket| Ok(send(socket.get_ref(), message, SendFlags::NOSIGNAL)?));
            if let Ok(sent) = sent {
                return sent.map(drop);
            }
        }
    }
}

fn registered(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its descriptor open and the same until it is dropped, and nothing here
    // takes it out of the `AsyncFd`.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

fn receive(socket: &OwnedFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_LIMIT_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    bytes.truncate(received.bytes);
    Ok((received.bytes > 0).then_some((bytes, descriptors)))
}
