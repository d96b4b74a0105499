//! Asking a program for its state over HTTP, inside any network namespace, without leaving this process.

use crate::shell;
use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Runs `work` on a thread of its own that has entered the namespace.
pub fn inside<T: Send + 'static>(namespace: &str, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let path = format!("/run/netns/{namespace}");
    let thread = std::thread::spawn(move || {
        let file = File::open(&path).with_context(|| format!("namespace {path} is gone"))?;
        setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {path}: are you root?"))?;
        work()
    });
    thread.join().map_err(|_| anyhow::anyhow!("a thread of the lab panicked"))?
}

/// Status and body.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// One request on a connection of its own.
pub fn http(namespace: &str, method: &'static str, address: &str, path: &str) -> Result<Answer> {
    let to: SocketAddr = address.parse().with_context(|| format!("{address:?} is not IP:PORT"))?;
    let head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let text = inside(namespace, move || exchange(to, &head))?;
    let (head, body) = text.split_once("\r\n\r\n").context("the answer has no head")?;
    let status = head.split_whitespace().nth(1).and_then(|code| code.parse().ok()).context("no status line")?;
    let body = if is_chunked(head) { unchunked(body) } else { body.to_owned() };
    Ok(Answer { status, body })
}

/// The body of a 200.
pub fn get(namespace: &str, address: &str, path: &str) -> Result<String> {
    let answer = http(namespace, "GET", address, path)?;
    match answer.status {
        200 => Ok(answer.body),
        status => bail!("http://{address}{path} in {namespace} answered {status}: {}", answer.body.trim()),
    }
}

/// Waits until the path answers 200.
pub fn wait_ready(what: &str, namespace: &str, address: &str, path: &str) -> Result<()> {
    shell::wait_for(what, Duration::from_secs(30), || get(namespace, address, path).map(drop))
}

/// SYNs that were sent again, as a namespace's `/proc/net/netstat` counts them: nobody took them the first time.
pub fn syns_sent_again(netstat: &str) -> Result<u64> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = lines.next().zip(lines.next()).context("/proc/net/netstat has no TcpExt")?;
    let place = names.split(' ').position(|name| name == "TCPSynRetrans").context("the kernel does not count them")?;
    values.split(' ').nth(place).and_then(|value| value.parse().ok()).context("TCPSynRetrans is no number")
}

fn exchange(to: SocketAddr, head: &str) -> Result<String> {
    let mut stream =
        TcpStream::connect_timeout(&to, Duration::from_secs(2)).with_context(|| format!("no connection to {to}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn is_chunked(head: &str) -> bool {
    head.to_ascii_lowercase().contains("transfer-encoding: chunked")
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let (Some(chunk), true) = (rest.get(..size), size > 0) else { break };
        whole.push_str(chunk);
        body = rest.get(size + 2..).unwrap_or_default();
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined() {
        assert_eq!(unchunked("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), "abcde");
    }

    #[test]
    fn syns_are_found_by_their_name() {
        let text = "TcpExt: SyncookiesSent TCPSynRetrans Other\nTcpExt: 1 7 3\nIpExt: InNoRoutes\nIpExt: 0\n";
        assert_eq!(syns_sent_again(text).expect("a number"), 7);
        syns_sent_again("IpExt: x\n").expect_err("no such lines");
    }
}
