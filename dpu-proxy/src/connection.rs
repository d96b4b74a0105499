//! `Connection`: everything that is known of a downstream connection once its filter chain is chosen.
//!
//! Made by `listener` after the listener filters and the TLS handshake, or by `local` for a callee on
//! this host (the same facts, as if the call had come over mTLS). Read by the HTTP and TCP paths.

use crate::listener::resolve;
use dpu_proxy_core::model::{ConnectionFacts, FilterChain, Listener, Scope, Snapshot, TrafficDirection, Workload};
use mesh_model::PortId;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// Where a connection came in. This says whose it is, never an address that the client chose.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Gate {
    /// A listener of the root scope that binds its own socket, by name.
    Bound(Arc<str>),
    /// A workload's representor: it calls out.
    Outbound(PortId),
    /// The uplink: somebody calls the workload that owns the destination address.
    Inbound,
    /// The link to the host: the server itself calls one of its pods.
    Host,
    /// Another workload of this DPU calls, in the same pass.
    Local,
}

/// What a peer's certificate says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerCertificate {
    pub uri_sans: Vec<String>,
    pub dns_sans: Vec<String>,
    /// RFC 2253.
    pub subject: String,
    pub sha256: [u8; 32],
    /// Leaf first.
    pub chain_der: Vec<Vec<u8>>,
}

/// What TLS (or the same-host pass in its stead) established.
#[derive(Clone, Debug, Default)]
pub struct TlsFacts {
    /// "TLSv1.3".
    pub version: &'static str,
    /// OpenSSL or IANA name, e.g. "TLS_AES_256_GCM_SHA384".
    pub cipher: String,
    /// Absent when the client showed no certificate.
    pub peer: Option<Arc<PeerCertificate>>,
    /// URI SANs of the certificate that was shown to the peer.
    pub local_uri_sans: Arc<[String]>,
    /// Negotiated application protocol.
    pub alpn: Option<String>,
}

/// A downstream connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Unique in this process.
    pub id: u64,
    pub gate: Gate,
    pub direction: TrafficDirection,
    /// Where the client wanted to go; the local address of a bound listener.
    pub original_destination: SocketAddr,
    /// The client.
    pub remote: SocketAddr,
    /// The peer of the socket.
    pub direct_remote: SocketAddr,
    /// From the ClientHello, lower case; empty when none.
    pub sni: String,
    /// True when the TLS inspector saw a ClientHello or TLS was terminated.
    pub is_tls: bool,
    /// Offered in the ClientHello, or seen by the HTTP inspector.
    pub offered_protocols: Vec<String>,
    /// None on a plain connection.
    pub tls: Option<TlsFacts>,
    /// The workload whose scope governs the connection (caller on the way out, callee on the way in).
    pub workload: Option<Arc<Workload>>,
    pub scope: Arc<Scope>,
    pub listener: Arc<Listener>,
    pub chain: Arc<FilterChain>,
    /// Version of the snapshot that `scope`, `listener` and `chain` are of.
    pub snapshot_version: u64,
    pub started: Instant,
    pub started_wall: SystemTime,
}

impl Connection {
    /// The peer's certificate, if it showed one.
    pub fn peer(&self) -> Option<&Arc<PeerCertificate>> {
        self.tls.as_ref().and_then(|tls| tls.peer.as_ref())
    }

    /// First URI SAN of the peer: its identity.
    pub fn peer_identity(&self) -> Option<&str> {
        self.peer().and_then(|peer| peer.uri_sans.first()).map(String::as_str)
    }

    /// Application protocol that TLS agreed on; empty when none.
    pub fn alpn(&self) -> &str {
        self.tls.as_ref().and_then(|tls| tls.alpn.as_deref()).unwrap_or("")
    }

    /// The facts that filter chains are matched on.
    pub fn facts(&self) -> ConnectionFacts<'_> {
        ConnectionFacts {
            destination: self.original_destination,
            source: self.remote,
            direct_source: self.direct_remote.ip(),
            server_name: &self.sni,
            tls: self.is_tls,
            application_protocols: &self.offered_protocols,
        }
    }

    /// Brings scope, listener and chain up to `snapshot`. What it no longer governs (workload,
    /// listener or chain gone) stays as it was: an established connection keeps its configuration.
    /// True when something changed.
    pub fn refresh(&mut self, snapshot: &Snapshot) -> bool {
        if self.snapshot_version == snapshot.version {
            return false;
        }
        self.snapshot_version = snapshot.version;
        let Some(now) = resolve::again(snapshot, self) else { return false };
        let same = Arc::ptr_eq(&now.scope, &self.scope) && Arc::ptr_eq(&now.chain, &self.chain);
        (self.workload, self.scope, self.listener, self.chain) = (now.workload, now.scope, now.listener, now.chain);
        !same
    }
}
