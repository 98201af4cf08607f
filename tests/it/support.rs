//! What the tests stand on: real servers.

pub mod fleet;
pub mod processes;
pub mod redis;
pub mod s3;
