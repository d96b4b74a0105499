//! Network configurations that a runtime passes: accepted or refused, never a panic.

#![no_main]

use istio_dpu_cni::netconf::NetConf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Err(error) = NetConf::parse(text) {
        assert!(!error.msg.is_empty(), "a refusal says why");
    }
});
