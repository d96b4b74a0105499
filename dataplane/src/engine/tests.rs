//! All or nothing, against a kernel that refuses.
