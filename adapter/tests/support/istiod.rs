//! A control plane as istiod is to its clients: discovery and certificates on one port, in plaintext or
//! over TLS, where a stream shows a certificate of its workload and the certificate service wants a token.

use mesh_api::istio_ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use mesh_api::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair, SanType};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};
use tonic::{Request, Response, Status};
use xds::server::{Peer, Store};

pub const TOKEN: &str = "a-token-of-the-adapter";
const SERVER_NAME: &str = "istiod.istio-system.svc";

/// What is asked of it, and how it behaves.
#[derive(Clone)]
pub struct Istiod {
    pub store: Store,
    pub address: SocketAddr,
    authority: Arc<Authority>,
    secured: bool,
    serving: Arc<Mutex<Option<Runtime>>>,
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    behaviour: Mutex<Behaviour>,
}

/// What tests look at and change.
#[derive(Default)]
pub struct Behaviour {
    /// Identities that are refused a stream.
    pub refused: Vec<String>,
    /// Identities that get certificates which have expired already.
    pub expired: Vec<String>,
    /// Identity and remote port of every stream.
    pub streams: Vec<(String, u16)>,
    /// Identities of every signed request.
    pub signed: Vec<String>,
}

impl Istiod {
    pub fn plain() -> Self {
        Self::born(false)
    }

    pub fn secured() -> Self {
        Self::born(true)
    }

    fn born(secured: bool) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let istiod = Self::unborn(free.local_addr().expect("bound"), secured);
        drop(free);
        istiod.serve();
        istiod
    }

    fn unborn(address: SocketAddr, secured: bool) -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("root").pem();
        let authority = Authority { pem, issuer: Issuer::new(params, key), behaviour: Mutex::default() };
        let (authority, serving) = (Arc::new(authority), Arc::default());
        Self { store: Store::new(), address, authority, secured, serving }
    }

    pub fn uri(&self) -> String {
        format!("{}://{}", if self.secured { "https" } else { "http" }, self.address)
    }

    /// PEM of its root.
    pub fn root(&self) -> &str {
        &self.authority.pem
    }

    pub fn with<T>(&self, use_it: impl FnOnce(&mut Behaviour) -> T) -> T {
        use_it(&mut self.authority.behaviour.lock().expect("not poisoned"))
    }

    /// Cuts every connection and serves again.
    pub fn restart(&self) {
        self.end();
        self.serve();
    }

    /// Cuts every connection. Those of a server that is merely dropped live on: they are tasks.
    pub fn end(&self) {
        if let Some(runtime) = self.serving.lock().expect("not poisoned").take() {
            runtime.shutdown_background();
        }
    }

    fn serve(&self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        runtime.spawn(self.clone().run());
        *self.serving.lock().expect("not poisoned") = Some(runtime);
    }

    /// The server before may still be on its way out.
    async fn listener(&self) -> TcpListener {
        loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => return listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn run(self) {
        let listener = self.listener().await;
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let authorize = |peer: &Peer| match peer.node.id.contains("unreachable") {
            true => Err(Status::permission_denied("no such proxy")),
            false => Ok(peer.node.id.clone()),
        };
        let (events, _) = mpsc::unbounded_channel();
        let mut server = tonic::transport::Server::builder();
        if self.secured {
            server = server.tls_config(self.tls()).expect("TLS");
        }
        let (streams, certificates) = (self.clone(), self.clone());
        let discovery = xds::server::service(self.store.clone(), authorize, events);
        let discovery = tonic::service::interceptor::InterceptedService::new(discovery, move |request| {
            streams.admit_stream(request)
        });
        let server = server.add_service(discovery).add_service(IstioCertificateServiceServer::new(certificates));
        server.serve_with_incoming(incoming).await.expect("served");
    }

    fn tls(&self) -> ServerTlsConfig {
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec![SERVER_NAME.to_owned()]).expect("name");
        let certificate = params.signed_by(&key, &self.authority.issuer).expect("signed");
        ServerTlsConfig::new()
            .identity(Identity::from_pem(certificate.pem(), key.serialize_pem()))
            .client_ca_root(Certificate::from_pem(&self.authority.pem))
            .client_auth_optional(true)
    }

    #[allow(clippy::result_large_err)]
    fn admit_stream(&self, request: Request<()>) -> Result<Request<()>, Status> {
        if !self.secured {
            return Ok(request);
        }
        let (identity, port) = shown(&request).ok_or_else(|| Status::unauthenticated("authentication failure"))?;
        self.with(|behaviour| match behaviour.refused.contains(&identity) {
            true => Err(Status::unauthenticated(format!("{identity} is not welcome"))),
            false => {
                behaviour.streams.push((identity, port));
                Ok(request)
            }
        })
    }
}

/// The URI in the client's certificate, and its port.
fn shown<T>(request: &Request<T>) -> Option<(String, u16)> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let info = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>()?;
    let (chain, port) = (info.peer_certs()?, info.get_ref().remote_addr()?.port());
    let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
    let names = leaf.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some(((*uri).to_owned(), port)),
        _ => None,
    })
}

#[tonic::async_trait]
impl IstioCertificateService for Istiod {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        if self.secured {
            assert!(shown(&request).is_none(), "with a client certificate istiod refuses to impersonate");
            assert_eq!(request.metadata().get("clusterid").expect("a cluster"), "Kubernetes");
            let bearer = request.metadata().get("authorization").map(|value| value.to_str().unwrap_or_default());
            if bearer != Some(&format!("Bearer {TOKEN}")) {
                return Err(Status::unauthenticated("request authenticate failure"));
            }
        }
        let request = request.into_inner();
        let metadata = request.metadata.unwrap_or_default();
        let named = metadata.fields.get("ImpersonatedIdentity").and_then(|value| value.kind.clone());
        let Some(prost_types::value::Kind::StringValue(identity)) = named else { panic!("the identity is named") };
        let mut csr = CertificateSigningRequestParams::from_pem(&request.csr).expect("request");
        csr.params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into().expect("text"))];
        let is_expired = self.with(|behaviour| {
            behaviour.signed.push(identity.clone());
            behaviour.expired.contains(&identity)
        });
        if is_expired {
            let now = SystemTime::now();
            csr.params.not_before = (now - Duration::from_secs(120)).into();
            csr.params.not_after = (now - Duration::from_secs(60)).into();
        }
        let leaf = csr.signed_by(&self.authority.issuer).expect("signed");
        Ok(Response::new(IstioCertificateResponse { cert_chain: vec![leaf.pem(), self.authority.pem.clone()] }))
    }
}
