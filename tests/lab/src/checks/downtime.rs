//! The DPU's programs stop, crash and come back: what has to go on goes on, and nothing ungoverned passes meanwhile.

use super::Check;
use super::bypass::clean;
use super::resilience::{faultless, load, pause};
use super::wait::{get, pod, proxy_metric, until_served};
use crate::capture::Capture;
use crate::lab::Lab;
use crate::pods::vip;
use crate::programs::Program;
use crate::topology::{HOSTS, Host};
use crate::traffic::{Load, on};
use crate::{probe, shell, traffic};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::process::Child;
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "a_killed_dataplane_comes_back_under_load_without_one_failed_request", run: dataplane },
    Check { name: "every_worker_of_a_proxy_takes_connections", run: workers },
    Check { name: "a_new_proxy_takes_over_under_load_without_one_failed_request_or_a_pause", run: succeeded },
    Check { name: "a_proxy_that_stops_finishes_its_requests_and_nothing_passes_without_it", run: stopped_proxy },
    Check { name: "a_killed_proxy_lets_nothing_pass_and_serves_again", run: killed_proxy },
];

/// Both dataplanes are dead for a while: open connections go on, and new ones are steered all the same.
fn dataplane(lab: &mut Lab) -> Result<()> {
    let steady = load(lab, "load-dataplane")?;
    pause(1.0);
    for host in HOSTS {
        lab.process(Program::Dataplane(host))?.kill()?;
    }
    for _ in 0..10 {
        expect("curl", vip::DETAILS, "details", "/details/0", 200).context("while no dataplane runs")?;
        expect("curl", vip::RATINGS, "ratings", "/ratings/0", 403).context("while no dataplane runs")?;
    }
    for host in HOSTS {
        lab.start(Program::Dataplane(host))?;
        lab.wait_ready(Program::Dataplane(host))?;
    }
    for _ in 0..10 {
        expect("curl", vip::DETAILS, "details", "/details/0", 200).context("after the restart")?;
    }
    pause(1.0);
    faultless(&steady.stop()?)
}

/// The kernel spreads a port's connections over the group of sockets, though one of them is registered.
fn workers(lab: &mut Lab) -> Result<()> {
    ensure!(lab.proxy.concurrency > 1, "the proxies of this lab have one worker each");
    let pid = lab.process(Program::DpuProxy(HOSTS[0]))?.id.pid;
    let before = busy(pid)?;
    let mut words = on(vip::REVIEWS, "reviews:9080", "/reviews/0");
    words.extend(["--requests", "1000", "--connections", "8", "--seconds", "30", "--header", "connection:close"]);
    let outcome = Load::start(&lab.binaries, pod("productpage-v1")?, "load-workers", &words)?.finish()?;
    faultless(&outcome)?;
    let spent: Vec<u64> = busy(pid)?.into_iter().zip(before).map(|(after, before)| after - before).collect();
    let total: u64 = spent.iter().sum();
    ensure!(spent.len() == usize::from(lab.proxy.concurrency), "{} workers run", spent.len());
    ensure!(spent.iter().all(|one| one * 10 >= total), "nanoseconds that each worker ran: {spent:?}");
    Ok(())
}

/// Nanoseconds that each worker thread of a process has run.
fn busy(pid: i32) -> Result<Vec<u64>> {
    let mut workers = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = entry?.path();
        let name = std::fs::read_to_string(task.join("comm"))?;
        if name.starts_with("worker-") {
            let text = std::fs::read_to_string(task.join("schedstat"))?;
            let ran = text.split_whitespace().next().and_then(|number| number.parse().ok());
            workers.insert(name, ran.context("schedstat has no number")?);
        }
    }
    Ok(workers.into_values().collect())
}

/// The proxies of both hosts are replaced, one after the other, each by a process that starts beside it. Connections that
/// are never idle, for they carry bytes and no requests, go on in the old ones.
fn succeeded(lab: &mut Lab) -> Result<()> {
    // As on a DPU, where the old one is told to stop while the new one starts.
    lab.proxy.successor_wait_s = 10;
    for host in HOSTS {
        lab.process(Program::DpuProxy(host))?.stop()?;
        lab.start(Program::DpuProxy(host))?;
        lab.wait_ready(Program::DpuProxy(host))?;
    }
    lab.proxy.successor_wait_s = 0;
    until_served(lab)?;
    let binaries = lab.binaries.clone();
    let talk =
        std::thread::spawn(move || traffic::client(&binaries, pod("ratings-v1")?, &["tcp-talk", vip::MONGODB, "12"]));
    let lost = lost_syns()?;
    let (steady, fresh) = (calls(lab, "load-kept", &[])?, calls(lab, "load-fresh", &["--header", "connection:close"])?);
    let mut leaving = Vec::new();
    for host in HOSTS {
        pause(1.0);
        let old = lab.start_beside(Program::DpuProxy(host))?;
        old.id.signal(Signal::SIGTERM);
        lab.wait_ready(Program::DpuProxy(host))?;
        leaving.push(old);
    }
    for old in leaving {
        let log = old.wait(Duration::from_secs(40))?;
        ensure!(log.contains("has_successor=true"), "it did not know of its successor: {log}");
    }
    pause(1.0);
    for outcome in [steady.stop()?, fresh.stop()?] {
        faultless(&outcome)?;
    }
    let lost = lost_syns()? - lost;
    ensure!(lost == 0, "{lost} connections had to be asked for again, which takes a second each");
    let talked = talk.join().map_err(|_| anyhow::anyhow!("the talk's thread panicked"))??;
    ensure!(talked["answered"].as_u64() > Some(100), "on one connection: {talked}");
    Ok(())
}

/// Calls of the product page's pod, slow enough for a machine that does other things, too.
fn calls(lab: &Lab, name: &str, more: &[&str]) -> Result<Load> {
    let mut words = on(vip::REVIEWS, "reviews:9080", "/reviews/0");
    words.extend(["--rate", "30", "--connections", "4", "--seconds", "60"]);
    words.extend(more);
    Load::start(&lab.binaries, pod("productpage-v1")?, name, &words)
}

/// SYNs that were sent again so far, by the caller's pod and by the proxies: nobody took them the first time.
fn lost_syns() -> Result<u64> {
    let namespaces = [pod("productpage-v1")?.namespace()].into_iter().chain(HOSTS.map(Host::dpu));
    let lost = |namespace: String| probe::syns_sent_again(&shell::run_in(&namespace, "cat /proc/net/netstat")?);
    namespaces.map(lost).sum()
}

const ACCEPTED: &str = "envoy_listener_downstream_cx_total";

/// A connection of a pod on which nothing is said, as a client keeps one in reserve.
struct Silent(Child);

impl Silent {
    fn open(caller: &str, to: &str) -> Result<Self> {
        let mut command = shell::command_in(&pod(caller)?.namespace(), "bash");
        let open = format!("exec 3<>/dev/tcp/{}; exec sleep 30", to.replace(':', "/"));
        Ok(Self(command.args(["-c", &open]).spawn().context("cannot start bash")?))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = (self.0.kill(), self.0.wait());
    }
}

/// A request that is under way when SIGTERM comes is finished; who says nothing is not waited for.
fn stopped_proxy(lab: &mut Lab) -> Result<()> {
    let before = proxy_metric(HOSTS[0], ACCEPTED)?;
    let _silent = Silent::open("productpage-v1", vip::REVIEWS)?;
    shell::wait_for("the silent connection at the proxy", Duration::from_secs(5), || {
        ensure!(proxy_metric(HOSTS[0], ACCEPTED)? > before, "it has not come");
        Ok(())
    })?;
    let (before, capture) = (proxy_metric(HOSTS[0], ACCEPTED)?, Capture::start()?);
    let slow =
        std::thread::spawn(|| get("productpage-v1", vip::REVIEWS, "reviews", "/reviews/0", &["-H", "end-user: slow"]));
    // It is delayed for 500 ms from when it arrives.
    shell::wait_for("the request at the proxy", Duration::from_secs(5), || {
        ensure!(proxy_metric(HOSTS[0], ACCEPTED)? > before, "it has not come");
        Ok(())
    })?;
    lab.process(Program::DpuProxy(HOSTS[0]))?.stop()?;
    let answer = slow.join().map_err(|_| anyhow::anyhow!("the request's thread panicked"))??;
    ensure!(answer.status == 200, "the request that was under way: {answer:?}");
    without_proxy(lab, &capture)
}

fn killed_proxy(lab: &mut Lab) -> Result<()> {
    let capture = Capture::start()?;
    lab.process(Program::DpuProxy(HOSTS[0]))?.kill()?;
    without_proxy(lab, &capture)
}

/// Host1 has no proxy: its pods reach nobody and nobody reaches them, by whatever address. Then it has one again.
fn without_proxy(lab: &mut Lab, capture: &Capture) -> Result<()> {
    closed(lab)?;
    expect("reviews-v2", vip::DETAILS, "details", "/details/0", 200).context("both on the host that has its proxy")?;
    lab.start(Program::DpuProxy(HOSTS[0]))?;
    lab.wait_ready(Program::DpuProxy(HOSTS[0]))?;
    until_served(lab)?;
    shell::wait_for("calls in both directions", Duration::from_secs(10), || {
        expect("curl", vip::DETAILS, "details", "/details/0", 200)?;
        expect("reviews-v2", vip::RATINGS, "ratings", "/ratings/0", 200)?;
        expect("curl", vip::RATINGS, "ratings", "/ratings/0", 403)
    })?;
    clean(&capture.seen())
}

fn closed(lab: &Lab) -> Result<()> {
    let direct = |name: &str| Ok::<_, anyhow::Error>(format!("{}:9080", pod(name)?.address));
    for (from, to) in [
        ("curl", vip::DETAILS.to_owned()),
        ("curl", direct("details-v1")?),
        ("curl", direct("ratings-v1")?),
        ("reviews-v1", vip::RATINGS.to_owned()),
    ] {
        let answer = get(from, &to, "details", "/details/0", &["--max-time", "1"])?;
        ensure!(answer.status == 0, "without a proxy {from} was answered by {to}: {answer:?}");
    }
    let answer = get("reviews-v2", vip::RATINGS, "ratings", "/ratings/0", &["--max-time", "2"])?;
    ensure!(answer.status != 200, "without its host's proxy ratings answered: {answer:?}");
    let answer = traffic::client(&lab.binaries, pod("ratings-v1")?, &["tcp-ask", vip::MONGODB, "get", "ratings/0"]);
    ensure!(answer.is_err(), "without a proxy ratings was answered by mongodb: {answer:?}");
    Ok(())
}

fn expect(from: &str, address: &str, service: &str, path: &str, status: u16) -> Result<()> {
    let answer = get(from, address, service, path, &["--max-time", "3"])?;
    ensure!(answer.status == status, "{service} for {from}, and {status} is right: {answer:?}");
    Ok(())
}
