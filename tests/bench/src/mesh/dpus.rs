//! Our side: the lab with every pod attached, its proxies on their core with one worker each.

use super::{AUTHORITY, CALLEE, PATH, pod, server};
use crate::PROXY_CORE;
use crate::load::{LOAD_CORE, Target};
use crate::machine::on_core;
use crate::measure::Subject;
use anyhow::ensure;
use lab::lab::Lab;
use lab::pods::{PODS, vip};
use lab::programs::{Program, ProxyOptions};
use lab::topology::{HOSTS, Host, build};
use lab::{shell, traffic};
use std::time::Duration;

/// The lab; removed when dropped.
pub struct Dpus {
    #[allow(dead_code, reason = "held for its drop")]
    lab: Lab,
    /// Process ids of the proxies, by host.
    proxies: Vec<(Host, u32)>,
}

impl Dpus {
    /// Starts everything, and waits until the callee answers both callers.
    pub fn start() -> anyhow::Result<Self> {
        let mut lab = Lab::new(false)?;
        // What people want of a lab, a line for every hop, is no part of what is compared.
        lab.proxy = ProxyOptions { concurrency: 1, hop_log: false, ..ProxyOptions::default() };
        for program in Program::all() {
            let core = if matches!(program, Program::DpuProxy(_)) { PROXY_CORE } else { LOAD_CORE };
            on_core(core, || lab.start(program))??;
        }
        Program::all().into_iter().try_for_each(|program| lab.wait_ready(program))?;
        for pod in &PODS {
            build::namespace(&pod.namespace())?;
            lab.attach(pod)?;
        }
        server::start("bench-ratings", &pod(CALLEE)?.namespace())?;
        let proxies = HOSTS.into_iter().map(|host| Ok((host, lab.process(Program::DpuProxy(host))?.id.pid as u32)));
        let proxies = proxies.collect::<anyhow::Result<Vec<_>>>()?;
        super::all().iter().try_for_each(|case| until_answered(case.caller))?;
        Ok(Self { lab, proxies })
    }

    /// The proxies that a call of this pod passes.
    pub fn subject(&self, caller: &str) -> anyhow::Result<Subject> {
        let (caller, callee) = (pod(caller)?, pod(CALLEE)?);
        let passed = self.proxies.iter().filter(|(host, _)| *host == caller.host || *host == callee.host);
        let target = Target {
            namespace: Some(caller.namespace()),
            address: vip::RATINGS.parse()?,
            host: Some(AUTHORITY),
            path: PATH,
        };
        Ok(Subject { processes: passed.map(|(_, pid)| *pid).collect(), target })
    }
}

fn until_answered(caller: &str) -> anyhow::Result<()> {
    let caller = pod(caller)?;
    shell::wait_for(&format!("an answer to {}", caller.name), Duration::from_secs(30), || {
        let answer = traffic::curl(caller, vip::RATINGS, AUTHORITY, PATH, &[])?;
        ensure!(answer.status == 200, "it is {} {} {}", answer.status, answer.text.trim(), answer.error);
        Ok(())
    })
}
