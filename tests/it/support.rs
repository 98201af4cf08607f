//! What the tests stand on: real servers, a whole weir on them, and the means to speak to it past its own client.

pub mod authority;
pub mod cable;
pub mod calls;
pub mod cluster;
pub mod desk;
pub mod fleet;
pub mod house;
#[cfg(feature = "launchdarkly")]
pub mod launchdarkly;
pub mod lone;
pub mod observed;
pub mod place;
pub mod processes;
pub mod prometheus;
pub mod promql;
pub mod redis;
pub mod s3;
pub mod site;
pub mod valve;
pub mod waiting;
pub mod watch;
