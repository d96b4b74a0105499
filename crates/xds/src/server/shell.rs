//! The tonic service around `core`: one task a stream.

use super::core::{StreamCore, Verdict};
use super::store::{Cell, Store};
use crate::client::Mode;
use crate::client::core::{Request, Response};
use crate::{MESSAGE_LIMIT_BYTES, Rejected};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use mesh_api::envoy::config::core::v3::Node;
use mesh_api::envoy::service::discovery::v3 as discovery;
use mesh_api::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};

/// Who opened a stream.
#[derive(Debug)]
pub struct Peer {
    pub node: Node,
    /// URI SANs, then DNS SANs, of its client certificate.
    pub identities: Vec<String>,
    pub metadata: MetadataMap,
}

/// Decides which view a peer sees, or refuses it.
pub trait Authorize: Send + Sync + 'static {
    /// Name of the view.
    // The error is tonic's own and as large as it is.
    #[allow(clippy::result_large_err)]
    fn view(&self, peer: &Peer) -> Result<String, Status>;
}

impl<F: Fn(&Peer) -> Result<String, Status> + Send + Sync + 'static> Authorize for F {
    fn view(&self, peer: &Peer) -> Result<String, Status> {
        self(peer)
    }
}

/// What happened on the streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Connected { stream: u64, view: String, node_id: String },
    Disconnected { stream: u64, view: String, node_id: String },
    Acked { stream: u64, view: String, type_url: String, resources: Vec<(String, String)>, removed: Vec<String> },
    Nacked { stream: u64, view: String, type_url: String, rejected: Vec<Rejected>, message: String },
}

/// The service, for `tonic::transport::Server::add_service`. `identities` are found by `shown`.
pub fn service<A: Authorize>(
    store: Store,
    authorize: A,
    events: mpsc::UnboundedSender<Event>,
) -> AggregatedDiscoveryServiceServer<Discovery<A>> {
    let discovery = Discovery { store, authorize: Arc::new(authorize), events, streams: Arc::default() };
    AggregatedDiscoveryServiceServer::new(discovery)
        .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
        .max_encoding_message_size(MESSAGE_LIMIT_BYTES)
}

/// The aggregated discovery service over a `Store`.
#[derive(Debug)]
pub struct Discovery<A> {
    store: Store,
    authorize: Arc<A>,
    events: mpsc::UnboundedSender<Event>,
    streams: Arc<AtomicU64>,
}

type Responses<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl<A: Authorize> AggregatedDiscoveryService for Discovery<A> {
    type StreamAggregatedResourcesStream = Responses<discovery::DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<discovery::DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: tonic::Request<Streaming<discovery::DiscoveryRequest>>,
    ) -> Result<tonic::Response<Self::StreamAggregatedResourcesStream>, Status> {
        let responses = self.start(request, Mode::StateOfTheWorld, Request::StateOfTheWorld);
        Ok(tonic::Response::new(responses.filter_map(sotw_only).boxed()))
    }

    async fn delta_aggregated_resources(
        &self,
        request: tonic::Request<Streaming<discovery::DeltaDiscoveryRequest>>,
    ) -> Result<tonic::Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let responses = self.start(request, Mode::Delta, Request::Delta);
        Ok(tonic::Response::new(responses.filter_map(delta_only).boxed()))
    }
}

async fn sotw_only(response: Result<Response, Status>) -> Option<Result<discovery::DiscoveryResponse, Status>> {
    match response {
        Ok(Response::StateOfTheWorld(response)) => Some(Ok(response)),
        Ok(Response::Delta(_)) => None,
        Err(status) => Some(Err(status)),
    }
}

async fn delta_only(response: Result<Response, Status>) -> Option<Result<discovery::DeltaDiscoveryResponse, Status>> {
    match response {
        Ok(Response::Delta(response)) => Some(Ok(response)),
        Ok(Response::StateOfTheWorld(_)) => None,
        Err(status) => Some(Err(status)),
    }
}

impl<A: Authorize> Discovery<A> {
    fn start<T: Send + 'static>(
        &self,
        request: tonic::Request<Streaming<T>>,
        mode: Mode,
        wrap: fn(T) -> Request,
    ) -> ReceiverStream<Result<Response, Status>> {
        let identities = service_identities(&request);
        let metadata = request.metadata().clone();
        let requests = request.into_inner().map(move |message| message.map(wrap)).boxed();
        let (sender, receiver) = mpsc::channel(16);
        let stream = Stream {
            id: self.streams.fetch_add(1, Ordering::Relaxed),
            core: StreamCore::new(mode),
            requests,
            responses: sender,
            events: self.events.clone(),
        };
        let (store, authorize) = (self.store.clone(), Arc::clone(&self.authorize));
        tokio::spawn(async move {
            let view = |node: &Node| authorize.view(&Peer { node: node.clone(), identities, metadata });
            stream.run(&store, view).await;
        });
        ReceiverStream::new(receiver)
    }
}

fn service_identities<T>(request: &tonic::Request<T>) -> Vec<String> {
    service::grpc::peer_identities(request)
}

struct Stream {
    id: u64,
    core: StreamCore,
    requests: BoxStream<'static, Result<Request, Status>>,
    responses: mpsc::Sender<Result<Response, Status>>,
    events: mpsc::UnboundedSender<Event>,
}

impl Stream {
    async fn run(mut self, store: &Store, authorize: impl FnOnce(&Node) -> Result<String, Status>) {
        let Some(Ok(first)) = self.requests.next().await else { return };
        let node = node_of(&first);
        let view = match authorize(&node) {
            Ok(view) => view,
            Err(status) => {
                tracing::warn!(node = %node.id, reason = status.message(), "discovery stream refused");
                // A peer that is gone already needs no reason.
                let _ = self.responses.send(Err(status)).await;
                return;
            }
        };
        let node_id = node.id;
        self.tell(Event::Connected { stream: self.id, view: view.clone(), node_id: node_id.clone() });
        self.take(first, &view);
        let cell = store.cell(&view);
        tokio::select! {
            () = self.serve(&cell, &view) => {}
            () = store.closed() => {}
        }
        self.tell(Event::Disconnected { stream: self.id, view, node_id });
    }

    async fn serve(&mut self, cell: &Cell, view: &str) {
        let mut bell = cell.listen();
        loop {
            while let Some(response) = self.next(cell, view) {
                if self.responses.send(Ok(response)).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                request = self.requests.next() => match request {
                    Some(Ok(request)) => self.take(request, view),
                    Some(Err(_)) | None => return,
                },
                rung = bell.changed() => if rung.is_err() { return },
                () = self.responses.closed() => return,
            }
        }
    }

    fn next(&mut self, cell: &Cell, view: &str) -> Option<Response> {
        if cell.is_held() {
            return None;
        }
        let response = self.core.poll(&cell.read());
        while let Some(verdict) = self.core.held() {
            self.tell_verdict(verdict, view);
        }
        response
    }

    fn take(&mut self, request: Request, view: &str) {
        if let Some(verdict) = self.core.handle(request) {
            self.tell_verdict(verdict, view);
        }
    }

    fn tell_verdict(&self, verdict: Verdict, view: &str) {
        let (stream, view) = (self.id, view.to_owned());
        self.tell(match verdict {
            Verdict::Acked { type_url, resources, removed } => {
                Event::Acked { stream, view, type_url, resources, removed }
            }
            Verdict::Nacked { type_url, rejected, message } => {
                tracing::warn!(type_url, message, "a client refused resources");
                Event::Nacked { stream, view, type_url, rejected, message }
            }
        });
    }

    fn tell(&self, event: Event) {
        // Nobody needs to listen.
        let _ = self.events.send(event);
    }
}

fn node_of(request: &Request) -> Node {
    let node = match request {
        Request::Delta(request) => &request.node,
        Request::StateOfTheWorld(request) => &request.node,
    };
    node.clone().unwrap_or_default()
}
