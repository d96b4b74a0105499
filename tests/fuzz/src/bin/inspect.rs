//! Listener filters: the first bytes of a connection never panic them, and they decide the same
//! however much more has come.

#![no_main]

use dpu_proxy::listener::{client_hello, http_hello};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let tls = client_hello::inspect(bytes);
    let http = http_hello::inspect(bytes);
    let half = &bytes[..bytes.len() / 2];
    match client_hello::inspect(half) {
        client_hello::Inspected::NeedMore => {}
        decided => assert_eq!(decided, tls, "more bytes changed the decision"),
    }
    match http_hello::inspect(half) {
        http_hello::Inspected::NeedMore => {}
        decided => assert_eq!(decided, http, "more bytes changed the decision"),
    }
});
