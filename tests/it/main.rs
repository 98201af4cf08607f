//! The integration tests: one binary, one file a concern, real servers for what crosses a process.

mod dashboards;
mod documents;
mod payload_s3;
mod readme;
mod processes;
mod registry_redis;
mod support;
