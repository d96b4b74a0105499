//! The daemon in an emulated host: ADD, CHECK, DEL, GC, crashes and refusals, with real links, real
//! `host-local`, and an audit of everything that could be left behind. Needs root.

mod host;

use host::{Host, follow, next, run};
use istio_dpu_cni::error::code;
use mesh_api::attach::Attachment;
use mesh_api::dataplane::{OnFailure, Steering};
use mesh_api::report::AttachmentState;
use serde_json::json;
use std::time::{Duration, Instant};

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_gets_its_vf_and_gives_it_back() {
    let mut host = Host::start().await;
    let netns = host.pod("a");
    let result = host.add("a", &netns).await.expect("attached");
    assert_eq!(result["ips"][0]["address"], "10.244.1.10/32");
    assert_eq!(result["interfaces"][0]["name"], "eth0");
    let link = run(&format!("ip -n {netns} -o link show eth0"));
    assert!(link.contains("UP") && link.contains(result["interfaces"][0]["mac"].as_str().expect("MAC")), "{link}");
    assert!(run(&format!("ip -n {netns} -o addr show eth0")).contains("10.244.1.10/32"));
    let routes = run(&format!("ip -n {netns} route"));
    assert!(
        routes.contains("default via 169.254.1.1 dev eth0")
            && routes.contains("\n169.254.1.1 dev eth0 proto static scope link"),
        "{routes}"
    );

    let port = host.dataplane.ports().remove(0);
    assert_eq!((port.id.as_str(), port.representor.as_str(), port.workload_uid.as_str()), ("vf0", "pf0vf0", "uid-a"));
    assert_eq!(
        (port.addresses[0].as_str(), port.steering(), port.on_failure()),
        ("10.244.1.10", Steering::Tcp, OnFailure::Closed)
    );
    let (handle, mut events) = follow(&host);
    let update = next(&handle, &mut events, Duration::from_secs(10)).await.expect("told");
    let attachment: Attachment = update.changed[0].decode().expect("attachment");
    assert_eq!(
        (attachment.name.as_str(), attachment.port_id.as_str(), attachment.pod_uid.as_str()),
        ("a", "vf0", "uid-a")
    );

    host.call("CHECK", "a", &netns, |conf| conf["prevResult"] = result.clone()).await.expect("as it was made");
    assert_eq!(host.add("a", &netns).await.expect_err("twice").code, code::ALREADY_ATTACHED);
    run(&format!("ip -n {netns} addr flush dev eth0"));
    let error = host.call("CHECK", "a", &netns, |conf| conf["prevResult"] = result.clone()).await.expect_err("flushed");
    assert!(error.code == code::CHECK_FAILED && error.msg.contains("lacks address 10.244.1.10/32"), "{error}");

    host.del("a", &netns).await.expect("detached");
    host.assert_clean().await;
    for _ in 0..3 {
        host.del("a", &netns).await.expect("any number of times");
    }
    let error = host.call("CHECK", "a", &netns, |conf| conf["prevResult"] = result.clone()).await.expect_err("gone");
    assert_eq!(error.code, code::CHECK_FAILED);
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_and_services_of_the_controller_reach_the_dataplane() {
    let host = Host::start().await;
    eventually("a route to host2 and the service", || {
        let state = host.dataplane.state();
        state.routes.len() == 1 && state.services.len() == 1
    })
    .await;
    let state = host.dataplane.state();
    assert_eq!(
        (state.routes[0].prefix.as_str(), state.routes[0].next_hop.as_str()),
        ("10.244.2.0/24", "192.168.100.2")
    );
    assert_eq!(state.services[0].backends.len(), 1, "only ready ones");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_dataplane_does_not_take_is_reported_and_keeps_nothing_else_back() {
    let mut host = Host::start().await;
    host.tell_of_a_service("too-many", host::dataplane::REFUSED_PORT);
    let refusal =
        "the dataplane refused service 10.96.0.9:6666: there is room for no more services (ResourceExhausted)";
    eventually("reported", || host.told.host().problems == [refusal]).await;
    let netns = host.pod("a");
    host.add("a", &netns).await.expect("attached");
    assert_eq!(host.dataplane.state().services.len(), 1, "the other one is there");
    host.withdraw_service("too-many");
    eventually("no longer a problem", || host.told.host().problems.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_outside_the_mesh_is_not_steered() {
    let mut host = Host::start().await;
    host.schedule("plain", false);
    let netns = host.sandbox("plain");
    host.add("plain", &netns).await.expect("attached");
    assert_eq!(host.dataplane.ports()[0].steering(), Steering::None);
    host.schedule("plain", true);
    eventually("the port follows the pod's labels", || host.dataplane.ports()[0].steering() == Steering::Tcp).await;
    host.del("plain", &netns).await.expect("detached");
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_in_the_middle_of_add_undoes_it_when_it_starts_again() {
    let mut host = Host::start().await;
    let netns = host.pod("a");
    host.dataplane.hold(Some("the proxy has no configuration"));
    let error = {
        let adding = host.add("a", &netns);
        tokio::pin!(adding);
        let in_the_middle = eventually("the VF is in the pod", || {
            run(&format!("ip -n {netns} -o addr")).contains("10.244.1.10") && !host.dataplane.ports().is_empty()
        });
        tokio::select! {
            outcome = &mut adding => panic!("ADD ended: {outcome:?}"),
            () = in_the_middle => {}
        }
        assert_ne!(host.audit(), host.before);
        run(&format!("kill -9 {}", host.pid()));
        adding.await.expect_err("nobody answers")
    };
    assert_eq!(error.code, code::TRY_AGAIN_LATER);
    host.restart().await;
    host.assert_clean().await;
    host.dataplane.hold(None);
    host.add("a", &netns).await.expect("attached by the next attempt");
    host.restart().await;
    assert_eq!(host.dataplane.ports().len(), 1, "what is attached stays over a restart");
    host.del("a", &netns).await.expect("detached from the record");
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vf_comes_back_when_its_pods_namespace_is_gone() {
    let mut host = Host::start().await;
    let netns = host.pod("a");
    host.add("a", &netns).await.expect("attached");
    run(&format!("ip netns del {netns}"));
    host.del("a", &netns).await.expect("detached");
    host.assert_clean().await;
    let netns = host.pod("b");
    host.call("ADD", "b", &netns, |conf| conf["deviceID"] = json!("vf0")).await.expect("the same VF serves again");
    host.kill();
    run(&format!("ip netns del {netns}"));
    host.restart().await;
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn collection_removes_what_the_runtime_no_longer_knows() {
    let mut host = Host::start().await;
    let (a, b) = (host.pod("a"), host.pod("b"));
    host.add("a", &a).await.expect("attached");
    host.add("b", &b).await.expect("attached");
    let valid = json!([{ "containerID": "c-b", "ifname": "eth0" }]);
    let collect = |conf: &mut serde_json::Value| {
        conf["cniVersion"] = json!("1.1.0");
        conf["cni.dev/valid-attachments"] = valid.clone();
    };
    host.call("GC", "-", "-", collect).await.expect("collected");
    let left: Vec<String> = host.dataplane.ports().into_iter().map(|port| port.name).collect();
    assert_eq!(left, ["b"]);
    host.del("b", &b).await.expect("detached");
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_come_and_go_side_by_side() {
    let mut host = Host::start().await;
    let pods: Vec<(String, String)> =
        ["a", "b", "c", "d"].iter().map(|pod| ((*pod).to_owned(), host.pod(pod))).collect();
    for _ in 0..3 {
        let added = futures_util::future::join_all(pods.iter().map(|(pod, netns)| host.add(pod, netns))).await;
        added.into_iter().for_each(|outcome| drop(outcome.expect("attached")));
        let addresses: std::collections::BTreeSet<String> =
            host.dataplane.ports().into_iter().flat_map(|port| port.addresses).collect();
        assert_eq!(addresses.len(), 4);
        // Twice at the same time, as runtimes do.
        let deletions = pods.iter().chain(&pods).map(|(pod, netns)| host.del(pod, netns));
        futures_util::future::join_all(deletions)
            .await
            .into_iter()
            .for_each(|outcome| drop(outcome.expect("detached")));
        host.assert_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_add_says_why_and_leaves_nothing() {
    let mut host = Host::start().await;
    let netns = host.pod("a");
    let error = host.call("ADD", "a", &netns, |conf| conf["deviceID"] = json!("vf9")).await.expect_err("unknown");
    assert!(error.code == code::UNKNOWN_VF && error.msg.contains("vf0, vf1, vf2, vf3"), "{error}");
    let error =
        host.call("ADD", "a", &netns, |conf| conf["ipam"] = json!({"type": "no-such"})).await.expect_err("no plugin");
    assert!(error.code == code::IPAM && error.msg.contains("no-such is not in CNI_PATH"), "{error}");
    let full = json!([[{ "subnet": "10.9.0.0/30", "rangeStart": "10.9.0.9" }]]);
    let error = host.call("ADD", "a", &netns, |conf| conf["ipam"]["ranges"] = full).await.expect_err("bad range");
    assert_eq!(error.code, code::IPAM, "{error}");
    let error = host.add("a", "dm-cni-none").await.expect_err("no namespace");
    assert!(error.code == code::INVALID_ENVIRONMENT && error.msg.contains("dm-cni-none"), "{error}");
    run(&format!("ip -n {netns} link add eth0 type veth peer name other"));
    let error = host.add("a", &netns).await.expect_err("taken");
    assert!(error.code == code::KERNEL && error.msg.contains("eth0"), "{error}");
    run(&format!("ip -n {netns} link del eth0"));

    host.dataplane.hold(Some("the proxy has no configuration"));
    let error = host.call("ADD", "a", &netns, |conf| conf["readyTimeoutMs"] = json!(300)).await.expect_err("closed");
    assert!(error.code == code::NOT_READY && error.msg.contains("the proxy has no configuration"), "{error}");
    host.dataplane.hold(None);
    let stranger = host.sandbox("stranger");
    let error =
        host.call("ADD", "stranger", &stranger, |conf| conf["readyTimeoutMs"] = json!(300)).await.expect_err("unknown");
    assert!(error.code == code::TRY_AGAIN_LATER && error.msg.contains("does not know pod n/stranger"), "{error}");
    host.assert_clean().await;
    host.add("a", &netns).await.expect("everything else is unharmed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_is_told_of_each_attachment_and_of_the_host() {
    let mut host = Host::start().await;
    let netns = host.pod("a");
    let told = host.told.clone();
    host.dataplane.hold(Some("the proxy has no configuration"));
    let hurry = |conf: &mut serde_json::Value| conf["readyTimeoutMs"] = json!(1500);
    let adding = host.call("ADD", "a", &netns, hurry);
    let attaching = eventually("attaching", || told.pod("a").is_some_and(|pod| pod.0 == AttachmentState::Attaching));
    let (failed, ()) = tokio::join!(adding, attaching);
    failed.expect_err("closed");
    eventually("failed, with the words of the error", || {
        told.pod("a").is_some_and(|(state, reason)| {
            state == AttachmentState::Failed && reason.contains("the proxy has no configuration")
        })
    })
    .await;
    host.dataplane.hold(None);
    host.add("a", &netns).await.expect("attached");
    eventually("open", || told.pod("a") == Some((AttachmentState::Open, String::new()))).await;
    eventually("the host", || {
        let host = told.host();
        (host.vfs_total, host.vfs_free, host.dataplane_connected) == (4, 3, true)
            && host.underlay_address == "192.168.100.1"
            && host.problems.is_empty()
    })
    .await;
    host.dataplane.hold(Some("withdrawn"));
    eventually("closed", || told.pod("a") == Some((AttachmentState::Closed, "withdrawn".to_owned()))).await;
    host.del("a", &netns).await.expect("detached");
    eventually("gone", || told.pod("a").is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_gets_no_vf_is_told_who_has_them_and_the_node_stays_fit() {
    let mut host = Host::start().await;
    for pod in ["a", "b", "c", "d"] {
        let netns = host.pod(pod);
        host.add(pod, &netns).await.expect("attached");
    }
    let late = host.pod("late");
    let error = host.add("late", &late).await.expect_err("full");
    assert_eq!(error.code, code::VF_NOT_FREE);
    assert_eq!(error.msg, "no VF is free on this node: all 4 are in use, by n/a, n/b, n/c, n/d");
    assert!(error.details.contains("starts when another one leaves"), "{error}");
    host.call("STATUS", "-", "-", |conf| conf["cniVersion"] = json!("1.1.0")).await.expect("pods are not evicted");
    host.del("a", "-").await.expect("detached");
    host.add("late", &late).await.expect("attached when another one has left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_asks_for_a_network_that_does_not_exist_is_told_so() {
    let mut host = Host::start().await;
    host.schedule_in("blue", "a", true);
    let netns = host.sandbox("a");
    let error = host.add("a", &netns).await.expect_err("no such network");
    assert_eq!(error.code, code::TRY_AGAIN_LATER);
    assert_eq!(error.msg, "pod n/a asks for Network \"blue\", which does not exist: there is none");
    assert!(error.details.contains("dpumesh.io/network"), "{error}");
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_not_mounted_for_the_daemon_is_told_from_one_that_is_gone() {
    let mut host = Host::start().await;
    host.schedule("a", true);
    let file = host.folder.path().join("netns");
    std::fs::write(&file, "").expect("a mount point without its mount");
    let netns = format!("../..{}", file.display());
    let error = host.add("a", &netns).await.expect_err("not mounted");
    assert!(error.code == code::KERNEL && error.details.contains("HostToContainer"), "{error}");
    let netns = host.sandbox("a");
    host.add("a", &netns).await.expect("attached");
    host.del("a", &netns).await.expect("detached");
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_speaks_garbage_is_told_so() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let host = Host::start().await;
    for garbage in ["", "GET / HTTP/1.1\r\n\r\n", r#"{"environment":{}}"#] {
        let mut stream = tokio::net::UnixStream::connect(host.folder.path().join("cni.sock")).await.expect("listening");
        stream.write_all(garbage.as_bytes()).await.expect("sent");
        stream.shutdown().await.expect("ended");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        assert!(answer.contains("\"code\":6"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_may_have_addresses_of_both_families() {
    let mut host = Host::start().await;
    let netns = host.pod("a");
    let ranges = json!([[{ "subnet": "10.244.1.0/24", "rangeStart": "10.244.1.10" }], [{ "subnet": "fd00:1::/64" }]]);
    let result = host.call("ADD", "a", &netns, |conf| conf["ipam"]["ranges"] = ranges).await.expect("attached");
    assert_eq!(result["ips"][1]["gateway"], "fe80::1");
    let address = result["ips"][1]["address"].as_str().expect("address");
    assert!(address.ends_with("/128"), "{address}");
    let shown = run(&format!("ip -n {netns} -6 -o addr show eth0"));
    assert!(shown.contains(address.trim_end_matches("/128")), "{shown}");
    assert!(run(&format!("ip -n {netns} -6 route")).contains("default via fe80::1 dev eth0"));
    assert_eq!(host.dataplane.ports()[0].addresses.len(), 2);
    host.call("CHECK", "a", &netns, |conf| conf["prevResult"] = result.clone()).await.expect("as it was made");
    host.del("a", &netns).await.expect("detached");
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_dataplane_is_away_nothing_is_given_and_no_address_is_reused() {
    let mut host = Host::start().await;
    let (a, b) = (host.pod("a"), host.pod("b"));
    host.add("a", &a).await.expect("attached");
    host.dataplane.set_down(true);
    let error = host.add("b", &b).await.expect_err("no dataplane");
    assert!(error.code == code::TRY_AGAIN_LATER && error.msg.contains("the link to the DPU is down"), "{error}");
    host.del("a", &a).await.expect("the runtime need not ask again");
    assert!(!run(&format!("ip -n {a} -o link")).contains("eth0"), "the VF left the pod at once");
    assert!(host.audit()["addresses given"].contains("10.244.1.10"), "the port may still let it pass");
    let attachments = host.get("/attachments");
    assert!(
        attachments.contains("\"removing\"") && attachments.contains("the link to the DPU is down"),
        "{attachments}"
    );
    host.dataplane.set_down(false);
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_tells_how_it_is() {
    let mut host = Host::start().await;
    let netns = host.pod("a");
    host.add("a", &netns).await.expect("attached");
    eventually("ready", || host.get("/readyz").contains("200 OK")).await;
    eventually("counted", || host.get("/metrics").contains("cni_vfs{state=\"free\"} 3")).await;
    let attachments = host.get("/attachments");
    for part in ["\"pod\": \"a\"", "\"state\": \"attached\"", "\"port\": \"open\"", "\"vf\": \"vf0\""] {
        assert!(attachments.contains(part), "{part} is not in {attachments}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_told_to_stop_ends_soon_and_leaves_attachments_as_they_are() {
    let mut host = Host::start().await;
    let netns = host.pod("a");
    host.add("a", &netns).await.expect("attached");
    let (before, started) = (host.audit(), Instant::now());
    run(&format!("kill -TERM {}", host.pid()));
    assert!(host.wait().success());
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(host.audit(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_that_comes_back_after_a_restart_is_not_told_that_pods_are_gone() {
    let mut host = Host::start().await;
    let (a, b) = (host.pod("a"), host.pod("b"));
    host.add("a", &a).await.expect("attached");
    let (handle, mut events) = follow(&host);
    let first = next(&handle, &mut events, Duration::from_secs(10)).await.expect("told");
    assert_eq!(first.changed[0].name, "n/a");
    host.restart().await;
    assert_eq!(
        next(&handle, &mut events, Duration::from_secs(1)).await.filter(|update| !update.removed.is_empty()),
        None
    );
    host.add("b", &b).await.expect("attached");
    let names = |update: &xds::client::Update| update.changed.iter().map(|one| one.name.clone()).collect::<Vec<_>>();
    let mut update = next(&handle, &mut events, Duration::from_secs(10)).await.expect("told");
    while update.changed.is_empty() && update.removed.is_empty() {
        update = next(&handle, &mut events, Duration::from_secs(10)).await.expect("told");
    }
    assert_eq!((names(&update), update.removed), (vec!["n/b".to_owned()], Vec::new()));
    host.del("a", &a).await.expect("detached");
    assert_eq!(next(&handle, &mut events, Duration::from_secs(10)).await.expect("told").removed, ["n/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_at_any_moment_of_add_or_del_leaves_nothing_after_del() {
    let mut host = Host::start().await;
    let netns = host.pod("a");
    for command in ["ADD", "DEL"] {
        for delay_ms in [3, 10, 20, 35, 50, 70, 95, 130] {
            if command == "DEL" {
                host.add("a", &netns).await.expect("attached");
            }
            let pid = host.pid();
            let killer = tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(delay_ms)).await;
                run(&format!("kill -9 {pid}"));
            });
            // It may have come to its end before, or not.
            let _ = host.call(command, "a", &netns, |_| {}).await;
            killer.await.expect("killed");
            host.restart().await;
            host.del("a", &netns).await.expect("detached");
            host.assert_clean().await;
        }
    }
}
