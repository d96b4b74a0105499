//! Runs one group of cases through both proxies and compares.

use crate::case::{Case, Client, Group};
use crate::observation::{LogLine, Observation, UpstreamRequest, differences, normalise, rename};
use crate::program::{Kind, Ports, Programs, Running, free_port};
use crate::upstream::{Recorder, Speak, start};
use crate::{certificates, client};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest wait for the access log of a case.
const LOG_TIMEOUT: Duration = Duration::from_secs(3);

/// Clusters that most bootstraps share: the `{{clusters}}` placeholder.
const CLUSTERS: &str = include_str!("../cases/clusters.inc");

/// What came of a case.
#[derive(Debug)]
pub struct Outcome {
    pub name: String,
    /// Empty: the two agree.
    pub differences: String,
    /// Documented decisions that were left out of the comparison.
    pub documented: Vec<String>,
}

struct Backends {
    ports: Ports,
    recorder: Recorder,
}

/// Runs all cases of `group`.
pub async fn run(name: &str, group: &Group, programs: &Programs) -> anyhow::Result<Vec<Outcome>> {
    let folder = tempfile::tempdir()?;
    certificates::write(folder.path())?;
    let backends = backends(folder.path()).await?;
    let envoy = Side::start(Kind::Envoy, group, programs, &backends, folder.path())?;
    let ours = Side::start(Kind::DpuProxy, group, programs, &backends, folder.path())?;
    let mut outcomes = Vec::new();
    for case in &group.cases {
        let expected = envoy.observe(case, &backends, folder.path()).await?;
        let actual = ours.observe(case, &backends, folder.path()).await?;
        outcomes.push(Outcome {
            name: format!("{name}: {}", case.name),
            differences: differences(&expected, &actual, &case.differs),
            documented: case.differs.iter().map(|(field, reason)| format!("{field:?}: {reason}")).collect(),
        });
    }
    Ok(outcomes)
}

async fn backends(folder: &Path) -> anyhow::Result<Backends> {
    let recorder = Recorder::default();
    let mut ports = Ports::default();
    let tls = Speak::Http1Tls(acceptor(folder)?);
    let all = [
        ("backend_a", Speak::Http1),
        ("backend_b", Speak::Http1),
        ("backend_c", Speak::Http1),
        ("backend_h2", Speak::Http2),
        ("backend_tls", tls),
        ("backend_tcp", Speak::Echo),
    ];
    for (name, speak) in all {
        ports.set(name, start(name, speak, recorder.clone()).await?.port());
    }
    ports.set("nobody", free_port()?);
    ports.set("certificates", folder.display());
    Ok(Backends { ports, recorder })
}

/// The TLS backend shows `other` and wants a client certificate of the trusted authority.
fn acceptor(folder: &Path) -> anyhow::Result<tokio_rustls::TlsAcceptor> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.pem"))?)?;
    let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
    let config = rustls::ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(
        vec![CertificateDer::from_pem_file(folder.join("other.pem"))?],
        PrivateKeyDer::from_pem_file(folder.join("other.key"))?,
    )?;
    Ok(tokio_rustls::TlsAcceptor::from(Arc::new(config)))
}

/// One proxy with its own ports.
struct Side {
    running: Running,
    ports: Ports,
    log: PathBuf,
}

impl Side {
    fn start(
        kind: Kind,
        group: &Group,
        programs: &Programs,
        backends: &Backends,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let label = format!("{kind:?}");
        let log = folder.join(format!("{label}.access.log"));
        let admin = free_port()?;
        let mut ports = backends.ports.clone();
        for listener in ["listener", "listener2", "listener3", "listener4"] {
            ports.set(listener, free_port()?);
        }
        ports.set("admin", admin);
        ports.set("log", access_log(&log));
        let config = folder.join(format!("{label}.yaml"));
        let template = group.bootstrap.replace("{{clusters}}", CLUSTERS);
        std::fs::write(&config, ports.render(&template)?)?;
        std::fs::write(&log, "")?;
        let running = Running::start(kind, programs, &config, admin, &folder.join(format!("{label}.out")))
            .map_err(|error| anyhow::anyhow!("{label}: {error}"))?;
        Ok(Self { running, ports, log })
    }

    async fn observe(&self, case: &Case, backends: &Backends, folder: &Path) -> anyhow::Result<Observation> {
        let port = self.ports.get(&case.listener).and_then(|port| port.parse().ok());
        let port: u16 = port.ok_or_else(|| anyhow::anyhow!("{}: no listener {:?}", case.name, case.listener))?;
        let logged = self.read_log().len();
        backends.recorder.take();
        let mut observation = Observation::default();
        for _ in 0..case.times {
            let (responses, closed) = client::run(case, SocketAddr::from(([127, 0, 0, 1], port)), folder)
                .await
                .map_err(|error| anyhow::anyhow!("{}: {error}\n{}", case.name, self.running.last_lines()))?;
            observation.responses.extend(responses);
            observation.closed |= closed;
        }
        let expected = expected_lines(case);
        observation.log = self.new_lines(logged, expected).await;
        observation.upstream = backends.recorder.take();
        Ok(self.normalised(observation))
    }

    async fn new_lines(&self, from: usize, expected: usize) -> Vec<LogLine> {
        let end = Instant::now() + LOG_TIMEOUT;
        loop {
            let lines = self.read_log();
            if lines.len() >= from + expected || Instant::now() > end {
                return lines[from.min(lines.len())..].to_vec();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn read_log(&self) -> Vec<LogLine> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().filter_map(LogLine::parse).collect()
    }

    fn normalised(&self, mut observation: Observation) -> Observation {
        let names = self.names();
        for response in &mut observation.responses {
            response.headers = normalise(std::mem::take(&mut response.headers), &names);
            response.trailers = normalise(std::mem::take(&mut response.trailers), &names);
            response.body = rename(std::mem::take(&mut response.body), &names);
        }
        for request in &mut observation.upstream {
            *request = normalised_request(std::mem::take(request), &names);
        }
        for line in &mut observation.log {
            line.details = rename(std::mem::take(&mut line.details), &names);
        }
        observation
    }

    fn names(&self) -> Vec<(String, String)> {
        let is_port = |value: &str| value.parse::<u16>().is_ok();
        let ports = self.ports.values.iter().filter(|(_, value)| is_port(value));
        ports.map(|(name, value)| (value.clone(), format!("<{name}>"))).collect()
    }
}

fn normalised_request(request: UpstreamRequest, names: &[(String, String)]) -> UpstreamRequest {
    UpstreamRequest {
        line: rename(request.line, names),
        headers: normalise(request.headers, names),
        trailers: normalise(request.trailers, names),
        ..request
    }
}

fn expected_lines(case: &Case) -> usize {
    let each = match case.client {
        Client::Http1 => case.send.len(),
        Client::Http2 => case.requests.len(),
        Client::Tcp => 1,
    };
    each * case.times as usize
}

fn access_log(path: &Path) -> String {
    let format = "%RESPONSE_FLAGS%|%RESPONSE_CODE%|%RESPONSE_CODE_DETAILS%|%ROUTE_NAME%|%UPSTREAM_CLUSTER%|%CONNECTION_TERMINATION_DETAILS%\\n";
    format!(
        "[{{name: file, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, \
         path: \"{}\", log_format: {{text_format_source: {{inline_string: \"{format}\"}}}}}}}}]",
        path.display()
    )
}
