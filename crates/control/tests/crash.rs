//! What the store acknowledged is there after `kill -9`.

#![cfg(test)]

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use dirigent_control::store::{RedbStore, Store as _};
use dirigent_core::{Epoch, WorkerId, WorkerRecord, Write, control::Outcome};

/// Where the child writes; set for the child only.
const STORE: &str = "DIRIGENT_TEST_STORE";

/// Not a test of its own: the process that is killed. It says what was acknowledged.
#[test]
fn child() {
    let Some(path) = std::env::var_os(STORE) else { return };
    let mut store = RedbStore::new(path.as_ref());
    store.take_office(Epoch(0)).unwrap();
    let mut out = std::io::stdout();
    for n in 1.. {
        let record = WorkerRecord::new(WorkerId(n), "w".into());
        let outcome = store.apply(&[Write::PutWorker(record)]);
        let applied = outcome.unwrap();
        assert!(matches!(applied.outcome, Outcome::Ok { .. }), "{applied:?}");
        writeln!(out, "written {n}").unwrap();
    }
}

#[test]
fn acknowledged_writes_survive_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let mut acknowledged = BTreeSet::new();
    for life in 1..=3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(STORE, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = lines.by_ref().map(Result::unwrap).filter_map(|line| {
            line.split_once("written ").and_then(|(_, n)| n.parse::<u64>().ok())
        });
        acknowledged.extend(said.by_ref().take(20 * life));
        child.kill().unwrap();
        // What was said before the kill counts too.
        acknowledged.extend(said);
        child.wait().unwrap();

        let mut store = RedbStore::new(&path);
        let (office, records) = store.take_office(Epoch(0)).unwrap();
        // The child took office, then we did.
        assert_eq!(office.epoch.term(), 2 * u64::try_from(life).unwrap());
        let kept: BTreeSet<u64> = records.workers.iter().map(|record| record.id.0).collect();
        let lost: Vec<_> = acknowledged.difference(&kept).collect();
        assert!(lost.is_empty(), "{lost:?}");
    }
}
