//! Load: wrk for requests, our own sender and readers for bytes; and the server behind the proxies.

use crate::machine::on_core;
use anyhow::{Context, ensure};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Core of load generator and server.
pub const LOAD_CORE: usize = 0;
/// Length of a response body.
pub const BODY_BYTES: usize = 1024;

/// The load of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// HTTP requests for 1 KiB on this many kept-alive connections.
    KeepAlive { connections: u32 },
    /// A new connection for each HTTP request, this many at a time.
    NewConnections { connections: u32 },
    /// Bytes from the server on this many TCP connections.
    Bulk { connections: u32 },
}

/// Where the load goes.
#[derive(Clone, Debug)]
pub struct Target {
    /// Named network namespace of the client; our own without.
    pub namespace: Option<String>,
    pub address: SocketAddr,
    /// Value of the host header, where it is not the address.
    pub host: Option<&'static str>,
    pub path: &'static str,
}

impl Target {
    /// A port of our own namespace.
    pub fn loopback(port: u16) -> Self {
        Self { namespace: None, address: (Ipv4Addr::LOCALHOST, port).into(), host: None, path: "/" }
    }
}

/// What the load generator saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Requests, or GiB for bulk transfers.
    pub units: f64,
    pub seconds: f64,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
}

/// Configuration of an nginx that answers everything with 1 KiB.
pub fn nginx_config(folder: &Path, listen: &str) -> String {
    let (dir, body) = (folder.display(), "x".repeat(BODY_BYTES));
    format!(
        "daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/nginx.log crit;\n\
         events {{ worker_connections 8192; }}\n\
         http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 3600s;\n\
         server {{ listen {listen} backlog=4096; location / {{ return 200 \"{body}\"; }} }} }}\n"
    )
}

/// nginx with one worker; stopped when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
}

impl Server {
    /// Starts it on a loopback port.
    pub fn start(folder: &Path, port: u16) -> anyhow::Result<Self> {
        let config = folder.join("nginx.conf");
        std::fs::write(&config, nginx_config(folder, &format!("127.0.0.1:{port}")))?;
        let start = || Command::new("nginx").arg("-c").arg(&config).stdin(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = on_core(LOAD_CORE, start)?.context("cannot run nginx: run `make tools`")?;
        let server = Self { child };
        wait_for(port)?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGTERM, so that the master takes its worker along.
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// Waits until somebody listens.
pub fn wait_for(port: u16) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(Instant::now() < end, "nobody listens on port {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Puts `load` on a target.
pub fn run(load: Load, target: &Target, time: Duration) -> anyhow::Result<Seen> {
    match load {
        Load::KeepAlive { connections } => wrk(target, connections, time, false),
        Load::NewConnections { connections } => wrk(target, connections, time, true),
        Load::Bulk { connections } => bulk(target.address, connections, time),
    }
}

fn wrk(target: &Target, connections: u32, time: Duration, close: bool) -> anyhow::Result<Seen> {
    let mut command = match &target.namespace {
        Some(name) => lab::shell::command_in(name, "wrk"),
        None => Command::new("wrk"),
    };
    command.args(["-t1", "--latency", "--timeout", "10s"]);
    command.args([format!("-c{connections}"), format!("-d{}s", time.as_secs())]);
    if close {
        command.args(["-H", "Connection: close"]);
    }
    if let Some(host) = target.host {
        command.args(["-H", &format!("Host: {host}")]);
    }
    command.arg(format!("http://{}{}", target.address, target.path));
    let output = on_core(LOAD_CORE, || command.output())?.context("cannot run wrk: run `make tools`")?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_wrk(&text).with_context(|| format!("wrk printed:\n{text}{}", String::from_utf8_lossy(&output.stderr)))
}

fn parse_wrk(text: &str) -> anyhow::Result<Seen> {
    ensure!(!text.contains("Non-2xx"), "responses other than 2xx");
    ensure!(!text.contains("Socket errors"), "socket errors");
    let line = |prefix: &str| text.lines().map(str::trim).find(|line| line.starts_with(prefix)).map(str::to_owned);
    let total = text.lines().map(str::trim).find(|line| line.contains(" requests in ")).context("no total")?;
    let units: f64 = total.split(' ').next().unwrap_or_default().parse()?;
    let rate: f64 = line("Requests/sec:").context("no rate")?.trim_start_matches("Requests/sec:").trim().parse()?;
    ensure!(units > 0.0 && rate > 0.0, "no request succeeded");
    let at = |prefix: &str| line(prefix).and_then(|line| milliseconds(line.split_whitespace().nth(1)?));
    Ok(Seen { units, seconds: units / rate, p50_ms: at("50%"), p99_ms: at("99%") })
}

fn milliseconds(text: &str) -> Option<f64> {
    let (number, factor) = match text {
        text if text.ends_with("us") => (text.trim_end_matches("us"), 1e-3),
        text if text.ends_with("ms") => (text.trim_end_matches("ms"), 1.0),
        text => (text.strip_suffix('s')?, 1e3),
    };
    number.parse::<f64>().ok().map(|value| value * factor)
}

/// A server that sends zeroes to whoever connects; stopped when dropped.
#[derive(Debug)]
pub struct Sender {
    stop: Arc<AtomicBool>,
    port: u16,
}

impl Sender {
    /// Starts it on a loopback port.
    pub fn start(port: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        on_core(LOAD_CORE, || {
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    std::thread::spawn(move || send(stream));
                }
            })
        })?;
        Ok(Self { stop, port })
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Sends until the reader is gone.
fn send(mut stream: TcpStream) {
    let zeroes = vec![0; 256 * 1024];
    while stream.write_all(&zeroes).is_ok() {}
}

fn bulk(address: SocketAddr, connections: u32, time: Duration) -> anyhow::Result<Seen> {
    let (total, started) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let readers = on_core(LOAD_CORE, || {
        let reader = |_| {
            let total = Arc::clone(&total);
            std::thread::spawn(move || read(address, time, &total))
        };
        (0..connections).map(reader).collect::<Vec<_>>()
    })?;
    for reader in readers {
        reader.join().map_err(|_| anyhow::anyhow!("a reader failed"))??;
    }
    let units = total.load(Ordering::Relaxed) as f64 / f64::from(1 << 30);
    ensure!(units > 0.0, "no byte came through");
    Ok(Seen { units, seconds: started.elapsed().as_secs_f64(), p50_ms: None, p99_ms: None })
}

fn read(address: SocketAddr, time: Duration, total: &AtomicU64) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    let mut buffer = vec![0; 256 * 1024];
    let end = Instant::now() + time;
    while Instant::now() < end {
        match stream.read(&mut buffer)? {
            0 => break,
            count => total.fetch_add(count as u64, Ordering::Relaxed),
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_of_wrk_is_read_with_its_units() {
        let text = "  Latency Distribution\n     50%  852.00us\n     99%    2.50ms\n  \
                    1000 requests in 2.00s, 1.0MB read\nRequests/sec:    500.00\n";
        let seen = parse_wrk(text).expect("read");
        assert_eq!((seen.units, seen.seconds, seen.p50_ms, seen.p99_ms), (1000.0, 2.0, Some(0.852), Some(2.5)));
    }

    #[test]
    fn errors_that_wrk_saw_are_not_a_measurement() {
        let text = "  1000 requests in 2.00s\n  Non-2xx or 3xx responses: 3\nRequests/sec: 500.00\n";
        assert!(parse_wrk(text).expect_err("refused").to_string().contains("2xx"));
    }
}
