//! One proxy follows another on a DPU: the new one is a process of its own that starts beside the old one.

mod lab;

use lab::proxy::{Proxy, accept};
use lab::*;
use mesh_api::dataplane as wire;
use mesh_api::dataplane::operation::Operation as Kind;
use mesh_api::steering::from_proxy::Message as Asked;
use mesh_api::steering::{Leaving, PortNotReady, TakenOver};
use std::io::{Read, Write};

/// Connections that a pod opens while nobody accepts.
const WAITING: usize = 16;

fn governed(name: &str) -> Lab {
    let lab = Lab::new(name, 1);
    lab.apply(vec![Kind::PutPort(port(1))]).expect("port");
    lab
}

fn not_ready() -> Asked {
    Asked::PortNotReady(PortNotReady { port_id: "vf1".to_owned(), reason: "no configuration yet".to_owned() })
}

fn is_open(lab: &Lab) -> bool {
    lab.statuses()["vf1"].state() == wire::PortState::Open
}

#[test]
fn a_new_proxy_takes_over_and_no_connection_is_lost() {
    let lab = governed("next");
    let mut old = Proxy::started(&lab, 1);
    let listener = old.govern(&lab, 1);
    let talk = lab.spawn("pod1", || {
        let mut stream = connect("203.0.113.9:80", PATIENCE).expect("connect");
        let mut both = [0; 2];
        stream.read_exact(&mut both[..1]).expect("before");
        stream.write_all(b"?").expect("write");
        stream.read_exact(&mut both[1..]).expect("after");
        both
    });
    let (mut established, _) = accept(&listener).expect("steered");
    established.write_all(b"1").expect("write");
    established.read_exact(&mut [0]).expect("read");

    let mut new = Proxy::started(&lab, 2);
    assert_eq!(new.others.served_by_older, ["vf1"]);
    new.ask(not_ready(), None).expect("heard");
    assert!(is_open(&lab), "the old one serves it");
    let next = new.govern(&lab, 1);
    new.ask(Asked::TakenOver(TakenOver {}), None).expect("heard");
    old.until(|others| others.has_newer_taken_over);

    // The kernel has spread them over both processes; those at the old one's socket go to the new one's.
    let waiting: Vec<_> = lab.within("pod1", || {
        let streams = (0..WAITING).map(|_| connect("203.0.113.9:80", PATIENCE).expect("connect"));
        streams.collect()
    });
    drop(listener);
    old.ask(Asked::Leaving(Leaving {}), None).expect("heard");
    new.until(|others| others.served_by_older.is_empty());
    let mut accepted: Vec<_> = (0..WAITING).map(|_| accept(&next).expect("none is lost").0).collect();
    accepted.iter_mut().for_each(|stream| stream.write_all(b"x").expect("write"));
    for mut stream in waiting {
        stream.read_exact(&mut [0]).expect("answered");
    }
    established.write_all(b"2").expect("the old one finishes what it has");
    assert_eq!(&talk.join().expect("pod"), b"12");
    drop(old);
    assert!(is_open(&lab));
}

#[test]
fn a_new_proxy_that_dies_leaves_everything_to_the_old_one() {
    let lab = governed("dies");
    let mut old = Proxy::started(&lab, 1);
    let listener = old.govern(&lab, 1);
    let mut new = Proxy::started(&lab, 2);
    let next = new.govern(&lab, 1);
    old.until(|others| others.is_newer_here);
    drop((new, next));
    old.until(|others| !others.is_newer_here);
    assert!(is_open(&lab));
    old.register(&listener, mesh_api::steering::Direction::Outbound, "vf1", 4);
    let pod = lab.spawn("pod1", || connect("203.0.113.9:80", PATIENCE).expect("connect"));
    accept(&listener).expect("steered");
    pod.join().expect("pod");
}

#[test]
fn a_port_that_only_the_old_proxy_could_serve_is_closed_when_that_goes() {
    let lab = governed("only");
    let mut old = Proxy::started(&lab, 1);
    let _listener = old.govern(&lab, 1);
    let mut new = Proxy::started(&lab, 2);
    new.ask(not_ready(), None).expect("heard");
    assert!(is_open(&lab));
    drop(old);
    eventually("the port is closed", || !is_open(&lab));
    assert!(lab.statuses()["vf1"].reason.contains("no configuration yet"), "{}", lab.statuses()["vf1"].reason);
}

#[test]
fn after_a_restart_of_the_dataplane_the_older_process_does_not_become_the_newer_one() {
    let lab = governed("rank");
    let mut new = Proxy::started(&lab, 2);
    let next = new.govern(&lab, 1);
    // It calls later, as it may when the dataplane comes back.
    let mut old = Proxy::started(&lab, 1);
    let listener = old.listen(&lab, "rep1", mesh_api::steering::Direction::Outbound, "vf1", 4);
    assert!(old.others.is_newer_here);
    drop(listener);
    let pod = lab.spawn("pod1", || connect("203.0.113.9:80", PATIENCE).expect("connect"));
    accept(&next).expect("steered to the newer one");
    pod.join().expect("pod");
}
