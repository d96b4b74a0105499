//! The TLS flags of every program, and what becomes of them.

use super::certificate::{Held, Source};
use super::client::ClientTls;
use super::enroll::Enroller;
use super::server::ServerTls;
use super::trust::Trust;
use super::{GrpcError, provider};
use crate::health::Health;
use clap::Args;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, NoServerSessionStorage};
use rustls::{ClientConfig, ServerConfig};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Condition of `Health`: this program's certificate can be used.
pub const CERTIFICATE: &str = "certificate";
/// How often that is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// This program's own certificate, and whom it trusts. All of it renews without a restart.
#[derive(Args, Clone, Debug, Default)]
pub struct TlsArgs {
    /// PEM certificate chain that this program shows to others. Read again when it changes.
    #[arg(long, env = "TLS_CERTIFICATE", value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// PEM private key of that certificate.
    #[arg(long, env = "TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// PEM certificates of the authority that signs the programs' certificates. Read again when it changes.
    #[arg(long, env = "TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Get the certificate from the controller there, with --enroll-token, instead of files.
    #[arg(long, env = "ENROLL", value_name = "URI")]
    pub enroll: Option<String>,
    /// Service account token (audience dpumesh) that says who this program is. Read at each use.
    #[arg(long, env = "ENROLL_TOKEN", value_name = "FILE")]
    pub enroll_token: Option<PathBuf>,
    /// Serve and call without TLS on any address. For tests only.
    #[arg(long)]
    pub insecure: bool,
    /// A certificate in memory instead of files; `identify` sets it with --enroll.
    #[arg(skip)]
    pub held: Option<Held>,
}

/// What it shows, and whom it trusts.
type Parts = (Arc<Source>, Arc<Trust>);

impl TlsArgs {
    /// Says who this program is. With `--enroll` it gets its certificate in the background from now
    /// on; health tells whether the certificate can be used. Call once, inside a tokio runtime, and
    /// before any server or channel is made.
    pub fn identify(&mut self, program: &str, node: &str, health: &Health) -> Result<(), GrpcError> {
        if let (Some(uri), Some(token), Some(_)) = (&self.enroll, &self.enroll_token, &self.tls_ca) {
            let held = Held::default();
            let authority = Self { tls_ca: self.tls_ca.clone(), ..Self::default() };
            let endpoint = super::endpoint(uri, &authority, "controller")?;
            tokio::spawn(Enroller::new(endpoint, token.clone(), program, node, held.clone()).run());
            self.held = Some(held);
        }
        if let Some((own, _)) = self.parts()? {
            health.require(&[CERTIFICATE]);
            tokio::spawn(watch(own, health.clone()));
        }
        Ok(())
    }

    /// Whether this program shows a certificate and asks its callers for theirs.
    pub fn is_mutual(&self) -> bool {
        self.tls_certificate.is_some() || self.held.is_some() || self.enroll.is_some()
    }

    /// TLS of a server that asks every client for a certificate; `None` without flags.
    pub fn server(&self) -> Result<Option<ServerTls>, GrpcError> {
        let Some((own, trust)) = self.parts()? else { return Ok(None) };
        server(own, trust).map(Some)
    }

    /// The same, refused where plaintext would be reachable from elsewhere.
    pub fn server_at(&self, address: SocketAddr) -> Result<Option<ServerTls>, GrpcError> {
        protected(address, self.insecure, self.server()?)
    }

    /// TLS of a server whose clients have no certificate (yet).
    pub fn server_for_anyone_at(&self, address: SocketAddr) -> Result<Option<ServerTls>, GrpcError> {
        let own = self.parts()?.map(|(own, _)| server(own, Arc::new(NoClientAuth))).transpose()?;
        protected(address, self.insecure, own)
    }

    /// TLS of a client; `None` without flags. With `--tls-ca` alone it shows no certificate.
    pub fn client(&self) -> Result<Option<ClientTls>, GrpcError> {
        if let (Some(authority), false) = (&self.tls_ca, self.is_mutual() || self.tls_key.is_some()) {
            let trust = Arc::new(Trust::file(authority.clone())?);
            return Ok(Some(ClientTls::new(client(trust)?.with_no_client_auth())));
        }
        let Some((own, trust)) = self.parts()? else { return Ok(None) };
        let mut config = client(trust)?.with_client_cert_resolver(Arc::clone(&own) as _);
        // A resumed session would go on with the certificate that it began with.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Some(ClientTls::new(config).showing(own)))
    }

    fn parts(&self) -> Result<Option<Parts>, GrpcError> {
        let files = (&self.tls_certificate, &self.tls_key);
        let source = match (files, &self.held, &self.enroll, &self.enroll_token, &self.tls_ca) {
            ((None, None), None, None, None, None) => return Ok(None),
            ((Some(certificate), Some(key)), None, None, None, Some(_)) => {
                Source::files(certificate.clone(), key.clone())?
            }
            ((None, None), Some(held), _, _, Some(_)) => Source::Held(held.clone()),
            ((None, None), None, Some(_), Some(_), Some(_)) => return Err(GrpcError::NotIdentified),
            _ => return Err(GrpcError::Partial),
        };
        let authority = self.tls_ca.clone().ok_or(GrpcError::Partial)?;
        Ok(Some((Arc::new(source), Arc::new(Trust::file(authority)?))))
    }
}

fn server(own: Arc<Source>, clients: Arc<dyn ClientCertVerifier>) -> Result<ServerTls, GrpcError> {
    let builder = ServerConfig::builder_with_provider(Arc::new(provider().clone()));
    let builder = builder.with_safe_default_protocol_versions()?.with_client_cert_verifier(clients);
    let mut config = builder.with_cert_resolver(own);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Every connection shows a certificate that is valid now.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(ServerTls { config: Arc::new(config) })
}

fn client(
    trust: Arc<Trust>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, GrpcError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(provider().clone()));
    Ok(builder.with_safe_default_protocol_versions()?.dangerous().with_custom_certificate_verifier(trust))
}

fn protected(address: SocketAddr, insecure: bool, tls: Option<ServerTls>) -> Result<Option<ServerTls>, GrpcError> {
    match tls {
        None if !insecure && !address.ip().is_loopback() => Err(GrpcError::Unprotected { address }),
        tls => Ok(tls),
    }
}

async fn watch(own: Arc<Source>, health: Health) {
    loop {
        health.set(CERTIFICATE, own.check(SystemTime::now()).map(drop));
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
