//! The end-to-end suite as a test target: builds one lab, runs every check on it, removes it.
//! `cargo test -p lab --test e2e -- NAME` runs those whose name contains NAME. Needs root and the tools.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        lab::checks::all().iter().for_each(|check| println!("{}: test", check.name));
        return ExitCode::SUCCESS;
    }
    let filter = words.iter().find(|word| !word.starts_with('-'));
    match lab::checks::run(filter.map(String::as_str), false) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the end-to-end suite could not run: {error:#}");
            ExitCode::FAILURE
        }
    }
}
