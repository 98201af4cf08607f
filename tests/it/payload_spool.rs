//! The spool under real processes: a store that goes away and comes back, stops and sudden deaths in the middle of it,
//! and a disk that is full.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::support::processes::{LONG, get, metric, wait_for, weir};
use crate::support::site::{Batch, Site, Worker, files};

#[test]
fn a_stop_while_the_store_is_away_loses_nothing_and_the_next_start_delivers() {
    let mut site = Site::new();
    let mut worker = site.worker();
    assert_eq!(site.submit(&worker, "t", 50).exit_code(LONG), Some(0), "tasks do not notice");
    worker.process.stop();
    assert_eq!((site.spooled(), site.stored()), (50, 0), "{}", worker.process.log());

    let mut s3 = site.s3();
    let mut worker = site.worker();
    worker.until_delivered();
    worker.assert_balanced();
    assert_eq!(worker.count("weir_payloads_recovered_total"), 50);
    assert_eq!(worker.count("weir_payloads_stored_total"), 50);
    worker.process.stop();
    assert_eq!((site.spooled(), site.stored()), (0, 50));
    s3.stop();
}

#[test]
fn tasks_do_not_notice_that_the_store_goes_away_and_all_of_it_arrives_when_it_is_back() {
    let mut site = Site::new();
    let mut worker = site.worker();
    let mut s3 = site.s3();
    let mut before = site.submit(&worker, "before", 100);
    wait_for("some are stored", LONG, || (worker.count("weir_payloads_stored_total") > 20).then_some(()));
    s3.signal(Signal::KILL);
    s3.exit_code(LONG);
    let mut meanwhile = site.submit(&worker, "meanwhile", 300);
    for submit in [&mut before, &mut meanwhile] {
        assert_eq!(submit.exit_code(LONG), Some(0), "{}", submit.log());
    }
    wait_for("the store is held to be away", LONG, || (worker.count("weir_payload_store_away") == 1).then_some(()));
    worker.assert_balanced();
    let mut s3 = site.s3();
    worker.until_delivered();
    worker.assert_balanced();
    assert_eq!(worker.count("weir_payloads_dropped_total"), 0);
    assert_eq!(site.stored(), 400);
    worker.process.stop();
    s3.stop();
}

#[test]
fn a_worker_that_is_killed_at_any_time_loses_only_what_was_in_memory() {
    let mut site = Site::new();
    let mut s3 = None;
    // How far each life comes, in payloads spooled, or, where the store is there, stored.
    for (life, (is_there, most)) in
        [(false, 1), (false, 60), (true, 30), (false, 100), (false, 40), (true, 60), (false, 40)]
            .into_iter()
            .enumerate()
    {
        if is_there {
            s3 = Some(site.s3());
        }
        let left = site.spooled();
        let mut worker = site.worker();
        assert_eq!(worker.count("weir_payloads_recovered_total"), left, "life {life}");
        let submit = site.submit(&worker, &format!("life{life}"), 150);
        let (name, most) = match is_there {
            true => ("weir_payloads_stored_total", most),
            false => ("weir_payloads_spooled", left + most),
        };
        wait_for("it is in the middle of it", LONG, || (worker.count(name) >= most).then_some(()));
        worker.process.signal(Signal::KILL);
        worker.process.exit_code(LONG);
        // It would go on trying.
        drop(submit);
        if let Some(mut s3) = s3.take() {
            s3.stop();
        }
    }
    let left = site.spooled();
    let (mut s3, before) = (site.s3(), site.stored());
    let mut worker = site.worker();
    worker.until_delivered();
    worker.assert_balanced();
    assert_eq!(worker.count("weir_payloads_recovered_total"), left);
    assert_eq!(worker.count("weir_payloads_stored_total"), left, "none is corrupt");
    let stored = site.stored();
    assert!(stored <= before + left && stored >= left.max(before) && stored > 100, "{before} + {left}, {stored}");
    worker.process.stop();
    s3.stop();
    let rest: Vec<_> = files(&site.spool).into_iter().filter(|path| !path.ends_with("lock")).collect();
    assert!(rest.is_empty(), "{rest:?}");
}

#[test]
fn what_is_lost_is_told_and_so_is_that_all_is_well_again() {
    let mut site = Site::with_payloads("spool.max_bytes = 20000");
    let describe = |worker: &Worker| {
        let described = Command::new(weir()).args(["describe", &worker.listen]).output().expect("it runs");
        String::from_utf8(described.stdout).expect("text")
    };
    let mut worker = site.worker();
    let batch = Batch { count: 60, concurrency: 20, transcript_bytes: 1_000 };
    assert_eq!(site.submit_batch(&worker, "t", batch).exit_code(LONG), Some(0), "tasks do not notice");
    worker.until_settled();
    let lost = worker.dropped("spool_full");
    assert!(lost > 10, "{lost}");
    let text = describe(&worker);
    for line in
        ["DEGRADED          the store has been away for ", "DEGRADED          the spool /", " bytes: the oldest"]
    {
        assert!(text.contains(line), "{line} is missing in {text}");
    }

    let mut s3 = site.s3();
    worker.process.wait_for_log("the store is back: uploads are no longer held back");
    worker.process.wait_for_log("the spool is empty again: nothing of what went there waits for the store any more");
    let text = describe(&worker);
    assert!(text.contains(&format!("dropped (spool_full {lost})")) && !text.contains("DEGRADED"), "{text}");
    worker.process.stop();
    let lines = worker.process.lines_logged().into_iter();
    let told: Vec<_> = lines.filter(|line| line["reason"] == "spool_full").collect();
    assert!(told.len() <= 3, "not one line for each: {told:?}");
    assert_eq!(told.iter().filter_map(|line| line["lost"].as_u64()).sum::<u64>(), lost as u64, "{told:?}");
    s3.stop();
}

/// A small file system of its own; none where the machine does not allow it.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir(at).expect("a directory");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(at).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Disk(at.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_full_disk_costs_payloads_and_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = directory.path().join("disk");
    let Some(disk) = Disk::mount(&spool) else {
        eprintln!("skipped: nothing can be mounted here");
        return;
    };
    let mut site = Site::with_spool(directory, spool);
    let mut worker = site.worker();
    assert_eq!(site.submit(&worker, "t", 100).exit_code(LONG), Some(0), "tasks do not notice");
    wait_for("it is settled", LONG, || (worker.count("weir_payloads_pending") == 0).then_some(()));
    worker.assert_balanced();
    let lost = metric(&get(worker.admin, "/metrics"), "weir_payloads_dropped_total", "spool_disk") as usize;
    assert_eq!(worker.count("weir_payload_spool_writable"), 0);
    let mut s3 = site.s3();
    worker.until_delivered();
    assert!(lost > 0 && site.stored() == 100 - lost, "{lost} lost, {} stored", site.stored());
    worker.process.stop();
    s3.stop();
    drop(disk);
}

#[test]
fn a_spool_that_cannot_be_written_for_a_while_costs_payloads_and_keeps_what_it_holds() {
    let mut site = Site::new();
    let mut worker = site.worker();
    let watch = worker.watch();
    assert_eq!(site.submit(&worker, "before", 10).exit_code(LONG), Some(0));
    wait_for("all of it is spooled", LONG, || (worker.count("weir_payloads_spooled") == 10).then_some(()));
    let (berth, aside) = (site.spool.join("berth-0"), site.spool.join("aside"));
    std::fs::rename(&berth, &aside).expect("moved");
    std::fs::write(&berth, "no directory").expect("written");

    assert_eq!(site.submit(&worker, "meanwhile", 15).exit_code(LONG), Some(0), "tasks do not notice");
    let lost = || metric(&get(worker.admin, "/metrics"), "weir_payloads_dropped_total", "spool_disk") as usize;
    wait_for("each of it is lost", LONG, || (lost() == 15).then_some(()));
    assert_eq!(worker.count("weir_payload_spool_writable"), 0);

    std::fs::remove_file(&berth).expect("removed");
    std::fs::rename(&aside, &berth).expect("moved back");
    assert_eq!(site.submit(&worker, "after", 10).exit_code(LONG), Some(0));
    wait_for("all of it is spooled", LONG, || (worker.count("weir_payloads_spooled") == 20).then_some(()));
    assert_eq!(worker.count("weir_payload_spool_writable"), 1);
    let mut s3 = site.s3();
    worker.until_delivered();
    assert_eq!((site.stored(), watch.end().unbalanced), (20, vec![]));
    worker.process.stop();
    s3.stop();
}
