//! What the tests stand on: real servers, a whole weir on them, and the means to speak to it past its own client.

pub mod cable;
pub mod calls;
pub mod cluster;
pub mod fleet;
pub mod house;
pub mod lone;
pub mod processes;
pub mod redis;
pub mod s3;
pub mod site;
pub mod valve;
pub mod waiting;
pub mod watch;
