//! The host's route to its own pods: there while the DPU takes what comes by it, and never in the place of another's.
//! Needs root.

mod host;

use host::{Host, run};
use std::time::{Duration, Instant};

const GATEWAY: &str = "192.168.101.2";

/// A host with a link to its DPU and a daemon that is asked for the route.
async fn started() -> Host {
    let mut host = Host::start().await;
    let (here, dpu) = (host.netns(), host.dpu_netns());
    run(&format!(
        "ip -n {here} link add pf0 type veth peer name pf0hpf netns {dpu} && ip -n {here} addr add 192.168.101.1/24 dev pf0 \
         && ip -n {here} link set pf0 up && ip -n {dpu} link set pf0hpf up"
    ));
    host.arguments = vec![format!("--pod-gateway={GATEWAY}")];
    host.restart().await;
    host
}

fn routes(host: &Host) -> String {
    run(&format!("ip -n {} route show 10.244.0.0/16 && ip -n {0} route show proto 215", host.netns()))
}

fn all(host: &Host) -> String {
    run(&format!("ip -n {} route show", host.netns()))
}

/// What the daemon knows of the dataplane is at most ten seconds old.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(25);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn problem(host: &Host, text: &str) -> bool {
    host.told.host().problems.iter().any(|problem| problem.contains(text))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_route_is_there_while_the_dataplane_has_its_end_of_the_link() {
    let mut host = started().await;
    let before = all(&host);
    eventually("it is told what is missing", || problem(&host, "--host-interface")).await;
    assert_eq!(all(&host), before, "no route to a DPU that would not take what comes by it");
    host.dataplane.set_host("pf0hpf");
    eventually("the route", || routes(&host).contains(&format!("10.244.1.0/24 via {GATEWAY} dev pf0"))).await;
    eventually("no complaint", || !problem(&host, "--host-interface")).await;
    // Somebody takes it away; the daemon is killed; the dataplane is away: it is there all the same.
    run(&format!("ip -n {} route del 10.244.1.0/24", host.netns()));
    eventually("it is put back", || routes(&host).contains(GATEWAY)).await;
    host.kill();
    assert!(routes(&host).contains(GATEWAY));
    host.dataplane.set_down(true);
    host.launch();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(routes(&host).contains(GATEWAY), "{}", all(&host));
    host.dataplane.set_down(false);
    host.dataplane.set_host("");
    eventually("it goes with the link", || !all(&host).contains(GATEWAY)).await;
    assert_eq!(all(&host), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_is_no_longer_asked_for_goes_at_the_next_start_and_those_of_others_stay() {
    let mut host = started().await;
    let here = host.netns();
    run(&format!("ip -n {here} route add 10.244.1.0/24 via 192.168.101.9"));
    host.dataplane.set_host("pf0hpf");
    eventually("it is told what is in its way", || problem(&host, "another route to it is there already")).await;
    assert!(all(&host).contains("10.244.1.0/24 via 192.168.101.9"));
    run(&format!("ip -n {here} route del 10.244.1.0/24 && ip -n {here} route add 10.9.0.0/16 via {GATEWAY}"));
    eventually("the route", || routes(&host).contains(GATEWAY)).await;
    host.arguments.clear();
    host.restart().await;
    eventually("ours is gone", || !all(&host).contains("10.244.1.0/24")).await;
    assert!(all(&host).contains(&format!("10.9.0.0/16 via {GATEWAY}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uninstall_by_hand_takes_the_route_away() {
    let mut host = started().await;
    host.dataplane.set_host("pf0hpf");
    eventually("the route", || routes(&host).contains(GATEWAY)).await;
    host.kill();
    let folder = host.folder.path().display();
    run(&format!(
        "nsenter --net=/run/netns/{} {} uninstall --install-conf-dir {folder} --state-dir {folder}/state \
         --socket {folder}/cni.sock --attachments {folder}/attachments.sock",
        host.netns(),
        env!("CARGO_BIN_EXE_istio-dpu-cni-node")
    ));
    assert!(!all(&host).contains(GATEWAY), "{}", all(&host));
}
