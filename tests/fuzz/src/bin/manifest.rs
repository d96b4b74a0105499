//! Kubernetes manifests: a file is read or refused with a reason, never a panic.

#![no_main]

use istio_dpu_controller::manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(error) = manifest::parse(text) {
        assert!(!error.to_string().is_empty(), "a refusal says why");
    }
});
