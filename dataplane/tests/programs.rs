//! Each program on single packets, in the kernel, by BPF_PROG_TEST_RUN: packet in, verdict and packet
//! out, and every counter's change. Needs root.
use dataplane::sys::programs::Programs;

#[test]
fn the_object_loads() {
    Programs::load().expect("load");
}
