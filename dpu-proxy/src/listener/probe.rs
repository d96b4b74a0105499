//! Probes of the kubelet: they pass from the link to the host to the pod, without the mesh's transport and without
//! the pod's inbound rules.
//!
//! In: connections of the host. Out: those that are probes, served and told of; the others as they came, with what
//! was read of them. What is a probe is decided in `dpu_proxy_core::probe`.

mod watch;

pub(crate) use watch::{Watch, follow};

use super::accept::{Arrival, connection, no_chain};
use super::client_hello::{self, Inspected};
use super::inspect::Inspection;
use crate::connection::{Connection, Gate};
use crate::io::Stream;
use crate::shared::ProbedPort;
use crate::stream_info::{ResponseFlags, StreamInfo};
use crate::upstream::{Target, connect};
use crate::worker::Worker;
use bytes::{Bytes, BytesMut};
use dpu_proxy_core::model::{ProbeKind, Workload};
use dpu_proxy_core::probe::{self, Known, Opening, Verdict, http2};
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;

/// Who says nothing for so long is no kubelet, and may be waiting for the server.
const SILENCE: Duration = Duration::from_secs(1);
/// A pod of this server answers at once, or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// After the kubelet has given up, for what is on its way.
const LINGER: Duration = Duration::from_secs(5);
/// Longest probe: a kubelet's `timeoutSeconds` is seldom over some seconds.
const LONGEST: Duration = Duration::from_secs(600);
const READ: usize = 4 * 1024;
/// What is read before it must be clear what it is.
const MAX_OPENING: usize = 32 * 1024;
/// Application protocols of the mesh's own transport begin so.
const MESH_PROTOCOL: &str = "istio";

/// Serves a probe. Returns the connection with the bytes that were read when it is none.
pub(super) async fn screen(
    worker: &Rc<Worker>,
    arrival: &Arrival,
    mut tcp: TcpStream,
) -> Option<(TcpStream, BytesMut)> {
    let mut read = BytesMut::new();
    let probes = probes(arrival);
    if probes.is_empty() {
        return Some((tcp, read));
    }
    let looked = tokio::time::timeout(SILENCE, look(&mut tcp, &mut read, &probes)).await;
    match looked {
        Ok(Ok(Some(known))) => {
            serve(worker, arrival, known, tcp, read.freeze()).await;
            None
        }
        // Who is gone has nothing to be told.
        Ok(Err(_)) => None,
        Ok(Ok(None)) | Err(_) => Some((tcp, read)),
    }
}

/// What the kubelet asks at the destination.
fn probes(arrival: &Arrival) -> Vec<&ProbeKind> {
    let workload = arrival.owner.workload.as_deref().filter(|_| arrival.gate == Gate::Host);
    let all = workload.into_iter().flat_map(|workload| &workload.probes);
    all.filter(|probe| probe.port == arrival.destination.port()).map(|probe| &probe.kind).collect()
}

/// Reads until it is clear which probe it is, or that it is none.
async fn look(tcp: &mut TcpStream, read: &mut BytesMut, probes: &[&ProbeKind]) -> io::Result<Option<Known>> {
    let (mut has_ended, mut is_greeted) = (false, false);
    loop {
        match judge(probes, Opening { bytes: read, has_ended, is_greeted }) {
            Verdict::Probe(known) => return Ok(Some(ungreeted(known, read, is_greeted))),
            Verdict::Other => return Ok(ungreeted(None, read, is_greeted)),
            Verdict::Greet => {
                tcp.write_all(&http2::SETTINGS).await?;
                is_greeted = true;
            }
            Verdict::More if read.len() >= MAX_OPENING => return Ok(None),
            Verdict::More => {}
        }
        read.reserve(READ);
        has_ended = tcp.read_buf(read).await? == 0;
    }
}

/// TLS whose ClientHello names a protocol of the mesh is the mesh's.
fn judge(probes: &[&ProbeKind], opening: Opening<'_>) -> Verdict {
    let verdict = probe::judge(probes, opening);
    if verdict != Verdict::Probe(Known::Https) {
        return verdict;
    }
    let is_mesh = |protocols: &[String]| protocols.iter().any(|one| one.starts_with(MESH_PROTOCOL));
    match client_hello::inspect(opening.bytes) {
        Inspected::NeedMore if !opening.has_ended => Verdict::More,
        Inspected::Tls(hello) if !is_mesh(&hello.protocols) => verdict,
        _ => Verdict::Other,
    }
}

/// Takes the answer to our SETTINGS away: whoever serves the connection has sent none.
fn ungreeted<T>(verdict: T, read: &mut BytesMut, is_greeted: bool) -> T {
    if let Some(place) = is_greeted.then(|| http2::acknowledgement(read)).flatten() {
        let rest = read.split_off(place.end);
        read.truncate(place.start);
        read.unsplit(rest);
    }
    verdict
}

async fn serve(worker: &Rc<Worker>, arrival: &Arrival, known: Known, client: TcpStream, read: Bytes) {
    let Some(workload) = arrival.owner.workload.clone() else { return };
    let connection = connection(worker, arrival, Inspection::default(), no_chain("probe"));
    let mut info = StreamInfo::since(connection.started, connection.started_wall);
    let kind = name(&known);
    match connect(&target(worker, &connection, &workload), CONNECT_TIMEOUT, None).await {
        Ok(pod) => relay(&known, client, pod.stream, read).await,
        Err(error) => {
            info.flags.insert(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
            info.details = error.to_string();
            reset(&client);
            if known == Known::Tcp {
                let place = connection.original_destination;
                watch::refused(worker, ProbedPort::at(&workload, place.ip(), place.port()));
            }
        }
    }
    info.end();
    worker.telemetry.probe(worker, &connection, &info, kind);
}

fn name(known: &Known) -> &'static str {
    match known {
        Known::Tcp => "tcp",
        Known::Http => "http",
        Known::Https => "https",
        Known::Grpc => "grpc",
    }
}

/// The pod, through its representor, from the host's own address.
fn target(worker: &Worker, connection: &Connection, workload: &Workload) -> Target {
    Target {
        address: connection.original_destination,
        source: Some(connection.remote.ip()),
        device: worker.devices().representors.get(&workload.port).cloned(),
        tls: None,
        inward: None,
    }
}

/// The kubelet learns that nobody listens as it would from the pod.
fn reset(client: &TcpStream) {
    // Fails only when the client is gone already.
    let _ = socket2::SockRef::from(client).set_linger(Some(Duration::ZERO));
}

/// Passes what the probe asks, and all that the pod answers.
async fn relay(known: &Known, client: TcpStream, pod: Stream, read: Bytes) {
    let (from_client, mut to_client) = client.into_split();
    let (mut from_pod, to_pod) = tokio::io::split(pod);
    let asking = ask(known, from_client, to_pod, read);
    let answering = tokio::io::copy(&mut from_pod, &mut to_client);
    let both = async {
        tokio::pin!(asking, answering);
        tokio::select! {
            _ = &mut answering => {}
            asked = &mut asking => if asked.is_ok() {
                // It may be that nothing more comes.
                let _ = tokio::time::timeout(LINGER, answering).await;
            },
        }
    };
    // What is cut then has had its time.
    let _ = tokio::time::timeout(LONGEST, both).await;
}

/// What may go to the pod, until the client has ended; an error when it wants something else.
async fn ask(known: &Known, mut from: OwnedReadHalf, mut to: WriteHalf<Stream>, read: Bytes) -> io::Result<()> {
    match known {
        Known::Tcp => {}
        Known::Http => {
            to.write_all(&read).await?;
            if from.read_u8().await.is_ok() {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Known::Https => {
            to.write_all(&read).await?;
            tokio::io::copy(&mut from, &mut to).await?;
        }
        Known::Grpc => call(from, &mut to, BytesMut::from(&read[..])).await?,
    }
    to.shutdown().await
}

async fn call(mut from: OwnedReadHalf, to: &mut WriteHalf<Stream>, mut bytes: BytesMut) -> io::Result<()> {
    let mut guard = http2::Guard::default();
    loop {
        let whole = guard.pass(&bytes).map_err(|http2::Refused| io::ErrorKind::InvalidData)?;
        to.write_all(&bytes.split_to(whole)).await?;
        bytes.reserve(READ);
        if from.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
