//! The controller's ear: the newest report of each pod and of the node.

use mesh_api::report::reports_server::{Reports, ReportsServer};
use mesh_api::report::{Configuration, ProxyStatus, Report, ReportAck, node_report, workload_report};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

#[derive(Clone, Default)]
pub struct Heard {
    pub pods: Arc<Mutex<BTreeMap<String, Configuration>>>,
    pub node: Arc<Mutex<ProxyStatus>>,
}

impl Heard {
    pub fn service(&self) -> ReportsServer<Self> {
        ReportsServer::new(self.clone())
    }

    /// What was told of a pod last.
    pub fn of(&self, pod: &str) -> Configuration {
        self.pods.lock().expect("not poisoned").get(pod).cloned().unwrap_or_default()
    }

    fn take(&self, report: Report) {
        let mut pods = self.pods.lock().expect("not poisoned");
        if report.snapshot {
            pods.clear();
        }
        for one in report.workloads {
            let Some(workload_report::Part::Configuration(configuration)) = one.part else {
                panic!("not the adapter's")
            };
            pods.insert(one.name, configuration);
        }
        for name in report.removed {
            pods.remove(name.rsplit('/').next().unwrap_or_default());
        }
        if let Some(node_report::Part::Proxy(status)) = report.node.and_then(|node| node.part) {
            *self.node.lock().expect("not poisoned") = status;
        }
    }
}

#[tonic::async_trait]
impl Reports for Heard {
    type ReportStream = tokio_stream::wrappers::ReceiverStream<Result<ReportAck, Status>>;

    async fn report(&self, request: Request<Streaming<Report>>) -> Result<Response<Self::ReportStream>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        let (heard, mut incoming) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(report)) = incoming.message().await {
                heard.take(report);
                if sender.send(Ok(ReportAck {})).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(tokio_stream::wrappers::ReceiverStream::new(receiver)))
    }
}
