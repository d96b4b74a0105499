//! Access log files: opened once, written by one thread, so that no worker waits for a disk.
//!
//! In: finished lines from the workers. Out: files, standard output and standard error.

use dpu_proxy_core::model::LogSink;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Lines that may wait per sink before further ones are dropped (and counted).
const QUEUE_LINES: usize = 16 * 1024;
/// How long a line may wait in the buffer.
const FLUSH_AFTER: Duration = Duration::from_millis(200);

/// All sinks of the process.
#[derive(Debug, Default)]
pub struct LogFiles {
    open: Mutex<HashMap<LogSink, LogWriter>>,
}

/// Writes lines to one sink.
#[derive(Clone, Debug)]
pub struct LogWriter {
    lines: SyncSender<Vec<u8>>,
    dropped: Arc<std::sync::atomic::AtomicU64>,
}

impl LogFiles {
    /// The writer of a sink, opened when it is first asked for.
    pub fn writer(&self, sink: &LogSink) -> LogWriter {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.entry(sink.clone()).or_insert_with(|| LogWriter::start(sink.clone())).clone()
    }
}

impl LogWriter {
    fn start(sink: LogSink) -> Self {
        let (lines, received) = sync_channel(QUEUE_LINES);
        let spawned = std::thread::Builder::new().name("access-log".into()).spawn(move || write_all(&sink, &received));
        if let Err(error) = spawned {
            tracing::error!(%error, "cannot start the access log thread; its lines are lost");
        }
        Self { lines, dropped: Arc::default() }
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

fn write_all(sink: &LogSink, lines: &Receiver<Vec<u8>>) {
    let mut output = match open(sink) {
        Ok(output) => BufWriter::with_capacity(64 * 1024, output),
        Err(error) => {
            tracing::error!(?sink, %error, "cannot open the access log; its lines are lost");
            return;
        }
    };
    loop {
        let result = match lines.recv_timeout(FLUSH_AFTER) {
            Ok(line) => output.write_all(&line),
            Err(RecvTimeoutError::Timeout) => output.flush(),
            Err(RecvTimeoutError::Disconnected) => break,
        };
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
