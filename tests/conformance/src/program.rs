//! A proxy under comparison: started with a rendered bootstrap, waited for, stopped.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Envoy,
    DpuProxy,
}

/// Values of the placeholders of one run: `{{listener}}` → a free port, `{{backend_a}}` → a backend's.
#[derive(Clone, Debug, Default)]
pub struct Ports {
    pub values: Vec<(String, String)>,
}

impl Ports {
    /// Adds a value.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.values.push((name.to_owned(), value.to_string()));
    }

    /// The value of a placeholder.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Replaces every `{{name}}`; an unknown one is an error that names it.
    pub fn render(&self, template: &str) -> anyhow::Result<String> {
        let mut text = template.to_owned();
        for (name, value) in &self.values {
            text = text.replace(&format!("{{{{{name}}}}}"), value);
        }
        match text.find("{{") {
            Some(at) => anyhow::bail!("unknown placeholder in the bootstrap: {}", &text[at..(at + 40).min(text.len())]),
            None => Ok(text),
        }
    }
}

/// A loopback port that nobody listens on now. It is none of those that the kernel hands out by itself (from 32768), so
/// nobody gets it between this call and its use.
pub fn free_port() -> std::io::Result<u16> {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 20_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Processes that run side by side begin at different places.
    let begin = std::process::id().wrapping_mul(97);
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrInUse);
    for _ in 0..COUNT {
        let place = begin.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + place).unwrap_or(u16::MAX);
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    pub envoy: PathBuf,
    pub dpu_proxy: PathBuf,
}

impl Programs {
    /// `ENVOY_BIN` or the workspace's own; `DPU_PROXY_BIN` or the one beside this test's binary.
    pub fn find() -> anyhow::Result<Self> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let envoy =
            std::env::var_os("ENVOY_BIN").map_or_else(|| workspace.join(".cache/venv/bin/envoy"), PathBuf::from);
        anyhow::ensure!(envoy.exists(), "{} is missing: run `make tools`", envoy.display());
        let dpu_proxy = match std::env::var_os("DPU_PROXY_BIN") {
            Some(path) => PathBuf::from(path),
            None => beside_this_program()?,
        };
        anyhow::ensure!(dpu_proxy.exists(), "{} is missing: run `cargo build -p dpu-proxy`", dpu_proxy.display());
        Ok(Self { envoy, dpu_proxy })
    }
}

/// A test's binary is one folder deeper.
fn beside_this_program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().ok_or_else(|| anyhow::anyhow!("{} has no folder", own.display()))?;
    let profile = if folder.ends_with("deps") { folder.join("..") } else { folder.to_owned() };
    Ok(profile.join("dpu-proxy"))
}

/// A running proxy; stopped when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    admin: SocketAddr,
    output: PathBuf,
}

impl Running {
    /// Starts `kind` with the bootstrap file at `config`, its output in `output`.
    pub fn start(
        kind: Kind,
        programs: &Programs,
        config: &Path,
        admin_port: u16,
        output: &Path,
    ) -> anyhow::Result<Self> {
        let is_envoy = kind == Kind::Envoy || programs.dpu_proxy == programs.envoy;
        let mut command = match is_envoy {
            true => envoy(&programs.envoy, admin_port),
            false => Command::new(&programs.dpu_proxy),
        };
        let log = std::fs::File::create(output)?;
        command.arg("-c").arg(config).args(["--concurrency", "1", "--file-flush-interval-msec", "20"]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn()?;
        let admin = SocketAddr::from(([127, 0, 0, 1], admin_port));
        let mut running = Self { child, admin, output: output.to_owned() };
        running.wait_ready(Duration::from_secs(20))?;
        Ok(running)
    }

    fn wait_ready(&mut self, limit: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + limit;
        loop {
            if self.is_ready() {
                return Ok(());
            }
            let exited = self.child.try_wait()?;
            if exited.is_some() || Instant::now() > end {
                anyhow::bail!("the proxy is not ready ({exited:?}):\n{}", self.last_lines());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_ready(&self) -> bool {
        use std::io::{Read, Write};
        let Ok(mut stream) = std::net::TcpStream::connect_timeout(&self.admin, Duration::from_millis(200)) else {
            return false;
        };
        let mut answer = String::new();
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let sent = stream.write_all(b"GET /ready HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
        sent.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200")
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of what the program printed.
    pub fn last_lines(&self) -> String {
        let text = std::fs::read(&self.output).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

fn envoy(program: &Path, admin_port: u16) -> Command {
    let mut command = Command::new(program);
    // Every Envoy of a machine needs a base id of its own.
    command.args(["--base-id", &admin_port.to_string(), "-l", "warning"]);
    command
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
