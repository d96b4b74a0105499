//! `lab`: builds the lab, shows it, tests it, removes it.

#![forbid(unsafe_code)]

use anyhow::Result;
use clap::{Parser, Subcommand};
use lab::{checks, replay, report, shell, state};
use std::process::ExitCode;

#[derive(Parser, Debug)]
#[command(name = "lab", version, about = "Two emulated hosts with DPUs, the real programs, and bookinfo in pods")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Builds the lab, sends traffic, tells what happened, and removes it.
    ///
    /// Ends with one line, the verdict; the exit code is 0 when everything is as it should be. Whatever an earlier
    /// lab left is removed first. Ctrl-C removes the lab, and so does a watcher when this process is killed.
    Demo {
        /// Leave it running, and say how to look around.
        #[arg(long)]
        keep: bool,
    },
    /// Runs the end-to-end checks.
    E2e {
        /// Only those whose name contains this.
        filter: Option<String>,
        /// Leave the lab running.
        #[arg(long)]
        keep: bool,
        /// Names of all checks.
        #[arg(long)]
        list: bool,
    },
    /// Removes a lab that is running or that was left behind.
    ///
    /// A lab that runs is asked to end first. Then its processes (known by pid and start time), the namespaces that
    /// begin with `dm-lab-` with all their links, pinned eBPF programs and maps, and its files are removed.
    /// Fails when something of it is still there afterwards. Does nothing when there is no lab. Needs root.
    Down,
    /// What there is of a lab now: who made it, its namespaces, processes, folders.
    ///
    /// Prints `no lab is there` when there is none.
    Status,
    /// The control plane of the lab.
    Replay {
        #[command(flatten)]
        args: Box<replay::Args>,
    },
    /// Removes the lab once its owner is gone.
    #[command(hide = true)]
    Watch { owner: i32 },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse().command).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo { keep } => interruptible(move || report::demo(keep)).await,
        Command::E2e { list: true, .. } => {
            checks::all().iter().for_each(|check| println!("{}", check.name));
            Ok(ExitCode::SUCCESS)
        }
        Command::E2e { filter, keep, .. } => interruptible(move || checks::run(filter.as_deref(), keep)).await,
        Command::Down => down(),
        Command::Status => {
            println!("{}", state::describe().unwrap_or_else(|| "no lab is there".to_owned()));
            Ok(ExitCode::SUCCESS)
        }
        Command::Replay { args } => {
            tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
            replay::serve(*args).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Watch { owner } => {
            state::watch(owner);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Ctrl-C and SIGTERM end the work at its next step; the lab is removed either way.
async fn interruptible(work: impl FnOnce() -> Result<bool> + Send + 'static) -> Result<ExitCode> {
    let stop = service::signal::shutdown()?;
    tokio::spawn(async move {
        stop.cancelled().await;
        shell::interrupt();
    });
    let passed = tokio::task::spawn_blocking(work).await??;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn down() -> Result<ExitCode> {
    if let Some(owner) = state::State::load().running_owner() {
        println!("a lab is running (pid {}): asking it to end", owner.pid);
        owner.signal(nix::sys::signal::Signal::SIGTERM);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(15);
        while owner.is_alive() && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
    state::remove_all();
    let left = state::leftovers();
    anyhow::ensure!(left.is_empty(), "could not be removed: {}", left.join(", "));
    println!("nothing of the lab is left");
    Ok(ExitCode::SUCCESS)
}
