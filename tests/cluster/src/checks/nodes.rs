//! A node that leaves and comes back, and a DPU whose certificate has expired.

use super::leaks::audited;
use super::{Check, Stage};
use crate::bookinfo;
use crate::control;
use crate::install::prepare_dpu;
use crate::kubectl;
use crate::layout::{HOSTS, Host};
use crate::machine::Machine;
use crate::node;
use crate::pki::write_private;
use crate::product::{self, NAMESPACE};
use anyhow::{Context, Result, ensure};
use lab::shell;
use rcgen::{CertificateParams, Issuer, KeyPair, SanType, date_time_ymd};
use serde_json::Value;
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "a_dpu_whose_certificate_has_expired_is_told_of_where_one_looks", run: expired_certificate },
    Check { name: "a_node_is_drained_and_deleted_and_comes_back", run: deleted },
];

fn deleted(stage: &Stage) -> Result<String> {
    let host = HOSTS[1];
    let node = host.node();
    kubectl::run(&format!("drain {node} --ignore-daemonsets --delete-emptydir-data --force --timeout=60s"))?;
    kubectl::run(&format!("delete node {node}"))?;
    gone(&node)?;
    stage.bookinfo_on_one_node()?;
    node::Program::Kubelet.process(host)?.stop()?;
    node::Program::Kubelet.start(&stage.cluster.tools, host)?;
    node::wait(host)?;
    shell::wait_for("addresses of the node's pods", Duration::from_secs(10), || control::route(host))?;
    back(&node)?;
    product::wait_ready("controller", 2)?;
    product::wait_ready("adapter", HOSTS.len())?;
    product::wait_ready("cni-node", HOSTS.len())?;
    let left = audited(host)?;
    spread_again(stage)?;
    Ok(format!("its DpuNode went with it and came back; in between it held nothing: {left}"))
}

fn gone(node: &str) -> Result<()> {
    shell::wait_for(&format!("end of DpuNode {node}"), Duration::from_secs(60), || {
        let there = kubectl::run(&format!("get dpunode {node} --ignore-not-found -o name"))?;
        ensure!(there.trim().is_empty(), "it is still there");
        Ok(())
    })
}

fn back(node: &str) -> Result<()> {
    kubectl::wait_condition(&format!("dpunode {node}"), "Ready", 90)
}

/// Pods that were driven from a node don't go back by themselves.
fn spread_again(stage: &Stage) -> Result<()> {
    kubectl::run(&format!("-n {} delete pods --all --wait=false", bookinfo::NAMESPACE))?;
    std::thread::sleep(Duration::from_secs(2));
    bookinfo::wait_ready(bookinfo::PODS)?;
    stage.bookinfo()?.wait_served()
}

/// The daemon of the node refuses the dataplane's certificate; what is attached goes on meanwhile.
fn expired_certificate(stage: &Stage) -> Result<String> {
    let host = HOSTS[0];
    expire(host, "dataplane")?;
    let told = product::kill(&Machine::find(&host.node())?.pids_of("istio-dpu-cni-node")).and_then(|()| {
        let told = shell::wait_for("word of the expired certificate", Duration::from_secs(40), || told(host))?;
        stage.bookinfo()?.page().context("while the certificate is expired")?;
        Ok(told)
    });
    prepare_dpu(&stage.cluster, host)?;
    let recovered = back(&host.node());
    told.and_then(|text| recovered.map(|()| text))
}

/// What `kubectl describe dpunode` or the daemon's log says of it.
fn told(host: Host) -> Result<String> {
    let status = kubectl::json(&format!("get dpunode {}", host.node()))?["status"].clone();
    let problems = status["problems"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let log = log(host)?;
    let line = problems.chain(log.lines().rev()).find(|line| line.to_lowercase().contains("expired"));
    line.map(str::to_owned).with_context(|| format!("neither the DpuNode nor the daemon's log speaks of it: {status}"))
}

/// The end of the node daemon's log.
fn log(host: Host) -> Result<String> {
    let of_node = format!("--field-selector spec.nodeName={}", host.node());
    let pods = format!("-n {NAMESPACE} get pods -l app.kubernetes.io/component=cni-node {of_node}");
    let pod = kubectl::json(&pods)?["items"][0]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    kubectl::run(&format!("-n {NAMESPACE} logs {pod} --tail=50"))
}

/// Puts a certificate of a DPU's program in place that was valid once.
fn expire(host: Host, program: &str) -> Result<()> {
    let machine = Machine::find(&host.dpu())?;
    let secret = kubectl::json(&format!("-n {NAMESPACE} get secret dpumesh-ca"))?;
    let read = |name: &str| -> Result<String> {
        let path = machine.file("/run").join(format!("ca-{name}"));
        let text = secret["data"][name].as_str().with_context(|| format!("the Secret has no {name}"))?;
        let decoded = shell::output(std::process::Command::new("base64").arg("-d").arg(write(&path, text)?))?;
        std::fs::remove_file(&path)?;
        Ok(String::from_utf8(decoded.stdout)?)
    };
    let issuer = Issuer::from_ca_cert_pem(&read("tls.crt")?, KeyPair::from_pem(&read("tls.key")?)?)?;
    let key = KeyPair::generate()?;
    let mut params =
        CertificateParams::new(vec![program.to_owned(), service::grpc::server_name(program, &host.node())])?;
    params.subject_alt_names.push(SanType::URI(service::grpc::program_identity(program, &host.node()).try_into()?));
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    let folder = machine.file("/etc/dpumesh/tls");
    write_private(&folder.join(format!("{program}-key.pem")), &key.serialize_pem())?;
    write_private(&folder.join(format!("{program}.pem")), &params.signed_by(&key, &issuer)?.pem())
}

fn write<'a>(path: &'a std::path::Path, text: &str) -> Result<&'a std::path::Path> {
    write_private(path, text)?;
    Ok(path)
}
