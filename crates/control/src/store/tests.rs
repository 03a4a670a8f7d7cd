//! One suite for every back end, and what only a file can do.

use std::{io, path::Path, sync::atomic::AtomicBool, time::Duration};

use ::redb::{StorageBackend, backends::FileBackend};
use dirigent_core::{
    Access, ApiToken, ApiTokens, Bytes, DataPlaneId, DataPlaneRecord, Digest, Epoch, FunctionId,
    FunctionName, FunctionRecord, MilliCpu, Resources, RevisionRecord, RevisionState, RuntimeKind,
    SandboxSpec, Spec, Target, WorkerId, WorkerRecord,
};

use super::*;

pub(crate) fn function(counter: u64) -> FunctionRecord {
    let spec = Spec {
        sandbox: SandboxSpec::new(
            RuntimeKind::Process,
            vec!["dirigent".to_owned(), "example".to_owned(), "hello".to_owned()],
        ),
        resources: Resources { cpu: MilliCpu(100), memory: Bytes::mib(16) },
        env: [("MODE".to_owned(), "fast".to_owned())].into(),
        concurrency: 1,
        artifact: None,
    };
    FunctionRecord {
        id: FunctionId::new(Epoch(1), counter),
        name: FunctionName::new("default", &format!("f{counter}")).unwrap(),
        settings: Arc::default(),
        next: Some(Arc::default()),
        revisions: vec![RevisionRecord {
            number: 1,
            spec: spec.into(),
            state: RevisionState::Live,
            created_ms: 1,
            failure: None,
            born: Epoch(1),
        }],
        targets: vec![Target { revision: 1, weight: 1 }],
    }
}

/// Applies a batch to its end, however many transactions that takes; how the last one went.
pub(super) fn apply(store: &mut dyn Store, mut batch: &[Write]) -> Outcome {
    let mut last = Outcome::Unknown;
    while !batch.is_empty() {
        let Applied { writes, outcome } = store.apply(batch).unwrap();
        assert!(writes > 0 && writes <= batch.len(), "{writes}");
        batch = &batch[writes..];
        last = outcome;
    }
    last
}

/// What every back end does; `reopen` gives the same store as after a restart.
pub(super) fn suite(reopen: impl Fn() -> Box<dyn Store>) {
    let mut store = reopen();
    let (first, records) = store.take_office(Epoch(0)).unwrap();
    assert_eq!((first.epoch.term(), records.terms), (1, vec![first.epoch]));
    assert!(records.functions.is_empty());

    let worker = WorkerRecord::new(WorkerId(1), "local".into());
    let data_plane = DataPlaneRecord::new(DataPlaneId(1), "local".into());
    let tokens = Arc::new(ApiTokens::default().with(
        ApiToken {
            name: "one".into(),
            access: Access::Deploy,
            hash: Digest([7; 32]),
            made_ms: 1,
            expires_ms: Some(2),
        },
        0,
    ));
    assert_eq!(*records.tokens, ApiTokens::default());
    let one = apply(
        &mut *store,
        &[
            Write::PutFunction(function(2).into()),
            Write::PutFunction(function(1).into()),
            Write::PutWorker(worker.clone()),
            Write::PutDataPlane(data_plane.clone()),
            Write::PutTokens(Arc::clone(&tokens)),
        ],
    );
    let mut changed = function(2);
    changed.targets.clear();
    let two = apply(
        &mut *store,
        &[
            Write::PutFunction(changed.clone().into()),
            Write::PutFunction(function(3).into()),
            Write::DeleteFunction(FunctionId::new(Epoch(1), 3)),
            Write::DeleteWorker(WorkerId(7)),
        ],
    );
    let (Outcome::Ok { revision: one }, Outcome::Ok { revision: two }) = (one, two) else {
        panic!("{one:?} {two:?}");
    };
    assert!(two > one);
    assert_eq!(store.functions(), 2);
    drop(store);

    let mut store = reopen();
    let (second, records) = store.take_office(Epoch(0)).unwrap();
    assert_eq!((second.cluster, second.epoch.term()), (first.cluster, 2));
    assert_eq!(records.terms, [first.epoch, second.epoch]);
    assert_eq!(records.functions, [Arc::new(function(1)), Arc::new(changed)]);
    assert_eq!(records.workers, [worker]);
    assert_eq!(records.data_planes, [data_plane]);
    assert_eq!(records.tokens, tokens);
    assert_eq!(store.functions(), 2);
    let three = apply(
        &mut *store,
        &[
            Write::DeleteWorker(WorkerId(1)),
            Write::DeleteDataPlane(DataPlaneId(1)),
            Write::DeleteFunction(FunctionId::new(Epoch(1), 1)),
        ],
    );
    assert!(matches!(three, Outcome::Ok { revision } if revision > two), "{three:?}");
    drop(store);

    // A peer has obeyed a term that this store, an older copy, knows nothing of.
    let shown = Epoch(40).next(7);
    let (third, records) = reopen().take_office(shown).unwrap();
    assert_eq!(third.epoch.term(), 42);
    assert_eq!(records.terms, [first.epoch, second.epoch, third.epoch]);
    let (fourth, _) = reopen().take_office(shown).unwrap();
    assert_eq!(fourth.epoch.term(), 43);
    assert_eq!(records.functions.len(), 1);
    assert!(records.workers.is_empty() && records.data_planes.is_empty());
}

#[test]
fn memory_keeps_what_it_was_given() {
    let store = MemoryStore::default();
    suite(|| Box::new(store.clone()));
}

#[test]
fn redb_keeps_what_it_was_given() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    suite(|| Box::new(RedbStore::new(&path)));
}

#[test]
fn a_newer_format_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let database = ::redb::Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta = ::redb::TableDefinition::<&str, u64>::new("meta");
    transaction.open_table(meta).unwrap().insert("schema", 99).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = RedbStore::new(&path).take_office(Epoch(0)).unwrap_err().to_string();
    assert!(error.contains("has format 99") && error.contains("--state"), "{error}");
}

#[test]
fn a_store_that_is_open_already_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let mut first = RedbStore::new(&path);
    first.take_office(Epoch(0)).unwrap();
    let error = RedbStore::new(&path).take_office(Epoch(0)).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
}

#[test]
fn functions_that_are_equal_in_spec_and_settings_share_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let mut store = RedbStore::new(&path);
    store.take_office(Epoch(0)).unwrap();
    let batch: Vec<_> = (1..=3).map(|n| Write::PutFunction(function(n).into())).collect();
    apply(&mut store, &batch);
    drop(store);
    let (_, records) = RedbStore::new(&path).take_office(Epoch(0)).unwrap();
    let [a, b, _] = records.functions.as_slice() else { panic!("three") };
    assert!(Arc::ptr_eq(&a.settings, &b.settings));
    assert!(Arc::ptr_eq(&a.revisions[0].spec, &b.revisions[0].spec));
}

/// A file on a disk that can be made full.
#[derive(Debug)]
struct Disk {
    file: FileBackend,
    full: Arc<AtomicBool>,
}

impl Disk {
    fn room(&self) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room()?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}

fn on_disk(path: &Path, full: &Arc<AtomicBool>) -> RedbStore {
    let (file, full) = (path.to_owned(), Arc::clone(full));
    RedbStore::with(path, move || {
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file)
            .map_err(|error| ::redb::DatabaseError::Storage(error.into()))?;
        let disk = Disk { file: FileBackend::new(file)?, full: Arc::clone(&full) };
        ::redb::Database::builder().create_with_backend(disk)
    })
}

#[test]
fn a_full_disk_refuses_writes_and_takes_them_again_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let mut store = on_disk(&dir.path().join("store.redb"), &full);
    store.take_office(Epoch(0)).unwrap();
    let put = |n| [Write::PutFunction(function(n).into())];
    assert!(matches!(apply(&mut store, &put(1)), Outcome::Ok { .. }));

    full.store(true, Ordering::SeqCst);
    for n in 2..5 {
        let outcome = apply(&mut store, &put(n));
        assert!(!matches!(outcome, Outcome::Ok { .. }), "{outcome:?}");
    }

    full.store(false, Ordering::SeqCst);
    assert!(matches!(apply(&mut store, &put(9)), Outcome::Ok { .. }));
    drop(store);
    let (_, records) =
        on_disk(&dir.path().join("store.redb"), &full).take_office(Epoch(0)).unwrap();
    let kept: Vec<_> = records.functions.iter().map(|record| record.id.counter).collect();
    assert_eq!(kept, [1, 9]);
}

#[tokio::test]
async fn writes_that_wait_share_a_transaction_and_are_answered_in_order() {
    let tasks = Tasks::new();
    let (writer, mut answers) =
        Writer::start(Box::new(MemoryStore::default()), (), Counts::default(), &tasks);
    for n in 0..3000 {
        writer.write(WriteToken(n), Write::DeleteWorker(WorkerId(n))).unwrap();
    }
    let mut tokens = Vec::new();
    let mut batches = 0;
    while tokens.len() < 3000 {
        let batch = answers.recv().await.unwrap().unwrap();
        assert!(batch.len() <= BATCH);
        batches += 1;
        tokens.extend(batch.into_iter().map(|(token, _outcome)| token.0));
    }
    assert_eq!(tokens, (0..3000).collect::<Vec<_>>());
    assert!(batches < 3000, "{batches}");
    assert_eq!(writer.counts().writes.load(Ordering::Relaxed), 3000);
    assert_eq!(writer.counts().transactions.load(Ordering::Relaxed), batches);
    drop(writer);
    assert!(tasks.wait(Duration::from_secs(10)).await);
}
