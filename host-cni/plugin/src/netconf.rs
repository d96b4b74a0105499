//! The network configuration on standard input: what this plugin reads of it, and the whole for delegates.

use crate::error::{CniError, code};
use crate::version::Version;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where the daemon listens unless `daemonSocket` says otherwise.
pub const DAEMON_SOCKET: &str = "/run/dpumesh/cni.sock";
/// How long ADD waits for the port to open unless `readyTimeoutMs` says otherwise.
pub const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// A configuration that can be acted on.
#[derive(Clone, Debug)]
pub struct NetConf {
    pub version: Version,
    /// Name of the network in the runtime's configuration.
    pub name: String,
    /// The delegated IPAM plugin; `None` when pods get no address.
    pub ipam_type: Option<String>,
    /// Asked for by the device plugin or a person: PCI address or VF name.
    pub device_id: Option<String>,
    /// Asked for by the runtime (capability `mac`).
    pub mac: Option<String>,
    /// Asked for by the runtime (capability `ips`), as CIDR or address text.
    pub ips: Vec<String>,
    /// Name of the mesh network; empty means the default one.
    pub network: String,
    /// Bytes; `None`: that of the network.
    pub mtu: Option<u32>,
    pub ready_timeout: Duration,
    pub daemon_socket: PathBuf,
    /// Result of ADD, for CHECK and DEL.
    pub previous_result: Option<Value>,
    /// Attachments that the runtime still knows, for GC: container id and interface.
    pub valid_attachments: Vec<(String, String)>,
    /// The whole configuration.
    pub raw: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    #[serde(default)]
    cni_version: String,
    #[serde(default)]
    name: String,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    ipam: Option<WireIpam>,
    #[serde(default, rename = "deviceID")]
    device_id: Option<String>,
    #[serde(default, rename = "pciBusID")]
    pci_bus_id: Option<String>,
    #[serde(default)]
    runtime_config: Option<WireRuntime>,
    #[serde(default)]
    network: String,
    #[serde(default)]
    mtu: Option<u32>,
    #[serde(default)]
    ready_timeout_ms: Option<u64>,
    #[serde(default)]
    daemon_socket: Option<PathBuf>,
    #[serde(default)]
    prev_result: Option<Value>,
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid_attachments: Vec<WireAttachment>,
}

#[derive(Deserialize)]
struct WireIpam {
    #[serde(default, rename = "type")]
    kind: String,
}

#[derive(Default, Deserialize)]
struct WireRuntime {
    #[serde(default, rename = "deviceID")]
    device_id: Option<String>,
    #[serde(default)]
    mac: Option<String>,
    #[serde(default)]
    ips: Vec<String>,
}

#[derive(Deserialize)]
struct WireAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

impl NetConf {
    /// Parses and checks the text.
    pub fn parse(text: &[u8]) -> Result<Self, CniError> {
        let raw: Value = serde_json::from_slice(text)
            .map_err(|error| decode(format!("the network configuration is not JSON: {error}")))?;
        let Value::Object(raw) = raw else {
            return Err(decode("the network configuration is not a JSON object".to_owned()));
        };
        let wire: Wire = serde_json::from_value(Value::Object(raw.clone()))
            .map_err(|error| decode(format!("the network configuration has a field of the wrong type: {error}")))?;
        Self::from_wire(wire, raw)
    }

    fn from_wire(wire: Wire, raw: Map<String, Value>) -> Result<Self, CniError> {
        let version = Version::parse(&wire.cni_version)?;
        check_name(&wire.name)?;
        require(!wire.kind.is_empty(), "type is missing", "set type to istio-dpu-cni")?;
        require(
            wire.mtu.is_none_or(|mtu| (68..=65535).contains(&mtu)),
            "mtu is out of range",
            "give 68 to 65535 bytes",
        )?;
        let runtime = wire.runtime_config.unwrap_or_default();
        let ips = runtime.ips.iter().map(|text| check_address(text)).collect::<Result<_, _>>()?;
        Ok(Self {
            version,
            name: wire.name,
            ipam_type: check_ipam(wire.ipam)?,
            device_id: one_device([wire.device_id, wire.pci_bus_id, runtime.device_id])?,
            mac: runtime.mac,
            ips,
            network: wire.network,
            mtu: wire.mtu,
            ready_timeout: wire.ready_timeout_ms.map_or(READY_TIMEOUT, Duration::from_millis),
            daemon_socket: wire.daemon_socket.unwrap_or_else(|| DAEMON_SOCKET.into()),
            previous_result: wire.prev_result,
            valid_attachments: wire.valid_attachments.into_iter().map(|one| (one.container_id, one.ifname)).collect(),
            raw,
        })
    }
}

/// The configuration's `cniVersion`, whatever else it holds (for VERSION).
pub fn asked_version(text: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(text).ok()?;
    value.get("cniVersion")?.as_str().map(str::to_owned)
}

/// The device may be named in three places; where it is named twice, they must agree.
fn one_device(places: [Option<String>; 3]) -> Result<Option<String>, CniError> {
    let mut named = places.into_iter().flatten().filter(|id| !id.is_empty());
    let Some(first) = named.next() else { return Ok(None) };
    match named.find(|other| *other != first) {
        None => Ok(Some(first)),
        Some(other) => Err(config(format!("two devices are named: {first} and {other}"))
            .hint("deviceID, pciBusID and runtimeConfig.deviceID must agree")),
    }
}

fn check_ipam(ipam: Option<WireIpam>) -> Result<Option<String>, CniError> {
    let Some(ipam) = ipam else { return Ok(None) };
    let plain = !ipam.kind.is_empty() && !ipam.kind.contains('/');
    require(plain, "ipam.type is missing or no plugin name", "name a plugin in CNI_PATH, e.g. host-local")?;
    Ok(Some(ipam.kind))
}

fn check_name(name: &str) -> Result<(), CniError> {
    let valid = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    require(valid, "name is missing or invalid", "letters, digits, '_', '.' and '-', starting with a letter or digit")
}

fn check_address(text: &str) -> Result<String, CniError> {
    let address = text.split('/').next().unwrap_or_default();
    match address.parse::<IpAddr>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(config(format!("runtimeConfig.ips: {text:?} is no address"))),
    }
}

fn require(holds: bool, msg: &str, details: &str) -> Result<(), CniError> {
    match holds {
        true => Ok(()),
        false => Err(config(format!("network configuration: {msg}")).hint(details)),
    }
}

fn config(msg: String) -> CniError {
    CniError::new(code::INVALID_CONFIG, msg)
}

fn decode(msg: String) -> CniError {
    CniError::new(code::DECODE, msg).hint("check the file in the runtime's CNI configuration folder")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: &Value) -> Result<NetConf, CniError> {
        NetConf::parse(value.to_string().as_bytes())
    }

    fn base() -> Value {
        json!({ "cniVersion": "1.0.0", "name": "mesh", "type": "istio-dpu-cni", "ipam": { "type": "host-local" } })
    }

    fn with(key: &str, value: Value) -> Value {
        let mut conf = base();
        conf[key] = value;
        conf
    }

    #[test]
    fn defaults_are_filled_in_and_the_whole_is_kept() {
        let conf = parse(&with("x-other", json!(7))).expect("valid");
        assert_eq!(conf.daemon_socket, PathBuf::from(DAEMON_SOCKET));
        assert_eq!(conf.ready_timeout, READY_TIMEOUT);
        assert_eq!(conf.raw["x-other"], 7);
    }

    #[test]
    fn the_device_may_be_named_in_each_of_three_places() {
        for conf in [
            with("deviceID", json!("vf3")),
            with("pciBusID", json!("vf3")),
            with("runtimeConfig", json!({ "deviceID": "vf3" })),
        ] {
            assert_eq!(parse(&conf).expect("valid").device_id.as_deref(), Some("vf3"));
        }
        let mut both = with("deviceID", json!("vf3"));
        both["pciBusID"] = json!("vf4");
        assert_eq!(parse(&both).expect_err("disagree").code, code::INVALID_CONFIG);
    }

    #[test]
    fn what_is_malformed_is_refused_with_the_right_code() {
        assert_eq!(NetConf::parse(b"{").expect_err("no JSON").code, code::DECODE);
        assert_eq!(NetConf::parse(b"[]").expect_err("no object").code, code::DECODE);
        assert_eq!(parse(&with("mtu", json!("big"))).expect_err("type").code, code::DECODE);
        assert_eq!(parse(&with("mtu", json!(1))).expect_err("range").code, code::INVALID_CONFIG);
        assert_eq!(parse(&with("name", json!(""))).expect_err("name").code, code::INVALID_CONFIG);
        assert_eq!(parse(&with("ipam", json!({}))).expect_err("ipam").code, code::INVALID_CONFIG);
        assert_eq!(parse(&with("ipam", json!({"type": "../x"}))).expect_err("ipam").code, code::INVALID_CONFIG);
        assert_eq!(parse(&with("cniVersion", json!("0.2.0"))).expect_err("old").code, code::INCOMPATIBLE_VERSION);
        assert_eq!(parse(&with("runtimeConfig", json!({"ips": ["x"]}))).expect_err("ip").code, code::INVALID_CONFIG);
    }

    #[test]
    fn gc_names_the_attachments_that_stay() {
        let conf = with("cni.dev/valid-attachments", json!([{ "containerID": "c", "ifname": "eth0" }]));
        assert_eq!(parse(&conf).expect("valid").valid_attachments, [("c".to_owned(), "eth0".to_owned())]);
    }
}
