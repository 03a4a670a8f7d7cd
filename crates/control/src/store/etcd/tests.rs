//! The store on real etcds, which each test starts for itself.

mod cut;
mod tls;

use std::{
    fs,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use dirigent_bench::etcd::Etcd;
use dirigent_core::{Epoch, FunctionRecord, WorkerId, WorkerRecord, office::Seat};
use tokio::runtime::Runtime;

use self::cut::Line;
use super::*;
use crate::store::{
    SCHEMA,
    tests::{apply, function, suite},
};

/// An etcd, and threads for those who ask it.
struct Host {
    etcd: Etcd,
    runtime: Runtime,
    dir: tempfile::TempDir,
}

impl Host {
    /// `None` where etcd is not installed, which is said.
    fn start(members: usize) -> Option<Self> {
        if !Etcd::is_installed() {
            println!("{}", Etcd::MISSING);
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let etcd = Etcd::start(dir.path(), members).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        Some(Self { etcd, runtime, dir })
    }

    fn chair(&self, name: &str) -> Chair {
        self.chair_at(&self.etcd.addresses(), name, SCHEMA)
    }

    fn chair_at(&self, members: &[String], name: &str, format: u64) -> Chair {
        let config =
            EtcdConfig { members: members.to_vec(), tls: None, prefix: "/test".to_owned() };
        chair(&config, Member { name: name.to_owned(), format, ..Member::default() }).unwrap()
    }

    fn store(&self, chair: Chair) -> EtcdStore {
        EtcdStore::new(chair, None, self.runtime.handle().clone())
    }
}

fn worker(id: u64, name: &str) -> Write {
    Write::PutWorker(WorkerRecord::new(WorkerId(id), name.into()))
}

/// The names of the workers that are recorded.
fn names(host: &Host) -> Vec<String> {
    let (_, records) = host.store(host.chair("reader")).take_office(Epoch(0)).unwrap();
    records.workers.iter().map(|worker| worker.name.to_string()).collect()
}

#[test]
fn etcd_keeps_what_it_was_given() {
    let Some(host) = Host::start(1) else { return };
    suite(|| Box::new(host.store(host.chair("one"))));
}

#[test]
fn a_batch_takes_as_many_transactions_as_it_needs_and_is_read_by_pages() {
    let Some(host) = Host::start(1) else { return };
    let mut store = host.store(host.chair("one"));
    store.take_office(Epoch(0)).unwrap();
    let before = host.etcd.revision().unwrap();
    let count = 8100;
    let batch: Vec<Write> = (1..=count).map(|n| Write::PutFunction(function(n).into())).collect();
    assert!(matches!(apply(&mut store, &batch), Outcome::Ok { .. }));
    let transactions = host.etcd.revision().unwrap() - before;
    assert_eq!(transactions, count.div_ceil(RECORDS as u64));
    assert_eq!(store.functions(), count);

    // By bytes too: each of these takes more than half of what fits.
    let large = |counter| {
        let mut record: FunctionRecord = function(counter);
        let spec = Arc::make_mut(&mut record.revisions[0].spec);
        spec.env.insert("LARGE".to_owned(), "x".repeat(BYTES / 2));
        Write::PutFunction(record.into())
    };
    let applied = store.apply(&[large(1), large(2), large(3)]).unwrap();
    assert_eq!(applied.writes, 1);
    let all: Vec<Write> = (1..=3).map(large).collect();
    assert!(matches!(apply(&mut store, &all), Outcome::Ok { .. }));
    // One that etcd never takes is refused, and is in nobody's way.
    let mut record: FunctionRecord = function(9);
    Arc::make_mut(&mut record.revisions[0].spec)
        .env
        .insert("LARGE".to_owned(), "x".repeat(3 * BYTES));
    let applied = store.apply(&[Write::PutFunction(record.into()), worker(1, "w")]).unwrap();
    assert_eq!(applied, Applied { writes: 1, outcome: Outcome::Refused });
    assert!(matches!(apply(&mut store, &[worker(1, "w")]), Outcome::Ok { .. }));

    let mut next = host.store(host.chair("two"));
    let (_, records) = next.take_office(Epoch(0)).unwrap();
    let ids: Vec<u64> = records.functions.iter().map(|record| record.id.counter).collect();
    assert_eq!(ids, (1..=count).collect::<Vec<_>>());
    assert!(Arc::ptr_eq(&records.functions[3].settings, &records.functions[8000].settings));
}

#[test]
fn a_deposed_leader_neither_writes_nor_beats() {
    let Some(host) = Host::start(1) else { return };
    let (one, two) = (host.chair("one"), host.chair("two"));
    let look = |chair: &Chair| host.runtime.block_on(chair.look()).unwrap();
    let take = |chair: &Chair, over| host.runtime.block_on(chair.take(over, Epoch(0))).unwrap();
    assert_eq!(look(&one).seat, Seat::default());

    let first = take(&one, Seat::default()).unwrap();
    assert_eq!(take(&two, Seat::default()), None, "one of those who ask has it");
    let mut old = EtcdStore::new(one.clone(), Some(first), host.runtime.handle().clone());
    let (office, _) = old.take_office(Epoch(0)).unwrap();
    assert_eq!(office.epoch.term(), 1);
    assert!(matches!(apply(&mut old, &[worker(1, "before")]), Outcome::Ok { .. }));
    assert_eq!(host.runtime.block_on(one.beat(&first, 7)), Beat::Told);
    let seen = look(&two);
    assert_eq!((seen.seat.holder, seen.seat.beat), (one.life(), 7));
    assert_eq!(seen.leader.unwrap().member.name, "one");

    // A beat since the look does not save it.
    assert_eq!(host.runtime.block_on(one.beat(&first, 8)), Beat::Told);
    let second = take(&two, seen.seat).unwrap();
    assert_eq!((second.office.epoch.term(), second.office.cluster), (2, office.cluster));
    old.apply(&[worker(1, "after")]).unwrap_err();
    assert_eq!(host.runtime.block_on(one.beat(&first, 9)), Beat::Deposed);
    let mut late = EtcdStore::new(one, Some(first), host.runtime.handle().clone());
    assert!(
        matches!(late.take_office(Epoch(0)), Err(StoreError::Deposed)),
        "nothing is read in its name"
    );
    let mut new = EtcdStore::new(two, Some(second), host.runtime.handle().clone());
    let (_, records) = new.take_office(Epoch(0)).unwrap();
    assert_eq!(records.terms, [office.epoch, second.office.epoch]);
    assert_eq!(records.workers.len(), 1);
    assert_eq!(&*records.workers[0].name, "before");
}

#[test]
fn a_leader_is_deposed_by_an_older_copy_of_its_store() {
    let Some(mut host) = Host::start(1) else { return };
    let data = host.dir.path().join("m0/data");
    let copy = host.dir.path().join("copy");
    let chair = host.chair("one");
    let term =
        host.runtime.block_on(chair.take(Seat::default(), Epoch(0))).unwrap().expect("the first");
    let mut store = EtcdStore::new(chair.clone(), Some(term), host.runtime.handle().clone());
    store.take_office(Epoch(0)).unwrap();
    let again = |host: &mut Host| {
        host.etcd.restart(0).unwrap();
        // Every wait of a beat has an end of its own.
        let beats = (1..).map(|beat| host.runtime.block_on(chair.beat(&term, beat)));
        beats.take(10).find(|beat| *beat != Beat::Untold).expect("etcd is up again")
    };
    assert!(matches!(apply(&mut store, &[worker(1, "copied")]), Outcome::Ok { .. }));
    host.etcd.kill(0);
    copy_dir(&data, &copy);
    assert_eq!(again(&mut host), Beat::Told);
    assert!(matches!(apply(&mut store, &[worker(2, "lost")]), Outcome::Ok { .. }));

    host.etcd.kill(0);
    fs::remove_dir_all(&data).unwrap();
    copy_dir(&copy, &data);
    // The office is the same one there, and nothing has been written since.
    assert_eq!(again(&mut host), Beat::Deposed);
    store.apply(&[worker(3, "after")]).unwrap_err();
    assert_eq!(names(&host), ["copied"]);
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn of_many_who_ask_at_once_one_takes_office_and_the_cluster_has_one_id() {
    let Some(host) = Host::start(1) else { return };
    let chairs: Vec<Chair> = (0..8).map(|n| host.chair(&format!("c{n}"))).collect();
    let mut clusters = Vec::new();
    let mut epoch = Epoch(0);
    for term in 1..=3 {
        let over = Seat { epoch, ..Seat::default() };
        let taken: Vec<Term> = thread::scope(|scope| {
            let attempts: Vec<_> = chairs
                .iter()
                .map(|chair| {
                    scope.spawn(|| host.runtime.block_on(chair.take(over, Epoch(0))).unwrap())
                })
                .collect();
            attempts.into_iter().filter_map(|attempt| attempt.join().unwrap()).collect()
        });
        assert_eq!(taken.len(), 1, "{taken:?}");
        epoch = taken[0].office.epoch;
        assert_eq!(epoch.term(), term);
        clusters.push(taken[0].office.cluster);
    }
    clusters.dedup();
    assert_eq!(clusters.len(), 1);
}

#[test]
fn the_format_is_raised_only_when_every_control_plane_knows_it() {
    let Some(host) = Host::start(1) else { return };
    let addresses = host.etcd.addresses();
    let run = |chair: &Chair| host.runtime.block_on(chair.enrol());
    let next = SCHEMA + 1;
    let (new, old) =
        (host.chair_at(&addresses, "new", next), host.chair_at(&addresses, "old", SCHEMA));
    run(&new).unwrap();
    run(&old).unwrap();
    let term = host.runtime.block_on(new.take(Seat::default(), Epoch(0))).unwrap().unwrap();
    assert_eq!(
        host.runtime.block_on(new.raise_format(&term)).unwrap(),
        SCHEMA,
        "one does not know it"
    );

    let upgraded = host.chair_at(&addresses, "old", next);
    run(&upgraded).unwrap();
    assert_eq!(host.runtime.block_on(new.raise_format(&term)).unwrap(), next);
    // The old program does not come back, and is told what to do.
    for error in [run(&old).unwrap_err(), host.runtime.block_on(old.look()).unwrap_err()] {
        let error = error.to_string();
        assert!(
            error.contains(&format!("has format {next}")) && error.contains("--etcd-prefix"),
            "{error}"
        );
    }
    host.store(old).take_office(Epoch(0)).unwrap_err();
}

/// What a caller sees whose connection fails in the middle of a transaction.
#[test]
fn a_transaction_whose_answer_is_lost_is_looked_up_before_anything_else() {
    let Some(host) = Host::start(1) else { return };
    let line = Line::to(host.etcd.client(0).unwrap());
    let mut store = host.store(host.chair_at(&[line.address()], "one", SCHEMA));
    store.take_office(Epoch(0)).unwrap();
    assert!(matches!(apply(&mut store, &[worker(1, "w")]), Outcome::Ok { .. }));

    // It was taken, and the answer lost.
    let before = host.etcd.revision().unwrap();
    line.lose_answers();
    let outcome = apply(&mut store, &[worker(2, "taken")]);
    assert_eq!(outcome, Outcome::Ok { revision: before + 1 });

    // It never came to etcd: it is written again.
    line.hold_questions();
    let Outcome::Ok { revision } = apply(&mut store, &[worker(3, "old")]) else { panic!() };
    assert!(matches!(apply(&mut store, &[worker(3, "new")]), Outcome::Ok { .. }));
    // What was held so long comes now, and changes nothing.
    line.deliver();
    assert!(host.etcd.revision().unwrap() > revision);

    // Nothing is heard for long: what is asked meanwhile is refused without a trace.
    line.mute();
    assert_eq!(apply(&mut store, &[worker(5, "doubt")]), Outcome::Unknown);
    assert_eq!(apply(&mut store, &[worker(6, "not tried")]), Outcome::Refused);
    line.mend();
    assert!(matches!(apply(&mut store, &[worker(7, "after")]), Outcome::Ok { .. }));
    let names = names(&host);
    assert!(!names.iter().any(|name| name == "not tried"), "{names:?}");
    assert_eq!(names[..3], ["w", "taken", "new"]);
    assert_eq!(names.last().unwrap(), "after");
}

#[test]
fn without_etcd_nothing_is_written_and_afterwards_everything_is() {
    let Some(mut host) = Host::start(1) else { return };
    let mut store = host.store(host.chair("one"));
    store.take_office(Epoch(0)).unwrap();
    host.etcd.kill(0);
    // On a slow host it may not be known in time that nobody listens any more.
    for number in 1..=2 {
        let outcome = apply(&mut store, &[worker(number, "w")]);
        assert!(matches!(outcome, Outcome::Refused | Outcome::Unknown), "{outcome:?}");
    }
    host.etcd.restart(0).unwrap();
    let begin = Instant::now();
    while !matches!(apply(&mut store, &[worker(3, "after")]), Outcome::Ok { .. }) {
        assert!(begin.elapsed() < Duration::from_secs(30), "it does not come back");
    }
    assert_eq!(names(&host), ["after"]);
}

#[test]
fn writes_go_on_when_the_leader_of_etcd_is_killed_or_stands_still() {
    let Some(mut host) = Host::start(3) else { return };
    let mut store = host.store(host.chair("one"));
    store.take_office(Epoch(0)).unwrap();
    let mut acknowledged = Vec::new();
    let mut number = 0;
    for round in 0..2 {
        let leader = host.etcd.leader().unwrap();
        let begin = Instant::now();
        let mut after = 0;
        while after < 20 {
            if number == 10 + 30 * round {
                if round == 0 {
                    host.etcd.kill(leader);
                } else {
                    host.etcd.freeze(leader, true).unwrap();
                }
            }
            number += 1;
            if let Outcome::Ok { .. } = apply(&mut store, &[worker(number, "w")]) {
                acknowledged.push(number);
                after += u64::from(number > 10 + 30 * round);
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "writes do not go on");
        }
        number = 30 + 30 * round;
        if round == 0 {
            host.etcd.restart(leader).unwrap();
        } else {
            host.etcd.freeze(leader, false).unwrap();
        }
    }
    let (_, records) = host.store(host.chair("two")).take_office(Epoch(0)).unwrap();
    let kept: Vec<u64> = records.workers.iter().map(|worker| worker.id.0).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|id| !kept.contains(id)).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

#[test]
fn a_member_that_is_no_address_is_told() {
    let config =
        EtcdConfig { members: vec!["localhost".to_owned()], tls: None, prefix: "/x".to_owned() };
    let error = chair(&config, Member::default()).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("`localhost` is not of the form http://HOST:PORT"), "{source}");
}
