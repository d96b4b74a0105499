//! The applications of the pods: small servers that call one another by service address.

mod addresses;
pub mod client;
pub mod database;
mod details;
mod http;
mod productpage;
mod ratings;
pub mod ratings_grpc;
mod reviews;

use anyhow::{Result, bail};

/// Text that every answer contains: none of it may be seen on the fabric.
pub const MARKER: &str = "plaintext-of-the-bookinfo-lab";

/// Runs a role (`ROLE` or `ROLE-VERSION`, as pods are named) until it is killed.
pub async fn run(role: &str) -> Result<()> {
    match role.split_once('-').unwrap_or((role, "v1")) {
        ("productpage", _) => http::serve(9080, productpage::answer).await,
        ("details", _) => http::serve(9080, details::answer).await,
        ("reviews", version) => {
            let version = version.to_owned();
            http::serve(9080, move |request, client| reviews::answer(version.clone(), request, client)).await
        }
        ("ratings", _) => ratings::serve().await,
        ("mongodb", _) => database::serve(27017).await,
        ("curl", _) => http::serve(9080, details::answer).await,
        _ => bail!(
            "no application {role:?}: productpage, details, reviews-v1, reviews-v2, reviews-v3, ratings, mongodb, curl"
        ),
    }
}
