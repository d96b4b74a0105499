//! Access log files: opened once, written by one thread each, so that no worker waits for a disk.
//!
//! In: finished lines from the workers. Out: files, standard output and standard error. Lines gather in
//! memory, and the thread is woken for many of them at once: to wake it for each costs a worker more
//! than the line itself.

use dpu_proxy_core::model::LogSink;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Gathered bytes that are worth a write.
const WRITE_BYTES: usize = 64 * 1024;
/// Bytes that may wait per sink before further lines are dropped (and counted).
const QUEUE_BYTES: usize = 8 * 1024 * 1024;

/// All sinks of the process.
#[derive(Debug)]
pub struct LogFiles {
    open: Mutex<HashMap<LogSink, Open>>,
    /// How long a line may wait in memory.
    flush_after: Duration,
}

/// A writer with its thread (`None`: it could not be started).
type Open = (LogWriter, Option<JoinHandle<()>>);

/// Writes lines to one sink. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogWriter(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    woken: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    is_finished: bool,
}

impl LogFiles {
    /// None is open yet.
    pub fn new(flush_after: Duration) -> Self {
        Self { open: Mutex::default(), flush_after }
    }

    /// The writer of a sink, opened when it is first asked for.
    pub fn writer(&self, sink: &LogSink) -> LogWriter {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.entry(sink.clone()).or_insert_with(|| LogWriter::start(sink.clone(), self.flush_after)).0.clone()
    }

    /// Writes out what is left. What comes later is lost.
    pub fn finish(&self) {
        let open = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        for (_, (writer, thread)) in open {
            writer.0.lock().is_finished = true;
            writer.0.woken.notify_one();
            // A thread that panicked has nothing left to write.
            let _ = thread.map(JoinHandle::join);
        }
    }
}

impl LogWriter {
    fn start(sink: LogSink, flush_after: Duration) -> Open {
        let queue = Arc::new(Queue::default());
        let own = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name("access-log".into());
        let spawned = thread.spawn(move || write_all(&sink, &own, flush_after));
        if let Err(error) = &spawned {
            tracing::error!(%error, "cannot start the access log thread; its lines are lost");
        }
        (Self(queue), spawned.ok())
    }

    /// Hands over a line with its end. Dropped, not waited for, when the sink can't keep up.
    pub fn write(&self, line: &[u8]) {
        let mut waiting = self.0.lock();
        let before = waiting.bytes.len();
        if before + line.len() > QUEUE_BYTES {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.bytes.extend_from_slice(line);
        let is_due = before < WRITE_BYTES && waiting.bytes.len() >= WRITE_BYTES;
        drop(waiting);
        if is_due {
            self.0.woken.notify_one();
        }
    }

    /// Lines that were dropped.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is enough, or something for long enough; true at the end.
    fn take(&self, flush_after: Duration, taken: &mut Vec<u8>) -> bool {
        let until = Instant::now() + flush_after;
        let mut waiting = self.lock();
        while waiting.bytes.len() < WRITE_BYTES && !waiting.is_finished {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let woken = self.woken.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner);
            waiting = woken.0;
        }
        taken.clear();
        std::mem::swap(&mut waiting.bytes, taken);
        waiting.is_finished
    }
}

fn write_all(sink: &LogSink, queue: &Queue, flush_after: Duration) {
    let mut output = match open(sink) {
        Ok(output) => output,
        Err(error) => {
            tracing::error!(?sink, %error, "cannot open the access log; its lines are lost");
            return;
        }
    };
    let mut taken = Vec::new();
    loop {
        let is_finished = queue.take(flush_after, &mut taken);
        if let Err(error) = output.write_all(&taken).and_then(|()| output.flush()) {
            tracing::error!(?sink, %error, "cannot write the access log");
        }
        if is_finished {
            return;
        }
    }
}

fn open(sink: &LogSink) -> std::io::Result<Box<dyn Write + Send>> {
    Ok(match sink {
        LogSink::Stdout => Box::new(std::io::stdout()),
        LogSink::Stderr => Box::new(std::io::stderr()),
        LogSink::File(path) if path == "/dev/stdout" => Box::new(std::io::stdout()),
        LogSink::File(path) if path == "/dev/stderr" => Box::new(std::io::stderr()),
        LogSink::File(path) => Box::new(append(path)?),
    })
}

fn append(path: &str) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_written_in_order_by_the_end() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("access.log");
        let files = LogFiles::new(Duration::from_secs(3600));
        let writer = files.writer(&LogSink::File(path.display().to_string()));
        let lines: Vec<String> = (0..20_000).map(|number| format!("line {number}\n")).collect();
        lines.iter().for_each(|line| writer.write(line.as_bytes()));
        files.finish();
        assert_eq!(std::fs::read_to_string(path).expect("written"), lines.concat());
        assert_eq!(writer.dropped(), 0);
    }

    #[test]
    fn a_line_waits_no_longer_than_it_may() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("access.log");
        let files = LogFiles::new(Duration::from_millis(10));
        files.writer(&LogSink::File(path.display().to_string())).write(b"one\n");
        let end = Instant::now() + Duration::from_secs(10);
        while std::fs::read(&path).unwrap_or_default() != b"one\n" {
            assert!(Instant::now() < end, "it was not written");
            std::thread::sleep(Duration::from_millis(5));
        }
        files.finish();
    }
}
