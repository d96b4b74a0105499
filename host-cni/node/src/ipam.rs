//! Delegated address management: runs the IPAM plugin as the CNI specification (section 4) says.

use crate::record::{Call, Ipam, Key};
use istio_dpu_cni::error::CniError;
use istio_dpu_cni::result::IpamResult;
use istio_dpu_cni::version::Version;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Longest run of a delegate.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why the delegate gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    #[error("IPAM plugin {plugin} is not in CNI_PATH ({path})")]
    Missing { plugin: String, path: String },
    #[error("IPAM plugin {plugin} could not be run: {source}")]
    Run { plugin: String, source: std::io::Error },
    #[error("IPAM plugin {} needs libraries that this daemon's container does not have", path.display())]
    NotStatic { path: PathBuf },
    #[error("IPAM plugin {plugin} took longer than {} s for {command}", TIMEOUT.as_secs())]
    Timeout { plugin: String, command: &'static str },
    #[error("IPAM plugin {plugin} refused {command}: {error}")]
    Refused { plugin: String, command: &'static str, error: CniError },
    #[error("IPAM plugin {plugin} answered {command} with {output:?}")]
    Answer { plugin: String, command: &'static str, output: String },
    #[error("IPAM plugin {plugin} speaks CNI {offered:?}, none of which is {wanted} or older")]
    Version { plugin: String, offered: Vec<String>, wanted: &'static str },
    #[error("IPAM plugin {plugin} gave no address")]
    NoAddress { plugin: String },
}

#[derive(Deserialize)]
struct VersionAnswer {
    #[serde(rename = "supportedVersions", default)]
    supported: Vec<String>,
}

/// The newest version that the plugin and we speak, not newer than the configuration's. Debian's
/// plugins are older than the runtime, so the configuration's own version is not always theirs.
pub async fn negotiate(plugin: &str, wanted: Version, call: &Call) -> Result<Version, IpamError> {
    let nobody = Key { container_id: String::new(), ifname: String::new() };
    let stdin = json!({ "cniVersion": wanted.as_str() });
    let output = run(plugin, "VERSION", &nobody, call, &stdin).await?;
    let offered = serde_json::from_slice::<VersionAnswer>(&output).map(|answer| answer.supported).unwrap_or_default();
    wanted.newest_common(&offered).ok_or(IpamError::Version {
        plugin: plugin.to_owned(),
        offered,
        wanted: wanted.as_str(),
    })
}

/// ADD. What an earlier, interrupted ADD of the same attachment took was given back from its record.
pub async fn add(ipam: &Ipam, key: &Key, call: &Call) -> Result<IpamResult, IpamError> {
    let output = run(&ipam.plugin, "ADD", key, call, &netconf(ipam, call)).await?;
    let result: IpamResult = serde_json::from_slice(&output).map_err(|_| IpamError::Answer {
        plugin: ipam.plugin.clone(),
        command: "ADD",
        output: String::from_utf8_lossy(&output).into_owned(),
    })?;
    match result.ips.is_empty() {
        true => Err(IpamError::NoAddress { plugin: ipam.plugin.clone() }),
        false => Ok(result),
    }
}

/// DEL: succeeds when there is nothing to give back.
pub async fn delete(ipam: &Ipam, key: &Key, call: &Call) -> Result<(), IpamError> {
    run(&ipam.plugin, "DEL", key, call, &netconf(ipam, call)).await.map(|_| ())
}

/// CHECK, for plugins that know it.
pub async fn check(ipam: &Ipam, key: &Key, call: &Call, previous_result: &Value) -> Result<(), IpamError> {
    let mut conf = netconf(ipam, call);
    conf["prevResult"] = previous_result.clone();
    run(&ipam.plugin, "CHECK", key, call, &conf).await.map(|_| ())
}

fn netconf(ipam: &Ipam, call: &Call) -> Value {
    let mut conf = call.netconf.clone();
    conf.insert("cniVersion".to_owned(), json!(ipam.version));
    Value::Object(conf)
}

async fn run(plugin: &str, command: &'static str, key: &Key, call: &Call, stdin: &Value) -> Result<Vec<u8>, IpamError> {
    let failed = |source| IpamError::Run { plugin: plugin.to_owned(), source };
    let path = find(plugin, &call.cni_path)?;
    let mut child = Command::new(&path)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", &key.container_id)
        .env("CNI_IFNAME", &key.ifname)
        .env("CNI_NETNS", &call.netns)
        .env("CNI_ARGS", lenient(&call.cni_args))
        .env("CNI_PATH", &call.cni_path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| match source.kind() {
            // The file is there, so it is its loader that is not.
            std::io::ErrorKind::NotFound => IpamError::NotStatic { path: path.clone() },
            _ => failed(source),
        })?;
    let mut input = child.stdin.take();
    let text = stdin.to_string();
    let exchange = async {
        if let Some(input) = &mut input {
            // A plugin that doesn't read its input still answers; its answer tells.
            let _ = input.write_all(text.as_bytes()).await;
        }
        drop(input.take());
        child.wait_with_output().await
    };
    let timeout = |_| IpamError::Timeout { plugin: plugin.to_owned(), command };
    let output = tokio::time::timeout(TIMEOUT, exchange).await.map_err(timeout)?.map_err(failed)?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(refusal(plugin, command, &output)),
    }
}

fn refusal(plugin: &str, command: &'static str, output: &std::process::Output) -> IpamError {
    #[derive(Deserialize)]
    struct Printed {
        code: u32,
        msg: String,
        #[serde(default)]
        details: String,
    }
    match serde_json::from_slice::<Printed>(&output.stdout) {
        Ok(Printed { code, msg, details }) => {
            IpamError::Refused { plugin: plugin.to_owned(), command, error: CniError { code, msg, details } }
        }
        Err(_) => {
            let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
            let output = format!("{}: {}", output.status, String::from_utf8_lossy(&text).trim());
            IpamError::Answer { plugin: plugin.to_owned(), command, output }
        }
    }
}

fn find(plugin: &str, path: &str) -> Result<PathBuf, IpamError> {
    let candidates = std::env::split_paths(path).map(|folder| folder.join(plugin));
    let missing = || IpamError::Missing { plugin: plugin.to_owned(), path: path.to_owned() };
    candidates.into_iter().find(|candidate| candidate.is_file()).ok_or_else(missing)
}

/// Delegates refuse arguments that they don't know (ours) unless told otherwise.
fn lenient(args: &str) -> String {
    match args.split(';').any(|pair| pair.starts_with("IgnoreUnknown=")) || args.is_empty() {
        true => args.to_owned(),
        false => format!("IgnoreUnknown=1;{args}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delegates_are_told_to_ignore_what_is_not_theirs() {
        assert_eq!(lenient("IP=1.2.3.4"), "IgnoreUnknown=1;IP=1.2.3.4");
        assert_eq!(lenient("IP=1.2.3.4;IgnoreUnknown=true"), "IP=1.2.3.4;IgnoreUnknown=true");
        assert_eq!(lenient(""), "");
    }

    #[tokio::test]
    async fn a_plugin_whose_loader_is_missing_is_told_from_one_that_is() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("dynamic");
        std::fs::write(&path, "#!/nonexistent/loader\n").expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
        let call = Call {
            network: "mesh".to_owned(),
            netns: String::new(),
            cni_path: folder.path().display().to_string(),
            cni_args: String::new(),
            netconf: serde_json::Map::new(),
        };
        let error = negotiate("dynamic", Version::V1_0_0, &call).await.expect_err("no loader");
        assert!(matches!(error, IpamError::NotStatic { .. }), "{error}");
    }

    #[test]
    fn a_plugin_is_sought_in_every_folder_of_the_path() {
        let error = find("no-such-plugin", "/nonexistent:/usr/bin").expect_err("missing");
        assert!(error.to_string().contains("/nonexistent:/usr/bin"), "{error}");
        assert_eq!(find("env", "/nonexistent:/usr/bin").expect("there"), PathBuf::from("/usr/bin/env"));
    }
}
