//! Machines keep their files apart, see their DPU, and leave nothing behind. Needs root.

use cluster::layout::{self, HOSTS};
use cluster::machine::{Machine, Process};
use cluster::{control, dpu, node, state};
use lab::probe;
use std::io::ErrorKind;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

#[test]
fn machines_keep_their_files_apart_and_leave_nothing() {
    state::claim(false).expect("no other cluster runs");
    let outcome = std::panic::catch_unwind(run);
    state::remove_all();
    assert_eq!(state::leftovers(), Vec::<String>::new());
    outcome.expect("what was checked");
}

fn run() {
    control::build().expect("control plane's networks");
    for host in HOSTS {
        dpu::build(host).expect("DPU");
        node::build(host).expect("node");
    }
    let [one, two] = HOSTS.map(|host| Machine::find(&host.node()).expect("node"));
    one.run("touch /etc/cni/of-one").expect("written");
    assert!(one.file("/etc/cni/of-one").exists());
    two.run("ls /etc/cni/of-one").expect_err("node2 has files of its own");
    assert!(!std::path::Path::new("/etc/cni/of-one").exists());
    let seen =
        one.run(&format!("nsenter --net=/run/netns/{} ip -br link", layout::DPU_NETNS)).expect("the DPU's links");
    assert!(seen.contains("pf0vf0") && seen.contains("uplink"), "{seen}");
    reaches("node1", "192.168.100.2");
    reaches("node1", "192.0.2.12");
    reaches("dpu1", "192.168.90.2");
    reaches("dpu1", "192.0.2.12");
    killed(&one);
}

/// A port that nobody listens on is refused by the machine that has the address.
fn reaches(from: &str, address: &'static str) {
    let attempt = probe::inside(&layout::netns(from), move || {
        let to = (address, 9).to_socket_addrs()?.next().expect("an address");
        Ok(TcpStream::connect_timeout(&to, Duration::from_secs(2)).map(drop))
    });
    let refusal = attempt.expect("a namespace").expect_err("nobody listens");
    assert_eq!(refusal.kind(), ErrorKind::ConnectionRefused, "{from} to {address}");
}

/// A program that is killed by its name outside is the one inside.
fn killed(machine: &Machine) {
    machine.spawn("sleep", &["600".to_owned()]).expect("started");
    let process = Process::find("node1-sleep").expect("found");
    let inside = machine.run("pgrep -x sleep").expect("pgrep");
    let of_init: Vec<i32> = inside.lines().filter_map(|pid| machine.pid_outside(pid.parse().ok()?)).collect();
    assert!(of_init.contains(&process.id().expect("id").pid), "{inside} {of_init:?}");
    process.kill().expect("killed");
    assert!(machine.is_alive());
}
