//! Case files: what to configure and what to send.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// One file of `cases/`: a bootstrap and the cases that share it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Envoy bootstrap in YAML with `{{name}}` placeholders: see `program::Ports`.
    pub bootstrap: String,
    pub cases: Vec<Case>,
}

/// One exchange, or several on one connection.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub name: String,
    #[serde(default)]
    pub client: Client,
    /// Which listener of the bootstrap: `listener`, `listener2`, ….
    #[serde(default = "default_listener")]
    pub listener: String,
    /// For `http1` and `tcp`: the bytes to send, one string a message; an answer is awaited after each.
    #[serde(default)]
    pub send: Vec<String>,
    /// For `http2`: the requests, on one connection, one after the other.
    #[serde(default)]
    pub requests: Vec<Http2Request>,
    /// For TLS clients.
    #[serde(default)]
    pub tls: Option<ClientTls>,
    /// How often the whole exchange is made (to see a distribution).
    #[serde(default = "once")]
    pub times: u32,
    /// What of the observation is not compared, each with the reason: a documented decision.
    #[serde(default)]
    pub differs: BTreeMap<Field, String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Client {
    #[default]
    Http1,
    Http2,
    /// Sends, reads until nothing comes for a while or the peer closes.
    Tcp,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http2Request {
    #[serde(default = "get")]
    pub method: String,
    pub path: String,
    #[serde(default = "default_authority")]
    pub authority: String,
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    #[serde(default)]
    pub body: Option<String>,
    #[serde(default)]
    pub trailers: Vec<(String, String)>,
}

/// TLS of the client.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientTls {
    #[serde(default)]
    pub sni: Option<String>,
    #[serde(default)]
    pub alpn: Vec<String>,
    /// Which certificate is shown: a name of `certificates::NAMES`; none when absent.
    #[serde(default)]
    pub certificate: Option<String>,
}

/// A part of an observation that can be left out of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Field {
    ResponseHeaders,
    ResponseBody,
    UpstreamHeaders,
    CodeDetails,
    Termination,
    /// Requests that upstreams are asked at the same time.
    UpstreamOrder,
    ConnectionClosed,
    /// Compare the share of each backend within five standard deviations instead of the sequence.
    Distribution,
}

fn default_listener() -> String {
    "listener".to_owned()
}
fn once() -> u32 {
    1
}
fn get() -> String {
    "GET".to_owned()
}
fn default_authority() -> String {
    "example.test".to_owned()
}

/// Reads every group of a folder, in name order.
pub fn load(folder: &Path) -> anyhow::Result<Vec<(String, Group)>> {
    let mut paths: Vec<_> =
        std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    paths.iter().map(|path| load_group(path)).collect()
}

fn load_group(path: &Path) -> anyhow::Result<(String, Group)> {
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let text = std::fs::read_to_string(path)?;
    let group = serde_saphyr::from_str(&text).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
    Ok((name, group))
}
