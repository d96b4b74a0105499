//! What was made of files, made again when they change.
//!
//! The files are looked at when the value is asked for, at most once in `LOOK_INTERVAL`. While they
//! do not make sense (a key that was written before its certificate, say) the last good value stays
//! in force.

use super::GrpcError;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The files are looked at no more often.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Makes the value of the files' contents, in the order of their paths, or says what is wrong.
pub(super) type Parse<T> = fn(&[Vec<u8>]) -> Result<T, String>;

/// A value of files.
#[derive(Debug)]
pub(super) struct Reloaded<T> {
    paths: Vec<PathBuf>,
    parse: Parse<T>,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    value: Arc<T>,
    /// Of the files as they were last read, good or not.
    stamps: Vec<Stamp>,
    looked: Instant,
}

/// Differs when a file was written or replaced; `None`: it is not there.
type Stamp = Option<(u64, i64, i64, u64)>;

impl<T> Reloaded<T> {
    /// Reads the files, which must be good now.
    pub(super) fn open(paths: Vec<PathBuf>, parse: Parse<T>) -> Result<Self, GrpcError> {
        let stamps = stamps(&paths);
        let value = Arc::new(read(&paths, parse)?);
        let state = Mutex::new(State { value, stamps, looked: Instant::now() });
        Ok(Self { paths, parse, state })
    }

    /// The newest good value.
    pub(super) fn get(&self) -> Arc<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK_INTERVAL {
            state.looked = Instant::now();
            self.look(&mut state);
        }
        Arc::clone(&state.value)
    }

    fn look(&self, state: &mut State<T>) {
        let stamps = stamps(&self.paths);
        if stamps == state.stamps {
            return;
        }
        state.stamps = stamps;
        match read(&self.paths, self.parse) {
            Ok(value) => {
                tracing::info!(files = ?self.paths, "TLS files changed and were read again");
                state.value = Arc::new(value);
            }
            Err(error) => {
                tracing::error!(%error, "TLS files changed and are no good: what was read before is in force")
            }
        }
    }

    /// Files by name, for messages.
    pub(super) fn first_path(&self) -> &Path {
        self.paths.first().map_or(Path::new(""), PathBuf::as_path)
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
    };
    paths.iter().map(stamp).collect()
}

fn read<T>(paths: &[PathBuf], parse: Parse<T>) -> Result<T, GrpcError> {
    let file = |path: &PathBuf| std::fs::read(path).map_err(|source| GrpcError::Read { path: path.clone(), source });
    let contents = paths.iter().map(file).collect::<Result<Vec<_>, _>>()?;
    parse(&contents).map_err(|reason| GrpcError::Content { paths: paths.to_vec(), reason })
}
