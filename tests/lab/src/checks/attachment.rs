//! Pods come and go: CHECK, DEL, ADD again, and what a bad runtime does.

use super::Check;
use super::wait::{get, pod};
use crate::cni;
use crate::lab::Lab;
use crate::pods::{PODS, vip};
use crate::{probe, shell};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "every_pod_has_the_recorded_address_on_its_vf", run: addresses },
    Check { name: "check_confirms_an_attachment", run: check },
    Check { name: "a_pod_that_is_deleted_and_added_again_serves_again", run: delete_and_add },
    Check { name: "del_may_come_any_number_of_times", run: delete_twice },
];

fn addresses(_: &mut Lab) -> Result<()> {
    for pod in &PODS {
        let shown = shell::run_in(&pod.namespace(), "ip -4 -br address show eth0")?;
        ensure!(shown.contains(&format!(" {}/", pod.address)), "{}: {shown}", pod.name);
    }
    let metrics = probe::get(&PODS[0].host.namespace(), "127.0.0.1:15121", "/metrics")?;
    ensure!(!metrics.is_empty(), "the node daemon has no metrics");
    Ok(())
}

fn check(lab: &mut Lab) -> Result<()> {
    let curl = pod("curl")?;
    let mut netconf = cni::netconf(curl);
    // What ADD printed: asked for again, ADD of an attached pod is refused; so from the daemon's view.
    let address = format!("{}/24", curl.address);
    netconf["prevResult"] = serde_json::json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "eth0", "mac": mac(curl)?, "sandbox": format!("/run/netns/{}", curl.namespace()) }],
        "ips": [{ "address": address, "interface": 0 }],
    });
    let called = cni::call(&lab.binaries, "CHECK", curl, &netconf)?;
    ensure!(called.success, "{}", called.output);
    Ok(())
}

fn mac(pod: &crate::pods::Pod) -> Result<String> {
    let shown = shell::run_in(&pod.namespace(), "ip -br link show eth0")?;
    Ok(shown.split_whitespace().nth(2).context("eth0 has no MAC")?.to_owned())
}

fn delete_and_add(lab: &mut Lab) -> Result<()> {
    let details = pod("details-v1")?;
    lab.detach(details)?;
    let links = shell::run_in(&details.namespace(), "ip -br link show")?;
    ensure!(!links.contains("eth0"), "after DEL the pod has {links}");
    let answer = get("curl", vip::DETAILS, "details", "/details/0", &["--max-time", "3"])?;
    ensure!(answer.status != 200, "a deleted pod answered");
    lab.attach(details)?;
    serves_again()
}

fn delete_twice(lab: &mut Lab) -> Result<()> {
    let details = pod("details-v1")?;
    for _ in 0..3 {
        lab.detach(details)?;
    }
    lab.attach(details)?;
    serves_again()
}

fn serves_again() -> Result<()> {
    shell::wait_for("details after ADD", Duration::from_secs(15), || {
        let answer = get("curl", vip::DETAILS, "details", "/details/0", &["--max-time", "2"])?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })
}
