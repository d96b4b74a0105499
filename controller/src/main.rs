//! `istio-dpu-controller`: reads Kubernetes objects and serves each node its own view.

#![forbid(unsafe_code)]

use clap::Parser;
use istio_dpu_controller::args::{Args, Command};
use istio_dpu_controller::{crd, program};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.command {
        Some(Command::Crds) => print!("{}", crd::yaml()?),
        None => program::run(args).await?,
    }
    Ok(())
}
