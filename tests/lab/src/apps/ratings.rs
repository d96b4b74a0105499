//! Stars of a book, kept in the database: over HTTP on 9080 and gRPC on 9090.

use super::addresses::MONGODB;
use super::client::Client;
use super::http::{Answer, Seen};
use super::{database, http as server, ratings_grpc};
use ::http::StatusCode;
use serde_json::json;

/// Both servers.
pub async fn serve() -> anyhow::Result<()> {
    tokio::try_join!(server::serve(9080, answer), ratings_grpc::serve(9090)).map(drop)
}

/// `GET /ratings/N`.
async fn answer(seen: Seen, _: Client) -> Answer {
    match database::query(MONGODB.address(), "ratings/0").await {
        Ok(stars) => Answer::ok(json!({ "stars": stars, "caller": seen.caller() })),
        Err(error) => Answer {
            status: StatusCode::SERVICE_UNAVAILABLE,
            ..Answer::ok(json!({ "error": format!("the database: {error:#}"), "caller": seen.caller() }))
        },
    }
}
