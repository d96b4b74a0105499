//! Images: of our programs as a user gets them, and those that only this cluster needs.

use crate::machine::Machine;
use crate::tools::cache;
use anyhow::{Context, Result, ensure};
use lab::shell;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What holds a pod's namespaces.
pub const PAUSE: &str = "localhost/pause:cluster";
/// The applications and clients of the lab.
pub const LAB: &str = "localhost/lab:cluster";

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

/// The folder of all archives.
fn folder() -> PathBuf {
    cache().join("images")
}

/// Builds all images from static binaries, unless they are newer than what they are made of; what they are and their
/// sizes.
pub fn build(binaries: &Path) -> Result<String> {
    build_pause()?;
    let told = folder().join("sizes.txt");
    if is_newer(&told, binaries) {
        return std::fs::read_to_string(&told).context("cannot read the images' sizes");
    }
    build_lab(binaries)?;
    let output = shell::output(Command::new(product().join("build")).arg(binaries).arg(folder().join("product")))?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "the images could not be built: {}", errors.trim());
    std::fs::write(&told, &output.stdout)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How our own images are made.
fn product() -> PathBuf {
    Path::new(CRATE).join("../../deploy/images")
}

/// Whether images were made after every program and every file that says how.
fn is_newer(told: &Path, binaries: &Path) -> bool {
    let time = |path: &Path| std::fs::metadata(path).and_then(|data| data.modified()).ok();
    let sources = [binaries.to_owned(), product(), Path::new(CRATE).join("images")];
    let files = sources.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
    let mut files = files.filter(|file| file.file_type().is_ok_and(|kind| kind.is_file()));
    let made = time(told);
    made.is_some() && binaries.is_dir() && files.all(|file| time(&file.path()) < made)
}

fn build_pause() -> Result<()> {
    std::fs::create_dir_all(folder()).with_context(|| format!("cannot make {}", folder().display()))?;
    let archive = folder().join("pause.tar");
    if archive.exists() {
        return Ok(());
    }
    let context = folder().join("pause");
    std::fs::create_dir_all(&context)?;
    let (source, program) = (Path::new(CRATE).join("images/pause.c"), context.join("pause"));
    shell::run(&format!("gcc -static -O2 -s -o {} {}", program.display(), source.display()))?;
    bud("pause", &context, &archive)
}

fn build_lab(binaries: &Path) -> Result<()> {
    let context = folder().join("lab");
    std::fs::create_dir_all(&context)?;
    for name in ["lab-app", "lab-load"] {
        let from = binaries.join(name);
        shell::run(&format!("strip -o {} {}", context.join(name).display(), from.display()))
            .with_context(|| format!("{} is not there: build the static binaries first", from.display()))?;
    }
    bud("lab", &context, &folder().join("lab.tar"))
}

fn bud(name: &str, context: &Path, archive: &Path) -> Result<()> {
    let script = Path::new(CRATE).join("images/build");
    let output = shell::output(Command::new(script).arg(name).arg(context).arg(archive))?;
    ensure!(output.status.success(), "image {name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// What every machine needs before its first pod.
pub fn import_pause(machine: &Machine) -> Result<()> {
    build_pause()?;
    import(machine, "pause.tar")
}

/// What runs on nodes: our programs of the host, and applications.
pub fn import_node(machine: &Machine) -> Result<()> {
    ["lab.tar", "product/controller.tar", "product/adapter.tar", "product/cni-node.tar"]
        .iter()
        .try_for_each(|name| import(machine, name))
}

/// What runs on DPUs.
pub fn import_dpu(machine: &Machine) -> Result<()> {
    ["product/dataplane.tar", "product/dpu-proxy.tar"].iter().try_for_each(|name| import(machine, name))
}

fn import(machine: &Machine, archive: &str) -> Result<()> {
    let path = folder().join(archive).canonicalize().with_context(|| format!("no image {archive}"))?;
    machine.run(&format!("ctr -n k8s.io images import --snapshotter native {}", path.display())).map(drop)
}
