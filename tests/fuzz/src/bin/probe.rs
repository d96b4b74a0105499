//! The first bytes of a connection of the host, and what follows a health check: never a panic, what is no probe does
//! not become one, and no more passes than has come.

#![no_main]

use dpu_proxy_core::model::ProbeKind;
use dpu_proxy_core::probe::http2::Guard;
use dpu_proxy_core::probe::{Opening, Verdict, judge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let http = ProbeKind::Http { path: "/healthz".to_owned() };
    let probes = [&http, &ProbeKind::Grpc, &ProbeKind::Tcp];
    let at = |bytes| judge(&probes, Opening { bytes, has_ended: false, is_greeted: false });
    if at(&bytes[..bytes.len() / 2]) == Verdict::Other {
        assert_eq!(at(bytes), Verdict::Other, "more bytes changed the decision");
    }
    let (mut guard, mut from) = (Guard::default(), 0);
    for to in [bytes.len() / 2, bytes.len()] {
        let Ok(passed) = guard.pass(&bytes[from..to]) else { return };
        assert!(passed <= to - from);
        from += passed;
    }
});
