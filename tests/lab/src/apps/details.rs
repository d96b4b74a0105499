//! Details of a book, and who asked.

use super::client::Client;
use super::http::{Answer, Seen};
use serde_json::json;

/// `GET /details/N`. `?bytes=N` adds that much text; `?status=N` answers with that status.
pub async fn answer(seen: Seen, _: Client) -> Answer {
    let parameter =
        |name: &str| seen.query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok());
    let filler = "0123456789abcdef".repeat(parameter("bytes").unwrap_or(0).min(16 << 20) / 16);
    let body = json!({
        "title": "The Comedy of Errors", "pages": 200, "type": "paperback",
        "method": seen.method, "received": seen.body.len(), "caller": seen.caller(), "filler": filler,
    });
    let status = parameter("status")
        .and_then(|code| u16::try_from(code).ok())
        .and_then(|code| http::StatusCode::from_u16(code).ok());
    Answer { status: status.unwrap_or(http::StatusCode::OK), ..Answer::ok(body) }
}
