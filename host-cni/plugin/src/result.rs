//! The result of ADD, in the shape of each specification version; and the parts of a delegate's.

use crate::version::Version;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// What ADD made. Printed with [`AddResult::to_json`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddResult {
    pub ifname: String,
    pub mac: String,
    /// Path of the pod's network namespace.
    pub sandbox: String,
    pub mtu: u32,
    /// PCI address, where there is one.
    pub pci_id: Option<String>,
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
    /// Passed on from IPAM.
    pub dns: Map<String, Value>,
}

/// An address with its network, and the gateway if there is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    pub address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route in the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub dst: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
}

impl AddResult {
    /// The JSON of `version`.
    pub fn to_json(&self, version: Version) -> Value {
        let ips: Vec<Value> = self.addresses.iter().map(|address| ip(address, version)).collect();
        let mut result = json!({
            "cniVersion": version.as_str(),
            "interfaces": [self.interface(version)],
            "ips": ips,
            "routes": self.routes,
        });
        if !self.dns.is_empty() {
            result["dns"] = Value::Object(self.dns.clone());
        }
        result
    }

    fn interface(&self, version: Version) -> Value {
        let mut interface = json!({ "name": self.ifname, "mac": self.mac, "sandbox": self.sandbox });
        if version >= Version::V1_1_0 {
            interface["mtu"] = json!(self.mtu);
            if let Some(pci) = &self.pci_id {
                interface["pciID"] = json!(pci);
            }
        }
        interface
    }
}

fn ip(address: &Address, version: Version) -> Value {
    let mut ip = json!({ "address": address.address, "interface": 0 });
    if let Some(gateway) = address.gateway {
        ip["gateway"] = json!(gateway);
    }
    if version < Version::V1_0_0 {
        ip["version"] = json!(if address.address.addr().is_ipv4() { "4" } else { "6" });
    }
    ip
}

/// What a delegated IPAM plugin answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamResult {
    #[serde(default)]
    pub ips: Vec<Address>,
    #[serde(default)]
    pub routes: Vec<Route>,
    #[serde(default)]
    pub dns: Map<String, Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> AddResult {
        AddResult {
            ifname: "eth0".to_owned(),
            mac: "02:00:0a:f4:01:0a".to_owned(),
            sandbox: "/run/netns/x".to_owned(),
            mtu: 1500,
            pci_id: Some("0000:03:00.2".to_owned()),
            addresses: vec![Address { address: "10.244.1.10/32".parse().expect("net"), gateway: None }],
            routes: vec![Route {
                dst: "0.0.0.0/0".parse().expect("net"),
                gw: Some("169.254.1.1".parse().expect("ip")),
            }],
            dns: Map::new(),
        }
    }

    #[test]
    fn each_version_gets_its_own_shape() {
        for (text, has_family, has_mtu) in [("0.4.0", true, false), ("1.0.0", false, false), ("1.1.0", false, true)] {
            let json = result().to_json(Version::parse(text).expect("known"));
            assert_eq!(json["cniVersion"], text);
            assert_eq!(json["ips"][0].get("version").is_some(), has_family, "{json}");
            assert_eq!(json["interfaces"][0].get("mtu").is_some(), has_mtu, "{json}");
            assert_eq!(json["ips"][0]["interface"], 0);
            assert_eq!(json["routes"][0]["gw"], "169.254.1.1");
        }
    }

    #[test]
    fn a_delegates_result_is_read_in_old_and_new_shape() {
        for text in [
            r#"{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.2/24","gateway":"10.0.0.1"}],"dns":{}}"#,
            r#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24","gateway":"10.0.0.1"}],"routes":[{"dst":"0.0.0.0/0"}]}"#,
        ] {
            let result: IpamResult = serde_json::from_str(text).expect(text);
            assert_eq!(result.ips[0].address.to_string(), "10.0.0.2/24");
        }
    }
}
