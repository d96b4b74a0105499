//! The gRPC service: who the caller is comes from its certificate, what it tells goes to the board.

use super::Part;
use super::writer::Shared;
use mesh_api::report::reports_server::{Reports, ReportsServer};
use mesh_api::report::{Report, ReportAck};
use service::grpc::{TRUST_DOMAIN, peer_identities};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// A program that is back by then was not away.
const GRACE: Duration = Duration::from_secs(15);
/// Largest message, in bytes: a snapshot of a full node takes a few hundred KiB.
const MESSAGE_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// The service, for `tonic::transport::Server::add_service`. Without `shared` reports are taken and
/// not written: there is no API server.
pub fn service(shared: Option<Shared>) -> ReportsServer<Service> {
    ReportsServer::new(Service { shared }).max_decoding_message_size(MESSAGE_LIMIT_BYTES)
}

/// Takes reports.
#[derive(Debug)]
pub struct Service {
    shared: Option<Shared>,
}

type Answers = mpsc::Sender<Result<ReportAck, Status>>;

#[tonic::async_trait]
impl Reports for Service {
    type ReportStream = ReceiverStream<Result<ReportAck, Status>>;

    async fn report(&self, request: Request<Streaming<Report>>) -> Result<Response<Self::ReportStream>, Status> {
        let (part, node) = caller(&peer_identities(&request))?;
        let (answers, outgoing) = mpsc::channel(1);
        let messages = request.into_inner();
        match self.shared.clone() {
            Some(shared) => drop(tokio::spawn(take(shared, part, node, messages, answers))),
            None => drop(tokio::spawn(acknowledge(messages, answers))),
        }
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

// The error is tonic's own and as large as it is.
#[allow(clippy::result_large_err)]
fn caller(identities: &[String]) -> Result<(Part, String), Status> {
    let of = |identity: &String| {
        let (program, node) =
            identity.strip_prefix("spiffe://")?.strip_prefix(TRUST_DOMAIN)?.strip_prefix('/')?.split_once('/')?;
        Some((Part::of_program(program)?, node.to_owned()))
    };
    identities.iter().find_map(of).ok_or_else(|| {
        Status::permission_denied(format!("adapters and node daemons report; the caller showed {identities:?}"))
    })
}

async fn take(shared: Shared, part: Part, node: String, mut messages: Streaming<Report>, answers: Answers) {
    let session = shared.change(|board| board.connect(part, &node));
    tracing::info!(node, ?part, "a program reports");
    while let Ok(Some(report)) = messages.message().await {
        let message = shared.change(|board| board.take(part, &node, report));
        shared.written(message).await;
        if answers.send(Ok(ReportAck {})).await.is_err() {
            break;
        }
    }
    drop(answers);
    tracing::info!(node, ?part, "a program reports no more");
    tokio::time::sleep(GRACE).await;
    shared.change(|board| board.disconnected(part, &node, session));
}

async fn acknowledge(mut messages: Streaming<Report>, answers: Answers) {
    while let Ok(Some(_)) = messages.message().await {
        if answers.send(Ok(ReportAck {})).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_adapters_and_node_daemons_report_and_for_their_own_node() {
        let identity = |text: &str| vec![text.to_owned(), "adapter".to_owned()];
        let (part, node) = caller(&identity("spiffe://dpumesh/adapter/host1")).expect("an adapter");
        assert_eq!((part, node.as_str()), (Part::Proxy, "host1"));
        assert!(caller(&identity("spiffe://dpumesh/cni-node/host1")).is_ok());
        for other in ["spiffe://dpumesh/dpu-proxy/host1", "spiffe://cluster.local/adapter/host1", "adapter"] {
            let status = caller(&identity(other)).expect_err(other);
            assert_eq!(status.code(), tonic::Code::PermissionDenied);
        }
        assert!(caller(&[]).is_err());
    }
}
