//! Is a plain connection of the host one of the kubelet's probes? Pure.
//!
//! In: the probes of a port, and the first bytes that the client sent. Out: what to do with them. Nothing but
//! what a probe asks for passes as one, because behind the host there may be others: what it forwards to its
//! pods (a NodePort, say) enters by the same link.

mod http1;
pub mod http2;

use crate::model::ProbeKind;

/// First byte of a TLS record that holds a handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It cannot be told yet.
    More,
    /// Neither can this, and the client may wait for the server's SETTINGS.
    Greet,
    Probe(Known),
    /// Any other connection.
    Other,
}

/// A probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing is sent.
    Tcp,
    /// The whole of what was read is its head.
    Http,
    /// A ClientHello begins: what it is for is in there.
    Https,
    /// A health check is called; what follows goes through a `http2::Guard`.
    Grpc,
}

/// What was read of a connection so far.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'b> {
    pub bytes: &'b [u8],
    /// The client sends no more.
    pub has_ended: bool,
    /// It was sent `http2::SETTINGS`.
    pub is_greeted: bool,
}

/// Judges a connection to a port with these probes.
pub fn judge(probes: &[&ProbeKind], opening: Opening<'_>) -> Verdict {
    let has = |kind: &ProbeKind| probes.contains(&kind);
    let Opening { bytes, has_ended, is_greeted } = opening;
    let verdict = match bytes.first() {
        None if has_ended && has(&ProbeKind::Tcp) => return Verdict::Probe(Known::Tcp),
        None => Verdict::More,
        Some(&TLS_HANDSHAKE) if has(&ProbeKind::Https) => Verdict::Probe(Known::Https),
        Some(_) if has(&ProbeKind::Grpc) && http2::may_begin(bytes) => http2::judge(bytes, is_greeted),
        Some(_) => http1::judge(paths(probes), bytes),
    };
    match verdict {
        Verdict::More | Verdict::Greet if has_ended => Verdict::Other,
        verdict => verdict,
    }
}

fn paths<'p>(probes: &'p [&ProbeKind]) -> impl Iterator<Item = &'p str> {
    probes.iter().filter_map(|kind| match kind {
        ProbeKind::Http { path } => Some(path.as_str()),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
