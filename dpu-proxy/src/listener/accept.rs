//! The one accept loop, and the way of a connection from there to its terminal filter.
//!
//! In: sockets from a listening socket with its gate. Out: connections served by `http` or `tcp_proxy`,
//! or closed with an access log that says why.

use super::inspect::{self, Inspection};
use super::probe;
use super::resolve::{self, Owner};
use crate::connection::{Connection, Gate, TlsFacts};
use crate::io::{Plain, Stream};
use crate::stream_info::{ResponseFlags, StreamInfo};
use crate::telemetry::Finished;
use crate::tls::{peer, suites};
use crate::worker::Worker;
use crate::{authorize, http, tcp_proxy};
use dpu_proxy_core::model::{DownstreamTls, FilterChain, Listener, TerminalFilter};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{LazyConfigAcceptor, TlsStream};
use tokio_util::sync::CancellationToken;

/// Handshakes that take longer are cut (Envoy's default is no limit; a garbage client must not stay).
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// After an accept error (no file descriptors, say).
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until `stop`; then takes what the kernel has queued already, so that nobody is reset.
pub async fn accept(worker: Rc<Worker>, gate: Gate, socket: TcpListener, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = socket.accept() => accepted,
        };
        take(&worker, &gate, accepted).await;
    }
    while let Some(accepted) = futures_util::FutureExt::now_or_never(socket.accept()) {
        take(&worker, &gate, accepted).await;
    }
}

async fn take(worker: &Rc<Worker>, gate: &Gate, accepted: std::io::Result<(TcpStream, SocketAddr)>) {
    match accepted {
        Ok((tcp, remote)) => {
            tokio::task::spawn_local(serve(Rc::clone(worker), gate.clone(), tcp, remote));
        }
        Err(error) => {
            tracing::warn!(?gate, %error, "cannot accept");
            tokio::time::sleep(ERROR_PAUSE).await;
        }
    }
}

/// What is known as soon as a socket is accepted.
pub(super) struct Arrival {
    pub gate: Gate,
    pub owner: Owner,
    listener: Arc<Listener>,
    pub destination: SocketAddr,
    remote: SocketAddr,
    version: u64,
    started: Instant,
    started_wall: SystemTime,
}

async fn serve(worker: Rc<Worker>, gate: Gate, tcp: TcpStream, remote: SocketAddr) {
    // Fails only when the peer is gone already, which the first read tells.
    let _ = tcp.set_nodelay(true);
    let Ok(local) = tcp.local_addr() else { return };
    admit(worker, gate, tcp, unmapped(local), unmapped(remote)).await;
}

/// A call of another workload of this DPU to `destination`, as bytes: taken as if it had come from the fabric.
pub async fn enter(worker: Rc<Worker>, tcp: TcpStream, destination: SocketAddr, remote: SocketAddr) {
    admit(worker, Gate::Local, tcp, destination, remote).await;
}

pub(super) async fn admit(worker: Rc<Worker>, gate: Gate, tcp: TcpStream, local: SocketAddr, remote: SocketAddr) {
    let _held = worker.hold();
    let Some(arrival) = arrive(&worker, gate, &tcp, local, remote) else { return };
    let Some(_slot) = worker.admit(arrival.owner.workload.as_deref()) else {
        let label = [("envoy_listener_address", arrival.listener.name.as_str())];
        worker.stats.counter("envoy_listener_downstream_cx_overflow", &label).inc();
        return;
    };
    let Some((tcp, read)) = probe::screen(&worker, &arrival, tcp).await else { return };
    let _counted = worker.telemetry.downstream(&worker, &arrival.listener);
    match inspect::inspect(&arrival.listener, arrival.destination.port(), tcp, read, worker.patience()).await {
        Ok((plain, seen)) => choose(worker, arrival, plain, seen).await,
        Err(error) => tracing::debug!(%remote, %error, "closed before a filter chain was chosen"),
    }
}

/// An IPv4 client of an IPv6 socket is an IPv4 client.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn arrive(worker: &Rc<Worker>, gate: Gate, tcp: &TcpStream, local: SocketAddr, remote: SocketAddr) -> Option<Arrival> {
    let snapshot = worker.snapshot();
    let found = resolve::owner(&snapshot, &gate, local).and_then(|owner| {
        let entry = resolve::entry(&owner, &gate)?;
        Some((owner, entry))
    });
    let Some((owner, entry)) = found else {
        tracing::debug!(?gate, %local, %remote, "no listener governs this connection");
        worker.stats.counter("dpu_proxy_ungoverned_connections_closed_total", &[]).inc();
        return None;
    };
    let redirected = entry.filters.original_dst && gate != Gate::Local;
    let destination = if redirected { original_destination(tcp).unwrap_or(local) } else { local };
    let listener = resolve::handed_over(&owner.scope, &entry, destination);
    let version = snapshot.version;
    let (started, started_wall) = (Instant::now(), SystemTime::now());
    Some(Arrival { gate, owner, listener, destination, remote, version, started, started_wall })
}

/// Where a connection was going before netfilter REDIRECT changed it. A steered one was not changed.
fn original_destination(tcp: &TcpStream) -> Option<SocketAddr> {
    let socket = socket2::SockRef::from(tcp);
    socket.original_dst_v4().or_else(|_| socket.original_dst_v6()).ok().and_then(|address| address.as_socket())
}

async fn choose(worker: Rc<Worker>, arrival: Arrival, plain: Plain, seen: Inspection) {
    let facts = dpu_proxy_core::model::ConnectionFacts {
        destination: arrival.destination,
        source: arrival.remote,
        direct_source: arrival.remote.ip(),
        server_name: &seen.server_name,
        tls: seen.is_tls,
        application_protocols: &seen.protocols,
    };
    match resolve::chain(&arrival.listener, &facts) {
        Some(chain) => {
            let connection = connection(&worker, &arrival, seen, chain);
            secure(worker, connection, plain).await;
        }
        None => unmatched(&worker, &arrival, seen),
    }
}

pub(super) fn connection(
    worker: &Rc<Worker>,
    arrival: &Arrival,
    seen: Inspection,
    chain: Arc<FilterChain>,
) -> Connection {
    Connection {
        id: worker.next_connection_id(),
        gate: arrival.gate.clone(),
        direction: match arrival.gate {
            Gate::Bound(_) => arrival.listener.direction,
            _ => arrival.owner.direction,
        },
        original_destination: arrival.destination,
        remote: arrival.remote,
        direct_remote: arrival.remote,
        sni: seen.server_name,
        is_tls: seen.is_tls,
        offered_protocols: seen.protocols,
        tls: None,
        workload: arrival.owner.workload.clone(),
        scope: Arc::clone(&arrival.owner.scope),
        listener: Arc::clone(&arrival.listener),
        chain,
        snapshot_version: arrival.version,
        started: arrival.started,
        started_wall: arrival.started_wall,
    }
}

/// Stands where no filter chain was chosen.
pub(super) fn no_chain(name: &str) -> Arc<FilterChain> {
    Arc::new(FilterChain::new(name, TerminalFilter::None))
}

fn unmatched(worker: &Rc<Worker>, arrival: &Arrival, seen: Inspection) {
    let connection = connection(worker, arrival, seen, no_chain(""));
    let label = [("envoy_listener_address", arrival.listener.name.as_str())];
    worker.stats.counter("envoy_listener_no_filter_chain_match", &label).inc();
    refuse(worker, &connection, ResponseFlags::NO_ROUTE, "filter_chain_not_found");
}

/// Tells of a connection that is closed without being served.
fn refuse(worker: &Rc<Worker>, connection: &Connection, flags: ResponseFlags, details: &str) {
    let mut info = StreamInfo::since(connection.started, connection.started_wall);
    info.flags.insert(flags);
    info.details = details.to_owned();
    info.end();
    let access_logs = &connection.listener.access_logs;
    let finished = Finished { connection, info: &info, request: None, response: None, access_logs };
    worker.telemetry.finish(worker, &finished);
}

async fn secure(worker: Rc<Worker>, mut connection: Connection, plain: Plain) {
    let Some(tls) = connection.chain.tls.clone() else {
        return authorize_and_run(worker, connection, Stream::Plain(plain)).await;
    };
    let limit = connection.chain.transport_socket_connect_timeout.unwrap_or(HANDSHAKE_TIMEOUT);
    let result = match tokio::time::timeout(limit, handshake(&worker, &connection, &tls, plain)).await {
        Ok(result) => result,
        Err(_) => Err("the handshake timed out".to_owned()),
    };
    match result {
        Ok((stream, facts)) => {
            connection.is_tls = true;
            connection.tls = Some(facts);
            authorize_and_run(worker, connection, stream).await;
        }
        Err(reason) => handshake_failed(&worker, &connection, &reason),
    }
}

fn handshake_failed(worker: &Rc<Worker>, connection: &Connection, reason: &str) {
    tracing::debug!(remote = %connection.remote, listener = connection.listener.name, reason, "TLS handshake failed");
    let label = [("envoy_listener_address", connection.listener.name.as_str())];
    worker.stats.counter("envoy_listener_ssl_connection_error", &label).inc();
    refuse(worker, connection, ResponseFlags::default(), "tls_handshake_failed");
}

async fn handshake(
    worker: &Rc<Worker>,
    connection: &Connection,
    tls: &Arc<DownstreamTls>,
    plain: Plain,
) -> Result<(Stream, TlsFacts), String> {
    let state = worker.state();
    let server = worker.tls.server(tls, connection.workload.as_deref(), &state.secrets);
    let server = server.map_err(|error| error.to_string())?;
    let hello = LazyConfigAcceptor::new(Default::default(), plain).await.map_err(|error| error.to_string())?;
    let offered: Vec<Vec<u8>> =
        hello.client_hello().alpn().map(|list| list.map(<[u8]>::to_vec).collect()).unwrap_or_default();
    let config = server.config(offered.iter().map(Vec::as_slice));
    let stream = hello.into_stream(config).await.map_err(|error| error.to_string())?;
    let session = stream.get_ref().1;
    let facts = TlsFacts {
        version: version_name(session.protocol_version()),
        cipher: session
            .negotiated_cipher_suite()
            .map(|suite| suites::openssl_name(suite.suite()).to_owned())
            .unwrap_or_default(),
        peer: session.peer_certificates().and_then(peer::describe).map(Arc::new),
        local_uri_sans: Arc::clone(&server.local_uri_sans),
        alpn: session.alpn_protocol().map(|protocol| String::from_utf8_lossy(protocol).into_owned()),
    };
    Ok((Stream::Tls(Box::new(TlsStream::from(stream))), facts))
}

fn version_name(version: Option<rustls::ProtocolVersion>) -> &'static str {
    match version {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "",
    }
}

async fn authorize_and_run(worker: Rc<Worker>, connection: Connection, stream: Stream) {
    if let Err(denied) = authorize::network(&connection, &worker.stats) {
        return refuse_denied(&worker, &connection, &denied);
    }
    let chain = Arc::clone(&connection.chain);
    match &chain.terminal {
        TerminalFilter::Http(manager) => {
            http::serve_connection(worker, connection, Arc::clone(manager), stream).await;
        }
        TerminalFilter::Tcp(proxy) => tcp_proxy::serve(worker, connection, Arc::clone(proxy), stream).await,
        TerminalFilter::None => refuse(&worker, &connection, ResponseFlags::default(), "filter_chain_without_filters"),
    }
}

/// Tells of a connection that its filter chain's policy denies.
pub(crate) fn refuse_denied(worker: &Rc<Worker>, connection: &Connection, denied: &str) {
    let mut info = StreamInfo::since(connection.started, connection.started_wall);
    info.connection_termination_details = denied.to_owned();
    info.end();
    let access_logs = match &connection.chain.terminal {
        TerminalFilter::Tcp(proxy) => {
            info.upstream = tcp_proxy::intended(worker, connection, proxy);
            &proxy.access_logs
        }
        TerminalFilter::Http(manager) => &manager.access_logs,
        TerminalFilter::None => &connection.listener.access_logs,
    };
    let finished = Finished { connection, info: &info, request: None, response: None, access_logs };
    worker.telemetry.finish(worker, &finished);
}
