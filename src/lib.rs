//! weir runs slow, network-bound integrations many at a time in one worker, without letting the parallelism hurt them.
//!
//! The modules in reading order; each floor imports only from those below it (`tests/it/tidy.rs` checks that).

// ── 1 organs: none imports another
pub mod gate;

// ── 0 ground: each imports only those listed above it
pub mod task;
pub mod lifecycle;
pub mod telemetry;
pub mod wire;

// ── 1 organs: none imports another
pub mod registry;
pub mod settings;
pub mod admin;

// ── 1 organs: none imports another
pub mod payload;
