//! Who may call the adapter: the proxy of its own node, by its certificate.

use clap::Parser;
use istio_dpu_adapter::shell::{Args, start};
use mesh_api::ca::SignRequest;
use mesh_api::ca::certificate_relay_client::CertificateRelayClient;
use mesh_api::envoy::config::core::v3::Node;
use mesh_api::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use mesh_api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use rcgen::{CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use service::grpc::{TlsArgs, channel};
use service::signal::CancellationToken;
use std::path::Path;
use std::time::Duration;
use tonic::{Code, Status};

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority(folder: &Path) -> Issuer {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("authority");
    std::fs::write(folder.join("ca.pem"), issuer.pem()).expect("written");
    issuer
}

/// A program's certificate in files.
fn certificate(folder: &Path, issuer: &Issuer, program: &str, node: &str) -> TlsArgs {
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::new(vec![program.to_owned()]).expect("names");
    let uri = format!("spiffe://dpumesh/{program}/{node}");
    params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().expect("name")));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let path = |what: &str| folder.join(format!("{program}-{node}.{what}"));
    std::fs::write(path("crt"), params.signed_by(&key, issuer).expect("signed").pem()).expect("written");
    std::fs::write(path("key"), key.serialize_pem()).expect("written");
    TlsArgs {
        tls_certificate: Some(path("crt")),
        tls_key: Some(path("key")),
        tls_ca: Some(folder.join("ca.pem")),
        ..TlsArgs::default()
    }
}

/// What the discovery service says to a first request; `Ok` when it keeps the stream open.
async fn discover(uri: &str, tls: &TlsArgs, node: &str) -> Result<(), Status> {
    let channel = channel(uri, tls, "adapter").await.expect("connected");
    let node = Some(Node { id: node.to_owned(), ..Node::default() });
    let first = DeltaDiscoveryRequest {
        node,
        type_url: mesh_api::type_url::SCOPE.to_owned(),
        resource_names_subscribe: vec!["*".to_owned()],
        ..Default::default()
    };
    let requests = tokio_stream::StreamExt::chain(tokio_stream::once(first), tokio_stream::pending());
    let mut answer =
        AggregatedDiscoveryServiceClient::new(channel).delta_aggregated_resources(requests).await?.into_inner();
    match tokio::time::timeout(Duration::from_millis(500), answer.message()).await {
        Ok(Err(status)) => Err(status),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

async fn sign(uri: &str, tls: &TlsArgs) -> Status {
    let channel = channel(uri, tls, "adapter").await.expect("connected");
    let identity = "spiffe://cluster.local/ns/a/sa/b".to_owned();
    let request = SignRequest { identity, csr_pem: String::new(), validity_seconds: 0 };
    CertificateRelayClient::new(channel).sign(request).await.expect_err("nothing is attached")
}

#[tokio::test]
async fn only_the_proxy_of_the_same_node_is_served() {
    let folder = tempfile::tempdir().expect("folder");
    let issuer = authority(folder.path());
    let own = certificate(folder.path(), &issuer, "adapter", "host1");
    let proxy = certificate(folder.path(), &issuer, "dpu-proxy", "host1");
    let stranger = certificate(folder.path(), &issuer, "dpu-proxy", "host2");
    let flags =
        ["adapter", "--node", "host1", "--controller", "http://127.0.0.1:1", "--control-plane", "http://127.0.0.1:1"];
    let more = ["--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0", "--attachments", "/nonexistent"];
    let args = Args { tls: own, ..Args::parse_from(flags.into_iter().chain(more)) };
    let stop = CancellationToken::new();
    let (addresses, running) = start(args, stop.clone()).await.expect("started");
    let uri = format!("https://{}", addresses.grpc);

    discover(&uri, &proxy, "host1").await.expect("served");
    for (tls, node) in [(&stranger, "host1"), (&stranger, "host2"), (&proxy, "host2")] {
        let refused = discover(&uri, tls, node).await.expect_err("refused");
        assert_eq!(refused.code(), Code::PermissionDenied, "{}", refused.message());
    }
    assert!(sign(&uri, &proxy).await.message().contains("no pod attached"));
    assert!(sign(&uri, &stranger).await.message().contains("caller must be spiffe://dpumesh/dpu-proxy/host1"));

    stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), running).await.expect("stops in time").expect("ended");
}
