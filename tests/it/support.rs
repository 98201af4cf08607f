//! What the tests stand on: real servers.

pub mod redis;
pub mod s3;
