//! What the spool promises on its own: order, bounds, what a disk that fails costs.

use super::*;
use crate::payload::body::Body;

fn spool(path: &std::path::Path, max_bytes: u64) -> Spool {
    Spool::new(&Config { path: Some(path.into()), max_bytes, ..Config::default() }).expect("a spool")
}

fn object(key: &str) -> Object {
    Object { key: key.into(), body: Body::from("body"), media_type: "text/plain".into(), metadata: Vec::new() }
}

/// Opens it; returns how many were left in it, and how many of them were given up.
fn open(spool: &Spool) -> (u64, u64) {
    let left = spool.open();
    (left.count(), spool.admit(left))
}

fn put(spool: &Spool, key: &str) {
    let entry = spool.write(&object(key), Value::Ordinary).entry.expect("written");
    spool.publish(entry);
}

fn keys(spool: &Spool) -> Vec<String> {
    std::iter::from_fn(|| spool.take()).map(|entry| spool.read(&entry).expect("readable").key).collect()
}

#[test]
fn the_next_life_finds_what_was_spooled_in_its_order() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = spool(directory.path(), 1 << 20);
    assert_eq!(open(&first), (0, 0));
    for key in ["a", "b", "c"] {
        put(&first, key);
        std::thread::sleep(Duration::from_millis(2));
    }
    let taken = first.take().expect("the oldest");
    first.remove(taken);
    let bytes = first.load().bytes;
    drop(first);
    let second = spool(directory.path(), 1 << 20);
    assert_eq!(open(&second), (2, 0));
    assert_eq!((second.load().bytes, second.load().is_writable), (bytes, true));
    assert_eq!(keys(&second), ["b", "c"]);
}

#[test]
fn a_full_spool_gives_up_the_oldest() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = spool(directory.path(), 700);
    open(&spool);
    let evicted: u64 = (0..9)
        .map(|n| {
            let written = spool.write(&object(&n.to_string()), Value::Ordinary);
            spool.publish(written.entry.expect("written"));
            written.evicted
        })
        .sum();
    assert!(evicted > 5 && spool.load().bytes <= 700, "{evicted} {:?}", spool.load());
    assert!(spool.load().is_full);
    let files = std::fs::read_dir(directory.path().join("berth-0")).expect("a directory").count();
    assert_eq!(files as u64, 9 - evicted + 1, "and the lock");
    assert!(matches!(spool.write(&object(&"x".repeat(900)), Value::Failure).entry, Err(SpoolError::Full)));
    let oldest = spool.take().expect("one is there");
    spool.remove(oldest);
    assert!(!spool.load().is_full, "there is room for another");
    assert!(matches!(spool.write(&object(&"x".repeat(900)), Value::Failure).entry, Err(SpoolError::Full)));
    assert!(!spool.load().is_full, "one that never fits is no sign of that");
}

#[test]
fn damaged_files_are_told_from_whole_ones() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = spool(directory.path(), 1 << 20);
    open(&spool);
    put(&spool, "a");
    let entry = spool.take().expect("it");
    let path = directory.path().join("berth-0").join(entry.name.to_string());
    std::fs::write(&path, "weir.spool.v1 0\n{}\n").expect("written");
    assert!(matches!(spool.read(&entry), Err(ReadError::Damaged(_))));
    std::fs::remove_file(&path).expect("removed");
    assert!(matches!(spool.read(&entry), Err(ReadError::Damaged("it is gone"))));
    spool.remove(entry);
    assert_eq!((spool.load().bytes, spool.load().is_writable), (0, true));
}

#[test]
fn a_directory_that_is_removed_is_made_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("spool");
    let first = spool(&path, 1 << 20);
    open(&first);
    put(&first, "lost");
    put(&first, "lost, too");
    std::fs::remove_dir_all(&path).expect("it is there");
    // Whether a payload is to be read first or to be written.
    for written in [false, true] {
        if written {
            std::fs::remove_dir_all(&path).expect("it is there");
            put(&first, "kept");
        }
        let lost = first.take().expect("its turn");
        assert!(matches!(first.read(&lost), Err(ReadError::Damaged("it is gone"))));
        first.remove(lost);
        assert!(first.load().is_writable);
    }
    assert_eq!(keys(&first), ["kept"]);
    let second = spool(&path, 1 << 20);
    open(&second);
    put(&second, "apart");
    assert!(path.join("berth-1").is_dir(), "and it is locked again");
}

#[test]
fn a_disk_that_cannot_be_read_for_a_while_costs_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = spool(directory.path(), 1 << 20);
    open(&spool);
    put(&spool, "a");
    let (berth, aside) = (directory.path().join("berth-0"), directory.path().join("aside"));
    std::fs::rename(&berth, &aside).expect("moved");
    let entry = spool.take().expect("it");
    assert!(matches!(spool.read(&entry), Err(ReadError::Io(_))));
    spool.untake(entry);
    assert_eq!((spool.take(), spool.load().is_writable), (None, false));
    std::fs::rename(&aside, &berth).expect("moved back");
    spool.state.lock().read_again = None;
    let entry = spool.take().expect("it");
    spool.read(&entry).expect("it is there");
    spool.remove(entry);
    assert!(spool.load().is_writable, "it could be read, and removed");
}

#[test]
fn old_ones_are_removed() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = Config { path: Some(directory.path().into()), max_age: Duration::from_millis(1), ..Config::default() };
    let spool = Spool::new(&config).expect("a spool");
    open(&spool);
    put(&spool, "a");
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!((spool.expire(), spool.load().bytes, spool.take()), (1, 0, None));
}

#[test]
fn what_was_left_is_not_taken_out_before_it_has_been_counted() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = spool(directory.path(), 1 << 20);
    open(&first);
    put(&first, "a");
    let bytes = first.load().bytes;
    drop(first);
    let second = spool(directory.path(), bytes);
    let left = second.open();
    assert_eq!((left.count(), second.take(), second.load().bytes), (1, None, bytes));
    assert!(matches!(second.write(&object("b"), Value::Failure).entry, Err(SpoolError::Full)), "it takes its room");
    assert_eq!((second.open(), second.admit(left)), (Left::default(), 0));
    assert_eq!(keys(&second), ["a"]);
}

#[test]
fn what_was_left_is_bounded_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let (first, other) = (spool(directory.path(), 1 << 20), spool(directory.path(), 1 << 20));
    open(&first);
    open(&other);
    for key in ["a", "b", "c"] {
        put(&first, key);
        put(&other, &format!("other {key}"));
        std::thread::sleep(Duration::from_millis(2));
    }
    let bytes = first.load().bytes;
    drop((first, other));
    let files = |berth| std::fs::read_dir(directory.path().join(berth)).expect("a directory").count() - 1;
    // One more than it may hold, so the oldest is given up and the other berth is left to the next that starts.
    let second = spool(directory.path(), bytes - 1);
    assert_eq!(open(&second), (3, 1));
    assert_eq!((files("berth-0"), files("berth-1"), second.load().bytes), (2, 3, bytes / 3 * 2));
    assert_eq!(open(&spool(directory.path(), bytes * 2)), (3, 0), "the next has the other berth");
    drop(second);
    assert_eq!(open(&spool(directory.path(), bytes * 2)), (5, 0), "there is room for both");
}

#[test]
fn a_spool_that_cannot_be_opened_is_a_loss_and_is_tried_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("spool");
    std::fs::write(&path, "a file in its place").expect("written");
    let spool = spool(&path, 1 << 20);
    assert_eq!(open(&spool), (0, 0));
    assert!(matches!(spool.write(&object("a"), Value::Failure).entry, Err(SpoolError::Disk(_))));
    assert!(!spool.load().is_writable);
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(open(&spool), (0, 0));
    assert!(matches!(spool.write(&object("a"), Value::Failure).entry, Err(SpoolError::Disk(_))), "not at once");
    spool.state.lock().try_again = None;
    open(&spool);
    put(&spool, "a");
    assert!(spool.load().is_writable);
}
