//! The demonstration: builds what it needs, installs the product, and tells a person what happens.

use crate::bookinfo::Bookinfo;
use crate::checks::{self, Stage};
use crate::cluster::Cluster;
use crate::layout::HOSTS;
use crate::{comparison, images, install, kubectl};
use anyhow::Result;
use lab::report::verdict::Verdict;
use std::path::Path;
use std::time::Instant;

/// Runs it. True when everything was as it should be.
pub fn run(binaries: &Path, keep: bool) -> Result<bool> {
    let started = Instant::now();
    let mut verdict = Verdict::default();
    let stage = set_up(binaries, keep)?;
    step("Bookinfo from ordinary manifests; nothing names the mesh but the label of its namespace");
    let bookinfo = timed(Bookinfo::deploy)?;
    println!("{}", kubectl::run("-n bookinfo get pods -o wide --no-headers")?.trim_end());
    println!("  one page: {}", bookinfo.page()?["reviews"]["version"]);
    for (title, checks) in checks::shown() {
        step(title);
        for check in checks {
            show(&mut verdict, check.name, (check.run)(&stage));
        }
    }
    step("The same load with DPUs, and with a sidecar in every pod, by turns");
    show(&mut verdict, "the comparison with sidecars", comparison::run(&stage.cluster));
    if keep {
        look_around();
    }
    drop(stage);
    Ok(verdict.print(started.elapsed()))
}

/// A cluster with the product on it.
pub fn set_up(binaries: &Path, keep: bool) -> Result<Stage> {
    let started = Instant::now();
    step("Kubernetes, istiod, two nodes and their DPUs");
    let cluster = Cluster::start(binaries, keep)?;
    step("Images, from static binaries");
    print!("{}", timed(|| images::build(binaries))?);
    step("Installing: images onto the machines, the chart with Helm, two DPUs");
    timed(|| install::install(&cluster))?;
    println!("{}", kubectl::run("-n dpumesh-system get pods -o wide --no-headers")?.trim_end());
    println!("  the cluster is up, {:.0} s after the command", started.elapsed().as_secs_f64());
    Ok(Stage { cluster })
}

fn step(text: &str) {
    println!("\n== {text}");
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let outcome = work()?;
    println!("  done in {:.1} s", started.elapsed().as_secs_f64());
    Ok(outcome)
}

/// Tells what was found; the table at the end has its first line.
fn show(verdict: &mut Verdict, name: &str, found: Result<String>) {
    let name = name.replace('_', " ");
    println!("  {name}:");
    if let Ok(text) = &found {
        println!("    {}", text.replace('\n', "\n    "));
    }
    verdict.note(&name, found.map(|text| text.lines().next().unwrap_or_default().to_owned()));
}

fn look_around() {
    println!("\nThe cluster runs on. To look around, with the program `cluster` of this build:");
    println!("  cluster kubectl get pods -A -o wide");
    println!("  cluster kubectl get dpunodes,dpuworkloads -A");
    for host in HOSTS {
        println!("  cluster on {} curl -s 127.0.0.1:15000/workloads      # the proxy of {}", host.dpu(), host.node());
    }
    println!("  ls {}                 # a log for each program", crate::layout::logs().display());
    println!("  make clean-cluster");
}
