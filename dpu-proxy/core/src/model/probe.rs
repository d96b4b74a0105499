//! What the kubelet asks a pod of this DPU: the probes of its containers, by port.

/// One probe, or a hook that is called in the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub port: u16,
    pub kind: ProbeKind,
}

/// How it asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// Connects and closes.
    Tcp,
    /// `GET path`, with its query.
    Http { path: String },
    /// The same inside the application's own TLS, where the path cannot be seen.
    Https,
    /// `grpc.health.v1.Health/Check` over HTTP/2.
    Grpc,
}
