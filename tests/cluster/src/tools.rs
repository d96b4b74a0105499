//! Programs that are not ours: Kubernetes, Istio, Helm and DNS, built from the module versions that `tools/*/go.mod` pin,
//! and kept for later runs. What was built from the same pins is not built again.

use anyhow::{Context, Result, bail, ensure};
use lab::shell;
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The folder of this crate.
const CRATE: &str = env!("CARGO_MANIFEST_DIR");

/// Version that our Envoy is, as `make tools` installs it.
const ENVOY: &str = "1.40.0";

/// A folder of `tools/` and what it yields.
struct Module {
    name: &'static str,
    programs: &'static [&'static str],
    /// The module whose version is told to the linker, and how.
    version: fn(&str) -> String,
    pinned: &'static str,
}

const MODULES: [Module; 5] = [
    Module {
        name: "kubernetes",
        programs: &["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"],
        pinned: "k8s.io/kubernetes",
        version: kubernetes_version,
    },
    Module {
        name: "istio",
        programs: &["pilot-discovery", "pilot-agent", "istioctl"],
        pinned: "istio.io/istio",
        version: |pin| {
            let commit = pin.rsplit('-').next().unwrap_or(pin);
            format!("-X istio.io/istio/pkg/version.buildVersion=1.31-{commit}")
        },
    },
    Module {
        name: "helm",
        programs: &["helm"],
        pinned: "helm.sh/helm/v3",
        version: |pin| format!("-X helm.sh/helm/v3/internal/version.version={pin}"),
    },
    Module {
        name: "cni",
        programs: &["bridge", "host-local", "loopback"],
        pinned: "github.com/containernetworking/plugins",
        version: |pin| format!("-X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion={pin}"),
    },
    Module { name: "dns", programs: &["dns"], pinned: "github.com/coredns/coredns", version: |_| String::new() },
];

/// Clients take a server that doesn't tell its version for an ancient one.
fn kubernetes_version(pin: &str) -> String {
    let package = "k8s.io/component-base/version";
    let mut numbers = pin.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or("1"), numbers.next().unwrap_or("0"));
    format!("-X {package}.gitVersion={pin} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}")
}

/// Where they are.
#[derive(Clone, Debug)]
pub struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// Builds what is missing or was built from other pins.
    pub fn build() -> Result<Self> {
        let tools = Self { folder: cache().join("bin") };
        std::fs::create_dir_all(&tools.folder).with_context(|| format!("cannot make {}", tools.folder.display()))?;
        check_installed()?;
        MODULES.iter().try_for_each(|module| tools.build_module(module))?;
        Ok(tools)
    }

    /// What an earlier `build` left.
    pub fn find() -> Result<Self> {
        let tools = Self { folder: cache().join("bin") };
        let missing: Vec<&str> = MODULES
            .iter()
            .flat_map(|module| module.programs)
            .copied()
            .filter(|name| !tools.path(name).exists())
            .collect();
        ensure!(missing.is_empty(), "not built yet: {} (run `cluster build`)", missing.join(", "));
        Ok(tools)
    }

    /// Path of a program.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The custom resource definitions that belong to this istiod.
    pub fn istio_crds(&self) -> Result<PathBuf> {
        Ok(istio_folder()?.join("manifests/charts/base/files/crd-all.gen.yaml"))
    }

    /// The template from which a sidecar's agent makes Envoy's bootstrap file.
    pub fn envoy_template(&self) -> Result<PathBuf> {
        Ok(istio_folder()?.join("tools/packaging/common/envoy_bootstrap.json"))
    }

    fn build_module(&self, module: &Module) -> Result<()> {
        let source = Path::new(CRATE).join("tools").join(module.name);
        let (stamp, wanted) = (self.folder.join(format!(".{}", module.name)), fingerprint(&source)?);
        let is_complete = module.programs.iter().all(|name| self.path(name).exists());
        if is_complete && std::fs::read_to_string(&stamp).is_ok_and(|built| built == wanted) {
            return Ok(());
        }
        let flags = format!("-s -w {}", (module.version)(&pin(&source, module.pinned)?));
        let mut command = Command::new("go");
        // A module with a main package of its own, or one that only names tools.
        let package: &[&str] = if source.join("main.go").exists() { &["."] } else { &["tool"] };
        command
            .current_dir(&source)
            .args(["install", "-v", "-trimpath", "-buildvcs=false", "-ldflags", &flags])
            .args(package);
        if module.name == "cni" {
            // As the CNI project ships them: without libraries, so that they run in anybody's container.
            command.env("CGO_ENABLED", "0");
        }
        command.env("GOBIN", &self.folder);
        with_progress(&mut command, module)?;
        std::fs::write(&stamp, wanted).context("cannot note what was built")
    }
}

/// `.cache/cluster` of the checkout, or `CLUSTER_CACHE`.
pub fn cache() -> PathBuf {
    let own = || Path::new(CRATE).join("../../.cache/cluster");
    std::env::var_os("CLUSTER_CACHE").map_or_else(own, PathBuf::from)
}

/// The stock Envoy that `make tools` installs.
pub fn envoy() -> Result<PathBuf> {
    let path = match std::env::var_os("ENVOY_BIN") {
        Some(path) => PathBuf::from(path),
        None => Path::new(CRATE).join("../../.cache/venv/bin/envoy"),
    };
    path.canonicalize().with_context(|| format!("no Envoy {ENVOY} at {} (run `make tools`)", path.display()))
}

/// The folder of Istio's own sources, of the pinned version.
fn istio_folder() -> Result<PathBuf> {
    let source = Path::new(CRATE).join("tools/istio");
    let folder =
        shell::output(Command::new("go").args(["list", "-m", "-f", "{{.Dir}}", "istio.io/istio"]).current_dir(source))?;
    let folder = String::from_utf8_lossy(&folder.stdout).trim().to_owned();
    ensure!(!folder.is_empty(), "Go's module cache has no istio.io/istio (run `cluster build`)");
    Ok(PathBuf::from(folder))
}

/// Debian's packages, each with the program that tells of it.
fn check_installed() -> Result<()> {
    let needed = ["go", "etcd", "containerd", "ctr", "runc", "buildah", "kubectl", "nft", "curl"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &&&str| std::env::split_paths(&path).any(|folder| folder.join(name).exists());
    let missing: Vec<&str> = needed.iter().filter(|name| !is_there(name)).copied().collect();
    ensure!(
        missing.is_empty(),
        "not installed: {} (run `make tools-cluster`; Go 1.26 comes from go.dev)",
        missing.join(", ")
    );
    Ok(())
}

fn fingerprint(source: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for name in ["go.mod", "go.sum", "main.go"] {
        // Modules that only name tools have no `main.go`.
        hash.update(std::fs::read(source.join(name)).unwrap_or_default());
    }
    let version = shell::output(Command::new("go").arg("version"))?.stdout;
    hash.update(version);
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The version of a module that `go.mod` requires.
fn pin(source: &Path, module: &str) -> Result<String> {
    let text = std::fs::read_to_string(source.join("go.mod"))?;
    let mut words = text.lines().map(|line| line.trim().trim_start_matches("require ").split(' '));
    let found =
        words.find_map(|mut words| (words.next() == Some(module)).then(|| words.next().map(str::to_owned)).flatten());
    found.with_context(|| format!("{}/go.mod pins no {module}", source.display()))
}

/// Runs a build that may take minutes; tells every few seconds how far it is.
fn with_progress(command: &mut Command, module: &Module) -> Result<()> {
    println!("  building {} (kept for later runs): {}", module.name, module.programs.join(", "));
    let started = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("cannot run go")?;
    let (mut packages, mut told, mut last) = (0, Instant::now(), Vec::new());
    for line in BufReader::new(child.stderr.take().context("a pipe")?).lines() {
        let line = line?;
        match line.starts_with("go: ") || line.contains(' ') {
            true => last.push(line),
            false => packages += 1,
        }
        if told.elapsed() > Duration::from_secs(10) {
            println!("    {packages} packages compiled, {} s", started.elapsed().as_secs());
            told = Instant::now();
        }
    }
    let seconds = started.elapsed().as_secs();
    if !child.wait()?.success() {
        let errors: Vec<_> =
            last.iter().filter(|line| !line.starts_with("go: downloading")).map(String::as_str).collect();
        bail!("go could not build {}:\n{}", module.name, errors.join("\n"));
    }
    println!("    done: {packages} packages compiled in {seconds} s");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_pins_what_it_is_named_for() {
        for module in &MODULES {
            let version = pin(&Path::new(CRATE).join("tools").join(module.name), module.pinned).expect("pinned");
            assert!(version.starts_with('v'), "{}: {version}", module.name);
        }
    }

    #[test]
    fn kubernetes_is_told_its_version() {
        assert!(kubernetes_version("v1.36.3").ends_with("gitMajor=1 -X k8s.io/component-base/version.gitMinor=36"));
    }
}
