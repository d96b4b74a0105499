//! The HTTP data path.

use crate::connection::Connection;
use crate::io::Stream;
use crate::worker::Worker;
use dpu_proxy_core::model::HttpConnectionManager;
use std::rc::Rc;
use std::sync::Arc;

/// What the HTTP path keeps per worker.
#[derive(Debug, Default)]
pub struct WorkerState {}

/// What it keeps per cluster on a worker; dropped with the cluster.
#[derive(Debug, Default)]
pub struct ClusterState {}

/// What it keeps per host of a cluster on a worker (pools); dropped with the host.
#[derive(Debug, Default)]
pub struct HostState {}

/// Serves one downstream connection until it ends. `connection` is refreshed by the callee
/// (`Connection::refresh`) when the snapshot changes.
pub async fn serve_connection(
    _worker: Rc<Worker>,
    _connection: Connection,
    _manager: Arc<HttpConnectionManager>,
    _stream: Stream,
) {
}
