//! A call to a workload of this DPU, in one pass: the callee's inbound rules are applied to the facts
//! that mTLS would have established, and nothing is encrypted to oneself.

use crate::connection::{Connection, Gate, PeerCertificate, TlsFacts};
use crate::listener::resolve;
use crate::tls::{peer, verify};
use crate::upstream::{Host, target};
use crate::worker::Worker;
use dpu_proxy_core::model::{Cluster, ConnectionFacts, TransportSocket, UpstreamTls, Workload};
use rustls::pki_types::CertificateDer;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// Why a call to a workload of this DPU cannot go through.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocalError {
    #[error("the callee is {shown}, and the cluster asks for another identity")]
    WrongIdentity { shown: String },
    #[error("no inbound listener or filter chain of {callee} takes this connection")]
    NoFilterChain { callee: String },
    #[error("the certificate of {identity} has not been signed yet")]
    NoCertificate { identity: String },
}

/// The connection as the callee's inbound side would have it, or `None` when the call is not one that
/// can be made in one pass: the endpoint is no workload of this DPU, or its transport is not the
/// mesh's mTLS. `alpn` is the list that would have been offered (None: that of the cluster).
pub fn enter(
    worker: &Worker,
    caller: &Connection,
    cluster: &Cluster,
    host: &Host,
    alpn: Option<&[String]>,
) -> Option<Result<Connection, LocalError>> {
    let from = caller.workload.as_ref()?;
    let state = worker.state();
    let callee = state.snapshot.by_address.get(&host.address().ip())?;
    if cluster.delivers_to_workload || !target::is_mesh_tls(cluster, &host.endpoint) {
        return None;
    }
    let TransportSocket::Tls(tls) = target::transport(cluster, &host.endpoint) else { return None };
    Some(pass(worker, caller, from, callee, tls, host, alpn))
}

fn pass(
    worker: &Worker,
    caller: &Connection,
    from: &Workload,
    callee: &Arc<Workload>,
    tls: &UpstreamTls,
    host: &Host,
    alpn: Option<&[String]>,
) -> Result<Connection, LocalError> {
    let shown = callee.identity.to_string();
    if !verify::accepts_uri(&tls.common.validation, &shown) {
        return Err(LocalError::WrongIdentity { shown });
    }
    let state = worker.state();
    let offered = alpn.unwrap_or(&tls.common.alpn).to_vec();
    let gate = Gate::Local;
    let no_chain = || LocalError::NoFilterChain { callee: callee.uid.to_string() };
    let owner = resolve::owner(&state.snapshot, &gate, host.address()).ok_or_else(no_chain)?;
    let entry = resolve::entry(&owner, &gate).ok_or_else(no_chain)?;
    let listener = resolve::handed_over(&owner.scope, &entry, host.address());
    let facts = ConnectionFacts {
        destination: host.address(),
        source: caller.remote,
        direct_source: caller.direct_remote.ip(),
        server_name: &tls.sni,
        tls: true,
        application_protocols: &offered,
    };
    let chain = resolve::chain(&listener, &facts).ok_or_else(no_chain)?;
    let facts = tls_facts(&state.secrets, from, callee, chain.tls.as_deref(), &offered)?;
    Ok(Connection {
        id: caller.id,
        gate,
        direction: owner.direction,
        original_destination: host.address(),
        remote: caller.remote,
        direct_remote: caller.direct_remote,
        sni: tls.sni.clone(),
        is_tls: true,
        offered_protocols: offered,
        tls: Some(facts),
        workload: Some(Arc::clone(callee)),
        scope: owner.scope,
        listener,
        chain,
        snapshot_version: state.snapshot.version,
        started: Instant::now(),
        started_wall: SystemTime::now(),
    })
}

/// What a handshake between the two would have established.
fn tls_facts(
    secrets: &crate::tls::secrets::Secrets,
    from: &Workload,
    callee: &Workload,
    context: Option<&dpu_proxy_core::model::DownstreamTls>,
    offered: &[String],
) -> Result<TlsFacts, LocalError> {
    let missing = || LocalError::NoCertificate { identity: from.identity.to_string() };
    let own = secrets.identities.get(&from.identity).ok_or_else(missing)?;
    let accepted = |protocol: &&String| context.is_some_and(|context| context.common.alpn.contains(protocol));
    let alpn = offered.iter().filter(|protocol| *protocol != crate::tls::PEER_EXCHANGE).find(accepted).cloned();
    Ok(TlsFacts {
        version: "TLSv1.3",
        cipher: String::new(),
        peer: Some(certificate(&own.key_pair.certified.cert, from)),
        local_uri_sans: Arc::from([callee.identity.to_string()]),
        alpn,
    })
}

/// The callee's certificate as the caller's logs and rules know it.
pub fn shown_by_callee(facts: &TlsFacts) -> Arc<PeerCertificate> {
    Arc::new(PeerCertificate { uri_sans: facts.local_uri_sans.to_vec(), ..PeerCertificate::default() })
}

fn certificate(chain: &[CertificateDer<'_>], from: &Workload) -> Arc<PeerCertificate> {
    let described = peer::describe(chain).unwrap_or_default();
    Arc::new(PeerCertificate { uri_sans: vec![from.identity.to_string()], ..described })
}
