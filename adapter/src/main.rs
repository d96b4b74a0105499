//! `istio-dpu-adapter`: flags in, a running adapter out.

use anyhow::Context;
use clap::Parser;
use istio_dpu_adapter::shell::{Args, start};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    service::logging::init(&args.log)?;
    let stop = service::signal::shutdown().context("cannot listen for signals")?;
    let (_, running) = start(args, stop).await?;
    running.await.context("the adapter ended unexpectedly")
}
