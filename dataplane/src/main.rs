//! `dataplane`: see `--help`.
#![forbid(unsafe_code)]

use clap::Parser;
use dataplane::program::{Args, run};

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    run(Args::parse()).await
}
