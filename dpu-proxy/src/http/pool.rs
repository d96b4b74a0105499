//! Upstream connections of one host on one worker, by target: the idle ones, last used first, and the
//! HTTP/2 ones with room for another stream.

use super::leg::{H2Stream, Leg, LegError};
use super::translate;
use super::wire::Wire;
use crate::connection::PeerCertificate;
use crate::stats::Gauge;
use crate::upstream::cluster::Permit;
use crate::upstream::{ClusterRuntime, ConnectError, ConnectErrorKind, Connected, Host, Target, connect};
use bytes::Bytes;
use dpu_proxy_core::head::RequestHead;
use dpu_proxy_core::http1::encode;
use dpu_proxy_core::model::{Cluster, UpstreamProtocol};
use h2::client::SendRequest;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How often idle connections are looked at.
const REAP_EVERY: Duration = Duration::from_secs(2);
/// Windows of HTTP/2 upstreams, unless configured: large enough for a fast server, small enough for many.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// What the HTTP path keeps per host of a cluster on a worker; dropped with the host.
#[derive(Debug, Default)]
pub struct HostState {
    pools: RefCell<Vec<Rc<Pool>>>,
}

/// Connections of one target.
#[derive(Debug)]
pub struct Pool {
    target: Target,
    idle: RefCell<Vec<Idle>>,
    multiplexed: RefCell<Vec<Rc<Multiplexed>>>,
    waiting: RefCell<VecDeque<oneshot::Sender<Idle>>>,
    connecting: tokio::sync::Mutex<()>,
    open: Cell<u32>,
    is_reaping: Cell<bool>,
}

/// An HTTP/1.1 connection without a request.
#[derive(Debug)]
struct Idle {
    wire: Box<Wire>,
    facts: Facts,
    since: Instant,
}

/// What is known of an upstream connection.
#[derive(Debug)]
pub struct Facts {
    pub local_address: SocketAddr,
    pub peer: Option<Arc<PeerCertificate>>,
    own_identity: Option<Arc<str>>,
    opened: Instant,
    requests: u32,
    _open: Open,
}

/// An HTTP/2 connection.
#[derive(Debug)]
struct Multiplexed {
    send: RefCell<SendRequest<Bytes>>,
    streams: Cell<u32>,
    begun: Cell<u32>,
    opened: Instant,
    /// Since when there has been no stream.
    idle_since: Cell<Instant>,
    max_requests: Option<u32>,
    max_duration: Option<Duration>,
    is_closed: Rc<Cell<bool>>,
    local_address: SocketAddr,
    peer: Option<Arc<PeerCertificate>>,
    own_identity: Option<Arc<str>>,
    _open: Open,
}

/// Counts an open connection while it lives.
#[derive(Debug)]
struct Open {
    pool: Weak<Pool>,
    active: Rc<Gauge>,
    _permit: Option<Permit>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.active.add(-1);
        if let Some(pool) = self.pool.upgrade() {
            pool.open.set(pool.open.get() - 1);
        }
    }
}

/// A connection for one request. Dropped without `release` it is closed (HTTP/1.1) or the stream reset.
#[derive(Debug)]
pub struct Lease {
    pool: Rc<Pool>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Single(Facts),
    Stream(Rc<Multiplexed>),
    Ended(SocketAddr),
}

/// A leg to the upstream and its lease.
#[derive(Debug)]
pub struct Upstream {
    pub leg: Leg,
    pub lease: Lease,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum AcquireError {
    /// A circuit breaker is open.
    Overflow,
    Connect(ConnectError),
}

impl HostState {
    /// The pool of a target.
    pub fn pool(&self, target: Target) -> Rc<Pool> {
        let mut pools = self.pools.borrow_mut();
        if let Some(pool) = pools.iter().find(|pool| pool.target == target) {
            return Rc::clone(pool);
        }
        // A renewed certificate makes a new target: pools that hold nothing go.
        pools.retain(|pool| pool.open.get() > 0);
        let pool = Rc::new(Pool {
            target,
            idle: RefCell::default(),
            multiplexed: RefCell::default(),
            waiting: RefCell::default(),
            connecting: tokio::sync::Mutex::default(),
            open: Cell::new(0),
            is_reaping: Cell::new(false),
        });
        pools.push(Rc::clone(&pool));
        pool
    }
}

/// An idle connection, where one is there at once.
pub fn try_acquire(pool: &Rc<Pool>, protocol: UpstreamProtocol) -> Option<Upstream> {
    if protocol != UpstreamProtocol::Http2
        && let Some(idle) = pool.take_idle()
    {
        return Some(pool.lease(idle));
    }
    if protocol == UpstreamProtocol::Http1 { None } else { pool.stream() }
}

/// A connection of `pool`, opened when none is idle.
pub async fn acquire(
    pool: &Rc<Pool>,
    cluster: &ClusterRuntime,
    host: &Host,
    protocol: UpstreamProtocol,
) -> Result<Upstream, AcquireError> {
    let _pending = cluster.pending_permit().ok_or_else(|| overflow(cluster))?;
    if protocol == UpstreamProtocol::Http1 {
        return acquire_single(pool, cluster, host, protocol).await;
    }
    // One handshake serves all who wait.
    let _turn = pool.connecting.lock().await;
    match try_acquire(pool, protocol) {
        Some(upstream) => Ok(upstream),
        None => acquire_single(pool, cluster, host, protocol).await,
    }
}

async fn acquire_single(
    pool: &Rc<Pool>,
    cluster: &ClusterRuntime,
    host: &Host,
    protocol: UpstreamProtocol,
) -> Result<Upstream, AcquireError> {
    let permit = cluster.connection_permit();
    // A host without a connection always gets one, or it would starve beside its neighbours.
    if permit.is_none() && pool.open.get() > 0 {
        return pool.wait().await.ok_or_else(|| overflow(cluster));
    }
    let open = pool.open(cluster, permit);
    let scoped = cluster.scoped();
    let started = Instant::now();
    let connected = connect(&pool.target, scoped.cluster.connect_timeout, scoped.cluster.tcp_keepalive).await;
    match connected {
        Ok(connected) => {
            cluster.stats.connections.inc();
            host.state.connections.set(host.state.connections.get() + 1);
            pool.start(connected, &scoped.cluster, protocol, open, started).await.map_err(AcquireError::Connect)
        }
        Err(error) => {
            let is_timeout = error.kind == ConnectErrorKind::Timeout;
            if is_timeout { &cluster.stats.connect_timeouts } else { &cluster.stats.connect_failures }.inc();
            host.state.connect_failures.set(host.state.connect_failures.get() + 1);
            Err(AcquireError::Connect(error))
        }
    }
}

fn overflow(cluster: &ClusterRuntime) -> AcquireError {
    cluster.stats.pending_overflow.inc();
    AcquireError::Overflow
}

impl Pool {
    fn take_idle(&self) -> Option<Idle> {
        loop {
            // The borrow ends before a dead connection is dropped.
            let mut idle = self.idle.borrow_mut().pop()?;
            if idle.wire.is_quiet() {
                return Some(idle);
            }
        }
    }

    fn lease(self: &Rc<Self>, idle: Idle) -> Upstream {
        let facts = Facts { requests: idle.facts.requests + 1, ..idle.facts };
        let lease = Lease { pool: Rc::clone(self), kind: Kind::Single(facts) };
        Upstream { leg: Leg::H1(idle.wire), lease }
    }

    fn stream(self: &Rc<Self>) -> Option<Upstream> {
        self.multiplexed.borrow_mut().retain(|connection| !connection.is_closed.get() && !connection.is_spent());
        let connections = self.multiplexed.borrow();
        let connection = connections.iter().find(|connection| connection.has_room())?;
        Some(self.lease_stream(connection))
    }

    fn lease_stream(self: &Rc<Self>, connection: &Rc<Multiplexed>) -> Upstream {
        connection.streams.set(connection.streams.get() + 1);
        connection.begun.set(connection.begun.get() + 1);
        let lease = Lease { pool: Rc::clone(self), kind: Kind::Stream(Rc::clone(connection)) };
        Upstream { leg: Leg::H2(Box::default()), lease }
    }

    fn open(self: &Rc<Self>, cluster: &ClusterRuntime, permit: Option<Permit>) -> Open {
        let active = Rc::clone(&cluster.stats.connections_active);
        active.add(1);
        self.open.set(self.open.get() + 1);
        Open { pool: Rc::downgrade(self), active, _permit: permit }
    }

    async fn wait(self: &Rc<Self>) -> Option<Upstream> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().push_back(sender);
        let idle = receiver.await.ok()?;
        Some(self.lease(idle))
    }

    async fn start(
        self: &Rc<Self>,
        connected: Connected,
        cluster: &Cluster,
        protocol: UpstreamProtocol,
        open: Open,
        opened: Instant,
    ) -> Result<Upstream, ConnectError> {
        let Connected { stream, local_address, alpn, peer } = connected;
        let own = self.target.tls.as_ref().and_then(|tls| tls.config.local_uri_sans.first());
        let own_identity = own.map(|uri| Arc::from(uri.as_str()));
        let is_http2 = protocol == UpstreamProtocol::Http2
            || (protocol == UpstreamProtocol::Auto && alpn.as_deref() == Some("h2"));
        if !is_http2 {
            let facts = Facts { local_address, peer, own_identity, opened, requests: 0, _open: open };
            return Ok(self.lease(Idle { wire: Box::new(Wire::new(stream)), facts, since: opened }));
        }
        let options = &cluster.http.http2;
        let handshake = h2::client::Builder::new()
            .initial_window_size(options.initial_stream_window_size.unwrap_or(STREAM_WINDOW))
            .initial_connection_window_size(options.initial_connection_window_size.unwrap_or(CONNECTION_WINDOW))
            .enable_push(false)
            .handshake(stream);
        let (send, driver) =
            handshake.await.map_err(|error| ConnectError::new(ConnectErrorKind::Connect, error.to_string()))?;
        let is_closed = Rc::new(Cell::new(false));
        let connection = Rc::new(Multiplexed {
            send: RefCell::new(send),
            streams: Cell::new(0),
            begun: Cell::new(0),
            opened,
            idle_since: Cell::new(Instant::now()),
            max_requests: cluster.http.max_requests_per_connection,
            max_duration: cluster.http.max_connection_duration,
            is_closed: Rc::clone(&is_closed),
            local_address,
            peer,
            own_identity,
            _open: open,
        });
        tokio::task::spawn_local(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "an HTTP/2 upstream connection ended");
            }
            is_closed.set(true);
        });
        self.multiplexed.borrow_mut().push(Rc::clone(&connection));
        self.start_reaping(cluster.http.idle_timeout);
        Ok(self.lease_stream(&connection))
    }

    fn give_back(self: &Rc<Self>, mut wire: Box<Wire>, facts: Facts, cluster: &Cluster) {
        let http = &cluster.http;
        let is_spent = http.max_requests_per_connection.is_some_and(|most| facts.requests >= most)
            || http.max_connection_duration.is_some_and(|most| facts.opened.elapsed() >= most);
        if is_spent {
            return;
        }
        wire.rest();
        let mut idle = Idle { wire, facts, since: Instant::now() };
        while let Some(waiter) = { self.waiting.borrow_mut().pop_front() } {
            match waiter.send(idle) {
                Ok(()) => return,
                Err(unused) => idle = unused,
            }
        }
        self.idle.borrow_mut().push(idle);
        self.start_reaping(http.idle_timeout);
    }

    /// Looks at idle connections from time to time, while there are any.
    fn start_reaping(self: &Rc<Self>, timeout: Option<Duration>) {
        if self.is_reaping.replace(true) {
            return;
        }
        let pool = Rc::downgrade(self);
        let every = timeout.map_or(REAP_EVERY, |timeout| REAP_EVERY.min(timeout));
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(every).await;
                let Some(pool) = pool.upgrade() else { return };
                if !pool.reap(timeout) {
                    pool.is_reaping.set(false);
                    return;
                }
            }
        });
    }

    /// Closes idle connections that ended or were idle too long; true when some are left.
    fn reap(&self, timeout: Option<Duration>) -> bool {
        let now = Instant::now();
        let mut idle = std::mem::take(&mut *self.idle.borrow_mut());
        let is_fresh = |idle: &Idle| timeout.is_none_or(|timeout| now.duration_since(idle.since) < timeout);
        idle.retain_mut(|idle| is_fresh(idle) && idle.wire.is_quiet());
        *self.idle.borrow_mut() = idle;
        let is_in_use = |connection: &Rc<Multiplexed>| {
            connection.streams.get() > 0
                || timeout.is_none_or(|timeout| now.duration_since(connection.idle_since.get()) < timeout)
        };
        let mut multiplexed = self.multiplexed.borrow_mut();
        // What is dropped here ends with its last stream.
        multiplexed.retain(|connection| !connection.is_closed.get() && !connection.is_spent() && is_in_use(connection));
        !multiplexed.is_empty() || !self.idle.borrow().is_empty()
    }
}

impl Multiplexed {
    /// It has carried what it may: streams finish, and no new one begins.
    fn is_spent(&self) -> bool {
        self.max_requests.is_some_and(|most| self.begun.get() >= most)
            || self.max_duration.is_some_and(|most| self.opened.elapsed() >= most)
    }

    fn has_room(&self) -> bool {
        let most = self.send.borrow().current_max_send_streams();
        !self.is_closed.get() && (self.streams.get() as usize) < most
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Kind::Stream(connection) = &self.kind {
            connection.streams.set(connection.streams.get() - 1);
            connection.idle_since.set(Instant::now());
        }
    }
}

impl Lease {
    /// Local address of the connection.
    pub fn local_address(&self) -> SocketAddr {
        match &self.kind {
            Kind::Single(facts) => facts.local_address,
            Kind::Stream(connection) => connection.local_address,
            Kind::Ended(address) => *address,
        }
    }

    /// What the upstream showed.
    pub fn peer(&self) -> Option<&Arc<PeerCertificate>> {
        match &self.kind {
            Kind::Single(facts) => facts.peer.as_ref(),
            Kind::Stream(connection) => connection.peer.as_ref(),
            Kind::Ended(_) => None,
        }
    }

    /// URI SANs of the certificate that was shown upstream.
    pub fn own_identity(&self) -> Option<Arc<str>> {
        match &self.kind {
            Kind::Single(facts) => facts.own_identity.clone(),
            Kind::Stream(connection) => connection.own_identity.clone(),
            Kind::Ended(_) => None,
        }
    }

    /// Gives an HTTP/1.1 connection back, on which both messages ended.
    pub fn release(mut self, leg: Leg, cluster: &Cluster) {
        let pool = Rc::clone(&self.pool);
        let ended = Kind::Ended(self.local_address());
        let kind = std::mem::replace(&mut self.kind, ended);
        if let (Leg::H1(wire), Kind::Single(facts)) = (leg, kind) {
            pool.give_back(wire, facts, cluster);
        }
    }
}

impl Upstream {
    /// Begins a request: its head goes to the leg. Without `has_body` nothing else follows.
    pub fn begin(&mut self, head: &RequestHead, has_body: bool, proper_case: bool) -> Result<(), LegError> {
        match (&mut self.leg, &self.lease.kind) {
            (Leg::H1(wire), _) => {
                wire.put_request(head, encode::request_framing(head, has_body), proper_case);
                Ok(())
            }
            (Leg::H2(stream), Kind::Stream(connection)) => connection.begin(stream, head, has_body),
            (Leg::H2(_), _) => Err(LegError::Cut),
        }
    }
}

impl Multiplexed {
    fn begin(&self, stream: &mut H2Stream, head: &RequestHead, has_body: bool) -> Result<(), LegError> {
        let request = translate::request_out(head).ok_or(LegError::Malformed("http2.invalid_request"))?;
        let (response, send) = self.send.borrow_mut().send_request(request, !has_body)?;
        stream.response = Some(response);
        stream.send = Some(send);
        if !has_body {
            stream.head_was_all();
        }
        Ok(())
    }
}
