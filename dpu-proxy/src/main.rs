//! `dpu-proxy`: see `dpu_proxy::program`.

use anyhow::Context;
use clap::Parser;
use dpu_proxy::program::{self, Arguments, Mode};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    service::logging::init(&arguments.log)?;
    if arguments.mode == Mode::Validate {
        let (text, name) = arguments.bootstrap()?;
        program::validate(&text)?;
        println!("configuration '{name}' OK");
        return Ok(());
    }
    // Control, admin, discovery and name resolution; the data paths have threads of their own.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.context("cannot start the control runtime")?.block_on(async {
        let stop = service::signal::shutdown()?;
        program::serve(&arguments, stop, |_| {}).await?;
        tracing::info!("ended");
        Ok(())
    })
}
