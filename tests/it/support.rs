//! What the tests stand on.

pub mod redis;
//! What several concerns need: real servers.

pub mod s3;
