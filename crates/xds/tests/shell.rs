//! The tonic shells over loopback and a Unix socket: both modes, reconnection, refusals.

use mesh_api::envoy::config::cluster::v3::Cluster;
use mesh_api::envoy::config::core::v3::Node;
use mesh_api::type_url;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use xds::client::{self, Event, Interest, Mode, Options};
use xds::server::{self, Peer, Store, Transaction};
use xds::{Backoff, Rejected, Resource};

fn cluster(name: &str, seconds: i64) -> Resource {
    let connect_timeout = Some(mesh_api::envoy_pb::google::protobuf::Duration { seconds, nanos: 0 });
    Resource::new(name, &Cluster { name: name.to_owned(), connect_timeout, ..Cluster::default() })
}

fn put(store: &Store, resource: Resource) {
    let mut transaction = Transaction::new();
    transaction.put(type_url::CLUSTER, resource);
    store.commit("view", transaction);
}

async fn serve(
    store: Store,
    address: SocketAddr,
    stop: CancellationToken,
) -> (SocketAddr, mpsc::UnboundedReceiver<server::Event>) {
    let (events, receiver) = mpsc::unbounded_channel();
    let authorize = |peer: &Peer| match peer.node.id.as_str() {
        "stranger" => Err(tonic::Status::permission_denied("no such node")),
        _ => Ok("view".to_owned()),
    };
    let listener = tokio::net::TcpListener::bind(address).await.expect("loopback");
    let bound = listener.local_addr().expect("bound");
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(server::service(store, authorize, events));
    tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()));
    (bound, receiver)
}

fn start(address: SocketAddr, mode: Mode, node: &str) -> (client::Handle, mpsc::Receiver<Event>) {
    let connect = move || -> futures_util::future::BoxFuture<'static, Result<Channel, String>> {
        Box::pin(async move {
            let endpoint = Channel::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
            endpoint.connect().await.map_err(|error| error.to_string())
        })
    };
    let options = Options {
        node: Node { id: node.to_owned(), ..Node::default() },
        mode,
        metadata: vec![("clusterid".to_owned(), "Kubernetes".to_owned())],
        interests: vec![(type_url::CLUSTER.to_owned(), Interest::Wildcard)],
        backoff: Backoff::new(Duration::from_millis(5), Duration::from_millis(50)),
    };
    client::spawn(connect, options)
}

async fn next_update(events: &mut mpsc::Receiver<Event>) -> client::Update {
    loop {
        let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await.expect("in time");
        if let Event::Update(update) = event.expect("the client lives") {
            return update;
        }
    }
}

async fn next_verdict(events: &mut mpsc::UnboundedReceiver<server::Event>) -> server::Event {
    loop {
        let event =
            tokio::time::timeout(Duration::from_secs(10), events.recv()).await.expect("in time").expect("server");
        if matches!(event, server::Event::Acked { .. } | server::Event::Nacked { .. }) {
            return event;
        }
    }
}

async fn updates_are_delivered_and_answered(mode: Mode) {
    let (store, stop) = (Store::new(), CancellationToken::new());
    put(&store, cluster("a", 1));
    let (address, mut verdicts) = serve(store.clone(), "127.0.0.1:0".parse().expect("address"), stop.clone()).await;
    let (handle, mut events) = start(address, mode, "node");
    let update = next_update(&mut events).await;
    assert_eq!(update.changed.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["a"]);
    handle.reply(update.token, Ok(()));
    assert!(matches!(next_verdict(&mut verdicts).await, server::Event::Acked { .. }));
    put(&store, cluster("b", 1));
    let update = next_update(&mut events).await;
    handle.reply(update.token, Err(vec![Rejected { name: "b".to_owned(), reason: "no good".to_owned() }]));
    let server::Event::Nacked { rejected, .. } = next_verdict(&mut verdicts).await else { panic!("refused") };
    assert_eq!(rejected, [Rejected { name: "b".to_owned(), reason: "no good".to_owned() }]);
    stop.cancel();
}

#[tokio::test]
async fn incremental_updates_are_delivered_and_answered() {
    updates_are_delivered_and_answered(Mode::Delta).await;
}

#[tokio::test]
async fn state_of_the_world_updates_are_delivered_and_answered() {
    updates_are_delivered_and_answered(Mode::StateOfTheWorld).await;
}

#[tokio::test]
async fn a_client_comes_back_when_the_server_does() {
    let (store, stop) = (Store::new(), CancellationToken::new());
    put(&store, cluster("a", 1));
    let (address, _verdicts) = serve(store.clone(), "127.0.0.1:0".parse().expect("address"), stop.clone()).await;
    let (handle, mut events) = start(address, Mode::Delta, "node");
    handle.reply(next_update(&mut events).await.token, Ok(()));
    store.close();
    stop.cancel();
    loop {
        if let Some(Event::Disconnected { .. }) = events.recv().await {
            break;
        }
    }
    let (store, stop) = (Store::new(), CancellationToken::new());
    put(&store, cluster("a", 1));
    put(&store, cluster("b", 1));
    let (_, _verdicts) = serve(store, address, stop.clone()).await;
    let update = next_update(&mut events).await;
    assert_eq!(update.changed.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["b"], "a is held already");
    stop.cancel();
}

#[tokio::test]
async fn a_refused_node_is_told_why() {
    let stop = CancellationToken::new();
    let (address, _verdicts) = serve(Store::new(), "127.0.0.1:0".parse().expect("address"), stop.clone()).await;
    let (_handle, mut events) = start(address, Mode::Delta, "stranger");
    loop {
        let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await.expect("in time");
        if let Some(Event::Disconnected { reason, is_denied }) = event {
            assert!(reason.contains("no such node") && is_denied, "{reason}");
            break;
        }
    }
    stop.cancel();
}

#[tokio::test]
async fn a_client_that_cannot_connect_says_why_and_one_that_waits_ends_with_its_last_handle() {
    let options = Options {
        node: Node::default(),
        mode: Mode::Delta,
        metadata: Vec::new(),
        interests: vec![(type_url::CLUSTER.to_owned(), Interest::Wildcard)],
        backoff: Backoff::default(),
    };
    let nobody = || Channel::from_static("http://127.0.0.1:1").connect_lazy();
    let (_handle, mut events) = client::spawn(move || Box::pin(std::future::ready(Ok(nobody()))), options.clone());
    let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await.expect("in time");
    let Some(Event::Disconnected { reason, is_denied: false }) = event else { panic!("{event:?}") };
    assert!(reason.contains("refused"), "{reason}");

    let (handle, mut events) = client::spawn(|| Box::pin(std::future::pending()), options);
    drop(handle);
    let end = tokio::time::timeout(Duration::from_secs(10), events.recv()).await.expect("in time");
    assert!(end.is_none(), "nobody needs the connection any more");
}

#[tokio::test]
async fn a_held_view_withdraws_nothing_until_it_is_released() {
    let (store, stop) = (Store::new(), CancellationToken::new());
    put(&store, cluster("a", 1));
    let (address, _verdicts) = serve(store.clone(), "127.0.0.1:0".parse().expect("address"), stop.clone()).await;
    let (handle, mut events) = start(address, Mode::Delta, "node");
    handle.reply(next_update(&mut events).await.token, Ok(()));
    store.close();
    stop.cancel();
    while !matches!(events.recv().await, Some(Event::Disconnected { .. })) {}
    let (restarted, stop) = (Store::new(), CancellationToken::new());
    restarted.hold("view");
    let (_, _verdicts) = serve(restarted.clone(), address, stop.clone()).await;
    let silence = tokio::time::timeout(Duration::from_millis(300), next_update(&mut events)).await;
    assert!(silence.is_err(), "an empty view is not told while it is held");
    put(&restarted, cluster("a", 1));
    put(&restarted, cluster("b", 1));
    restarted.release("view");
    let update = next_update(&mut events).await;
    assert_eq!(update.changed.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["b"]);
    assert!(update.removed.is_empty(), "nothing was withdrawn");
    stop.cancel();
}

mod late_headers {
    //! A server that sends its headers with its first response, as grpc-go does.

    use super::*;
    use futures_util::StreamExt;
    use futures_util::stream::BoxStream;
    use mesh_api::envoy::service::discovery::v3 as discovery;
    use mesh_api::envoy::service::discovery::v3::aggregated_discovery_service_server as ads;
    use tonic::{Request, Response, Status, Streaming};

    struct Late;

    type Responses<T> = BoxStream<'static, Result<T, Status>>;

    #[tonic::async_trait]
    impl ads::AggregatedDiscoveryService for Late {
        type StreamAggregatedResourcesStream = Responses<discovery::DiscoveryResponse>;
        type DeltaAggregatedResourcesStream = Responses<discovery::DeltaDiscoveryResponse>;

        async fn stream_aggregated_resources(
            &self,
            _: Request<Streaming<discovery::DiscoveryRequest>>,
        ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
            Err(Status::unimplemented("incremental only"))
        }

        async fn delta_aggregated_resources(
            &self,
            request: Request<Streaming<discovery::DeltaDiscoveryRequest>>,
        ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
            let mut requests = request.into_inner();
            let first = requests.message().await?.ok_or_else(|| Status::cancelled("no request"))?;
            let resource = cluster("a", 1);
            let resource =
                discovery::Resource { name: resource.name, resource: Some(resource.body), ..Default::default() };
            let response = discovery::DeltaDiscoveryResponse {
                type_url: first.type_url,
                nonce: "1".to_owned(),
                resources: vec![resource],
                ..Default::default()
            };
            let rest = futures_util::stream::unfold(requests, |mut requests| async move {
                while let Ok(Some(_)) = requests.message().await {}
                None
            });
            Ok(Response::new(futures_util::stream::iter([Ok(response)]).chain(rest).boxed()))
        }
    }

    #[tokio::test]
    async fn a_server_that_waits_for_the_first_request_is_not_waited_for() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = ads::AggregatedDiscoveryServiceServer::new(Late);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        let (_handle, mut events) = start(address, Mode::Delta, "node");
        let update = next_update(&mut events).await;
        assert_eq!(update.changed.first().map(|one| one.name.as_str()), Some("a"));
    }
}
