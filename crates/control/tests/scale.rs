//! A start with many functions. By command, since it measures:
//! `cargo test --release -p dirigent-control --test scale -- --ignored --nocapture`

#![cfg(test)]

use std::{sync::Arc, time::Instant};

use dirigent_bench::etcd::Etcd;
use dirigent_control::{
    Config,
    store::{
        EtcdStore, RedbStore, SCHEMA, Store as _,
        etcd::{EtcdConfig, Member, chair},
    },
};
use dirigent_core::{
    Bytes, Epoch, FunctionId, FunctionName, FunctionRecord, MilliCpu, Resources, RevisionRecord,
    RevisionState, RuntimeKind, SandboxSpec, Settings, Spec, Target, Write, control::Outcome,
};
use dirigent_service::Tasks;

const FUNCTIONS: u64 = 100_000;

/// Each with settings, spec and name of its own in the file, as deploys leave them.
fn function(counter: u64) -> FunctionRecord {
    let command = ["dirigent", "example", "hello"].map(str::to_owned).to_vec();
    let spec = Spec {
        sandbox: SandboxSpec::new(RuntimeKind::Process, command),
        resources: Resources { cpu: MilliCpu(100), memory: Bytes::mib(16) },
        env: [("MODE".to_owned(), "fast".to_owned())].into(),
        concurrency: 1,
        artifact: None,
    };
    FunctionRecord {
        id: FunctionId::new(Epoch(1), counter),
        name: FunctionName::new("default", &format!("function-{counter}")).unwrap(),
        settings: Arc::new(Settings::default()),
        next: None,
        revisions: vec![RevisionRecord {
            number: 1,
            spec: Arc::new(spec),
            state: RevisionState::Live,
            created_ms: 1_700_000_000_000,
            failure: None,
            born: Epoch(1),
        }],
        targets: vec![Target { revision: 1, weight: 1 }],
    }
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Processor time of this process so far, in milliseconds: on a busy machine it says more than the
/// time that passed.
fn processor_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime and stime, in hundredths of a second.
    fields[11..=12].iter().map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum()
}

#[tokio::test]
#[ignore = "it measures; see the module"]
async fn a_hundred_thousand_functions_are_loaded_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let mut store = RedbStore::new(&path);
    store.take_office(Epoch(0)).unwrap();
    let numbers: Vec<u64> = (1..=FUNCTIONS).collect();
    for batch in numbers.chunks(1000) {
        let writes: Vec<_> =
            batch.iter().map(|n| Write::PutFunction(Arc::new(function(*n)))).collect();
        let applied = store.apply(&writes).unwrap();
        assert!(matches!(applied.outcome, Outcome::Ok { .. }), "{applied:?}");
    }
    drop(store);
    let (before, processor) = (resident_mib(), processor_ms());

    let tasks = Tasks::new();
    let started = Instant::now();
    let mut config = Config::new(dir.path().to_owned());
    config.listen = ([127, 0, 0, 1], 0).into();
    let running = dirigent_control::start(config, &tasks).await.unwrap();
    println!(
        "{FUNCTIONS} functions: started in {:?} ({} ms of processor), resident {} MiB more ({} MiB in all), file {} MiB",
        started.elapsed(),
        processor_ms() - processor,
        resident_mib().saturating_sub(before),
        resident_mib(),
        std::fs::metadata(&path).unwrap().len() >> 20,
    );
    assert_eq!(running.store.functions.load(std::sync::atomic::Ordering::Relaxed), FUNCTIONS);
    tasks.stop();
    assert!(tasks.wait(std::time::Duration::from_secs(20)).await);
}

#[test]
#[ignore = "it measures; see the module"]
fn a_hundred_thousand_functions_are_loaded_from_etcd() {
    if !Etcd::is_installed() {
        return println!("{}", Etcd::MISSING);
    }
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(dir.path(), 1).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = EtcdConfig { members: etcd.addresses(), tls: None, prefix: "/scale".to_owned() };
    let store = || {
        let chair = chair(&config, Member { format: SCHEMA, ..Member::default() }).unwrap();
        EtcdStore::new(chair, None, runtime.handle().clone())
    };
    let mut first = store();
    first.take_office(Epoch(0)).unwrap();
    let writes: Vec<_> =
        (1..=FUNCTIONS).map(|n| Write::PutFunction(Arc::new(function(n)))).collect();
    let mut rest = writes.as_slice();
    let started = Instant::now();
    while !rest.is_empty() {
        let applied = first.apply(rest).unwrap();
        assert!(matches!(applied.outcome, Outcome::Ok { .. }), "{applied:?}");
        rest = &rest[applied.writes..];
    }
    println!("{FUNCTIONS} functions: written in {:?}", started.elapsed());
    drop(writes);
    for _ in 0..3 {
        let (started, before) = (Instant::now(), processor_ms());
        let (_, records) = store().take_office(Epoch(0)).unwrap();
        println!(
            "{FUNCTIONS} functions: office taken and all read from etcd in {:?} ({} ms of processor here)",
            started.elapsed(),
            processor_ms() - before,
        );
        assert_eq!(records.functions.len() as u64, FUNCTIONS);
    }
}
