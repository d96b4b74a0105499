//! The database: a line protocol over TCP of our own. `get KEY` answers one line of JSON; `echo TEXT` the text.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Serves until the process ends.
pub async fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        // A connection that breaks is the caller's affair.
        tokio::spawn(async move { connection(stream).await.ok() });
    }
}

async fn connection(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let peer = stream.peer_addr()?.ip().to_string();
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match line.split_once(' ') {
            Some(("get", "ratings/0")) => json!({ "Reviewer1": 5, "Reviewer2": 4 }),
            Some(("echo", text)) => json!(text),
            Some(("peer", _)) => json!(peer),
            _ => json!({ "error": format!("unknown: {line:?}"), "marker": super::MARKER }),
        };
        writer.write_all(format!("{answer}\n").as_bytes()).await?;
    }
    Ok(())
}

/// Asks one question on a connection of its own.
pub async fn query(address: &str, key: &str) -> Result<Value> {
    ask(address, &format!("get {key}")).await
}

/// Sends a line and reads one.
pub async fn ask(address: &str, line: &str) -> Result<Value> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.with_context(|| format!("no connection to {address}"))?;
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        let mut answer = String::new();
        BufReader::new(&mut stream).read_line(&mut answer).await?;
        anyhow::ensure!(!answer.is_empty(), "the connection was closed without an answer");
        Ok(serde_json::from_str(&answer)?)
    };
    tokio::time::timeout(Duration::from_secs(5), exchange).await.context("no answer within 5 s")?
}

/// Between two lines of a talk.
const TALK_INTERVAL: Duration = Duration::from_millis(50);

/// Asks again and again on one connection. Out: how many answers came, and the longest wait for one.
pub async fn talk(address: &str, length: Duration) -> Result<Value> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("no connection to {address}"))?;
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let (started, mut answered, mut longest) = (Instant::now(), 0_u64, Duration::ZERO);
    while started.elapsed() < length {
        let asked = Instant::now();
        writer.write_all(format!("echo {answered}\n").as_bytes()).await?;
        let line =
            tokio::time::timeout(Duration::from_secs(5), lines.next_line()).await.context("no answer in 5 s")??;
        let line = line.with_context(|| format!("the connection was closed after {answered} answers"))?;
        anyhow::ensure!(line == format!("\"{answered}\""), "{line:?} came in the place of answer {answered}");
        (answered, longest) = (answered + 1, longest.max(asked.elapsed()));
        tokio::time::sleep(TALK_INTERVAL).await;
    }
    Ok(json!({ "answered": answered, "longest_ms": longest.as_millis() as u64 }))
}
