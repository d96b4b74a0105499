//! Mirroring (`request_mirror_policies`): a copy of a request goes to another cluster; nobody waits for its answer, and
//! no failure of it is seen by the client. A copy that falls behind by more than the buffer limit is given up.

use super::attempt::protocol;
use super::decide;
use super::flight::poll_response_head;
use super::leg::{Leg, LegError};
use super::pool::{self, AcquireError, Upstream};
use super::session::Pass;
use super::wire::Piece;
use crate::connection::Connection;
use crate::upstream::{ClusterRuntime, ConnectError, Host, NoEndpoint, PickContext, TargetOptions, target};
use crate::worker::Worker;
use bytes::Bytes;
use dpu_proxy_core::head::{RequestHead, ResponseHead};
use dpu_proxy_core::http1::response::Answers;
use dpu_proxy_core::matching::{route, virtual_host};
use dpu_proxy_core::model::RouteAction;
use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Longest life of a copy whose route has no timeout.
const LONGEST: Duration = Duration::from_secs(60);

/// The body of a copy on its way.
#[derive(Debug)]
pub struct Copy {
    pieces: mpsc::UnboundedSender<Part>,
    waiting: Rc<Cell<usize>>,
    limit: usize,
}

#[derive(Debug)]
enum Part {
    Data(Bytes),
    End,
}

impl Copy {
    /// Passes a piece on; false when the copy is to be given up.
    pub fn push(&self, data: &Bytes) -> bool {
        self.waiting.set(self.waiting.get() + data.len());
        self.waiting.get() <= self.limit && self.pieces.send(Part::Data(data.clone())).is_ok()
    }

    /// The body is complete.
    pub fn finish(self) {
        // A copy that has failed needs no end.
        let _ = self.pieces.send(Part::End);
    }
}

/// Why a copy did not get through.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    NoEndpoint(#[from] NoEndpoint),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("a circuit breaker is open")]
    Overflow,
    #[error("the upstream failed: {0:?}")]
    Upstream(LegError),
    #[error("the request was not received to its end, or the copy fell behind")]
    GivenUp,
}

impl From<LegError> for Lost {
    fn from(error: LegError) -> Self {
        Self::Upstream(error)
    }
}

impl From<AcquireError> for Lost {
    fn from(error: AcquireError) -> Self {
        match error {
            AcquireError::Overflow => Self::Overflow,
            AcquireError::Connect(error) => Self::Connect(error),
        }
    }
}

/// Starts the copies that a route asks for; where their bodies go, if there is one.
pub fn start(
    worker: &Rc<Worker>,
    pass: &Pass,
    action: &RouteAction,
    timeout: Option<Duration>,
    body_limit: Option<usize>,
) -> Vec<Copy> {
    let wanted = action.mirrors.iter().filter(|mirror| route::hit(mirror.fraction, worker.random()));
    let mut copies = Vec::new();
    for mirror in wanted {
        let Some(cluster) = worker.cluster(&pass.connection.scope, &mirror.cluster) else {
            tracing::debug!(cluster = mirror.cluster, "no such cluster to mirror to");
            continue;
        };
        let (pieces, body) = mpsc::unbounded_channel();
        let waiting = Rc::new(Cell::new(0));
        let shadow = Shadow {
            worker: Rc::clone(worker),
            connection: Rc::clone(&pass.connection),
            alpn: decide::alpn(pass, &cluster.scoped().cluster).map(<[String]>::to_vec),
            head: head(worker, pass),
            body: body_limit.map(|_| (body, Rc::clone(&waiting))),
            cluster,
        };
        copies.extend(body_limit.map(|limit| Copy { pieces, waiting, limit }));
        tokio::task::spawn_local(shadow.run(timeout.unwrap_or(LONGEST)));
    }
    copies
}

/// As Envoy marks it: `-shadow` behind the host's name, and one more proxy on the way.
fn head(worker: &Worker, pass: &Pass) -> RequestHead {
    let mut head = pass.head.clone();
    let authority = head.authority().to_vec();
    let bare = virtual_host::without_port(&authority);
    head.set_authority(&[bare, b"-shadow", &authority[bare.len()..]].concat());
    head.headers.set(b"x-envoy-internal", b"true");
    let own = worker.http.own_address().to_string();
    let forwarded = match head.headers.get_str("x-forwarded-for") {
        Some(before) => format!("{before},{own}"),
        None => own,
    };
    head.headers.set(b"x-forwarded-for", forwarded.as_bytes());
    head
}

/// A copy in flight.
struct Shadow {
    worker: Rc<Worker>,
    connection: Rc<Connection>,
    cluster: Rc<ClusterRuntime>,
    alpn: Option<Vec<String>>,
    head: RequestHead,
    body: Option<(mpsc::UnboundedReceiver<Part>, Rc<Cell<usize>>)>,
}

impl Shadow {
    async fn run(self, limit: Duration) {
        let cluster = Rc::clone(&self.cluster);
        match tokio::time::timeout(limit, self.send()).await {
            Ok(Ok(())) => {}
            Ok(Err(lost)) => tracing::debug!(cluster = cluster.name(), %lost, "a mirrored request"),
            Err(_) => cluster.stats.request_timeouts.inc(),
        }
    }

    async fn send(mut self) -> Result<(), Lost> {
        let _permit = self.cluster.request_permit().ok_or(Lost::Overflow)?;
        let to = Some(self.connection.original_destination);
        let host = self.cluster.pick(&PickContext { original_destination: to, ..PickContext::default() })?;
        let _active = host.begin();
        self.cluster.stats.requests.inc();
        let mut upstream = self.connect(&host).await?;
        let scoped = self.cluster.scoped();
        upstream.begin(&self.head, self.body.is_some(), scoped.cluster.http.preserve_header_case)?;
        if let Some((body, waiting)) = self.body.take() {
            pass_on(body, &waiting, &mut upstream.leg).await?;
        }
        poll_fn(|cx| upstream.leg.poll_flush(cx)).await?;
        let (status, keep_alive) = answer(&mut upstream.leg, &self.head).await?;
        self.cluster.stats.count_status(status);
        if keep_alive {
            upstream.lease.release(upstream.leg, &scoped.cluster);
        }
        Ok(())
    }

    async fn connect(&self, host: &Host) -> Result<Upstream, Lost> {
        let request_host = std::str::from_utf8(self.head.authority()).ok();
        let options = TargetOptions { alpn: self.alpn.as_deref(), request_host };
        let target = target(&self.worker, &self.connection, &self.cluster, host, &options)?;
        let protocol = protocol(&self.head, self.cluster.scoped().cluster.protocol);
        let pool = host.state.http.pool(target);
        match pool::try_acquire(&pool, protocol) {
            Some(upstream) => Ok(upstream),
            None => Ok(pool::acquire(&pool, &self.cluster, host, protocol).await?),
        }
    }
}

async fn pass_on(mut body: mpsc::UnboundedReceiver<Part>, waiting: &Cell<usize>, leg: &mut Leg) -> Result<(), Lost> {
    loop {
        match body.recv().await {
            None => return Err(Lost::GivenUp),
            Some(Part::End) => return Ok(leg.finish(None)?),
            Some(Part::Data(data)) => {
                let mut given = 0;
                while given < data.len() {
                    given += poll_fn(|cx| leg.poll_give(cx, &data[given..])).await?;
                }
                waiting.set(waiting.get() - data.len());
            }
        }
        if body.is_empty() {
            poll_fn(|cx| leg.poll_flush(cx)).await?;
        }
    }
}

/// Reads the answer to its end: its status, and whether the connection can be used again.
async fn answer(leg: &mut Leg, head: &RequestHead) -> Result<(u16, bool), Lost> {
    let answers = if head.method() == b"HEAD" { Answers::Head } else { Answers::Other };
    let mut response = ResponseHead::default();
    let meta = loop {
        let meta = poll_fn(|cx| poll_response_head(leg, cx, answers, &mut response)).await?;
        if !(100..200).contains(&response.status) {
            break meta;
        }
    };
    while poll_fn(|cx| leg.poll_body(cx)).await? == Piece::Data {
        leg.consume(leg.data().len());
    }
    Ok((response.status, meta.keep_alive && !meta.upgrade))
}
