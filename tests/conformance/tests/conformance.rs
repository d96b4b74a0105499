//! Every case of `cases/` through a stock Envoy and `dpu-proxy`. An argument selects cases by a part
//! of their name; `--envoy-only` runs Envoy on both sides, to check the cases themselves.

use conformance::program::Programs;
use conformance::runner::Outcome;
use conformance::{case, runner};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    // One TLS provider, named once.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(all())) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conformance could not run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn all() -> anyhow::Result<usize> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let only = arguments.iter().find(|argument| !argument.starts_with('-'));
    let mut programs = Programs::find();
    if arguments.iter().any(|argument| argument == "--envoy-only") {
        programs = programs.map(|programs| Programs { dpu_proxy: programs.envoy.clone(), ..programs });
    }
    let programs = programs?;
    let (mut passed, mut failed) = (0, 0);
    for (name, mut group) in case::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("cases"))? {
        group.cases.retain(|case| only.is_none_or(|only| format!("{name}: {}", case.name).contains(only.as_str())));
        if group.cases.is_empty() {
            continue;
        }
        let outcomes =
            runner::run(&name, &group, &programs).await.unwrap_or_else(|error| failed_group(&name, &group, &error));
        for outcome in outcomes {
            report(&outcome);
            *(if outcome.differences.is_empty() { &mut passed } else { &mut failed }) += 1;
        }
    }
    anyhow::ensure!(passed + failed > 0, "no case is named so");
    println!("\n{passed} passed, {failed} failed");
    Ok(failed)
}

fn failed_group(name: &str, group: &case::Group, error: &anyhow::Error) -> Vec<Outcome> {
    let outcome = |case: &case::Case| Outcome {
        name: format!("{name}: {}", case.name),
        differences: format!("    {error:#}\n"),
        documented: Vec::new(),
    };
    group.cases.iter().map(outcome).collect()
}

fn report(outcome: &Outcome) {
    let verdict = if outcome.differences.is_empty() { "ok" } else { "FAILED" };
    println!("{} ... {verdict}", outcome.name);
    for reason in &outcome.documented {
        println!("    documented: {reason}");
    }
    print!("{}", outcome.differences);
}
