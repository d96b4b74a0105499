//! What a live istiod tells the pods of bookinfo, recorded as `tests/fixtures` keeps it, and compared with what is kept.
//!
//! The control plane runs alone: pods and nodes are objects that `tests/fixtures/record` writes, and no kubelet is there.

use crate::cluster::Cluster;
use crate::kubectl;
use crate::layout::CONTROL_ADDRESS;
use anyhow::{Context, Result, ensure};
use lab::shell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the recorded sidecars say they are; that of the istiod that `tools/istio` pins.
const VERSION: &str = "1.31.0";

/// Stands before the version of an object in the API server, which is another one in every cluster.
const VERSION_OF_OBJECT: &[u8] = b"RESOURCE_VERSION";

/// Names what an EnvoyFilter of the recorded objects adds. istiod writes the fields of such a patch in any order.
const PATCH: &[u8] = b"envoy.filters.http.local_ratelimit";

/// Records into `out`. True when that is what `kept` holds, where one is given.
pub fn run(binaries: &Path, out: &Path, kept: Option<&Path>) -> Result<bool> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    let mesh =
        std::fs::read_to_string(fixtures.join("istiod-1.30.3/inputs/mesh.yaml")).context("the mesh's settings")?;
    let cluster = Cluster::start_control_plane(binaries, &mesh)?;
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    record(&cluster, &fixtures.join("record"), &out.canonicalize()?)?;
    let differences = kept.map(|kept| differences(kept, out)).transpose()?.unwrap_or_default();
    differences.iter().for_each(|difference| println!("{difference}"));
    match (kept, differences.len()) {
        (None, _) => {}
        (Some(kept), 0) => println!("it is what {} holds", kept.display()),
        (Some(kept), count) => println!("{count} files are not as in {}", kept.display()),
    }
    Ok(differences.is_empty())
}

/// Runs the script where the API server and istiod are reached.
fn record(cluster: &Cluster, script: &Path, out: &Path) -> Result<()> {
    let mut command = kubectl::tool(&script.to_string_lossy());
    command.arg(format!("http://{CONTROL_ADDRESS}:15010")).arg(out).arg(VERSION);
    command.env("RECORDER", cluster.program("recorder")?);
    let output = shell::output(&mut command)?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    ensure!(output.status.success(), "nothing was recorded: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// What differs between two recordings, a line each. Of some scenarios the text for people is not kept.
fn differences(kept: &Path, new: &Path) -> Result<Vec<String>> {
    let (kept, new) = (files(kept)?, files(new)?);
    let is_response = |name: &&PathBuf| name.extension().is_some_and(|ending| ending == "pb");
    let names = kept.keys().chain(new.keys().filter(|name| !kept.contains_key(*name)).filter(is_response));
    let difference = |name: &PathBuf| match (kept.get(name), new.get(name)) {
        (Some(one), Some(other)) => (!is_same(one, other)).then(|| format!("differs: {}", name.display())),
        (Some(_), None) => Some(format!("not recorded: {}", name.display())),
        _ => Some(format!("not kept: {}", name.display())),
    };
    Ok(names.filter_map(difference).collect())
}

/// Whether two recordings of a type are the same, but for what is not the same twice.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let both_have = |text: &[u8]| [one, other].iter().all(|bytes| bytes.windows(text.len()).any(|part| part == text));
    one == other || both_have(VERSION_OF_OBJECT) || (both_have(PATCH) && sorted(one) == sorted(other))
}

fn sorted(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.sort_unstable();
    bytes
}

/// Recorded files by their path in the folder.
fn files(root: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            let is_recorded = path.extension().is_some_and(|ending| ending == "pb" || ending == "json");
            match path.is_dir() {
                true => folders.push(path),
                false if is_recorded => {
                    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                    found.insert(path.strip_prefix(root)?.to_owned(), bytes);
                }
                false => {}
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_same_twice_is_no_difference() {
        let version = |number: &str| format!("x RESOURCE_VERSION {number}").into_bytes();
        assert!(is_same(&version("12"), &version("345")));
        let patched = |fields: &str| [PATCH, fields.as_bytes()].concat();
        assert!(is_same(&patched("ab"), &patched("ba")) && !is_same(&patched("ab"), &patched("ac")));
        assert!(is_same(b"ab", b"ab") && !is_same(b"ab", b"ba") && !is_same(b"ab", &patched("ab")));
    }
}
