//! Records in one file, by redb: a transaction is durable when it returns, and a process killed at
//! any moment leaves the last whole one.
//!
//! After an I/O error (a full disk) redb must be opened again; whether the failed transaction took
//! place is then read from the store's own revision, which every transaction raises. Values are
//! JSON: readable with any tool, and a field may be added without a migration.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use dirigent_core::{
    ClusterId, DataPlaneRecord, Epoch, Office, Records, WorkerRecord, Write, control::Outcome,
};
use redb::{
    Database, DatabaseError, Error, ReadableDatabase as _, ReadableTable as _,
    ReadableTableMetadata as _, StorageError, TableDefinition, WriteTransaction,
};

use super::{
    Applied, Deposed, SCHEMA, Store, StoreError, etcd::moving::SHUT, migrate::Snapshot,
    reading::Reader,
};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const CLUSTER: TableDefinition<'_, (), u128> = TableDefinition::new("cluster");
const FUNCTIONS: TableDefinition<'_, (u64, u64), &[u8]> = TableDefinition::new("functions");
const WORKERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("workers");
const DATA_PLANES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("data_planes");
/// The epochs of the last terms of office, by their numbers.
const TERMS: TableDefinition<'_, u64, u64> = TableDefinition::new("terms");
const TOKENS: TableDefinition<'_, (), &[u8]> = TableDefinition::new("tokens");
/// Where everything is now, once it was moved.
const MOVED: TableDefinition<'_, (), &str> = TableDefinition::new("moved");

/// Pages that redb keeps in memory. The records are read once; after that only writes touch it.
const CACHE: usize = 8 << 20;

/// How the database is opened, and opened again after an I/O error.
type Open = Box<dyn Fn() -> Result<Database, DatabaseError> + Send>;

/// See the module.
pub struct RedbStore {
    path: PathBuf,
    open: Open,
    database: Option<Database>,
    revision: u64,
    functions: u64,
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl RedbStore {
    /// The store in this file, which is made if it does not exist. It is opened by taking office.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        let file = path.to_owned();
        Self::with(path, move || Database::builder().set_cache_size(CACHE).create(&file))
    }

    /// The store that `open` opens; `path` is for messages.
    pub(super) fn with(
        path: &Path,
        open: impl Fn() -> Result<Database, DatabaseError> + Send + 'static,
    ) -> Self {
        Self {
            path: path.to_owned(),
            open: Box::new(open),
            database: None,
            revision: 0,
            functions: 0,
        }
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn io(&self, error: impl Into<Error>) -> StoreError {
        let place = self.place();
        match error.into() {
            Error::DatabaseAlreadyOpen => StoreError::InUse { place },
            error => StoreError::Io { place, source: Box::new(error) },
        }
    }

    fn opened(&mut self) -> Result<&Database, StoreError> {
        if self.database.is_none() {
            let database = (self.open)().map_err(|error| self.io(error))?;
            self.database = Some(database);
        }
        self.database.as_ref().ok_or_else(|| StoreError::InUse { place: self.place() })
    }

    fn office(&self, database: &Database, shown: Epoch) -> Result<(Office, u64), StoreError> {
        // The format is looked at before anything is written.
        self.check_schema(database)?;
        let fresh = super::new_cluster().map_err(|error| self.io(StorageError::Io(error)))?;
        enter(database, fresh, shown).map_err(|error| self.io(error))
    }

    fn check_schema(&self, database: &Database) -> Result<(), StoreError> {
        let read = || {
            let transaction = database.begin_read()?;
            match transaction.open_table(META) {
                Ok(meta) => Ok(meta.get("schema")?.map(|value| value.value())),
                Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
                Err(error) => Err(Error::from(error)),
            }
        };
        match read().map_err(|error| self.io(error))? {
            Some(found) if found == SHUT => {
                let to = moved_to(database).map_err(|error| self.io(error))?;
                Err(StoreError::Moved { place: self.place(), to })
            }
            Some(found) if found > SCHEMA => {
                let instead = "another directory with --state";
                Err(StoreError::Newer { place: self.place(), found, known: SCHEMA, instead })
            }
            _ => Ok(()),
        }
    }

    /// Everything that it holds, without taking office.
    pub(super) fn snapshot(&mut self) -> Result<Snapshot, StoreError> {
        self.opened()?;
        let database =
            self.database.take().ok_or_else(|| StoreError::InUse { place: self.place() })?;
        self.check_schema(&database)?;
        let read = || {
            let transaction = database.begin_read()?;
            let cluster = transaction.open_table(CLUSTER)?.get(())?.map(|value| value.value());
            let meta = transaction.open_table(META)?;
            let number = |name| Ok::<_, Error>(meta.get(name)?.map(|value| value.value()));
            Ok::<_, Error>((cluster, number("epoch")?, number("schema")?))
        };
        let (cluster, epoch, format) = read().map_err(|error| self.io(error))?;
        let records = self.load(&database)?;
        self.database = Some(database);
        let cluster = ClusterId(cluster.unwrap_or_default());
        let (epoch, format) = (Epoch(epoch.unwrap_or_default()), format.unwrap_or(SCHEMA));
        Ok(Snapshot { cluster, epoch, format, records })
    }

    /// Everything is there now: no program opens this one any more.
    pub(super) fn moved(&mut self, to: &str) -> Result<(), StoreError> {
        let written = |database: &Database| {
            let transaction = database.begin_write()?;
            transaction.open_table(META)?.insert("schema", SHUT)?;
            transaction.open_table(MOVED)?.insert((), to)?;
            transaction.commit()?;
            Ok::<_, Error>(())
        };
        let written = written(self.opened()?);
        written.map_err(|error| self.io(error))
    }

    fn load(&self, database: &Database) -> Result<Records, StoreError> {
        let mut records = Records::default();
        let mut reader = Reader::default();
        let transaction = database.begin_read().map_err(|error| self.io(error))?;

        let table = transaction.open_table(FUNCTIONS).map_err(|error| self.io(error))?;
        for row in table.iter().map_err(|error| self.io(error))? {
            let (key, value) = row.map_err(|error| self.io(error))?;
            let record = reader
                .read(value.value())
                .map_err(|error| self.unreadable(format!("functions{:?}", key.value()), &error))?;
            records.functions.push(record.into());
        }
        let table = transaction.open_table(WORKERS).map_err(|error| self.io(error))?;
        for row in table.iter().map_err(|error| self.io(error))? {
            let (key, value) = row.map_err(|error| self.io(error))?;
            let record: WorkerRecord = serde_json::from_slice(value.value())
                .map_err(|error| self.unreadable(format!("workers({})", key.value()), &error))?;
            records.workers.push(record);
        }
        let table = transaction.open_table(DATA_PLANES).map_err(|error| self.io(error))?;
        for row in table.iter().map_err(|error| self.io(error))? {
            let (key, value) = row.map_err(|error| self.io(error))?;
            let record: DataPlaneRecord =
                serde_json::from_slice(value.value()).map_err(|error| {
                    self.unreadable(format!("data_planes({})", key.value()), &error)
                })?;
            records.data_planes.push(record);
        }
        let table = transaction.open_table(TERMS).map_err(|error| self.io(error))?;
        for row in table.iter().map_err(|error| self.io(error))? {
            let (_, epoch) = row.map_err(|error| self.io(error))?;
            records.terms.push(Epoch(epoch.value()));
        }
        let table = transaction.open_table(TOKENS).map_err(|error| self.io(error))?;
        if let Some(value) = table.get(()).map_err(|error| self.io(error))? {
            records.tokens = serde_json::from_slice(value.value())
                .map_err(|error| self.unreadable("tokens".to_owned(), &error))?;
        }
        Ok(records)
    }

    fn unreadable(&self, record: String, error: &serde_json::Error) -> StoreError {
        StoreError::Record { place: self.place(), record, message: error.to_string() }
    }

    /// The database, opened again if the last transaction failed.
    fn current(&mut self) -> Result<&Database, StoreError> {
        if self.database.is_none() {
            let revision = read_revision(self.opened()?);
            match revision {
                Ok((revision, functions)) => {
                    self.revision = revision;
                    self.functions = functions;
                }
                Err(error) => {
                    self.database = None;
                    return Err(self.io(error));
                }
            }
        }
        self.opened()
    }

    /// After a failed transaction: whether it took place after all. Nothing else is decided before
    /// that is known, or has been asked for a while.
    fn judge(&mut self, next: u64) -> Outcome {
        self.database = None;
        for _attempt in 0..REOPENINGS {
            match self.current().map(|_database| ()) {
                Ok(()) if self.revision == next => return Outcome::Ok { revision: next },
                Ok(()) => return Outcome::Refused,
                Err(error) => tracing::warn!(%error, "the store cannot be opened again"),
            }
            std::thread::park_timeout(REOPEN_PAUSE);
        }
        Outcome::Unknown
    }
}

/// Attempts to open the database after a failed transaction, and the time between two.
const REOPENINGS: u32 = 4;
const REOPEN_PAUSE: Duration = Duration::from_millis(50);

impl Store for RedbStore {
    fn take_office(&mut self, shown: Epoch) -> Result<(Office, Records), StoreError> {
        self.opened()?;
        let database =
            self.database.take().ok_or_else(|| StoreError::InUse { place: self.place() })?;
        let (office, revision) = self.office(&database, shown)?;
        let records = self.load(&database)?;
        self.revision = revision;
        self.functions = records.functions.len() as u64;
        self.database = Some(database);
        Ok((office, records))
    }

    fn apply(&mut self, batch: &[Write]) -> Result<Applied, Deposed> {
        let outcome = self.write(batch);
        Ok(Applied { writes: batch.len(), outcome })
    }

    fn functions(&self) -> u64 {
        self.functions
    }
}

impl RedbStore {
    fn write(&mut self, batch: &[Write]) -> Outcome {
        if let Err(error) = self.current() {
            tracing::warn!(%error, "the store cannot be opened; nothing was written");
            return Outcome::Refused;
        }
        let next = self.revision + 1;
        let written = match &self.database {
            Some(database) => commit(database, batch, next),
            None => return Outcome::Refused,
        };
        match written {
            Ok(functions) => {
                self.revision = next;
                self.functions = functions;
                Outcome::Ok { revision: next }
            }
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "the store took no write");
                self.judge(next)
            }
        }
    }
}

/// Where everything is.
fn moved_to(database: &Database) -> Result<String, Error> {
    let transaction = database.begin_read()?;
    let moved = transaction.open_table(MOVED)?.get(())?.map(|value| value.value().to_owned());
    Ok(moved.unwrap_or_default())
}

/// The transaction that takes office: a cluster id if there is none, the format, the next epoch.
fn enter(database: &Database, fresh: ClusterId, shown: Epoch) -> Result<(Office, u64), Error> {
    let transaction = database.begin_write()?;
    let office = {
        let mut cluster = transaction.open_table(CLUSTER)?;
        let known = cluster.get(())?.map(|value| value.value());
        if known.is_none() {
            cluster.insert((), fresh.0)?;
        }
        let mut meta = transaction.open_table(META)?;
        let last = meta.get("epoch")?.map_or(0, |value| value.value());
        let epoch = super::next_epoch(Epoch(last), shown).map_err(Error::Io)?;
        let revision = meta.get("revision")?.map_or(0, |value| value.value()) + 1;
        meta.insert("schema", SCHEMA)?;
        meta.insert("epoch", epoch.0)?;
        meta.insert("revision", revision)?;
        transaction.open_table(FUNCTIONS)?;
        transaction.open_table(WORKERS)?;
        transaction.open_table(DATA_PLANES)?;
        transaction.open_table(TOKENS)?;
        let mut terms = transaction.open_table(TERMS)?;
        terms.insert(epoch.term(), epoch.0)?;
        while terms.len()? > Records::TERMS as u64 {
            terms.pop_first()?;
        }
        let cluster = known.map_or(fresh, ClusterId);
        (Office { cluster, epoch }, revision)
    };
    transaction.commit()?;
    Ok(office)
}

/// The revision that the store is at, and how many functions it has.
fn read_revision(database: &Database) -> Result<(u64, u64), Error> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    let functions = transaction.open_table(FUNCTIONS)?.len()?;
    Ok((meta.get("revision")?.map_or(0, |value| value.value()), functions))
}

/// Apply a batch; how many functions there are then.
fn commit(database: &Database, batch: &[Write], revision: u64) -> Result<u64, Error> {
    let transaction = database.begin_write()?;
    let functions = put(&transaction, batch, revision)?;
    transaction.commit()?;
    Ok(functions)
}

fn put(transaction: &WriteTransaction, batch: &[Write], revision: u64) -> Result<u64, Error> {
    transaction.open_table(META)?.insert("revision", revision)?;
    let mut functions = transaction.open_table(FUNCTIONS)?;
    let mut workers = transaction.open_table(WORKERS)?;
    let mut data_planes = transaction.open_table(DATA_PLANES)?;
    for write in batch {
        match write {
            Write::PutFunction(record) => {
                let key = (record.id.epoch.0, record.id.counter);
                functions.insert(key, json(record)?.as_slice())?;
            }
            Write::DeleteFunction(id) => {
                functions.remove((id.epoch.0, id.counter))?;
            }
            Write::PutWorker(record) => {
                workers.insert(record.id.0, json(record)?.as_slice())?;
            }
            Write::DeleteWorker(id) => {
                workers.remove(id.0)?;
            }
            Write::PutDataPlane(record) => {
                data_planes.insert(record.id.0, json(record)?.as_slice())?;
            }
            Write::DeleteDataPlane(id) => {
                data_planes.remove(id.0)?;
            }
            Write::PutTokens(tokens) => {
                transaction.open_table(TOKENS)?.insert((), json(tokens)?.as_slice())?;
            }
        }
    }
    Ok(functions.len()?)
}

fn json<T: serde::Serialize>(record: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(record).map_err(|error| Error::Io(std::io::Error::other(error)))
}
