//! Everything that crosses a process or a socket, one file a concern.

mod payload_s3;
mod support;
