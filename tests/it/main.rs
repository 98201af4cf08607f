//! The integration tests: one binary, one file a concern, real servers for what crosses a process.

mod admin;
mod bad_input;
mod canary;
mod check;
mod cli;
mod dashboards;
mod documents;
mod ending;
mod exec;
mod exec_sdks;
mod fleet;
mod foreign_clients;
mod live_settings;
mod never_arrived;
mod outages;
mod payload_s3;
mod payload_spool;
mod processes;
mod pulls;
mod readme;
mod registry_redis;
mod submit_many;
mod support;
mod tasks;
mod tidy;
mod tools;
