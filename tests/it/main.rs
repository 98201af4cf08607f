//! The integration tests: one binary, one file a concern, real servers for what crosses a process.

mod registry_redis;
mod support;
