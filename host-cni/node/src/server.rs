//! The plugin's Unix socket: one request and one answer for each connection.

use crate::daemon::Daemon;
use istio_dpu_cni::error::{CniError, code};
use istio_dpu_cni::wire::{Answer, MESSAGE_LIMIT_BYTES, Request};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A caller sends its request and takes its answer within this.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Calls under way get this long when the daemon is told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Listens at `path`, for root and for the members of `group`. A socket that nobody listens on any more
/// is replaced.
pub fn bind(path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot listen at {}: {error}", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(named)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(named(io::Error::new(io::ErrorKind::AddrInUse, "another program listens there; stop it first")));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(named(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(named)?;
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    std::os::unix::fs::chown(path, None, group).map_err(named)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(named)?;
    Ok(listener)
}

/// Takes calls until `shutdown`, then lets those under way come to their end, if that is soon.
pub async fn serve(listener: UnixListener, daemon: Arc<Daemon>, shutdown: CancellationToken) {
    let mut calls = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = calls.join_next() => continue,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => drop(calls.spawn(call(stream, Arc::clone(&daemon)))),
            Err(error) => {
                tracing::warn!(%error, "could not accept a call");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    if tokio::time::timeout(STOP_TIMEOUT, calls.join_all()).await.is_err() {
        tracing::warn!("calls under way are given up; the next start undoes them");
    }
}

async fn call(mut stream: UnixStream, daemon: Arc<Daemon>) {
    let answer = match read(&mut stream).await {
        Ok(request) => daemon.handle(request).await,
        Err(error) => {
            tracing::warn!(%error, "a request was refused");
            Answer::Failed(error)
        }
    };
    match tokio::time::timeout(EXCHANGE_TIMEOUT, write(&mut stream, &answer)).await {
        Ok(Ok(())) => {}
        // The runtime will ask again: every command may be repeated.
        Ok(Err(error)) => tracing::warn!(%error, "the caller did not take its answer"),
        Err(_) => tracing::warn!("the caller did not take its answer in time"),
    }
}

async fn read(stream: &mut UnixStream) -> Result<Request, CniError> {
    let garbage = |reason: String| {
        CniError::new(code::DECODE, format!("the request on the daemon's socket is no CNI call: {reason}"))
    };
    let mut text = Vec::new();
    let mut limited = stream.take(MESSAGE_LIMIT_BYTES + 1);
    let whole = tokio::time::timeout(EXCHANGE_TIMEOUT, limited.read_to_end(&mut text)).await;
    let length = whole.map_err(|_| garbage("it did not end in time".to_owned()))?;
    let length = length.map_err(|error| garbage(error.to_string()))?;
    if length as u64 > MESSAGE_LIMIT_BYTES {
        return Err(garbage(format!("it is over {MESSAGE_LIMIT_BYTES} bytes")));
    }
    serde_json::from_slice(&text).map_err(|error| garbage(error.to_string()))
}

async fn write(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    stream.write_all(&serde_json::to_vec(answer)?).await?;
    stream.shutdown().await
}
