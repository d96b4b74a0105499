//! `Session`: a downstream connection as its requests see it. `Pass`: one set of rules that a request
//! goes through: the caller's, and for a callee on this host the callee's behind it.

use super::filters::ActiveFault;
use crate::connection::Connection;
use crate::local::{self, LocalError};
use crate::shared::State;
use crate::stream_info::StreamInfo;
use crate::telemetry::Finished;
use crate::upstream::Host;
use crate::worker::Worker;
use dpu_proxy_core::head::{RequestHead, ResponseHead, Version};
use dpu_proxy_core::matching::route::Matched;
use dpu_proxy_core::model::{
    Endpoint, FaultStatus, HttpConnectionManager, Route, RouteAction, RouteActionKind, RouteConfig, ScopedCluster,
    TerminalFilter, VirtualHost, WeightedCluster,
};
use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// A downstream connection.
#[derive(Clone)]
pub struct Session {
    pub worker: Rc<Worker>,
    pub connection: Rc<Connection>,
    pub manager: Arc<HttpConnectionManager>,
    callees: Rc<RefCell<Vec<Callee>>>,
}

/// A callee on this host that the connection has called, and what the answer depended on.
struct Callee {
    state: Rc<State>,
    caller: Rc<Connection>,
    cluster: Arc<ScopedCluster>,
    endpoint: Arc<Endpoint>,
    version: Version,
    /// `None`: it is no callee of this host.
    connection: Option<Rc<Connection>>,
}

/// Callees that a connection remembers.
const MAX_CALLEES: usize = 32;

impl Session {
    /// Of a connection that begins.
    pub fn new(worker: Rc<Worker>, connection: Connection, manager: Arc<HttpConnectionManager>) -> Self {
        Self { worker, connection: Rc::new(connection), manager, callees: Rc::default() }
    }

    /// The connection as the callee's inbound side has it; `None` when the endpoint is not on this host.
    /// Remembered while configuration and certificates stay as they are.
    pub fn callee(
        &self,
        cluster: &Arc<ScopedCluster>,
        host: &Host,
        pass: &Pass,
    ) -> Option<Result<Rc<Connection>, LocalError>> {
        let state = self.worker.state();
        let is_same = |callee: &&Callee| {
            Arc::ptr_eq(&callee.endpoint, &host.endpoint)
                && Rc::ptr_eq(&callee.state, &state)
                && Rc::ptr_eq(&callee.caller, &self.connection)
                && Arc::ptr_eq(&callee.cluster, cluster)
                && callee.version == pass.head.version
        };
        if let Some(known) = self.callees.borrow().iter().find(is_same) {
            return known.connection.clone().map(Ok);
        }
        let alpn = super::decide::alpn(pass, &cluster.cluster);
        let connection = match local::enter(&self.worker, &self.connection, &cluster.cluster, host, alpn) {
            Some(Err(error)) => return Some(Err(error)),
            Some(Ok(connection)) => Some(Rc::new(connection)),
            None => None,
        };
        let mut callees = self.callees.borrow_mut();
        if callees.len() >= MAX_CALLEES {
            callees.clear();
        }
        callees.push(Callee {
            state,
            caller: Rc::clone(&self.connection),
            cluster: Arc::clone(cluster),
            endpoint: Arc::clone(&host.endpoint),
            version: pass.head.version,
            connection: connection.clone(),
        });
        connection.map(Ok)
    }

    /// Counts something of the connection manager.
    pub fn count(&self, name: &'static str) {
        let label = [("envoy_http_conn_manager_prefix", self.manager.stat_prefix.as_str())];
        self.worker.stats.counter(name, &label).inc();
    }

    /// Takes the configuration in force now, between two requests.
    pub fn refresh(&mut self) {
        let state = self.worker.state();
        if state.snapshot.version == self.connection.snapshot_version {
            return;
        }
        if Rc::make_mut(&mut self.connection).refresh(&state.snapshot)
            && let TerminalFilter::Http(manager) = &self.connection.chain.terminal
        {
            self.manager = Arc::clone(manager);
        }
    }
}

/// The route of a request, with what it was found in.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub config: Arc<RouteConfig>,
    pub virtual_host: Arc<VirtualHost>,
    pub route: Arc<Route>,
    pub weighted: Option<usize>,
}

impl Chosen {
    /// Keeps what `route` found in `config`.
    pub fn new(config: Arc<RouteConfig>, matched: &Matched<'_>) -> Self {
        let (virtual_host, route) = (Arc::clone(matched.virtual_host), Arc::clone(matched.route));
        let weighted = matched.weighted;
        Self { config, virtual_host, route, weighted }
    }

    /// As `core` takes it.
    pub fn matched(&self) -> Matched<'_> {
        Matched { virtual_host: &self.virtual_host, route: &self.route, weighted: self.weighted }
    }

    /// The action, when the request is to be forwarded.
    pub fn action(&self) -> Option<&RouteAction> {
        match &self.route.action {
            RouteActionKind::Forward(action) => Some(action),
            _ => None,
        }
    }

    /// The weighted cluster that was chosen.
    pub fn weighted_cluster(&self) -> Option<&WeightedCluster> {
        match &self.action()?.cluster {
            dpu_proxy_core::model::ClusterSpecifier::Weighted { clusters, .. } => clusters.get(self.weighted?),
            _ => None,
        }
    }
}

/// One set of rules that a request goes through. Reused: `begin` keeps the memory.
#[derive(Debug)]
pub struct Pass {
    pub connection: Rc<Connection>,
    pub manager: Arc<HttpConnectionManager>,
    pub head: RequestHead,
    pub info: StreamInfo,
    pub chosen: Option<Chosen>,
    /// Random number of the request: the same for every decision about its route.
    pub random: u64,
    /// Index of the HTTP filter to run next.
    pub next_filter: usize,
    /// What the filters left for the router.
    pub alpn: Option<Arc<dpu_proxy_core::model::AlpnOverride>>,
    /// A request is in it.
    pub is_begun: bool,
    /// The client, after `x-forwarded-for` was taken into account.
    pub client: IpAddr,
    /// The virtual host wants TLS.
    pub requires_tls: bool,
    pub is_cross_origin: bool,
    /// Made for the hash policy.
    pub set_cookies: Vec<String>,
    /// To be injected after the delay.
    pub abort: Option<FaultStatus>,
    pub active_fault: Option<ActiveFault>,
}

impl Pass {
    /// For a connection.
    pub fn new(connection: Rc<Connection>, manager: Arc<HttpConnectionManager>) -> Self {
        Self {
            manager,
            head: RequestHead::default(),
            info: StreamInfo::begin(),
            chosen: None,
            random: 0,
            next_filter: 0,
            alpn: None,
            is_begun: false,
            client: connection.remote.ip(),
            requires_tls: false,
            is_cross_origin: false,
            set_cookies: Vec::new(),
            abort: None,
            active_fault: None,
            connection,
        }
    }

    /// Begins with another request; its head is there already or follows.
    pub fn begin(&mut self, session: &Session, started: Instant, started_wall: SystemTime) {
        if !Rc::ptr_eq(&self.connection, &session.connection) {
            self.connection = Rc::clone(&session.connection);
        }
        if !Arc::ptr_eq(&self.manager, &session.manager) {
            self.manager = Arc::clone(&session.manager);
        }
        self.random = session.worker.random();
        self.restart(started, started_wall);
    }

    fn restart(&mut self, started: Instant, started_wall: SystemTime) {
        self.info.restart(started, started_wall);
        self.chosen = None;
        self.alpn = None;
        self.next_filter = 0;
        self.client = self.connection.remote.ip();
        (self.requires_tls, self.is_cross_origin) = (false, false);
        self.abort = None;
        self.set_cookies.clear();
        self.active_fault = None;
        self.is_begun = true;
    }

    /// Begins with what the caller's rules made of a request.
    pub fn begin_callee(&mut self, connection: Rc<Connection>, manager: Arc<HttpConnectionManager>, outer: &Self) {
        (self.connection, self.manager) = (connection, manager);
        self.head.clone_from(&outer.head);
        self.random = outer.random;
        self.restart(outer.info.started, outer.info.started_wall);
    }

    /// Sets the response code details.
    pub fn details(&mut self, details: &str) {
        self.info.details.clear();
        self.info.details.push_str(details);
    }

    /// Tells of the request's end.
    pub fn finish(&mut self, worker: &Worker, response: Option<&ResponseHead>) {
        self.info.end();
        let finished = Finished {
            connection: &self.connection,
            info: &self.info,
            request: Some(&self.head),
            response,
            access_logs: &self.manager.access_logs,
        };
        worker.telemetry.finish(worker, &finished);
    }
}

/// What one request needs in memory. Kept for the next one.
#[derive(Debug)]
pub struct Scratch {
    pub outer: Pass,
    /// The callee's rules, when it is on this host.
    pub inner: Option<Pass>,
    pub response: ResponseHead,
    pub replay: Replay,
    pub timer: super::timer::Timer,
}

impl Scratch {
    /// For the requests of a session.
    pub fn new(session: &Session) -> Box<Self> {
        Box::new(Self {
            outer: Pass::new(Rc::clone(&session.connection), Arc::clone(&session.manager)),
            inner: None,
            response: ResponseHead::default(),
            replay: Replay::default(),
            timer: super::timer::Timer::default(),
        })
    }

    /// The rules that the request went through last.
    pub fn last(&self) -> &Pass {
        self.inner.as_ref().filter(|inner| inner.is_begun).unwrap_or(&self.outer)
    }

    /// The same, to be changed.
    pub fn last_mut(&mut self) -> &mut Pass {
        match &mut self.inner {
            Some(inner) if inner.is_begun => inner,
            _ => &mut self.outer,
        }
    }
}

/// The body of a request as far as it was sent, to be sent again.
#[derive(Debug, Default)]
pub struct Replay {
    pub bytes: Vec<u8>,
    /// Copies of the request that get the body, too.
    pub copies: Vec<super::mirror::Copy>,
    limit: usize,
    is_complete: bool,
}

impl Replay {
    /// Begins; with a limit of 0 nothing is kept.
    pub fn begin(&mut self, limit: usize) {
        self.bytes.clear();
        self.limit = limit;
        self.is_complete = true;
    }

    /// Keeps as much, too, if nothing was sent yet.
    pub fn keep(&mut self, limit: usize) {
        if self.is_complete && self.bytes.is_empty() {
            self.limit = self.limit.max(limit);
        }
    }

    /// Keeps a piece, if it fits.
    pub fn push(&mut self, data: &[u8]) {
        if !self.copies.is_empty() {
            let piece = bytes::Bytes::copy_from_slice(data);
            self.copies.retain(|copy| copy.push(&piece));
        }
        self.is_complete &= self.bytes.len() + data.len() <= self.limit;
        if self.is_complete {
            self.bytes.extend_from_slice(data);
        } else {
            self.bytes = Vec::new();
        }
    }

    /// The body was passed on whole.
    pub fn finish(&mut self) {
        self.copies.drain(..).for_each(super::mirror::Copy::finish);
    }

    /// True when all that was sent is kept.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }
}
