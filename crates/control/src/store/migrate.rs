//! Moves a single control plane's store into an etcd, for several: the same cluster, functions,
//! revisions and ids, and the next epoch above the last one. Nothing is deployed anew, and workers
//! and data planes find a leader whom they may obey.
//!
//! The old store is read under its directory's lock, so that nobody writes meanwhile, and says
//! afterwards where everything is: two stores of one cluster would be two truths. Artifacts stay
//! where they are, in the directory of what is to be the first of the control planes; each one that a
//! revision needs is read and compared with its name.

use std::{io, path::Path};

use dirigent_core::{ClusterId, Digest, Epoch, Records};
use dirigent_service::{LockError, StateLock};
use tokio::runtime::Handle;

use super::{
    RedbStore, SCHEMA, StoreError,
    etcd::{EtcdConfig, Member, chair, moving},
};
use crate::blobs::Blobs;

/// What was moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The cluster, the same as before.
    pub cluster: ClusterId,
    /// The last epoch so far: the next one is above.
    pub epoch: Epoch,
    /// Functions.
    pub functions: usize,
    /// Their revisions.
    pub revisions: usize,
    /// Workers.
    pub workers: usize,
    /// Data planes.
    pub data_planes: usize,
    /// Tokens of the API.
    pub tokens: usize,
    /// Artifacts that revisions need; all are there.
    pub artifacts: usize,
    /// Their bytes.
    pub artifact_bytes: u64,
}

/// Why nothing was moved, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// There is nothing to move.
    #[error("there is no store in {dir}")]
    NoStore {
        /// The directory.
        dir: String,
    },
    /// A control plane runs on it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The one store or the other.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Revisions need what is not there.
    #[error(
        "{} of the artifacts that revisions need cannot be used, the first is {first}: {why}",
        count
    )]
    Artifacts {
        /// How many.
        count: usize,
        /// Which.
        first: Digest,
        /// What is wrong with it.
        why: String,
    },
}

/// See the module. Nothing in the old store is changed before everything is in the new one. Blocks;
/// `runtime` has threads of its own.
///
/// # Errors
/// What is in the way. After any but the first ones it can be called again.
pub fn migrate(
    state: &Path,
    to: &EtcdConfig,
    runtime: &Handle,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Moved, MigrateError> {
    let path = state.join("store.redb");
    if !path.is_file() {
        return Err(MigrateError::NoStore { dir: state.display().to_string() });
    }
    let _lock = StateLock::acquire(state, "--state")?;
    let mut store = RedbStore::new(&path);
    let Snapshot { cluster, epoch, format, records } = store.snapshot()?;
    let (artifacts, artifact_bytes) = check_artifacts(state, &records)?;
    let member = Member { name: "store migrate".to_owned(), format: SCHEMA, ..Member::default() };
    let chair = {
        // The client connects beside.
        let _within = runtime.enter();
        chair(to, member)?
    };
    let place = path.display().to_string();
    let origin = moving::Origin { place: &place, cluster, epoch, format, records: &records };
    let moving = match moving::Moving::begin(&chair, origin, runtime) {
        Err(StoreError::Moved { place, to }) => {
            // It was, and its last word was not written down.
            store.moved(&to)?;
            return Err(StoreError::Moved { place, to }.into());
        }
        begun => begun?,
    };
    moving.write(progress)?;
    moving.check()?;
    moving.finish()?;
    store.moved(&format!("etcd at {} under {}", to.members.join(","), to.prefix))?;
    Ok(Moved {
        cluster,
        epoch,
        functions: records.functions.len(),
        revisions: records.functions.iter().map(|function| function.revisions.len()).sum(),
        workers: records.workers.len(),
        data_planes: records.data_planes.len(),
        tokens: records.tokens.all().len(),
        artifacts,
        artifact_bytes,
    })
}

/// A store as it is, without taking office.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) cluster: ClusterId,
    pub(super) epoch: Epoch,
    pub(super) format: u64,
    pub(super) records: Records,
}

/// How many artifacts revisions need, and their bytes.
fn check_artifacts(state: &Path, records: &Records) -> Result<(usize, u64), MigrateError> {
    let needed = Blobs::needed(records);
    let dir = state.join("blobs");
    let (mut bytes, mut broken) = (0, Vec::new());
    for digest in &needed {
        match Blobs::verify(&dir, *digest) {
            Ok(size) => bytes += size,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                broken.push((*digest, "it is not there".to_owned()));
            }
            Err(error) => broken.push((*digest, error.to_string())),
        }
    }
    match broken.first().cloned() {
        Some((first, why)) => Err(MigrateError::Artifacts { count: broken.len(), first, why }),
        None => Ok((needed.len(), bytes)),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use dirigent_bench::etcd::Etcd;
    use dirigent_core::{
        Access, ApiToken, ApiTokens, DataPlaneId, DataPlaneRecord, Duty, WorkerId, WorkerRecord,
        Write, control::Outcome,
    };
    use sha2::Digest as _;

    use super::*;
    use crate::store::{Store as _, etcd::Chair, tests::function};

    /// An etcd, a runtime beside, and the directory of a control plane with more than fits into one
    /// transaction.
    struct Host {
        etcd: Etcd,
        runtime: tokio::runtime::Runtime,
        state: tempfile::TempDir,
        _scratch: tempfile::TempDir,
    }

    const FUNCTIONS: u64 = 300;

    impl Host {
        /// `None` where etcd is not installed, which is said.
        fn start() -> Option<Self> {
            if !Etcd::is_installed() {
                println!("{}", Etcd::MISSING);
                return None;
            }
            let (scratch, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let etcd = Etcd::start(scratch.path(), 1).unwrap();
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let this = Self { etcd, runtime, state, _scratch: scratch };
            this.fill();
            Some(this)
        }

        fn fill(&self) {
            let blobs = self.state.path().join("blobs");
            fs::create_dir(&blobs).unwrap();
            let digest = Digest(sha2::Sha256::digest(b"files").into());
            fs::write(blobs.join(digest.hex()), b"files").unwrap();
            let mut store = self.source();
            store.take_office(Epoch(0)).unwrap();
            let mut writes: Vec<Write> = (1..=FUNCTIONS)
                .map(|number| {
                    let mut record = function(number);
                    Arc::make_mut(&mut record.revisions[0].spec).artifact = Some(digest);
                    Write::PutFunction(record.into())
                })
                .collect();
            let name: Arc<str> = "one".into();
            let worker = WorkerRecord::new(WorkerId(1), Arc::clone(&name)).on(Duty::Draining);
            writes.push(Write::PutWorker(worker));
            writes.push(Write::PutDataPlane(DataPlaneRecord::new(DataPlaneId(1), name)));
            let token = ApiToken {
                name: "t".into(),
                access: Access::Deploy,
                hash: digest,
                made_ms: 1,
                expires_ms: None,
            };
            writes.push(Write::PutTokens(Arc::new(ApiTokens::default().with(token, 1))));
            let outcome = store.apply(&writes).unwrap().outcome;
            assert!(matches!(outcome, Outcome::Ok { .. }), "{outcome:?}");
        }

        fn source(&self) -> RedbStore {
            RedbStore::new(&self.state.path().join("store.redb"))
        }

        fn target(&self) -> EtcdConfig {
            EtcdConfig { members: self.etcd.addresses(), tls: None, prefix: "/moved".to_owned() }
        }

        fn chair(&self) -> Chair {
            let _within = self.runtime.enter();
            let member = Member { name: "c".to_owned(), format: SCHEMA, ..Member::default() };
            chair(&self.target(), member).unwrap()
        }

        fn migrate(&self) -> Result<Moved, MigrateError> {
            let handle = self.runtime.handle();
            migrate(self.state.path(), &self.target(), handle, &mut |_, _| {})
        }
    }

    #[test]
    fn everything_is_there_afterwards_and_the_next_epoch_is_above() {
        let Some(host) = Host::start() else { return };
        let before = host.source().snapshot().unwrap();
        let mut told = Vec::new();
        let progress = &mut |done, all| told.push((done, all));
        let handle = host.runtime.handle();
        let moved = migrate(host.state.path(), &host.target(), handle, progress).unwrap();
        let all = usize::try_from(FUNCTIONS).unwrap();
        let counts = (moved.functions, moved.workers, moved.data_planes, moved.tokens);
        assert_eq!(counts, (all, 1, 1, 1));
        assert_eq!((moved.artifacts, moved.artifact_bytes), (1, 5));
        assert!(told.len() > 2 && told.last() == Some(&(all + 3, all + 3)), "{told:?}");

        let mut store = crate::store::EtcdStore::new(host.chair(), None, handle.clone());
        let (office, records) = store.take_office(Epoch(0)).unwrap();
        assert_eq!(office.cluster, before.cluster);
        assert!(office.epoch > before.epoch);
        assert_eq!(records.functions, before.records.functions);
        assert_eq!(records.tokens, before.records.tokens);
        assert!(records.terms.starts_with(&before.records.terms), "{:?}", records.terms);
        assert!(matches!(
            store.apply(&[Write::PutFunction(function(900).into())]).unwrap().outcome,
            Outcome::Ok { .. }
        ));

        // The old one is over, and says so whoever asks.
        for error in [
            host.source().take_office(Epoch(0)).unwrap_err().to_string(),
            host.migrate().unwrap_err().to_string(),
        ] {
            assert!(error.contains("was moved to etcd at") && error.contains("--etcd"), "{error}");
        }
    }

    #[test]
    fn a_move_that_broke_off_lets_nobody_in_and_is_begun_again() {
        let Some(host) = Host::start() else { return };
        let handle = host.runtime.handle();
        let before = host.source().snapshot().unwrap();
        let origin = moving::Origin {
            place: "here",
            cluster: before.cluster,
            epoch: before.epoch,
            format: SCHEMA,
            records: &before.records,
        };
        // Of an earlier attempt something is there that is not wanted any more.
        let mut records = before.records.clone();
        records.functions.push(function(900).into());
        let earlier = moving::Origin { records: &records, ..origin };
        moving::Moving::begin(&host.chair(), earlier, handle)
            .unwrap()
            .write(&mut |_, _| {})
            .unwrap();
        let mut store = crate::store::EtcdStore::new(host.chair(), None, handle.clone());
        let error = store.take_office(Epoch(0)).unwrap_err().to_string();
        assert!(error.contains("not finished"), "{error}");
        let stranger = moving::Origin { cluster: ClusterId(77), place: "there", ..origin };
        let error = moving::Moving::begin(&host.chair(), stranger, handle).unwrap_err();
        assert!(matches!(error, StoreError::Moving { .. }), "{error}");

        host.migrate().unwrap();
        let (_, records) = store.take_office(Epoch(0)).unwrap();
        assert_eq!(records.functions, before.records.functions);
    }

    #[test]
    fn what_is_in_the_way_is_said_and_nothing_is_changed() {
        let Some(host) = Host::start() else { return };
        let lock = StateLock::acquire(host.state.path(), "--state").unwrap();
        let error = host.migrate().unwrap_err();
        assert!(matches!(error, MigrateError::Lock(_)), "{error}");
        drop(lock);
        let elsewhere = tempfile::tempdir().unwrap();
        let handle = host.runtime.handle();
        let error = migrate(elsewhere.path(), &host.target(), handle, &mut |_, _| {});
        assert!(matches!(error, Err(MigrateError::NoStore { .. })), "{error:?}");

        let blob = fs::read_dir(host.state.path().join("blobs")).unwrap().next().unwrap().unwrap();
        fs::write(blob.path(), b"filed").unwrap();
        let error = host.migrate().unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
        fs::write(blob.path(), b"files").unwrap();

        let mut store = crate::store::EtcdStore::new(host.chair(), None, handle.clone());
        store.take_office(Epoch(0)).unwrap();
        let error = host.migrate().unwrap_err();
        assert!(matches!(error, MigrateError::Store(StoreError::NotEmpty { .. })), "{error}");
        host.source().take_office(Epoch(0)).unwrap();
    }

    #[test]
    fn an_image_that_a_registry_has_need_not_be_here() {
        let state = tempfile::tempdir().unwrap();
        let digest = Digest([7; 32]);
        let mut record = function(1);
        let spec = Arc::make_mut(&mut record.revisions[0].spec);
        spec.artifact = Some(digest);
        let with = |record: &dirigent_core::FunctionRecord| Records {
            functions: vec![record.clone().into()],
            ..Records::default()
        };
        let error = check_artifacts(state.path(), &with(&record)).unwrap_err().to_string();
        assert!(error.contains("it is not there"), "{error}");
        let spec = Arc::make_mut(&mut record.revisions[0].spec);
        spec.sandbox.runtime = dirigent_core::RuntimeKind::Container;
        spec.sandbox.image = Some(format!("registry.test/one@{digest}"));
        assert_eq!(check_artifacts(state.path(), &with(&record)).unwrap(), (0, 0));
    }
}
