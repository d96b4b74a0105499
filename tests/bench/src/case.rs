//! What is measured: a bootstrap for each proxy of a chain, and the load that is put on it.

/// The load of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// HTTP requests for 1 KiB on this many kept-alive connections.
    KeepAlive { connections: u32 },
    /// A new connection for each HTTP request, this many at a time.
    NewConnections { connections: u32 },
    /// Bytes from the server on this many TCP connections.
    Bulk { connections: u32 },
}

/// One comparison.
#[derive(Debug)]
pub struct Case {
    pub name: &'static str,
    /// Bootstrap templates in the order in which a request passes the proxies.
    pub chain: &'static [&'static str],
    pub load: Load,
    /// Highest ratio of CPU time (ours to Envoy's) that the project aims at.
    pub target: Option<f64>,
}

const HTTP: &str = include_str!("../bootstraps/http.yaml");
const HTTP_LOGGED: &str = include_str!("../bootstraps/http-logged.yaml");
const TCP: &str = include_str!("../bootstraps/tcp.yaml");
const OUTBOUND_MTLS: &str = include_str!("../bootstraps/outbound-mtls.yaml");
const INBOUND_MTLS: &str = include_str!("../bootstraps/inbound-mtls.yaml");

/// Every case.
pub fn all() -> Vec<Case> {
    let keep_alive = Load::KeepAlive { connections: 32 };
    vec![
        Case { name: "http1-keep-alive", chain: &[HTTP], load: keep_alive, target: Some(0.6) },
        Case { name: "http1-keep-alive-access-log", chain: &[HTTP_LOGGED], load: keep_alive, target: None },
        Case { name: "http1-mtls-pair", chain: &[OUTBOUND_MTLS, INBOUND_MTLS], load: keep_alive, target: None },
        Case {
            name: "http1-new-connections",
            chain: &[HTTP],
            load: Load::NewConnections { connections: 16 },
            target: None,
        },
        Case {
            name: "tcp-new-connections",
            chain: &[TCP],
            load: Load::NewConnections { connections: 16 },
            target: None,
        },
        Case { name: "tcp-bulk", chain: &[TCP], load: Load::Bulk { connections: 1 }, target: None },
    ]
}
