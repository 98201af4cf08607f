//! What several concerns need: real servers.

pub mod s3;
