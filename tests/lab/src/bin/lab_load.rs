//! `lab-load`: the load generator of the lab; prints its outcome as JSON.

#![forbid(unsafe_code)]

use clap::Parser;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let outcome = lab::load::run(lab::load::Args::parse()).await?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}
