//! A workload calls another of this host: the rules of both apply in one pass.

use super::*;
use crate::tls::secrets::{IdentitySecret, KeyPair, Roots, Secrets};
use mesh_model::{Identity, PortId};
use std::cell::RefCell;
use std::net::IpAddr;

const CALLER: &str = "spiffe://cluster.local/ns/demo/sa/caller";
const CALLEE: &str = "spiffe://cluster.local/ns/demo/sa/callee";
const CALLEE_IP: &str = "127.0.0.20";

/// What the callee's application was asked, in order.
type Asked = Rc<RefCell<Vec<String>>>;

/// The callee's side and the caller's policy.
struct Setup {
    filters: Vec<HttpFilter>,
    inbound: RouteAction,
    headers: HeaderEdits,
    outbound: RouteAction,
    logs: Vec<Arc<AccessLog>>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            filters: Vec::new(),
            inbound: forward("inbound|80||"),
            headers: HeaderEdits::default(),
            outbound: forward("a"),
            logs: Vec::new(),
        }
    }
}

fn identity(text: &str) -> Identity {
    text.parse().expect("an identity")
}

fn secret(of: &str) -> (Identity, IdentitySecret) {
    let key = rcgen::KeyPair::generate().expect("key");
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(of.try_into().expect("ascii"))];
    let pem = params.self_signed(&key).expect("signed").pem();
    let key_pair = KeyPair::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).expect("a pair");
    let roots = Roots::from_pem(pem.as_bytes()).expect("roots");
    (identity(of), IdentitySecret { key_pair, roots, not_after: SystemTime::now() + Duration::from_secs(3600) })
}

fn mesh_tls() -> TransportSocket {
    let common = TlsContext {
        min_version: TlsVersion::V12,
        max_version: TlsVersion::V13,
        cipher_suites: Vec::new(),
        alpn: vec!["istio".into()],
        certificate: Some(CertificateSource::Sds("default".into())),
        validation: Validation::default(),
    };
    let tls = UpstreamTls { common, sni: String::new(), auto_host_sni: false, auto_sni_san_validation: false };
    TransportSocket::Tls(Arc::new(tls))
}

fn inbound_listener(manager: HttpConnectionManager) -> Listener {
    let chain = FilterChain::new("inbound", TerminalFilter::Http(Arc::new(manager)));
    Listener {
        direction: TrafficDirection::Inbound,
        filter_chains: vec![Arc::new(chain)],
        ..Listener::new("virtualInbound", "0.0.0.0:15006".parse().expect("address"))
    }
}

fn workload(uid: &str, of: &str, ip: &str, scope: &Arc<Scope>) -> Arc<Workload> {
    Arc::new(testing::workload(uid, &identity(of), ip.parse().expect("address"), scope))
}

/// A cluster whose model is changed before it is shared.
fn changed(made: Arc<ScopedCluster>, change: impl FnOnce(&mut Cluster)) -> Arc<ScopedCluster> {
    let mut made = Arc::into_inner(made).expect("not shared yet");
    change(Arc::get_mut(&mut made.cluster).expect("not shared yet"));
    Arc::new(made)
}

fn state(setup: Setup, application: SocketAddr) -> (State, HttpConnectionManager) {
    let outbound = changed(cluster(1, "a", application, UpstreamProtocol::Http1), |a| a.transport.default = mesh_tls());
    let inbound = changed(cluster(2, "inbound|80||", application, UpstreamProtocol::Http1), |inbound| {
        inbound.discovery = Discovery::OriginalDst { port_override: None };
        inbound.delivers_to_workload = true;
    });
    let mut route = Arc::into_inner(route("/", setup.inbound)).expect("not shared yet");
    route.headers = setup.headers;
    let manager_of_callee = HttpConnectionManager {
        filters: setup.filters,
        forward_client_cert: ForwardClientCert::AppendForward,
        set_client_cert_details: ClientCertDetails { uri: true, ..ClientCertDetails::default() },
        access_logs: setup.logs.clone(),
        ..manager(routes(vec![Arc::new(route)]))
    };
    let clusters = [outbound, inbound].map(|cluster| (cluster.cluster.name.clone(), cluster)).into();
    let listeners = vec![Arc::new(inbound_listener(manager_of_callee))];
    let scope = Arc::new(Scope { clusters, listeners, ..Scope::default() });
    let (caller, callee) = (workload("w1", CALLER, "127.0.0.1", &scope), workload("w2", CALLEE, CALLEE_IP, &scope));
    let by_address: HashMap<IpAddr, _> = [&caller, &callee].map(|w| (w.addresses[0], Arc::clone(w))).into();
    let by_port = [&caller, &callee].map(|w| (w.port.clone(), Arc::clone(w))).into();
    let snapshot = Snapshot { version: 1, root: scope, by_address, by_port, ..Snapshot::default() };
    let secrets = Secrets { identities: [secret(CALLER), secret(CALLEE)].into(), ..Secrets::default() };
    let manager =
        HttpConnectionManager { access_logs: setup.logs, ..manager(routes(vec![super::route("/", setup.outbound)])) };
    let state = State { snapshot: Arc::new(snapshot), secrets: Arc::new(secrets), ..State::default() };
    (state, manager)
}

/// A proxy whose client is the caller, and what the application of the callee is asked. It answers what `answer` says of
/// the number of the request.
async fn proxy(setup: Setup, answer: impl Fn(usize) -> &'static str + 'static) -> (SocketAddr, Asked) {
    let asked: Asked = Rc::default();
    let listening = TcpListener::bind((CALLEE_IP, 0)).await.expect("bind");
    let application = listening.local_addr().expect("address");
    let (record, answer) = (Rc::clone(&asked), Rc::new(answer));
    tokio::task::spawn_local(async move {
        while let Ok((mut tcp, _)) = listening.accept().await {
            let (record, answer) = (Rc::clone(&record), Rc::clone(&answer));
            tokio::task::spawn_local(async move {
                loop {
                    let head = read_until(&mut tcp, "\r\n\r\n").await;
                    if head.is_empty() {
                        return;
                    }
                    record.borrow_mut().push(head);
                    let count = record.borrow().len();
                    let text = answer(count);
                    if text.is_empty() {
                        return;
                    }
                    tcp.write_all(text.as_bytes()).await.expect("write");
                }
            });
        }
    });
    let (state, manager) = state(setup, application);
    let shared = testing::shared(Snapshot::default(), None);
    let caller = Arc::clone(&state.snapshot.by_port[&PortId("w1".into())]);
    shared.state.send_replace(state);
    let scope = Arc::clone(&caller.scope);
    let proxy = Proxy { worker: Worker::new(0, shared), scope, manager: Arc::new(manager), workload: Some(caller) };
    (proxy.listen().await, asked)
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const GET: &str = "GET /x HTTP/1.1\r\nhost: callee\r\n\r\n";

async fn answer_of(proxy: SocketAddr, end: &str) -> String {
    let mut client = send(proxy, GET).await;
    read_until(&mut client, end).await
}

fn literal(text: &str) -> FormatTemplate {
    FormatTemplate { parts: vec![FormatPart::Literal(text.into())] }
}

fn fault(delay: Option<u64>, abort: Option<u16>) -> HttpFilter {
    let percentage = Fraction { numerator: 100, denominator: 100 };
    HttpFilter::Fault(Arc::new(Fault {
        delay: delay.map(|fixed| FaultDelay { fixed: Duration::from_millis(fixed), percentage }),
        abort: abort.map(|status| FaultAbort { status: FaultStatus::Http(status), percentage }),
        ..Fault::default()
    }))
}

#[test]
fn the_application_sees_the_callers_identity_and_both_sides_edits() {
    run(async {
        let edit = |name: &str, value: &str| HeaderEdit {
            name: name.into(),
            value: literal(value),
            action: AppendAction::OverwriteIfExistsOrAdd,
            keep_empty_value: false,
        };
        let headers = HeaderEdits {
            request_add: vec![edit("x-inbound", "yes")],
            response_add: vec![edit("x-callee", "seen")],
            ..HeaderEdits::default()
        };
        let (proxy, asked) = proxy(Setup { headers, ..Setup::default() }, |_| OK).await;
        let answer = answer_of(proxy, "ok").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("x-callee: seen\r\n"), "{answer}");
        let asked = asked.borrow();
        assert!(asked[0].contains("x-inbound: yes\r\n"), "{asked:?}");
        assert!(
            asked[0].contains(&format!("x-forwarded-client-cert: By={CALLEE};"))
                && asked[0].contains(&format!("URI={CALLER}")),
            "{asked:?}"
        );
    });
}

#[test]
fn the_callee_denies_whom_it_does_not_know() {
    run(async {
        let only = |identity: &str| {
            let matcher = StringMatcher { pattern: StringPattern::Exact(identity.into()), ignore_case: false };
            let policy = RbacPolicy {
                name: "only".into(),
                permissions: vec![Permission::Any],
                principals: vec![Principal::Authenticated(Some(matcher))],
            };
            let rules = RbacRules { action: RbacAction::Allow, policies: vec![policy] };
            HttpFilter::Rbac(Arc::new(HttpRbac {
                rules: Some(rules),
                shadow_rules: None,
                stat_prefix: String::new(),
                shadow_stat_prefix: String::new(),
            }))
        };
        let (denies, asked) = proxy(Setup { filters: vec![only(CALLEE)], ..Setup::default() }, |_| OK).await;
        let answer = answer_of(denies, "RBAC: access denied").await;
        assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
        assert!(asked.borrow().is_empty());
        let (allows, _) = proxy(Setup { filters: vec![only(CALLER)], ..Setup::default() }, |_| OK).await;
        assert!(answer_of(allows, "ok").await.starts_with("HTTP/1.1 200 OK\r\n"));
    });
}

#[test]
fn faults_of_the_callee_are_injected_within_the_callers_limits() {
    run(async {
        let (proxy_to_aborting, asked) =
            proxy(Setup { filters: vec![fault(Some(50), Some(418))], ..Setup::default() }, |_| OK).await;
        let begun = Instant::now();
        let answer = answer_of(proxy_to_aborting, "fault filter abort").await;
        assert!(answer.starts_with("HTTP/1.1 418 "), "{answer}");
        assert!(begun.elapsed() >= Duration::from_millis(50));
        assert!(asked.borrow().is_empty());
        let outbound = RouteAction { timeout: Some(Duration::from_millis(50)), ..forward("a") };
        let slow = Setup { filters: vec![fault(Some(5000), None)], outbound, ..Setup::default() };
        let answer = answer_of(proxy(slow, |_| OK).await.0, "upstream request timeout").await;
        assert!(answer.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"), "{answer}");
    });
}

fn retry(on: RetryOn) -> Option<Arc<RetryPolicy>> {
    Some(Arc::new(RetryPolicy {
        on,
        num_retries: 2,
        per_try_timeout: None,
        per_try_idle_timeout: None,
        retriable_status_codes: Vec::new(),
        retriable_headers: Vec::new(),
        retriable_request_headers: Vec::new(),
        avoid_previous_hosts: false,
        backoff_base: Duration::from_millis(1),
        backoff_max: Duration::from_millis(2),
    }))
}

#[test]
fn each_side_retries_by_its_own_policy() {
    run(async {
        let on_reset = RetryOn { reset: true, ..RetryOn::default() };
        let inbound = RouteAction { retry: retry(on_reset), ..forward("inbound|80||") };
        let answer = |count| if count == 1 { "" } else { OK };
        let (of_callee, asked) = proxy(Setup { inbound, ..Setup::default() }, answer).await;
        assert!(answer_of(of_callee, "ok").await.starts_with("HTTP/1.1 200 OK\r\n"));
        assert_eq!(asked.borrow().len(), 2);
        // What the callee's router answers is a response to the caller's, which retries a 503.
        let on_5xx = RetryOn { server_error_5xx: true, ..RetryOn::default() };
        let outbound = RouteAction { retry: retry(on_5xx), ..forward("a") };
        let (of_caller, asked) = proxy(Setup { outbound, ..Setup::default() }, answer).await;
        assert!(answer_of(of_caller, "ok").await.starts_with("HTTP/1.1 200 OK\r\n"));
        assert_eq!(asked.borrow().len(), 2);
        let (nobody_retries, _) = proxy(Setup::default(), answer).await;
        let answer = answer_of(nobody_retries, "connection termination").await;
        assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
    });
}

#[test]
fn the_callees_own_timeout_is_its_answer_to_the_caller() {
    run(async {
        let inbound = RouteAction { timeout: Some(Duration::from_millis(50)), ..forward("inbound|80||") };
        // An answer that does not come: the head has no end.
        let (proxy, _) = proxy(Setup { inbound, ..Setup::default() }, |_| "HTTP/1.1 200 OK\r\n").await;
        let answer = answer_of(proxy, "upstream request timeout").await;
        assert!(answer.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"), "{answer}");
    });
}

#[test]
fn both_sides_log_the_request() {
    run(async {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("access.log");
        let command = |command| FormatPart::Command { command, max_length: None };
        let parts = vec![
            command(Command::UpstreamCluster),
            FormatPart::Literal(" ".into()),
            command(Command::DownstreamPeerUriSan),
            FormatPart::Literal(" ".into()),
            command(Command::ResponseCode),
            FormatPart::Literal("\n".into()),
        ];
        let log = AccessLog {
            sink: LogSink::File(path.display().to_string()),
            format: LogFormat::Text(FormatTemplate { parts }),
            filter: None,
        };
        let (proxy, _) = proxy(Setup { logs: vec![Arc::new(log)], ..Setup::default() }, |_| OK).await;
        answer_of(proxy, "ok").await;
        let expected = format!("inbound|80|| {CALLER} 200\na - 200\n");
        let mut seen = String::new();
        for _ in 0..200 {
            seen = std::fs::read_to_string(&path).unwrap_or_default();
            if seen == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(seen, expected);
    });
}
