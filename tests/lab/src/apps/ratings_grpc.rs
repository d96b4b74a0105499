//! The gRPC face of ratings, server and client: unary, and a stream in both directions.

use super::addresses::MONGODB;
use super::database;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

/// Generated from `proto/ratings.proto`.
#[allow(missing_debug_implementations, clippy::all)]
pub mod wire {
    tonic::include_proto!("lab.ratings.v1");
}

/// Generated from `proto/health.proto`.
#[allow(missing_debug_implementations, clippy::all)]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

use health::health_check_response::ServingStatus;
use health::health_server::{Health, HealthServer};
use health::{HealthCheckRequest, HealthCheckResponse};
use wire::ratings_client::RatingsClient;
use wire::ratings_server::{Ratings, RatingsServer};
use wire::{GetRequest, GetResponse};

#[derive(Clone, Copy, Debug)]
struct Stars;

/// Serves until the process ends.
pub async fn serve(port: u16) -> anyhow::Result<()> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let services = Server::builder().add_service(RatingsServer::new(Stars)).add_service(HealthServer::new(Stars));
    Ok(services.serve(address).await?)
}

/// One unary call on a connection of its own.
pub async fn get(address: &str) -> Result<GetResponse, Status> {
    let call = async { Ok(client(address).await?.get(GetRequest { product: 0 }).await?.into_inner()) };
    in_time(call).await
}

/// Sends `count` requests on one stream and counts the answers.
pub async fn watch(address: &str, count: u32) -> Result<usize, Status> {
    let call = async {
        let requests = tokio_stream::iter((0..count).map(|product| GetRequest { product }));
        let mut answers = client(address).await?.watch(requests).await?.into_inner();
        let mut received = 0;
        while answers.message().await?.is_some() {
            received += 1;
        }
        Ok(received)
    };
    in_time(call).await
}

async fn in_time<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = |_| Status::deadline_exceeded("no answer within 10 s");
    tokio::time::timeout(Duration::from_secs(10), call).await.map_err(late)?
}

async fn client(address: &str) -> Result<RatingsClient<Channel>, Status> {
    let unavailable = |error: tonic::transport::Error| Status::unavailable(format!("{error:?}"));
    let origin = "http://ratings:9090".parse().map_err(|_| Status::internal("a constant address"))?;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(unavailable)?.origin(origin);
    Ok(RatingsClient::new(endpoint.connect().await.map_err(unavailable)?))
}

#[tonic::async_trait]
impl Ratings for Stars {
    type WatchStream = BoxStream<'static, Result<GetResponse, Status>>;

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let caller = request.metadata().get("x-forwarded-client-cert").and_then(|value| value.to_str().ok());
        let caller = caller.unwrap_or_default().to_owned();
        stars().await.map(|stars| Response::new(GetResponse { stars, caller }))
    }

    async fn watch(&self, request: Request<Streaming<GetRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let answers = request.into_inner().then(|asked| async move {
            asked?;
            stars().await.map(|stars| GetResponse { stars, caller: String::new() })
        });
        Ok(Response::new(answers.boxed()))
    }
}

#[tonic::async_trait]
impl Health for Stars {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }
}

async fn stars() -> Result<HashMap<String, u32>, Status> {
    let value = database::query(MONGODB.address(), "ratings/0")
        .await
        .map_err(|error| Status::unavailable(format!("{error:#}")))?;
    serde_json::from_value(value).map_err(|error| Status::internal(error.to_string()))
}
