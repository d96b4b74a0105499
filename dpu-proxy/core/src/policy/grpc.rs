//! gRPC statuses: their names, and the one that stands for an HTTP status.

/// Status of a gRPC call.
pub const OK: u32 = 0;
pub const UNKNOWN: u32 = 2;
pub const DEADLINE_EXCEEDED: u32 = 4;
pub const PERMISSION_DENIED: u32 = 7;
pub const UNIMPLEMENTED: u32 = 12;
pub const INTERNAL: u32 = 13;
pub const UNAVAILABLE: u32 = 14;
pub const UNAUTHENTICATED: u32 = 16;

const NAMES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The name of a status, as `%GRPC_STATUS%` prints it.
pub fn name(status: u32) -> Option<&'static str> {
    NAMES.get(status as usize).copied()
}

/// The status for an HTTP status that no gRPC server sent (the table of gRPC's HTTP mapping).
pub fn of_http(status: u16) -> u32 {
    match status {
        200 => OK,
        400 => INTERNAL,
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 => UNIMPLEMENTED,
        429 | 502..=504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_statuses_become_the_statuses_that_grpc_defines() {
        for (http, grpc) in [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (503, 14), (418, 2)] {
            assert_eq!(of_http(http), grpc, "{http}");
        }
        assert_eq!(name(14), Some("Unavailable"));
    }
}
