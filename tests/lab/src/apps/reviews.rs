//! Reviews of a book; v2 and v3 show the stars that `ratings` knows, asked over HTTP or gRPC.

use super::addresses::{RATINGS, RATINGS_GRPC};
use super::client::{Called, Client};
use super::http::{Answer, Seen};
use super::ratings_grpc;
use serde_json::{Value, json};

/// `GET /reviews/N`. With the header `via-grpc: yes` the stars are asked for over gRPC.
pub async fn answer(version: String, seen: Seen, client: Client) -> Answer {
    let ratings = match (version.as_str(), seen.header("via-grpc")) {
        ("v1", "") => None,
        (_, "") => Some(client.get(RATINGS.address(), RATINGS.name, "/ratings/0", &seen).await),
        (_, _) => Some(over_grpc().await),
    };
    let body = json!({
        "version": version, "caller": seen.caller(),
        "reviews": ["An extremely entertaining play by Shakespeare.", "Absolutely fun and entertaining."],
        "ratings": ratings.as_ref().map_or(Value::Null, |called| called.body.clone()),
        "ratings_status": ratings.as_ref().map_or(0, |called| called.status),
    });
    Answer { headers: vec![("x-reviews-version", version)], ..Answer::ok(body) }
}

async fn over_grpc() -> Called {
    match ratings_grpc::get(RATINGS_GRPC.address()).await {
        Ok(response) => Called {
            status: 200,
            body: json!({ "stars": response.stars, "caller": { "certificate": response.caller } }),
        },
        Err(status) => {
            Called { status: 500, body: json!({ "grpc": format!("{:?}", status.code()), "error": status.message() }) }
        }
    }
}
