//! Who calls, and what istiod lets him ask: a stream is a workload's own, by its certificate; the certificate
//! service takes an adapter's token, and nobody who shows a certificate.

use crate::pods::PODS;
use crate::programs::istio_token;
use crate::topology::{HOSTS, Host};
use anyhow::Result;
use mesh_api::envoy::config::core::v3::Node;
use mesh_api::envoy_pb::google::protobuf::value::Kind;
use service::grpc::TlsArgs;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};
use tonic::{Request, Status};

/// TLS that lets callers without a certificate in; `None` without files.
pub(super) fn tls(args: &TlsArgs) -> Result<Option<ServerTlsConfig>> {
    let (Some(certificate), Some(key), Some(authority)) = (&args.tls_certificate, &args.tls_key, &args.tls_ca) else {
        return Ok(None);
    };
    let identity = Identity::from_pem(std::fs::read(certificate)?, std::fs::read(key)?);
    let authority = Certificate::from_pem(std::fs::read(authority)?);
    Ok(Some(ServerTlsConfig::new().identity(identity).client_ca_root(authority).client_auth_optional(true)))
}

/// The URI in the caller's certificate, if he shows one.
pub(super) fn identity<T>(request: &Request<T>) -> Option<String> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let chain = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>()?.peer_certs()?;
    let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
    let names = leaf.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    })
}

/// A stream is for a node of the caller's own namespace and service account.
pub(super) fn check_stream(shown: Option<&str>, node: &Node) -> Result<(), Status> {
    let field = |name: &str| match node.metadata.as_ref()?.fields.get(name)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.as_str()),
        _ => None,
    };
    let (namespace, account) = (field("NAMESPACE").unwrap_or_default(), field("SERVICE_ACCOUNT").unwrap_or_default());
    let expected = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
    match shown == Some(&expected) {
        true => Ok(()),
        false => {
            Err(Status::permission_denied(format!("node {:?} is {expected}; the caller showed {shown:?}", node.id)))
        }
    }
}

/// Who shows the token of a host's adapter may have the identities of that host's pods.
pub(super) fn check_impersonation<T>(request: &Request<T>, identity: &str) -> Result<(), Status> {
    if let Some(shown) = self::identity(request) {
        return Err(Status::permission_denied(format!(
            "{shown} may not impersonate: show a token, and no certificate"
        )));
    }
    let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let host = HOSTS.into_iter().find(|host| is_token_of(*host, bearer));
    let host = host.ok_or_else(|| Status::unauthenticated("the token is of no adapter"))?;
    match PODS.iter().any(|pod| pod.host == host && pod.identity() == identity) {
        true => Ok(()),
        false => Err(Status::permission_denied(format!("no pod of {} is {identity}", host.node()))),
    }
}

fn is_token_of(host: Host, bearer: &str) -> bool {
    let token = std::fs::read_to_string(istio_token(host)).unwrap_or_default();
    !token.is_empty() && bearer.strip_prefix("Bearer ") == Some(token.as_str())
}
