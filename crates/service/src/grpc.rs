//! gRPC between programs: mutual TLS, and who the peer is.
//!
//! A program's certificate carries the URI SAN `spiffe://dpumesh/PROGRAM/NODE`. A server that is
//! given no certificate listens on loopback and Unix sockets only, unless it is told `--insecure`.

use clap::Args;
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, ServerTlsConfig, Uri};

/// Trust domain of the programs themselves.
pub const TRUST_DOMAIN: &str = "dpumesh";

/// Files of this program's own certificate, and whom it trusts.
#[derive(Args, Clone, Debug, Default)]
pub struct TlsArgs {
    /// PEM certificate chain that this program shows to others.
    #[arg(long, env = "TLS_CERTIFICATE", value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// PEM private key of that certificate.
    #[arg(long, env = "TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// PEM certificates of the authority that signs the programs' certificates.
    #[arg(long, env = "TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Serve and call without TLS on any address. For tests only.
    #[arg(long)]
    pub insecure: bool,
}

/// Why a gRPC server or channel cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    #[error("give all of --tls-certificate, --tls-key and --tls-ca, or none")]
    Partial,
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{address} is not loopback and there is no certificate: give --tls-certificate, --tls-key and --tls-ca")]
    Unprotected { address: SocketAddr },
    #[error("{uri:?} is not an address: expected http://HOST:PORT or https://HOST:PORT")]
    Address { uri: String },
    #[error("{uri} needs TLS: give --tls-certificate, --tls-key and --tls-ca")]
    NoCertificate { uri: String },
    #[error("{uri} is plaintext and not loopback: use https://, or --insecure in a test")]
    Plaintext { uri: String },
    #[error("TLS settings were refused: {0}")]
    Tls(#[source] tonic::transport::Error),
    #[error("cannot connect to {uri}: {reason}")]
    Connect { uri: String, reason: String },
}

struct Files {
    identity: Identity,
    authority: Certificate,
}

impl TlsArgs {
    /// TLS of a server that asks every client for a certificate; `None` without files.
    pub fn server(&self) -> Result<Option<ServerTlsConfig>, GrpcError> {
        Ok(self.files()?.map(|files| ServerTlsConfig::new().identity(files.identity).client_ca_root(files.authority)))
    }

    /// The same, refused where plaintext would be reachable from elsewhere.
    pub fn server_at(&self, address: SocketAddr) -> Result<Option<ServerTlsConfig>, GrpcError> {
        match self.server()? {
            None if !self.insecure && !address.ip().is_loopback() => Err(GrpcError::Unprotected { address }),
            tls => Ok(tls),
        }
    }

    /// TLS of a client that expects the server's certificate to carry the DNS name `server_name`.
    pub fn client(&self, server_name: &str) -> Result<Option<ClientTlsConfig>, GrpcError> {
        Ok(self.files()?.map(|files| {
            ClientTlsConfig::new().identity(files.identity).ca_certificate(files.authority).domain_name(server_name)
        }))
    }

    fn files(&self) -> Result<Option<Files>, GrpcError> {
        match (&self.tls_certificate, &self.tls_key, &self.tls_ca) {
            (None, None, None) => Ok(None),
            (Some(certificate), Some(key), Some(authority)) => Ok(Some(Files {
                identity: Identity::from_pem(read(certificate)?, read(key)?),
                authority: Certificate::from_pem(read(authority)?),
            })),
            _ => Err(GrpcError::Partial),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, GrpcError> {
    std::fs::read(path).map_err(|source| GrpcError::Read { path: path.to_owned(), source })
}

/// Connects to `https://HOST:PORT` (or `http://` on loopback). `server_name` is the DNS SAN that the
/// server's certificate must carry, e.g. `adapter`.
pub async fn channel(uri: &str, tls: &TlsArgs, server_name: &str) -> Result<Channel, GrpcError> {
    let endpoint = endpoint(uri, tls, server_name)?;
    endpoint.connect().await.map_err(|error| connect_error(uri, &error))
}

/// The endpoint of `channel`, for callers that connect when they choose.
pub fn endpoint(uri: &str, tls: &TlsArgs, server_name: &str) -> Result<Endpoint, GrpcError> {
    let address = || GrpcError::Address { uri: uri.to_owned() };
    let parsed: Uri = uri.parse().map_err(|_| address())?;
    let endpoint = tuned(Endpoint::from(parsed.clone()));
    match parsed.scheme_str() {
        Some("https") => {
            let config = tls.client(server_name)?.ok_or_else(|| GrpcError::NoCertificate { uri: uri.to_owned() })?;
            endpoint.tls_config(config).map_err(GrpcError::Tls)
        }
        Some("http") if tls.insecure || is_loopback(&parsed) => Ok(endpoint),
        Some("http") => Err(GrpcError::Plaintext { uri: uri.to_owned() }),
        _ => Err(address()),
    }
}

/// Connects to a gRPC server on a Unix socket.
pub async fn unix_channel(path: &Path) -> Result<Channel, GrpcError> {
    let path = path.to_owned();
    let uri = format!("unix:{}", path.display());
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = tuned(Endpoint::from_static("http://unix.invalid"));
    endpoint.connect_with_connector(connector).await.map_err(|error| connect_error(&uri, &error))
}

/// URI SANs, then DNS SANs, of the client's certificate; empty without one.
pub fn peer_identities<T>(request: &tonic::Request<T>) -> Vec<String> {
    peer_identities_of(request.extensions())
}

/// The same, from the extensions of a request.
pub fn peer_identities_of(extensions: &tonic::Extensions) -> Vec<String> {
    let certificates = extensions.get::<TlsConnectInfo<TcpConnectInfo>>().and_then(TlsConnectInfo::peer_certs);
    let leaf = certificates.as_ref().and_then(|chain| chain.first());
    leaf.map(|leaf| subject_alt_names(leaf.as_ref())).unwrap_or_default()
}

/// The name that a program of this node must show, e.g. `spiffe://dpumesh/dpu-proxy/host1`.
pub fn program_identity(program: &str, node: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/{program}/{node}")
}

/// The DNS SAN that a program's certificate carries beside its URI SAN, e.g. `adapter.host1.dpumesh`:
/// what a client passes as `server_name`.
pub fn server_name(program: &str, node: &str) -> String {
    format!("{program}.{node}.{TRUST_DOMAIN}")
}

/// Refuses a caller that is not `program` of `node`.
// The error is tonic's own and as large as it is.
#[allow(clippy::result_large_err)]
pub fn require_program<T>(request: &tonic::Request<T>, program: &str, node: &str) -> Result<(), tonic::Status> {
    let expected = program_identity(program, node);
    let shown = peer_identities(request);
    match shown.contains(&expected) {
        true => Ok(()),
        false => Err(tonic::Status::permission_denied(format!("caller must be {expected}; it showed {shown:?}"))),
    }
}

fn subject_alt_names(der: &[u8]) -> Vec<String> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names = &names.value.general_names;
    let uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    let hosts = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(host) => Some((*host).to_owned()),
        _ => None,
    });
    uris.chain(hosts).collect()
}

fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(8 * 1024 * 1024)
}

fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or("").trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn connect_error(uri: &str, error: &tonic::transport::Error) -> GrpcError {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    GrpcError::Connect { uri: uri.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_certificate_listens_on_loopback_only() {
        let none = TlsArgs::default();
        assert!(none.server_at("127.0.0.1:1".parse().expect("address")).expect("loopback").is_none());
        let error = none.server_at("10.0.0.1:1".parse().expect("address")).expect_err("reachable");
        assert!(error.to_string().contains("--tls-certificate"), "{error}");
    }

    #[test]
    fn half_of_the_tls_files_is_an_error_that_names_all() {
        let half = TlsArgs { tls_key: Some("/key".into()), ..TlsArgs::default() };
        assert!(matches!(half.server(), Err(GrpcError::Partial)));
    }

    #[test]
    fn a_plaintext_channel_to_another_machine_is_refused() {
        let error = endpoint("http://10.0.0.1:15100", &TlsArgs::default(), "controller").expect_err("plaintext");
        assert!(matches!(error, GrpcError::Plaintext { .. }), "{error}");
        assert!(endpoint("http://127.0.0.1:15100", &TlsArgs::default(), "controller").is_ok());
        assert!(matches!(endpoint("controller", &TlsArgs::default(), "c"), Err(GrpcError::Address { .. })));
    }
}
