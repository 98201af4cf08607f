//! What must hold for any bytes, one module a target. libFuzzer runs these by `fuzz_targets`, and weir's own tests run
//! them over `tests/corpus`.

pub mod decode;
pub mod paths;
pub mod redact;
mod sample;
