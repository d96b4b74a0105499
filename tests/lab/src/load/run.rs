//! The loops: one task per connection, paced by a common schedule so that waiting counts as latency.

use super::{Args, Outcome};
use anyhow::{Context, Result};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// Runs to the end.
pub async fn run(args: Args) -> Result<Outcome> {
    let plan = Arc::new(Plan { taken: AtomicU64::new(0), start: Instant::now(), args });
    let tasks: Vec<_> = (0..plan.args.connections).map(|_| tokio::spawn(connection(Arc::clone(&plan)))).collect();
    let mut total = Tally::new()?;
    for task in tasks {
        total.add(task.await.context("a connection's task failed")??);
    }
    Ok(total.outcome(plan.start.elapsed()))
}

struct Plan {
    taken: AtomicU64,
    start: Instant,
    args: Args,
}

impl Plan {
    /// When the next request is due; `None` at the end.
    fn next(&self) -> Option<Instant> {
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        let pace = |rate: u32| Duration::from_secs_f64(number as f64 / f64::from(rate));
        let due = if self.args.rate == 0 { Instant::now() } else { self.start + pace(self.args.rate) };
        let is_over = due > self.start + Duration::from_secs_f64(self.args.seconds)
            || (self.args.requests > 0 && number >= self.args.requests)
            || self.args.until.as_ref().is_some_and(|path| path.exists());
        (!is_over).then_some(due)
    }

    fn request(&self) -> Result<Request<Empty<Bytes>>> {
        let args = &self.args;
        let uri = if args.http2 { format!("http://{}{}", args.host, args.path) } else { args.path.clone() };
        let mut request = Request::get(uri);
        if !args.http2 {
            request = request.header("host", &args.host);
        }
        for header in &args.header {
            let (name, value) =
                header.split_once(':').with_context(|| format!("--header {header:?} is not NAME:VALUE"))?;
            request = request.header(name.trim(), value.trim());
        }
        Ok(request.body(Empty::new())?)
    }
}

struct Tally {
    latency_us: Histogram<u64>,
    failures: BTreeMap<String, u64>,
    counted: BTreeMap<String, u64>,
}

impl Tally {
    fn new() -> Result<Self> {
        let latency_us = Histogram::new_with_bounds(1, 60_000_000, 3)?;
        Ok(Self { latency_us, failures: BTreeMap::new(), counted: BTreeMap::new() })
    }

    fn add(&mut self, other: Self) {
        // Both have the same bounds.
        let _ = self.latency_us.add(&other.latency_us);
        other.failures.into_iter().for_each(|(name, count)| *self.failures.entry(name).or_default() += count);
        other.counted.into_iter().for_each(|(name, count)| *self.counted.entry(name).or_default() += count);
    }

    fn note(&mut self, due: Instant, result: Result<(u16, String)>) {
        self.latency_us.saturating_record(due.elapsed().as_micros() as u64);
        match result {
            Ok((200, value)) => *self.counted.entry(value).or_default() += 1,
            Ok((status, _)) => *self.failures.entry(format!("status {status}")).or_default() += 1,
            Err(error) => *self.failures.entry(format!("{error:#}")).or_default() += 1,
        }
    }

    fn outcome(self, elapsed: Duration) -> Outcome {
        let quantile = |q: f64| self.latency_us.value_at_quantile(q) as f64 / 1000.0;
        Outcome {
            requests: self.latency_us.len(),
            failed: self.failures.values().sum(),
            seconds: elapsed.as_secs_f64(),
            rate: self.latency_us.len() as f64 / elapsed.as_secs_f64(),
            p50_ms: quantile(0.5),
            p90_ms: quantile(0.9),
            p99_ms: quantile(0.99),
            max_ms: self.latency_us.max() as f64 / 1000.0,
            failures: self.failures,
            counted: self.counted,
        }
    }
}

enum Sender {
    One(http1::SendRequest<Empty<Bytes>>),
    Two(http2::SendRequest<Empty<Bytes>>),
}

impl Sender {
    async fn connect(args: &Args) -> Result<Self> {
        let stream = TcpStream::connect(&args.address).await.context("connect")?;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(stream);
        if args.http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            return Ok(Self::Two(sender));
        }
        let (sender, connection) = http1::handshake(io).await?;
        tokio::spawn(connection);
        Ok(Self::One(sender))
    }

    async fn send(&mut self, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>> {
        match self {
            Self::One(sender) => {
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
            Self::Two(sender) => {
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
        }
    }

    /// A keep-alive connection that the other side closed meanwhile is no failure of a request.
    fn is_closed(&self) -> bool {
        match self {
            Self::One(sender) => sender.is_closed(),
            Self::Two(sender) => sender.is_closed(),
        }
    }
}

async fn connection(plan: Arc<Plan>) -> Result<Tally> {
    let mut tally = Tally::new()?;
    let mut sender: Option<Sender> = None;
    while let Some(due) = plan.next() {
        tokio::time::sleep_until(due.into()).await;
        let result = tokio::time::timeout(Duration::from_secs(15), one(&plan, &mut sender)).await;
        let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within 15 s")));
        if result.is_err() {
            sender = None;
        }
        tally.note(due, result);
    }
    Ok(tally)
}

async fn one(plan: &Plan, held: &mut Option<Sender>) -> Result<(u16, String)> {
    let mut sender = match held.take() {
        Some(sender) if !sender.is_closed() => sender,
        _ => Sender::connect(&plan.args).await?,
    };
    let response = sender.send(plan.request()?).await?;
    let status = response.status().as_u16();
    let value =
        response.headers().get(&plan.args.count).and_then(|value| value.to_str().ok()).unwrap_or("none").to_owned();
    response.into_body().collect().await.context("body")?;
    *held = Some(sender);
    Ok((status, value))
}
