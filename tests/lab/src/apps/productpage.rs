//! The page: details and reviews of a book, fetched from the other services.

use super::addresses::{DETAILS, REVIEWS};
use super::client::Client;
use super::http::{Answer, Seen};
use serde_json::json;

/// `GET /productpage`.
pub async fn answer(seen: Seen, client: Client) -> Answer {
    let details = client.get(DETAILS.address(), DETAILS.name, "/details/0", &seen);
    let reviews = client.get(REVIEWS.address(), REVIEWS.name, "/reviews/0", &seen);
    let (details, reviews) = tokio::join!(details, reviews);
    let version = reviews.body["version"].as_str().unwrap_or("none").to_owned();
    let status = if details.status == 200 { reviews.passed_on() } else { details.passed_on() };
    let body = json!({
        "caller": seen.caller(), "details": details.body, "details_status": details.status,
        "reviews": reviews.body, "reviews_status": reviews.status,
    });
    Answer { status, headers: vec![("x-reviews-version", version)], body }
}
