//! Structured logs on standard error.

use clap::{Args, ValueEnum};
use std::sync::OnceLock;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Flags of the log, flattened into each program's own.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// Lowest level that is logged, for all or per module: `info`, `debug`, `xds=debug,info`.
    #[arg(long, env = "LOG_LEVEL", default_value = "info", value_name = "FILTER", global = true)]
    pub log_level: String,
    /// Form of a log line.
    #[arg(long, env = "LOG_FORMAT", default_value = "text", value_name = "FORMAT", global = true)]
    pub log_format: LogFormat,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For a person.
    Text,
    /// One JSON object a line, for a collector.
    Json,
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("--log-level {filter:?} is not a filter (try `info` or `xds=debug,info`): {source}")]
    Filter { filter: String, source: tracing_subscriber::filter::ParseError },
    #[error("logging is already set up in this process: {0}")]
    Installed(#[from] tracing_subscriber::util::TryInitError),
}

/// Installs the subscriber of this process.
pub fn init(args: &LogArgs) -> Result<(), LogError> {
    use tracing_subscriber::prelude::*;
    let filter = EnvFilter::try_new(&args.log_level)
        .map_err(|source| LogError::Filter { filter: args.log_level.clone(), source })?;
    let (filter, handle) = reload::Layer::new(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    match args.log_format {
        LogFormat::Text => registry.with(layer.with_ansi(false)).try_init()?,
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init()?,
    }
    // The subscriber is installed once, so this is the first and only handle.
    let _ = FILTER.set(handle);
    Ok(())
}

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// The filter in force; empty before `init`.
pub fn filter() -> String {
    FILTER.get().and_then(|handle| handle.with_current(ToString::to_string).ok()).unwrap_or_default()
}

/// Puts another filter in force, e.g. `debug` or `xds=debug,info`.
pub fn set_filter(filter: &str) -> Result<(), LogError> {
    let parsed = EnvFilter::try_new(filter).map_err(|source| LogError::Filter { filter: filter.to_owned(), source })?;
    // Without a subscriber nothing is logged at any level.
    let _ = FILTER.get().map(|handle| handle.reload(parsed));
    Ok(())
}
