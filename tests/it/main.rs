//! The integration tests: one binary, one file a concern, real servers for what crosses a process.

mod registry_redis;
//! Everything that crosses a process or a socket, one file a concern.

mod payload_s3;
mod support;
