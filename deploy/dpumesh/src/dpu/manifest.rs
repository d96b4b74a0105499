//! The files that make a DPU run its programs: static pods for its kubelet, and the proxy's bootstrap. Pure.

use super::files::File;
use super::settings::Settings;
use std::net::IpAddr;
use xxhash_rust::xxh64::xxh64;

const DATAPLANE: &str = include_str!("../../../dpu/dataplane.yaml");
const DPU_PROXY: &str = include_str!("../../../dpu/dpu-proxy.yaml");
const BOOTSTRAP: &str = include_str!("../../../dpu/bootstrap.json");

/// Below the DPU's root: the folders that the static pods mount, and the one that its kubelet reads.
const MANIFESTS: &str = "etc/kubernetes/manifests";
const CONFIGURATION: &str = "etc/dpumesh";

/// How long a proxy that is told to stop serves on until a new one is here, as in its manifest: a kubelet without API server
/// takes ten seconds between the old pod's signal and the new pod's start. And what is left until the kubelet kills it.
const SUCCESSOR_WAIT_S: u32 = 30;
const GRACE_S: u32 = 40;

/// All files for the DPU of a node, with paths below the DPU's root.
pub fn files(node: &str, settings: &Settings) -> Vec<File> {
    let fill = |template: &str| fill(template, node, settings);
    let bootstrap = fill(BOOTSTRAP);
    let proxy = named(&fill(DPU_PROXY), &bootstrap);
    // The kubelet looks all the time: what a pod reads is written before the pod.
    vec![
        File::public(format!("{CONFIGURATION}/bootstrap.json"), bootstrap),
        File::public(format!("{MANIFESTS}/dpumesh-dataplane.yaml"), fill(DATAPLANE)),
        File::public(format!("{MANIFESTS}/dpumesh-dpu-proxy.yaml"), proxy),
    ]
}

/// A pod of another name for each content: the kubelet then starts the new proxy beside the old one, which leaves once
/// the new one has taken over. Of one name it would start it after the old one's end.
fn named(manifest: &str, bootstrap: &str) -> String {
    let content = [manifest, bootstrap].concat();
    manifest.replace("${REVISION}", &format!("{:08x}", xxh64(content.as_bytes(), 0) >> 32))
}

/// The same on one page.
pub fn page(files: &[File]) -> String {
    files.iter().map(|file| format!("# ---- /{}\n{}", file.path, file.text)).collect::<Vec<_>>().join("\n")
}

fn fill(template: &str, node: &str, settings: &Settings) -> String {
    let management = &settings.management;
    let mut text = template.to_owned();
    for (name, value) in [
        ("NODE", node.to_owned()),
        ("REGISTRY", settings.image.registry.clone()),
        ("TAG", settings.image.tag.clone()),
        ("PULL_POLICY", settings.image.pull_policy.clone()),
        ("UPLINK", settings.dpu.uplink.clone()),
        ("HOST_INTERFACE_ARG", host_interface(&settings.dpu.host_interface)),
        ("HOST_ADDRESS", management.host_address.to_string()),
        ("DPU_ADDRESS", in_uri(management.dpu_address)),
        ("CLUSTER_ID", settings.istiod.cluster_id.clone()),
        ("LOG_LEVEL", settings.log.level.clone()),
        ("LOG_FORMAT", settings.log.format.clone()),
        ("CONCURRENCY_ARG", concurrency(settings.dpu.proxy_concurrency)),
        ("SUCCESSOR_WAIT_S", SUCCESSOR_WAIT_S.to_string()),
        ("DRAIN_S", settings.dpu.proxy_drain_seconds.to_string()),
        ("END_S", (SUCCESSOR_WAIT_S + settings.dpu.proxy_drain_seconds + GRACE_S).to_string()),
    ] {
        text = text.replace(&format!("${{{name}}}"), &value);
    }
    text
}

fn host_interface(name: &str) -> String {
    match name {
        "" => "        # No link to the host: its kubelet's probes come as plain clients.".to_owned(),
        name => format!("        - --host-interface={name}"),
    }
}

fn concurrency(workers: u16) -> String {
    match workers {
        0 => "        # A worker thread for each core.".to_owned(),
        workers => format!("        - --concurrency={workers}"),
    }
}

fn in_uri(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dpu::settings::{Dpu, Image, Istiod, Log, Management};
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::Value;

    fn settings() -> Settings {
        Settings {
            image: Image { registry: "r.example/".into(), tag: "1.2.3".into(), pull_policy: "Never".into() },
            management: Management {
                host_address: "192.168.100.1".parse().expect("address"),
                dpu_address: "fd00::2".parse().expect("address"),
            },
            istiod: Istiod { cluster_id: "east".into() },
            dpu: Dpu {
                uplink: "p0".into(),
                host_interface: "pf0hpf".into(),
                proxy_concurrency: 3,
                proxy_drain_seconds: 60,
            },
            log: Log { level: "info".into(), format: "json".into() },
            ca_secret: "dpumesh-ca".into(),
        }
    }

    fn pod(name: &str, settings: &Settings) -> Pod {
        let files = files("node1", settings);
        let file = files.iter().find(|file| file.path.ends_with(name)).expect("file");
        serde_saphyr::from_str(&file.text).expect("a pod")
    }

    fn arguments(pod: &Pod) -> Vec<String> {
        pod.spec.as_ref().and_then(|spec| spec.containers[0].args.clone()).expect("arguments")
    }

    #[test]
    fn nothing_is_left_to_fill_in() {
        for file in files("node1", &settings()) {
            let open = file.text.lines().find(|line| line.contains("${") && !line.starts_with('#'));
            assert_eq!(open, None, "{}", file.path);
        }
    }

    #[test]
    fn static_pods_run_the_images_and_addresses_of_the_installation() {
        let dataplane = pod("dataplane.yaml", &settings());
        let spec = dataplane.spec.as_ref().expect("spec");
        assert_eq!(spec.containers[0].image.as_deref(), Some("r.example/dpumesh/dataplane:1.2.3"));
        assert!(arguments(&dataplane).contains(&"--listen=[fd00::2]:15130".to_owned()));
        assert!(arguments(&dataplane).contains(&"--uplink=p0".to_owned()));
        assert!(arguments(&dataplane).contains(&"--host-interface=pf0hpf".to_owned()));
        assert!(arguments(&pod("dpu-proxy.yaml", &settings())).contains(&"--concurrency=3".to_owned()));
    }

    #[test]
    fn a_proxy_that_is_to_run_otherwise_is_another_pod_and_the_same_is_the_same() {
        let name = |settings: &Settings| pod("dpu-proxy.yaml", settings).metadata.name.expect("a name");
        let mut other = settings();
        assert_eq!(name(&settings()), name(&other));
        other.management.host_address = "192.168.100.9".parse().expect("address");
        assert_ne!(name(&settings()), name(&other), "only its bootstrap differs");
        assert!(name(&settings()).starts_with("dpumesh-dpu-proxy-"));
    }

    #[test]
    fn the_kubelet_gives_a_proxy_time_for_all_that_it_waits_for() {
        let pod = pod("dpu-proxy.yaml", &settings());
        assert!(arguments(&pod).contains(&"--drain-time-s=60".to_owned()));
        assert!(arguments(&pod).contains(&"--successor-wait-s=30".to_owned()));
        assert_eq!(pod.spec.and_then(|spec| spec.termination_grace_period_seconds), Some(130));
    }

    #[test]
    fn without_a_link_to_the_host_the_dataplane_is_told_of_none() {
        let mut settings = settings();
        settings.dpu.host_interface = String::new();
        let arguments = arguments(&pod("dataplane.yaml", &settings));
        assert!(!arguments.iter().any(|argument| argument.contains("host-interface")), "{arguments:?}");
    }

    #[test]
    fn without_a_number_the_proxy_takes_all_cores() {
        let mut settings = settings();
        settings.dpu.proxy_concurrency = 0;
        let arguments = arguments(&pod("dpu-proxy.yaml", &settings));
        assert!(!arguments.iter().any(|argument| argument.contains("concurrency")), "{arguments:?}");
    }

    #[test]
    fn no_pod_is_privileged_and_each_adds_only_what_its_manifest_explains() {
        for (name, expected) in
            [("dataplane.yaml", vec!["BPF", "NET_ADMIN", "PERFMON"]), ("dpu-proxy.yaml", vec!["NET_RAW"])]
        {
            let pod = pod(name, &settings());
            let spec = pod.spec.expect("spec");
            let context = spec.containers[0].security_context.clone().expect("security context");
            let capabilities = context.capabilities.expect("capabilities");
            assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]));
            assert_eq!(capabilities.add.unwrap_or_default(), expected, "{name}");
            assert_eq!((context.privileged, context.read_only_root_filesystem), (None, Some(true)));
        }
    }

    #[test]
    fn the_proxy_expects_the_adapter_of_its_own_node() {
        let files = files("node1", &settings());
        let bootstrap = files.iter().find(|file| file.path.ends_with("bootstrap.json")).expect("file");
        let bootstrap: Value = serde_json::from_str(&bootstrap.text).expect("JSON");
        assert_eq!(bootstrap["node"]["id"], "node1");
        assert_eq!(bootstrap["node"]["metadata"]["CLUSTER_ID"], "east");
        let tls = &bootstrap["static_resources"]["clusters"][0]["transport_socket"]["typed_config"];
        assert_eq!(tls["sni"], service::grpc::server_name("adapter", "node1").as_str());
        let names = &tls["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"];
        assert_eq!(names[0]["matcher"]["exact"], tls["sni"]);
    }
}
