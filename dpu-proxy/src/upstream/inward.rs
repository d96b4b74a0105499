//! Into this proxy's own inbound side: a call to a workload of this DPU that cannot be made in one
//! pass (no mesh TLS, or another protocol than the callee's) still meets the callee's inbound rules.
//!
//! In: the callee's address. Out: one end of a loopback connection whose other end was accepted as
//! if it had come from the fabric. Nothing of it leaves the process.

use super::connect::{ConnectError, ConnectErrorKind};
use crate::connection::Connection;
use crate::io::Stream;
use crate::listener::accept;
use crate::worker::Worker;
use dpu_proxy_core::model::TerminalFilter;
use std::hash::{Hash, Hasher};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};

/// The way in, for callers with this address. Equal for equal addresses on one worker.
#[derive(Clone)]
pub struct Inward {
    worker: Weak<Worker>,
    source: IpAddr,
}

impl std::fmt::Debug for Inward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inward").field("source", &self.source).finish()
    }
}

impl PartialEq for Inward {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Inward {}

impl Hash for Inward {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.source.hash(state);
    }
}

impl Inward {
    /// For calls of `source`.
    pub fn new(worker: Weak<Worker>, source: IpAddr) -> Self {
        Self { worker, source }
    }

    /// A connection to the inbound side of the workload that owns `destination`.
    pub async fn open(&self, destination: SocketAddr) -> io::Result<TcpStream> {
        let worker = self.worker.upgrade().ok_or(io::ErrorKind::ConnectionAborted)?;
        let (near, far) = pair().await?;
        let remote = SocketAddr::new(self.source, near.local_addr()?.port());
        tokio::task::spawn_local(accept::enter(worker, far, destination, remote));
        Ok(near)
    }
}

/// Serves a callee whose chain is HTTP to a caller that sends it bytes.
pub async fn serve(worker: &Rc<Worker>, callee: Connection) -> Result<Stream, ConnectError> {
    let TerminalFilter::Http(manager) = &callee.chain.terminal else {
        return Err(ConnectError::new(ConnectErrorKind::Connect, "the callee's filter chain has no filters"));
    };
    let manager = Arc::clone(manager);
    let (near, far) = pair().await.map_err(|error| ConnectError::new(ConnectErrorKind::Socket, error.to_string()))?;
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(crate::http::serve_connection(worker, callee, manager, Stream::from(far)));
    Ok(Stream::from(near))
}

/// Two ends of a loopback connection; nobody else can have taken the other end.
async fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let near = TcpStream::connect(listener.local_addr()?).await?;
    let own = near.local_addr()?;
    loop {
        let (far, peer) = listener.accept().await?;
        if peer == own {
            near.set_nodelay(true)?;
            far.set_nodelay(true)?;
            return Ok((near, far));
        }
    }
}
