//! Running commands: a failure says what was run, where, and what it printed.

use anyhow::{Context, Result, bail};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on every wait and command of the lab ends early (Ctrl-C), except those of the removal.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// An error once the run was interrupted.
pub fn check_interrupted() -> Result<()> {
    match INTERRUPTED.load(Ordering::SeqCst) {
        true => bail!("interrupted"),
        false => Ok(()),
    }
}

/// Runs words separated by spaces; the output of a success.
pub fn run(line: &str) -> Result<String> {
    check_interrupted()?;
    let output = output(&mut command(line))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => bail!("`{line}` failed ({}): {}", output.status, printed(&output)),
    }
}

/// Runs each line.
pub fn run_all(lines: &[String]) -> Result<()> {
    lines.iter().try_for_each(|line| run(line).map(drop))
}

/// Runs inside a named network namespace.
pub fn run_in(namespace: &str, line: &str) -> Result<String> {
    run(&format!("nsenter --net=/run/netns/{namespace} {line}"))
}

/// Runs and doesn't mind a failure: for removals, of what may be gone already.
pub fn attempt(line: &str) -> Option<String> {
    let output = command(line).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command of words separated by spaces, inside a named network namespace; it replaces `nsenter`, so
/// its process id is the program's own. Mounts and `/sys` stay those of the machine.
pub fn command_in(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg(program);
    command
}

/// Runs a prepared command and returns what it printed, whatever its exit code.
pub fn output(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("cannot run {:?}: is it installed? (`make tools`)", command.get_program()))
}

fn command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

fn printed(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// Repeats `probe` until it yields something or the time is over; the last reason is reported.
pub fn wait_for<T>(what: &str, limit: std::time::Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = std::time::Instant::now() + limit;
    loop {
        check_interrupted()?;
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if std::time::Instant::now() > deadline => {
                return Err(error.context(format!("{what}: not within {} s", limit.as_secs())));
            }
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(100)),
        }
    }
}
