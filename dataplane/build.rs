//! Compiles `bpf/dataplane.bpf.c` to `$OUT_DIR/dataplane.bpf.o`, the same bytes from any folder.

use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = "dataplane.bpf.c";

fn main() {
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-env-changed=BPF_CLANG");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("dataplane.bpf.o");
    if let Err(reason) = compile(&out) {
        eprintln!("error: cannot compile dataplane/bpf/{SOURCE}: {reason}");
        std::process::exit(1);
    }
}

fn compile(out: &Path) -> Result<(), String> {
    let folder = Path::new("bpf").canonicalize().map_err(|error| format!("no folder bpf: {error}"))?;
    let clang = std::env::var("BPF_CLANG").unwrap_or_else(|_| "clang-19".to_owned());
    let status = Command::new(&clang)
        .current_dir(&folder)
        .args(["-target", "bpf", "-O2", "-g", "-mcpu=v3", "-Wall", "-Werror", "-fdebug-compilation-dir=."])
        .arg(format!("-ffile-prefix-map={}=.", folder.display()))
        .args(system_headers())
        .args(["-c", SOURCE, "-o"])
        .arg(out)
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{clang} ended with {status}; its messages are above. {}", packages())),
        Err(error) => Err(format!("cannot run {clang} ({error}). {}", packages())),
    }
}

/// Debian keeps `asm/types.h` in a folder of the host's architecture, which `-target bpf` does not search.
fn system_headers() -> Vec<String> {
    let host = std::env::var("HOST").unwrap_or_default();
    let architecture = host.split('-').next().unwrap_or_default();
    let folder = format!("/usr/include/{architecture}-linux-gnu");
    if Path::new(&folder).exists() { vec!["-idirafter".to_owned(), folder] } else { Vec::new() }
}

fn packages() -> &'static str {
    "It needs: apt-get install clang-19 libbpf-dev linux-libc-dev (or BPF_CLANG=another clang)"
}
