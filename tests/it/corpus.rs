//! The fuzzers' checks (`fuzz/`), over inputs that are worth keeping: seeds, and what fuzzers have found.

use std::path::Path;

#[path = "../../fuzz/src/lib.rs"]
mod checks;

/// Runs a check over each file of `tests/corpus/{target}`; of a failure, the name of the file is printed.
fn run(target: &str, check: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(&directory).expect("a corpus") {
        let path = entry.expect("an entry").path();
        println!("{}", path.display());
        check(&std::fs::read(&path).expect("readable"));
        count += 1;
    }
    assert!(count >= 10, "{} holds {count} inputs", directory.display());
}

#[test]
fn decode() {
    run("decode", checks::decode::check);
}

#[test]
fn redact() {
    run("redact", checks::redact::check);
}

#[test]
fn paths() {
    run("paths", checks::paths::check);
}
