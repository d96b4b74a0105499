//! Access log files: opened once, written by one thread, so that no worker waits for a disk.
//!
//! In: finished lines from the workers. Out: files, standard output and standard error.

use dpu_proxy_core::model::LogSink;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Lines that may wait per sink before further ones are dropped (and counted).
const QUEUE_LINES: usize = 16 * 1024;

/// All sinks of the process.
#[derive(Debug)]
pub struct LogFiles {
    open: Mutex<HashMap<LogSink, Open>>,
    /// How long a line may wait in the buffer.
    flush_after: Duration,
}

/// A writer with its thread (`None`: it could not be started).
type Open = (LogWriter, Option<JoinHandle<()>>);

/// Writes lines to one sink.
#[derive(Clone, Debug)]
pub struct LogWriter {
    lines: SyncSender<Vec<u8>>,
    dropped: Arc<std::sync::atomic::AtomicU64>,
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

    /// Writes out what is left. Call when no writer is left elsewhere.
    pub fn finish(&self) {
        let open = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        for (_, (writer, thread)) in open {
            drop(writer);
            // A thread that panicked has nothing left to write.
            let _ = thread.map(JoinHandle::join);
        }
    }
}

impl LogWriter {
    fn start(sink: LogSink, flush_after: Duration) -> Open {
        let (lines, received) = sync_channel(QUEUE_LINES);
        let thread = std::thread::Builder::new().name("access-log".into());
        let spawned = thread.spawn(move || write_all(&sink, &received, flush_after));
        if let Err(error) = &spawned {
            tracing::error!(%error, "cannot start the access log thread; its lines are lost");
        }
        (Self { lines, dropped: Arc::default() }, spawned.ok())
    }

    /// Hands over a line with its end. Dropped, not waited for, when the sink can't keep up.
    pub fn write(&self, line: Vec<u8>) {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(line) {
            self.dropped.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Lines that were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(std::sync::atomic::Ordering::Relaxed)
    }
}

fn write_all(sink: &LogSink, lines: &Receiver<Vec<u8>>, flush_after: Duration) {
    let mut output = match open(sink) {
        Ok(output) => BufWriter::with_capacity(64 * 1024, output),
        Err(error) => {
            tracing::error!(?sink, %error, "cannot open the access log; its lines are lost");
            return;
        }
    };
    let mut flushed = Instant::now();
    loop {
        let mut result = match lines.recv_timeout(flush_after) {
            Ok(line) => output.write_all(&line),
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => break,
        };
        if flushed.elapsed() >= flush_after {
            result = result.and_then(|()| output.flush());
            flushed = Instant::now();
        }
        if let Err(error) = result {
            tracing::error!(?sink, %error, "cannot write the access log");
        }
    }
    // Nobody is left to tell.
    let _ = output.flush();
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
