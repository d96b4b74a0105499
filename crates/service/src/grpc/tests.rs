//! Certificates over real connections: files that change, what expires, enrollment.

use super::*;
use crate::health::Health;
use mesh_api::enroll::enrollment_server::{Enrollment, EnrollmentServer};
use mesh_api::enroll::{EnrollRequest, EnrollResponse};
use mesh_api::report::reports_client::ReportsClient;
use mesh_api::report::reports_server::{Reports, ReportsServer};
use mesh_api::report::{Report, ReportAck};
use rcgen::{CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, Streaming};

type Issuer = CertifiedIssuer<'static, KeyPair>;

const LIMIT: Duration = Duration::from_secs(15);

fn authority(file: &Path) -> Issuer {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("authority");
    std::fs::write(file, issuer.pem()).expect("written");
    issuer
}

fn params(program: &str, node: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![program.to_owned()]).expect("names");
    let uri = program_identity(program, node);
    params.subject_alt_names.insert(0, SanType::URI(uri.as_str().try_into().expect("ASCII")));
    params
}

fn write(folder: &Path, issuer: &Issuer, params: &CertificateParams, name: &str) -> TlsArgs {
    let key = KeyPair::generate().expect("key");
    let path = |suffix: &str| folder.join(format!("{name}.{suffix}"));
    std::fs::write(path("key"), key.serialize_pem()).expect("written");
    std::fs::write(path("crt"), params.signed_by(&key, issuer).expect("signed").pem()).expect("written");
    TlsArgs {
        tls_certificate: Some(path("crt")),
        tls_key: Some(path("key")),
        tls_ca: Some(folder.join("ca.pem")),
        ..TlsArgs::default()
    }
}

/// Answers with who called.
struct Who;

#[tonic::async_trait]
impl Reports for Who {
    type ReportStream = tokio_stream::Pending<Result<ReportAck, Status>>;

    async fn report(&self, request: Request<Streaming<Report>>) -> Result<Response<Self::ReportStream>, Status> {
        Err(Status::aborted(peer_identities(&request).join(" ")))
    }
}

async fn serve(tls: &TlsArgs) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let uri = format!("https://{}", listener.local_addr().expect("bound"));
    let tls = tls.server().expect("good files");
    let router = tonic::transport::Server::builder().add_service(ReportsServer::new(Who));
    tokio::spawn(router.serve_with_incoming(incoming(listener, tls)));
    uri
}

/// Whom the server saw, or why not.
async fn call(uri: &str, tls: &TlsArgs, server_name: &str) -> Result<String, String> {
    let channel = channel(uri, tls, server_name).await.map_err(|error| error.to_string())?;
    let status = ReportsClient::new(channel).report(tokio_stream::pending()).await.expect_err("always refused");
    match status.code() {
        tonic::Code::Aborted => Ok(status.message().to_owned()),
        _ => Err(format!("{status:?}")),
    }
}

#[tokio::test]
async fn both_sides_show_who_they_are_and_files_are_read_again() {
    let folder = tempfile::tempdir().expect("folder");
    let issuer = authority(&folder.path().join("ca.pem"));
    let server = write(folder.path(), &issuer, &params("controller", "c"), "server");
    let client = write(folder.path(), &issuer, &params("adapter", "host1"), "client");
    let uri = serve(&server).await;
    assert_eq!(call(&uri, &client, "controller").await.expect("served"), "spiffe://dpumesh/adapter/host1 adapter");
    let wrong = call(&uri, &client, "dataplane").await.expect_err("another name");
    assert!(wrong.contains("dataplane"), "{wrong}");

    let anonymous = TlsArgs { tls_ca: client.tls_ca.clone(), ..TlsArgs::default() };
    let refused = call(&uri, &anonymous, "controller").await.expect_err("without certificate");
    assert!(refused.contains("CertificateRequired"), "{refused}");

    // Everything is replaced, authority too: the server, which runs on, follows.
    let lazy = endpoint(&uri, &client, "controller").expect("good files");
    let issuer = authority(&folder.path().join("ca.pem"));
    write(folder.path(), &issuer, &params("controller", "c"), "server");
    write(folder.path(), &issuer, &params("adapter", "host2"), "client");
    let started = Instant::now();
    loop {
        let channel = lazy.connect().await;
        let seen = match channel {
            Ok(channel) => ReportsClient::new(channel).report(tokio_stream::pending()).await.expect_err("refused"),
            Err(error) => Status::unknown(error.to_string()),
        };
        if seen.message() == "spiffe://dpumesh/adapter/host2 adapter" {
            return;
        }
        assert!(started.elapsed() < LIMIT, "{seen:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn expired(program: &str) -> CertificateParams {
    let mut params = params(program, "host1");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 2, 3);
    params
}

#[tokio::test]
async fn an_expired_certificate_is_told_by_name_and_date_on_both_sides() {
    let folder = tempfile::tempdir().expect("folder");
    let issuer = authority(&folder.path().join("ca.pem"));
    let good = write(folder.path(), &issuer, &params("adapter", "host1"), "good");
    let mut old = write(folder.path(), &issuer, &expired("controller"), "old");
    let expected = "the certificate of spiffe://dpumesh/controller/host1 expired on Wed, 03 Feb 2021";
    let of_peer = call(&serve(&old).await, &good, "controller").await.expect_err("expired");
    assert!(of_peer.contains(expected), "{of_peer}");
    let of_own = call(&serve(&good).await, &old, "adapter").await.expect_err("expired");
    assert!(of_own.contains(expected) && of_own.contains("old.crt"), "{of_own}");

    let health = Health::new("test");
    old.identify("controller", "host1", &health).expect("files");
    let reason = until(|| health.ready().err().filter(|reason| reason.contains(expected))).await;
    assert!(reason.contains("read without a restart"), "{reason}");
    write(folder.path(), &issuer, &params("controller", "host1"), "old");
    until(|| health.ready().ok()).await;
}

async fn until<T>(mut found: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(started.elapsed() < LIMIT, "not in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn files_that_make_no_sense_are_named() {
    let folder = tempfile::tempdir().expect("folder");
    let issuer = authority(&folder.path().join("ca.pem"));
    let good = write(folder.path(), &issuer, &params("adapter", "host1"), "good");
    let other = write(folder.path(), &issuer, &params("adapter", "host1"), "other");
    let mixed = TlsArgs { tls_key: other.tls_key, ..good.clone() };
    let error = mixed.server().expect_err("mixed").to_string();
    assert!(error.contains("good.crt") && error.contains("the key is not that of the certificate"), "{error}");
    let swapped = TlsArgs { tls_certificate: good.tls_key.clone(), ..good.clone() };
    assert!(swapped.client().expect_err("a key").to_string().contains("no PEM certificate"));
    let missing = TlsArgs { tls_ca: Some("/nonexistent".into()), ..good };
    assert!(missing.client().expect_err("missing").to_string().contains("/nonexistent"));
}

/// Signs whatever is asked for, for so long, and counts.
struct Controller {
    issuer: Issuer,
    valid: Duration,
    tokens: Arc<Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl Enrollment for Controller {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        assert!(peer_identities(&request).is_empty(), "there is no certificate yet");
        let EnrollRequest { token, csr_pem } = request.into_inner();
        self.tokens.lock().expect("tokens").push(token.clone());
        if token == "bad" {
            return Err(Status::unauthenticated("the API server does not know the token"));
        }
        let mut csr = CertificateSigningRequestParams::from_pem(&csr_pem).expect("a signing request");
        let now = SystemTime::now();
        csr.params.not_before = (now - Duration::from_secs(5)).into();
        csr.params.not_after = (now + self.valid).into();
        let leaf = csr.signed_by(&self.issuer).expect("signed");
        Ok(Response::new(EnrollResponse { chain_pem: vec![leaf.pem()] }))
    }
}

#[tokio::test]
async fn a_program_enrolls_with_the_token_of_that_moment_and_renews() {
    let folder = tempfile::tempdir().expect("folder");
    let issuer = authority(&folder.path().join("ca.pem"));
    let server = write(folder.path(), &issuer, &params("controller", "c"), "server");
    let tokens = Arc::<Mutex<Vec<String>>>::default();
    let controller = Controller { issuer, valid: Duration::from_secs(6), tokens: Arc::clone(&tokens) };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let uri = format!("https://{}", listener.local_addr().expect("bound"));
    let tls = server.server_for_anyone_at("127.0.0.1:0".parse().expect("address")).expect("good files");
    let router = tonic::transport::Server::builder().add_service(EnrollmentServer::new(controller));
    tokio::spawn(router.serve_with_incoming(incoming(listener, tls)));

    let token = folder.path().join("token");
    std::fs::write(&token, "bad\n").expect("written");
    let mut client = TlsArgs {
        tls_ca: server.tls_ca.clone(),
        enroll: Some(uri),
        enroll_token: Some(token.clone()),
        ..TlsArgs::default()
    };
    assert!(matches!(client.client(), Err(GrpcError::NotIdentified)), "who is it?");
    let health = Health::new("test");
    client.identify("adapter", "host1", &health).expect("good flags");
    until(|| health.ready().err().filter(|reason| reason.contains("does not know the token"))).await;
    let reports = serve(&server).await;
    let early = call(&reports, &client, "controller").await.expect_err("not enrolled");
    assert!(early.contains("there is no certificate yet"), "{early}");

    std::fs::write(&token, "first\n").expect("written");
    until(|| health.ready().ok()).await;
    assert_eq!(call(&reports, &client, "controller").await.expect("served"), "spiffe://dpumesh/adapter/host1");
    std::fs::write(&token, "second\n").expect("written");
    until(|| tokens.lock().expect("tokens").last().filter(|token| *token == "second").cloned()).await;
    assert_eq!(call(&reports, &client, "controller").await.expect("served"), "spiffe://dpumesh/adapter/host1");
}

#[test]
fn a_server_without_certificate_listens_on_loopback_only() {
    let none = TlsArgs::default();
    assert!(none.server_at("127.0.0.1:1".parse().expect("address")).expect("loopback").is_none());
    let error = none.server_at("10.0.0.1:1".parse().expect("address")).expect_err("reachable");
    assert!(error.to_string().contains("--tls-certificate"), "{error}");
}

#[test]
fn half_of_the_flags_is_an_error_that_names_all() {
    let key = TlsArgs { tls_key: Some("/key".into()), ..TlsArgs::default() };
    let authority = TlsArgs { tls_ca: Some("/ca".into()), ..TlsArgs::default() };
    let enroll = TlsArgs { enroll: Some("https://c:1".to_owned()), ..TlsArgs::default() };
    for half in [key, authority, enroll] {
        assert!(matches!(half.server(), Err(GrpcError::Partial)), "{half:?}");
    }
}

#[test]
fn a_plaintext_channel_to_another_machine_is_refused() {
    let error = endpoint("http://10.0.0.1:15100", &TlsArgs::default(), "controller").expect_err("plaintext");
    assert!(matches!(error, GrpcError::Plaintext { .. }), "{error}");
    assert!(endpoint("http://127.0.0.1:15100", &TlsArgs::default(), "controller").is_ok());
    assert!(matches!(endpoint("controller", &TlsArgs::default(), "c"), Err(GrpcError::Address { .. })));
}
