//! The reporter against a controller of this process.

use super::*;
use crate::grpc::incoming;
use mesh_api::report::reports_server::{Reports, ReportsServer};
use mesh_api::report::workload_report::Part;
use mesh_api::report::{Attachment, HostStatus, node_report};
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

const LIMIT: Duration = Duration::from_secs(10);

/// Hands each message to the test, which says when it is answered.
struct Controller {
    taken: mpsc::UnboundedSender<(Report, mpsc::Sender<Result<ReportAck, Status>>)>,
}

#[tonic::async_trait]
impl Reports for Controller {
    type ReportStream = ReceiverStream<Result<ReportAck, Status>>;

    async fn report(&self, request: Request<Streaming<Report>>) -> Result<Response<Self::ReportStream>, Status> {
        let (mut messages, taken) = (request.into_inner(), self.taken.clone());
        let (answers, outgoing) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Ok(Some(report)) = messages.message().await {
                if taken.send((report, answers.clone())).is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// A controller that takes its connections with it when it stops.
struct Server {
    address: SocketAddr,
    messages: mpsc::UnboundedReceiver<(Report, mpsc::Sender<Result<ReportAck, Status>>)>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The server before may still be on its way out.
fn bind(address: &str) -> std::net::TcpListener {
    let deadline = std::time::Instant::now() + LIMIT;
    loop {
        match std::net::TcpListener::bind(address) {
            Ok(listener) => return listener,
            Err(error) if std::time::Instant::now() > deadline => panic!("{address}: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

impl Server {
    fn start(address: &str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
        let listener = bind(address);
        let address = listener.local_addr().expect("bound");
        listener.set_nonblocking(true).expect("a socket");
        let (taken, messages) = mpsc::unbounded_channel();
        let router = tonic::transport::Server::builder().add_service(ReportsServer::new(Controller { taken }));
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a socket");
            router.serve_with_incoming(incoming(listener, None)).await
        });
        Self { address, messages, runtime: Some(runtime) }
    }

    fn reporter(&self) -> Reporter {
        Reporter::start(&format!("http://{}", self.address), &TlsArgs::default(), "controller").expect("an address")
    }

    async fn take(&mut self) -> (Report, mpsc::Sender<Result<ReportAck, Status>>) {
        tokio::time::timeout(LIMIT, self.messages.recv()).await.expect("in time").expect("served")
    }

    async fn answer(&mut self) -> Report {
        let (report, answer) = self.take().await;
        answer.send(Ok(ReportAck {})).await.expect("a caller");
        report
    }
}

fn workload(name: &str, vf: &str) -> WorkloadReport {
    let attachment = Attachment { vf: vf.to_owned(), ..Attachment::default() };
    let part = Some(Part::Attachment(attachment));
    WorkloadReport { namespace: "n".to_owned(), name: name.to_owned(), uid: format!("uid-{name}"), part }
}

fn node(free: u32) -> NodeReport {
    NodeReport { part: Some(node_report::Part::Host(HostStatus { vfs_free: free, ..HostStatus::default() })) }
}

fn names(report: &Report) -> Vec<&str> {
    report.workloads.iter().map(|workload| workload.name.as_str()).collect()
}

#[tokio::test]
async fn the_first_message_is_everything_and_waits_for_the_node() {
    let mut server = Server::start("127.0.0.1:0");
    let reporter = server.reporter();
    reporter.workload(workload("a", "vf0"));
    reporter.workload(workload("b", "vf1"));
    let early = tokio::time::timeout(Duration::from_millis(300), server.messages.recv()).await;
    assert!(early.is_err(), "nothing is told before the node: {early:?}");
    reporter.node(node(7));
    let first = server.answer().await;
    assert_eq!((first.snapshot, names(&first), first.node.clone()), (true, vec!["a", "b"], Some(node(7))));
}

#[tokio::test]
async fn while_an_answer_is_awaited_the_newest_wins_and_goes_once() {
    let mut server = Server::start("127.0.0.1:0");
    let reporter = server.reporter();
    reporter.node(node(8));
    let (_, answer) = server.take().await;
    for vf in ["vf0", "vf1", "vf2"] {
        reporter.workload(workload("a", vf));
        tokio::time::sleep(SETTLE * 2).await;
    }
    reporter.workload(workload("b", "vf4"));
    reporter.remove("n/b");
    assert!(server.messages.try_recv().is_err(), "one message is under way at a time");
    answer.send(Ok(ReportAck {})).await.expect("a caller");
    let next = server.answer().await;
    assert_eq!((next.snapshot, &next.workloads[..], next.node), (false, &[workload("a", "vf2")][..], None));
    assert_eq!(next.removed, ["n/b"], "it may have been told of before");
    reporter.workload(workload("a", "vf2"));
    reporter.remove("n/unknown");
    reporter.node(node(9));
    let next = server.answer().await;
    assert_eq!((names(&next).len(), next.removed.len(), next.node), (0, 0, Some(node(9))), "what is known is not told");
}

#[tokio::test]
async fn after_a_lost_stream_everything_is_told_again() {
    let mut server = Server::start("127.0.0.1:0");
    let reporter = server.reporter();
    reporter.workload(workload("a", "vf0"));
    reporter.workload(workload("b", "vf1"));
    reporter.node(node(8));
    assert_eq!(names(&server.answer().await), ["a", "b"]);
    reporter.remove("n/a");
    // Taken, and never answered: it is not written down.
    let (lost, answer) = server.take().await;
    assert_eq!(lost.removed, ["n/a"]);
    drop(answer);
    let address = server.address.to_string();
    drop(server);
    let mut server = Server::start(&address);
    let first = server.answer().await;
    assert_eq!((first.snapshot, names(&first), first.node.clone()), (true, vec!["b"], Some(node(8))));
}

#[tokio::test]
async fn a_refusal_is_tried_again_and_the_stream_ends_with_the_last_reporter() {
    let mut server = Server::start("127.0.0.1:0");
    let reporter = server.reporter();
    reporter.node(node(1));
    let (_, answer) = server.take().await;
    answer.send(Err(Status::permission_denied("not you"))).await.expect("a caller");
    assert!(server.answer().await.snapshot);
    let (clone, outbox) = (reporter.clone(), Arc::downgrade(&reporter.outbox));
    drop(reporter);
    clone.node(node(2));
    assert_eq!(server.answer().await.node, Some(node(2)));
    drop(clone);
    let gone = async {
        while outbox.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await
        }
    };
    tokio::time::timeout(LIMIT, gone).await.expect("the task ends");
}
