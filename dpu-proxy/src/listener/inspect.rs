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
    #[error("the proxy drains, and downstream has sent nothing")]
    Draining,
}

struct Wanted {
    tls: bool,
    http: bool,
}

/// Runs the listener's inspectors on a connection to `port`, from which `read` was read already. Without a time limit,
/// one that has sent nothing is waited for until `patience` ends.
pub async fn inspect(
    listener: &Listener,
    port: u16,
    tcp: TcpStream,
    read: BytesMut,
    patience: impl Future<Output = ()>,
) -> Result<(Plain, Inspection), InspectError> {
    let on = |scope: &Option<InspectorScope>| scope.as_ref().is_some_and(|scope| !is_disabled(scope, port));
    let wanted = Wanted { tls: on(&listener.filters.tls_inspector), http: on(&listener.filters.http_inspector) };
    if !wanted.tls && !wanted.http {
        return Ok((Plain::with_peeked(tcp, read.freeze()), Inspection::default()));
    }
    let (mut tcp, mut bytes) = (tcp, read);
    let seen = match listener.listener_filters_timeout {
        None => look_patiently(&mut tcp, &mut bytes, &wanted, patience).await?,
        Some(limit) => match tokio::time::timeout(limit, look(&mut tcp, &mut bytes, &wanted)).await {
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

async fn look_patiently(
    tcp: &mut TcpStream,
    bytes: &mut BytesMut,
    wanted: &Wanted,
    patience: impl Future<Output = ()>,
) -> Result<Inspection, InspectError> {
    tokio::select! {
        biased;
        seen = look(tcp, bytes, wanted) => return seen,
        () = patience => {}
    }
    match bytes.is_empty() {
        true => Err(InspectError::Draining),
        false => look(tcp, bytes, wanted).await,
    }
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
    use std::time::Duration;
    use tokio::io::AsyncWriteExt;

    #[test]
    fn an_inspector_is_off_for_the_ports_that_disable_it() {
        let scope = InspectorScope { disabled_ports: vec![(3306, 3307)] };
        assert!(is_disabled(&scope, 3306));
        assert!(!is_disabled(&scope, 3307));
    }

    fn listener(limit: Option<Duration>) -> Listener {
        let on = Some(InspectorScope { disabled_ports: Vec::new() });
        let mut listener = Listener::new("outbound", "0.0.0.0:15001".parse().expect("address"));
        listener.listener_filters_timeout = limit;
        listener.continue_on_listener_filters_timeout = true;
        (listener.filters.tls_inspector, listener.filters.http_inspector) = (on.clone(), on);
        listener
    }

    /// How a connection fares whose client says that, and something more after a while, when patience has ended.
    async fn inspected(limit: Option<Duration>, said: &[u8]) -> Result<Inspection, InspectError> {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let mut client = TcpStream::connect(server.local_addr().expect("address")).await.expect("connect");
        let (accepted, _) = server.accept().await.expect("accept");
        client.write_all(said).await.expect("write");
        let listener = listener(limit);
        let inspecting = inspect(&listener, 80, accepted, BytesMut::new(), tokio::time::sleep(BRIEF));
        let speaking = async {
            tokio::time::sleep(3 * BRIEF).await;
            // Who was closed hears nothing any more.
            let _ = client.write_all(b"T / HTTP/1.1\r\n").await;
        };
        tokio::join!(inspecting, speaking).0.map(|(_, seen)| seen)
    }

    const BRIEF: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn who_says_nothing_while_the_proxy_drains_is_closed_and_who_has_begun_is_not() {
        assert!(matches!(inspected(None, b"").await, Err(InspectError::Draining)));
        assert_eq!(inspected(None, b"GE").await.expect("goes on").protocols, ["http/1.1"]);
        let server_first = inspected(Some(2 * BRIEF), b"").await.expect("waits for the server");
        assert_eq!(server_first, Inspection::default());
    }

    #[test]
    fn a_server_first_protocol_needs_more_until_the_timeout() {
        assert_eq!(decide(b"", &Wanted { tls: true, http: true }), None);
        let seen = decide(b"GET / HTTP/1.1\r\n", &Wanted { tls: true, http: true }).expect("decided");
        assert_eq!(seen.protocols, ["http/1.1"]);
    }
}
