//! `dpumesh`: see `--help`.

use clap::Parser;
use dpumesh::arguments::Arguments;
use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match dpumesh::run::run(&arguments).await {
        Ok(answer) => {
            print(&answer.text);
            ExitCode::from(answer.outcome as u8)
        }
        Err(error) => {
            eprintln!("dpumesh: {error:#}");
            ExitCode::from(dpumesh::run::Outcome::Unknown as u8)
        }
    }
}

/// A reader that went away (`| head`) is no error.
fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}
