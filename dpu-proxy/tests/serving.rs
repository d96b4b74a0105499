//! The whole program in this process, on loopback: what it serves, tells, and how it ends.

use clap::Parser;
use dpu_proxy::program::{self, Arguments};
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// A TCP server that answers every read with the same bytes and a mark.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&[b"<", &buffer[..length], b">"].concat()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("address").port()
}

fn bootstrap(listener: u16, upstream: SocketAddr, log: &Path) -> String {
    format!(
        r#"
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
static_resources:
  clusters:
  - name: up
    type: STATIC
    connect_timeout: 1s
    load_assignment: {{cluster_name: up, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}]}}]}}
  listeners:
  - name: in
    address: {{socket_address: {{address: 127.0.0.1, port_value: {listener}}}}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: t
          cluster: up
          access_log:
          - name: file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {log}
              log_format: {{text_format_source: {{inline_string: "%RESPONSE_FLAGS% %UPSTREAM_CLUSTER% %BYTES_RECEIVED% %BYTES_SENT%\n"}}}}
"#,
        ip = upstream.ip(),
        port = upstream.port(),
        log = log.display()
    )
}

struct Running {
    listener: SocketAddr,
    admin: SocketAddr,
    log: std::path::PathBuf,
    stop: CancellationToken,
}

/// Serves with an upstream while `test` runs, then drains and ends.
async fn serving<F: Future<Output = ()>>(upstream: SocketAddr, extra: &[&str], test: impl FnOnce(Running) -> F) {
    let folder = tempfile::tempdir().expect("folder");
    let (port, log) = (free_port().await, folder.path().join("access.log"));
    let yaml = bootstrap(port, upstream, &log);
    let base = ["dpu-proxy", "--config-yaml", &yaml, "--concurrency", "2", "--file-flush-interval-msec", "10"];
    let arguments = Arguments::parse_from(base.iter().chain(extra));
    let stop = CancellationToken::new();
    let (tell, told) = tokio::sync::oneshot::channel();
    let serving = program::serve(&arguments, stop.clone(), |admin| tell.send(admin).expect("the test waits"));
    let testing = async {
        let admin = told.await.expect("started").expect("an admin address");
        let running = Running { listener: SocketAddr::from(([127, 0, 0, 1], port)), admin, log, stop: stop.clone() };
        running.until_ready().await;
        test(running).await;
        stop.cancel();
    };
    let (served, ()) = tokio::join!(serving, testing);
    served.expect("served to the end");
}

impl Running {
    async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).await.expect("admin");
        let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        answer
    }

    async fn until_ready(&self) {
        for _ in 0..200 {
            if self.get("/ready").await.starts_with("HTTP/1.1 200") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not ready: {}", self.get("/server_info").await);
    }

    /// The access log, once it has a line.
    async fn line(&self) -> String {
        for _ in 0..200 {
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            if text.ends_with('\n') {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no access log line came");
    }
}

async fn exchange(stream: &mut TcpStream, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.expect("write");
    let mut answer = vec![0; text.len() + 2];
    stream.read_exact(&mut answer).await.expect("answer");
    String::from_utf8(answer).expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tcp_listener_passes_bytes_and_tells_of_it() {
    serving(echo().await, &[], |proxy| async move {
        let mut client = TcpStream::connect(proxy.listener).await.expect("connect");
        assert_eq!(exchange(&mut client, "hello").await, "<hello>");
        drop(client);
        assert_eq!(proxy.line().await, "- up 5 7\n");
        let stats = proxy.get("/stats/prometheus").await;
        assert!(stats.contains("envoy_tcp_downstream_cx_total{envoy_tcp_prefix=\"t\"} 1\n"), "{stats}");
        assert!(stats.contains("envoy_cluster_upstream_cx_total{envoy_cluster_name=\"up\"} 1\n"), "{stats}");
        assert!(proxy.get("/listeners").await.contains(&format!("in::{}", proxy.listener)));
        assert!(proxy.get("/clusters").await.contains("up::"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_refuses_is_told_by_its_flags() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port().await));
    serving(nobody, &[], |proxy| async move {
        let mut client = TcpStream::connect(proxy.listener).await.expect("connect");
        assert_eq!(client.read(&mut [0; 8]).await.unwrap_or(0), 0, "closed");
        assert_eq!(proxy.line().await, "UF,URX up 0 0\n");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_proxy_finishes_what_it_has_and_takes_nothing_new() {
    serving(echo().await, &["--drain-time-s", "20"], |proxy| async move {
        let mut client = TcpStream::connect(proxy.listener).await.expect("connect");
        assert_eq!(exchange(&mut client, "before").await, "<before>");
        proxy.stop.cancel();
        for _ in 0..200 {
            if TcpStream::connect(proxy.listener).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(TcpStream::connect(proxy.listener).await.is_err(), "nothing new");
        assert!(proxy.get("/ready").await.contains("DRAINING"));
        assert_eq!(exchange(&mut client, "after").await, "<after>");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_outlive_the_drain_time_are_cut() {
    serving(echo().await, &["--drain-time-s", "0"], |proxy| async move {
        let mut client = TcpStream::connect(proxy.listener).await.expect("connect");
        assert_eq!(exchange(&mut client, "before").await, "<before>");
        proxy.stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(5), client.read(&mut [0; 8])).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    })
    .await;
}

#[test]
fn a_bootstrap_that_cannot_be_served_is_refused_with_its_reason() {
    let error = program::validate("static_resources: {listeners: [{name: x, no_such_field: 1}]}").expect_err("refused");
    assert!(error.to_string().contains("no_such_field"), "{error}");
}
