//! What is done to requests and responses.

pub mod grpc;
