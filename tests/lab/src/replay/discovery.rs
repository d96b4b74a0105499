//! The incremental aggregated discovery service around `session`: one task a stream.

use super::session::{Nack, Session};
use super::{Recordings, Scenario, caller};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use mesh_api::envoy::service::discovery::v3 as discovery;
use mesh_api::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// What all streams share. Cheap to clone.
#[derive(Clone)]
pub struct Plane {
    recordings: Arc<Recordings>,
    current: watch::Sender<(Scenario, u64)>,
    log: Arc<Mutex<Log>>,
}

/// What happened, for tests to look at.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Log {
    /// Node ids of all streams that were opened, in order.
    pub streams: Vec<String>,
    /// Resources sent, over all streams.
    pub resources_sent: u64,
    pub bytes_sent: u64,
    pub nacks: Vec<Nack>,
}

impl Plane {
    /// Serves the recordings, first as recorded.
    pub fn new(recordings: Recordings) -> Self {
        Self { recordings: Arc::new(recordings), current: watch::Sender::new((Scenario::Demo, 1)), log: Arc::default() }
    }

    /// Puts a scenario in force and pushes what changed.
    pub fn set(&self, scenario: Scenario) {
        self.current.send_modify(|(held, version)| {
            *held = scenario;
            *version += 1;
        });
    }

    /// A copy of the log.
    pub fn log(&self) -> Log {
        self.with_log(|log| log.clone())
    }

    fn with_log<T>(&self, use_it: impl FnOnce(&mut Log) -> T) -> T {
        use_it(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn run(
        self,
        shown: Option<String>,
        mut requests: Streaming<discovery::DeltaDiscoveryRequest>,
        responses: Responses,
    ) {
        let Some(Ok(first)) = requests.next().await else { return };
        let node = first.node.clone().unwrap_or_default();
        if let Err(refusal) = caller::check_stream(shown.as_deref(), &node) {
            let _ = responses.send(Err(refusal)).await;
            return;
        }
        let node = node.id;
        let mut current = self.current.subscribe();
        let (scenario, version) = *current.borrow_and_update();
        let pod = pod_of(&node).unwrap_or_default();
        let Some(tables) = self.recordings.tables(&pod, scenario) else {
            let text = format!(
                "node {node:?} is not in the recordings; there are {:?}",
                self.recordings.workloads().collect::<Vec<_>>()
            );
            let _ = responses.send(Err(Status::invalid_argument(text))).await;
            return;
        };
        tracing::info!(node, "stream");
        self.with_log(|log| log.streams.push(node.clone()));
        let mut session = Session::new(tables, version);
        if self.answer(&mut session, first, &responses).await.is_err() {
            return;
        }
        loop {
            let done = tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.answer(&mut session, request, &responses).await,
                    Some(Err(_)) | None => return,
                },
                changed = current.changed() => {
                    if changed.is_err() { return }
                    let (scenario, version) = *current.borrow_and_update();
                    self.push(&mut session, &pod, scenario, version, &responses).await
                }
            };
            if done.is_err() {
                return;
            }
        }
    }

    async fn answer(
        &self,
        session: &mut Session,
        request: discovery::DeltaDiscoveryRequest,
        to: &Responses,
    ) -> Result<(), Gone> {
        match session.handle(request) {
            Ok(Some(response)) => self.send(response, to).await,
            Ok(None) => Ok(()),
            Err(nack) => {
                tracing::warn!(nack.type_url, nack.message, "the client refused resources");
                self.with_log(|log| log.nacks.push(nack));
                Ok(())
            }
        }
    }

    async fn push(
        &self,
        session: &mut Session,
        pod: &str,
        scenario: Scenario,
        version: u64,
        to: &Responses,
    ) -> Result<(), Gone> {
        let Some(tables) = self.recordings.tables(pod, scenario) else { return Ok(()) };
        for response in session.push(tables, version) {
            self.send(response, to).await?;
        }
        Ok(())
    }

    async fn send(&self, response: discovery::DeltaDiscoveryResponse, to: &Responses) -> Result<(), Gone> {
        self.with_log(|log| {
            log.resources_sent += response.resources.len() as u64;
            log.bytes_sent += prost::Message::encoded_len(&response) as u64;
        });
        to.send(Ok(response)).await.map_err(|_| Gone)
    }
}

/// The client went away.
struct Gone;
type Responses = mpsc::Sender<Result<discovery::DeltaDiscoveryResponse, Status>>;

/// `sidecar~IP~POD.NAMESPACE~DOMAIN`.
fn pod_of(node: &str) -> Option<String> {
    let name = node.split('~').nth(2)?;
    Some(name.rsplit_once('.')?.0.to_owned())
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Plane {
    type StreamAggregatedResourcesStream = BoxStream<'static, Result<discovery::DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<discovery::DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<discovery::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("the recordings are of incremental ADS: ask with DeltaAggregatedResources"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<discovery::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let shown = caller::identity(&request);
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(self.clone().run(shown, request.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_is_read_from_the_node_id() {
        let node = "sidecar~10.244.1.13~curl.bookinfo~bookinfo.svc.cluster.local";
        assert_eq!(pod_of(node).as_deref(), Some("curl"));
        assert_eq!(pod_of("host1"), None);
    }
}
