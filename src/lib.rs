//! weir runs slow, network-bound integrations many at a time in one worker, without letting the parallelism hurt them.
//!
//! The modules in reading order; each floor imports only from those below it (`tests/it/tidy.rs` checks that). For a
//! tour of two minutes: [`task`], [`gate`], then `worker/service.rs`, `worker/run.rs`, `worker/announce.rs` and
//! `worker/drain.rs`. ARCHITECTURE.md has the map.

// They panic where nobody reads any more.
#![warn(clippy::print_stdout, clippy::print_stderr)]

// ── 3 entry: may import anything
pub mod cli;
pub mod client;
pub mod replay;
pub mod config;

// ── 2 roles: the only places where organs meet
pub mod worker;
pub mod router;
pub mod sandbox;

// ── 1 organs: none imports another
pub mod gate;
pub mod overload;
pub mod upstream;
pub mod integration;
pub mod payload;
pub mod registry;
pub mod settings;
pub mod admin;

// ── 0 ground: each imports only those listed above it
pub mod task;
pub mod causes;
pub mod pem;
pub mod quantile;
pub mod limits;
pub mod lifecycle;
pub mod telemetry;
pub mod redis;
pub mod wire;

pub use client::Client;
