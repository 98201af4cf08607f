//! The integration tests: one binary, one file a concern, real servers for what crosses a process.

mod payload_s3;
mod registry_redis;
mod support;
mod tasks;
mod tidy;
