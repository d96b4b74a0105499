//! Listener filters: what the first bytes of a connection tell, read without losing them.

use super::client_hello::{self, ClientHello};
use super::http_hello;
use crate::io::Plain;
use bytes::BytesMut;
use dpu_proxy_core::model::{InspectorScope, Listener};
use std::io;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// First read, in bytes: most ClientHellos and request lines fit.
const FIRST_READ: usize = 4 * 1024;
const MAX_PEEK: usize = 64 * 1024;

/// What the inspectors saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    pub is_tls: bool,
    pub server_name: String,
    pub protocols: Vec<String>,
}

/// Why a connection is closed before a filter chain is chosen.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("downstream closed before it sent anything")]
    Closed,
    #[error("downstream failed: {0}")]
    Io(#[from] io::Error),
    #[error("listener filters timed out")]
    Timeout,
}

struct Wanted {
    tls: bool,
    http: bool,
}

/// Runs the listener's inspectors on a connection to `port`, from which `read` was read already.
pub async fn inspect(
    listener: &Listener,
    port: u16,
    tcp: TcpStream,
    read: BytesMut,
) -> Result<(Plain, Inspection), InspectError> {
    let on = |scope: &Option<InspectorScope>| scope.as_ref().is_some_and(|scope| !is_disabled(scope, port));
    let wanted = Wanted { tls: on(&listener.filters.tls_inspector), http: on(&listener.filters.http_inspector) };
    if !wanted.tls && !wanted.http {
        return Ok((Plain::with_peeked(tcp, read.freeze()), Inspection::default()));
    }
    let (mut tcp, mut bytes) = (tcp, read);
    let looking = look(&mut tcp, &mut bytes, &wanted);
    let seen = match listener.listener_filters_timeout {
        None => looking.await?,
        Some(limit) => match tokio::time::timeout(limit, looking).await {
            Ok(seen) => seen?,
            Err(_) if listener.continue_on_listener_filters_timeout => Inspection::default(),
            Err(_) => return Err(InspectError::Timeout),
        },
    };
    Ok((Plain::with_peeked(tcp, bytes.freeze()), seen))
}

fn is_disabled(scope: &InspectorScope, port: u16) -> bool {
    scope.disabled_ports.iter().any(|(start, end)| (*start..*end).contains(&port))
}

async fn look(tcp: &mut TcpStream, bytes: &mut BytesMut, wanted: &Wanted) -> Result<Inspection, InspectError> {
    loop {
        if let Some(seen) = decide(bytes, wanted).or_else(|| (bytes.len() >= MAX_PEEK).then(Inspection::default)) {
            return Ok(seen);
        }
        bytes.reserve(FIRST_READ);
        if tcp.read_buf(bytes).await? == 0 {
            return match bytes.is_empty() {
                true => Err(InspectError::Closed),
                false => Ok(Inspection::default()),
            };
        }
    }
}

/// What these bytes tell; `None` when more are needed.
fn decide(bytes: &[u8], wanted: &Wanted) -> Option<Inspection> {
    if wanted.tls {
        match client_hello::inspect(bytes) {
            client_hello::Inspected::NeedMore => return None,
            client_hello::Inspected::Tls(hello) => return Some(of_tls(hello)),
            client_hello::Inspected::NotTls => {}
        }
    }
    if wanted.http {
        return match http_hello::inspect(bytes) {
            http_hello::Inspected::NeedMore => None,
            http_hello::Inspected::NotHttp => Some(Inspection::default()),
            http_hello::Inspected::Http(protocol) => {
                Some(Inspection { protocols: vec![protocol.to_owned()], ..Inspection::default() })
            }
        };
    }
    Some(Inspection::default())
}

fn of_tls(hello: ClientHello) -> Inspection {
    Inspection { is_tls: true, server_name: hello.server_name, protocols: hello.protocols }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inspector_is_off_for_the_ports_that_disable_it() {
        let scope = InspectorScope { disabled_ports: vec![(3306, 3307)] };
        assert!(is_disabled(&scope, 3306));
        assert!(!is_disabled(&scope, 3307));
    }

    #[test]
    fn a_server_first_protocol_needs_more_until_the_timeout() {
        assert_eq!(decide(b"", &Wanted { tls: true, http: true }), None);
        let seen = decide(b"GET / HTTP/1.1\r\n", &Wanted { tls: true, http: true }).expect("decided");
        assert_eq!(seen.protocols, ["http/1.1"]);
    }
}
