//! `cluster`: builds a real cluster on this machine, shows it, tests it, removes it.

#![forbid(unsafe_code)]

use anyhow::Result;
use clap::{Parser, Subcommand};
use cluster::bookinfo::Bookinfo;
use cluster::cluster::Cluster;
use cluster::machine::Machine;
use cluster::tools::Tools;
use cluster::{checks, comparison, demo, images, install, kubectl, record, state};
use lab::shell;
use nix::sys::signal::Signal;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Child, ExitCode};
use std::time::{Duration, Instant};

#[derive(Parser, Debug)]
#[command(
    name = "cluster",
    version,
    about = "Kubernetes, istiod, two nodes with DPUs, and the product on them, on one machine"
)]
struct Args {
    /// The folder of our own programs, statically linked.
    #[arg(long, global = true, env = "CLUSTER_BINARIES", default_value = "target/x86_64-unknown-linux-gnu/release")]
    binaries: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Starts a cluster, installs the product, shows what it does, tells what was found, and removes everything.
    Demo {
        /// Leave it running, and say how to look around.
        #[arg(long)]
        keep: bool,
    },
    /// The same, with all checks.
    Test {
        /// Only those whose name contains this.
        filter: Option<String>,
        /// Leave the cluster running.
        #[arg(long)]
        keep: bool,
        /// Names of all checks.
        #[arg(long)]
        list: bool,
    },
    /// Measures the same load with DPUs and with sidecars, on the cluster that runs.
    Compare,
    /// Records what a live istiod tells the pods of bookinfo, as tests/fixtures keeps it. Starts the control plane alone.
    Record {
        /// Folder to write into.
        out: PathBuf,
        /// A folder that should be the same; what differs is told, and the exit code is 1.
        #[arg(long)]
        compare: Option<PathBuf>,
    },
    /// Builds what is not ours (Kubernetes, Istio, Helm, DNS) and keeps it for later runs.
    Build,
    /// Builds the images.
    Images,
    /// Starts a cluster and leaves it running.
    Up {
        /// Install the product.
        #[arg(long)]
        install: bool,
    },
    /// Installs the product on the cluster that runs, from the images that were built.
    Install,
    /// Runs the checks on the cluster that runs.
    Check {
        /// Only those whose name contains this.
        filter: Option<String>,
    },
    /// Removes a cluster that is running or that was left behind. Does nothing when there is none.
    Down,
    /// What there is of a cluster now.
    Status,
    /// kubectl as the cluster's administrator.
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Runs a command on a machine: node1, node2, dpu1 or dpu2.
    On {
        machine: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        words: Vec<String>,
    },
    /// Removes the cluster once its owner is gone.
    #[command(hide = true)]
    Watch { owner: i32 },
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<ExitCode> {
    let binaries = args.binaries;
    match args.command {
        Command::Demo { keep } => return interruptible(move || demo::run(&binaries, keep)),
        Command::Test { list: true, .. } => checks::all().iter().for_each(|check| println!("{}", check.name)),
        Command::Test { filter, keep, .. } => {
            return interruptible(move || test(&binaries, filter.as_deref(), keep));
        }
        Command::Compare => {
            return interruptible(move || {
                println!("{}", comparison::run(&Cluster::find(&binaries)?)?);
                Ok(true)
            });
        }
        Command::Record { out, compare } => {
            return interruptible(move || record::run(&binaries, &out, compare.as_deref()));
        }
        Command::Build => Tools::build().map(drop)?,
        Command::Images => print!("{}", images::build(&binaries)?),
        Command::Up { install } => return interruptible(move || up(&binaries, install)),
        Command::Install => install::install(&Cluster::find(&binaries)?)?,
        Command::Check { filter } => {
            let stage = checks::Stage { cluster: Cluster::find(&binaries)? };
            return interruptible(move || checks::run(&stage, filter.as_deref()));
        }
        Command::Down => down()?,
        Command::Status => println!("{}", state::describe().unwrap_or_else(|| "no cluster is there".to_owned())),
        Command::Kubectl { words } => return Err(kubectl::command().args(words).exec().into()),
        Command::On { machine, words } => return Err(enter(&machine, &words)?.exec().into()),
        Command::Watch { owner } => state::watch(owner),
    }
    Ok(ExitCode::SUCCESS)
}

fn test(binaries: &Path, filter: Option<&str>, keep: bool) -> Result<bool> {
    let started = Instant::now();
    let stage = demo::set_up(binaries, keep)?;
    Bookinfo::deploy()?;
    let passed = checks::run(&stage, filter)?;
    println!("in all {} s", started.elapsed().as_secs());
    Ok(passed)
}

fn up(binaries: &Path, with_product: bool) -> Result<bool> {
    let cluster = Cluster::start(binaries, true)?;
    if with_product {
        install::install(&cluster)?;
    }
    Ok(true)
}

fn enter(machine: &str, words: &[String]) -> Result<Child> {
    let (program, arguments) = words.split_first().ok_or_else(|| anyhow::anyhow!("no command is given"))?;
    let mut command = Machine::find(machine)?.command(program);
    command.args(arguments);
    Ok(command)
}

/// Ctrl-C and SIGTERM end the work at its next step; the cluster is removed either way.
fn interruptible(work: impl FnOnce() -> Result<bool> + Send + 'static) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(1).build()?;
    let passed = runtime.block_on(async {
        let stop = service::signal::shutdown()?;
        tokio::spawn(async move {
            stop.cancelled().await;
            shell::interrupt();
        });
        tokio::task::spawn_blocking(work).await?
    })?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn down() -> Result<()> {
    if let Some(owner) = state::State::load().running_owner() {
        println!("a cluster is running (pid {}): asking it to end", owner.pid);
        owner.signal(Signal::SIGTERM);
        let end = Instant::now() + Duration::from_secs(30);
        while owner.is_alive() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    state::remove_all();
    let left = state::leftovers();
    anyhow::ensure!(left.is_empty(), "could not be removed: {}", left.join(", "));
    println!("nothing of the cluster is left");
    Ok(())
}
