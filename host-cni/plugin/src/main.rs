//! `istio-dpu-cni`: the plugin that the runtime calls once per ADD, DEL, CHECK, GC, STATUS or VERSION.

#![forbid(unsafe_code)]

use istio_dpu_cni::error::{CniError, code};
use serde_json::Value;
use std::io::Read;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut stdin = Vec::new();
    let outcome = match std::io::stdin().read_to_end(&mut stdin) {
        Ok(_) => istio_dpu_cni::run(|name| std::env::var(name).ok(), &stdin),
        Err(error) => Err(CniError::new(code::IO, format!("cannot read standard input: {error}"))),
    };
    match outcome {
        Ok(result) => {
            result.iter().for_each(|result| println!("{result:#}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{:#}", printed(&error, &stdin));
            ExitCode::FAILURE
        }
    }
}

/// The error object carries the version that was asked for, or ours.
fn printed(error: &CniError, stdin: &[u8]) -> Value {
    let newest = istio_dpu_cni::version::SUPPORTED.last().copied().unwrap_or_default();
    let version = istio_dpu_cni::netconf::asked_version(stdin).unwrap_or_else(|| newest.to_owned());
    serde_json::json!({ "cniVersion": version, "code": error.code, "msg": error.msg, "details": error.details })
}
