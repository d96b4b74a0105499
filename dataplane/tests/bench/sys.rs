//! BPF_PROG_TEST_RUN of an sk_lookup program, which the loader's library does not offer.

use std::os::fd::{AsRawFd, BorrowedFd};

const BPF_PROG_TEST_RUN: i64 = 10;

/// `struct bpf_sk_lookup`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Lookup {
    /// Of the socket that was chosen; 0: none.
    pub cookie: u64,
    pub family: u32,
    pub protocol: u32,
    pub remote_ip4: [u8; 4],
    pub remote_ip6: [u8; 16],
    pub remote_port: [u8; 2],
    pub zero: u16,
    pub local_ip4: [u8; 4],
    pub local_ip6: [u8; 16],
    pub local_port: u32,
    pub ingress_ifindex: u32,
    pub padding: u32,
}

/// The part of `union bpf_attr` that a test run uses.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    program: u32,
    return_value: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    processor: u32,
    batch_size: u32,
    zero: u32,
}

/// Verdict (0 drop, 1 pass) and the socket's cookie.
pub fn run(program: BorrowedFd<'_>, lookup: Lookup) -> (u32, u64) {
    let mut after = lookup;
    let size = size_of::<Lookup>() as u32;
    let mut attributes = Attributes {
        program: program.as_raw_fd() as u32,
        context_size_in: size,
        context_size_out: size,
        context_in: (&raw const lookup) as u64,
        context_out: (&raw mut after) as u64,
        repeat: 1,
        ..Attributes::default()
    };
    // SAFETY: `attributes` is laid out as the kernel's and lives through the call, as do the two
    // contexts it points at, whose sizes it gives.
    let result = unsafe {
        nix::libc::syscall(nix::libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<Attributes>())
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    (attributes.return_value, after.cookie)
}
