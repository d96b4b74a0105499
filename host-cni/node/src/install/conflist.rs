//! The network configuration that the runtime reads. Pure.

use super::NetworkArgs;
use ipnet::IpNet;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// File name of the plugin, and its `type` in a configuration.
pub const PLUGIN: &str = "istio-dpu-cni";
/// CNI version: the newest that every runtime in use speaks.
const VERSION: &str = "1.0.0";

/// What the configuration says of this node.
#[derive(Clone, Debug)]
pub struct Conflist {
    pub network: NetworkArgs,
    /// Where the plugin finds this daemon.
    pub socket: PathBuf,
}

impl Conflist {
    /// The text, for pods of these ranges; `None` while there are none.
    pub fn text(&self, told: &[IpNet]) -> Option<String> {
        let ranges = if self.network.pod_cidr.is_empty() { told } else { &self.network.pod_cidr };
        if ranges.is_empty() {
            return None;
        }
        let conflist =
            json!({ "cniVersion": VERSION, "name": self.network.network_name, "plugins": [self.plugin(ranges)] });
        Some(format!("{conflist:#}\n"))
    }

    fn plugin(&self, ranges: &[IpNet]) -> Value {
        let mut plugin =
            json!({ "type": PLUGIN, "readyTimeoutMs": self.network.pod_ready_timeout_ms, "ipam": self.ipam(ranges) });
        if self.socket != Path::new(istio_dpu_cni::netconf::DAEMON_SOCKET) {
            plugin["daemonSocket"] = json!(self.socket);
        }
        if let Some(mtu) = self.network.pod_mtu {
            plugin["mtu"] = json!(mtu);
        }
        plugin
    }

    /// One address of each range set: one set for each family.
    fn ipam(&self, ranges: &[IpNet]) -> Value {
        let sets = [true, false].map(|v4| {
            let of_family = ranges.iter().filter(|range| range.addr().is_ipv4() == v4);
            of_family.map(|range| json!({ "subnet": range.trunc() })).collect::<Vec<_>>()
        });
        let sets: Vec<_> = sets.into_iter().filter(|set| !set.is_empty()).collect();
        let mut ipam = json!({ "type": "host-local", "ranges": sets });
        if let Some(folder) = &self.network.ipam_data_dir {
            ipam["dataDir"] = json!(folder);
        }
        ipam
    }
}

/// Whether a file is a configuration of our plugin.
pub fn is_ours(text: &[u8]) -> bool {
    let parsed: Option<Value> = serde_json::from_slice(text).ok();
    let plugins = parsed.as_ref().and_then(|conf| conf["plugins"].as_array());
    plugins.is_some_and(|plugins| plugins.iter().any(|plugin| plugin["type"] == PLUGIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use istio_dpu_cni::netconf::{DAEMON_SOCKET, NetConf};

    fn conflist(pod_cidr: &[&str]) -> Conflist {
        let network = NetworkArgs {
            network_name: "dpumesh".to_owned(),
            pod_cidr: nets(pod_cidr),
            pod_mtu: None,
            pod_ready_timeout_ms: 30_000,
            ipam_data_dir: None,
        };
        Conflist { network, socket: DAEMON_SOCKET.into() }
    }

    fn nets(all: &[&str]) -> Vec<IpNet> {
        all.iter().map(|one| one.parse().expect("CIDR")).collect()
    }

    fn parsed(conflist: &Conflist, told: &[&str]) -> Value {
        serde_json::from_str(&conflist.text(&nets(told)).expect("ranges")).expect("JSON")
    }

    #[test]
    fn pods_get_one_address_of_each_family_of_the_nodes_ranges() {
        let conf = parsed(&conflist(&[]), &["10.244.1.0/24", "fd00:1::/64", "10.245.1.0/24"]);
        assert_eq!(
            conf["plugins"][0]["ipam"]["ranges"],
            json!([[{"subnet": "10.244.1.0/24"}, {"subnet": "10.245.1.0/24"}], [{"subnet": "fd00:1::/64"}]])
        );
        assert_eq!((&conf["cniVersion"], &conf["name"]), (&json!("1.0.0"), &json!("dpumesh")));
    }

    #[test]
    fn a_range_that_is_given_is_taken_instead_of_what_the_controller_tells() {
        let given = conflist(&["10.9.0.0/24"]);
        let conf = parsed(&given, &["10.244.1.0/24"]);
        assert_eq!(conf["plugins"][0]["ipam"]["ranges"], json!([[{"subnet": "10.9.0.0/24"}]]));
        assert_eq!(conflist(&[]).text(&[]), None, "nobody has told any");
    }

    #[test]
    fn the_plugin_can_act_on_what_is_written() {
        let mut conflist = conflist(&["10.9.0.0/24"]);
        conflist.socket = "/run/other.sock".into();
        conflist.network.pod_mtu = Some(1450);
        let conf = parsed(&conflist, &[]);
        let mut single = conf["plugins"][0].clone();
        single["name"] = conf["name"].clone();
        single["cniVersion"] = conf["cniVersion"].clone();
        let read = NetConf::parse(single.to_string().as_bytes()).expect("valid");
        assert_eq!((read.daemon_socket, read.mtu), (PathBuf::from("/run/other.sock"), Some(1450)));
        assert_eq!((read.ready_timeout.as_secs(), read.ipam_type.as_deref()), (30, Some("host-local")));
    }

    #[test]
    fn our_configuration_is_known_by_its_plugin() {
        assert!(is_ours(conflist(&["10.9.0.0/24"]).text(&[]).expect("text").as_bytes()));
        for other in ["", "{", "[]", r#"{"plugins":{}}"#, r#"{"plugins":[{"type":"bridge"}]}"#] {
            assert!(!is_ours(other.as_bytes()), "{other}");
        }
    }
}
