//! One term of office: from records just read to whatever ends it.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use dirigent_core::{
    ApiTokens, Digest, Epoch, Office, Records, Time,
    recording::{Began, Entry, FORMAT},
};
use dirigent_service::{Clock, StateLock, Tasks};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    OpenStore, StartError,
    copies::Artifacts,
    metrics::Metrics,
    owner::{Owner, OwnerError, Sitting},
    random,
    recorder::Recorder,
    store::{Counts, Store, StoreError, Writer},
};

/// What is needed for a term, again and again.
pub(crate) struct Chambers {
    pub(crate) state: PathBuf,
    pub(crate) version: String,
    /// Where terms are recorded, if they are.
    pub(crate) record: Option<PathBuf>,
    pub(crate) clock: Clock,
    pub(crate) artifacts: Artifacts,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) counts: Counts,
    /// The right to use the state directory, held until everything is written.
    pub(crate) lock: Arc<StateLock>,
    /// Of the token in the state directory.
    pub(crate) own_token: Digest,
    /// The format in which records are written, or may be, as far as is known.
    pub(crate) format: Arc<AtomicU64>,
    pub(crate) sitting: watch::Sender<Option<Sitting>>,
    pub(crate) leads: watch::Sender<Option<Epoch>>,
    /// The tokens of the API that count, while this control plane knows.
    pub(crate) tokens: watch::Sender<Option<Arc<ApiTokens>>>,
    pub(crate) tasks: Tasks,
}

/// The store of a term that is over is closed within this time, and how often that is looked at.
const CLOSES_WITHIN: Duration = Duration::from_secs(10);
const CLOSES_LOOK: Duration = Duration::from_millis(10);

/// Why a control plane that leads alone stops by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error(transparent)]
    Owner(#[from] OwnerError),
    #[error(transparent)]
    Start(#[from] StartError),
}

/// A term that has begun.
pub(crate) struct Begun {
    owner: Owner,
    sitting: Sitting,
    /// The tokens of the API that were recorded.
    tokens: Arc<ApiTokens>,
}

impl Chambers {
    /// Begins a term over what was read after taking office.
    pub(crate) async fn begin(
        &self,
        store: Box<dyn Store>,
        office: Office,
        records: Records,
        deposed: CancellationToken,
    ) -> Result<Begun, StartError> {
        let unusable = |source| StartError::State { dir: self.state.clone(), source };
        let blobs = self.artifacts.blobs.clone();
        let began = self.began(office, records)?;
        let recorded = self.record.is_some();
        // Files are listed, and a machine with many functions takes its time.
        let tokens = Arc::clone(&began.records.tokens);
        let made = tokio::task::spawn_blocking(move || {
            blobs.refer(&began.records)?;
            let first = recorded.then(|| Entry::Began(Box::new(began.clone())));
            Ok((began.machine(), first))
        });
        let made: io::Result<_> = made.await.map_err(|panic| unusable(panic.into()))?;
        let (machine, first) = made.map_err(unusable)?;
        let recorder = self.recorder(first)?;
        let lock = Arc::clone(&self.lock);
        let (writer, answers) = Writer::start(store, lock, self.counts.clone(), &self.tasks);
        let (sitting, inputs) = Sitting::new(office);
        let owner = Owner {
            machine,
            recorder,
            clock: self.clock,
            inputs,
            writer,
            answers,
            artifacts: self.artifacts.clone(),
            metrics: Arc::clone(&self.metrics),
            tokens: self.tokens.clone(),
            tasks: self.tasks.clone(),
            deposed,
            asked: HashMap::new(),
            speakers: HashMap::new(),
        };
        Ok(Begun { owner, sitting, tokens })
    }

    /// Lets everybody in.
    pub(crate) fn open(&self, begun: &Begun) {
        let Office { cluster, epoch } = begun.sitting.office;
        let cluster = format!("{:032x}", cluster.0);
        tracing::info!(%epoch, cluster, "this control plane leads");
        self.metrics.took_office(epoch);
        self.tokens.send_replace(Some(Arc::clone(&begun.tokens)));
        // In this order: whoever is let in finds the owner.
        self.sitting.send_replace(Some(begun.sitting.clone()));
        self.leads.send_replace(Some(epoch));
    }

    /// Leads, once opened, until the role is told to stop or the term is over.
    pub(crate) async fn lead(&self, begun: Begun) -> Result<(), OwnerError> {
        let Begun { owner, sitting, tokens: _ } = begun;
        drop(sitting);
        let ended = owner.run().await;
        self.leads.send_replace(None);
        self.tokens.send_replace(None);
        self.sitting.send_replace(None);
        self.metrics.resigned();
        ended
    }

    /// Leads, with a store of its own, until the role is told to stop. A term that a peer shows to be
    /// over is followed by one above it: the store was restored from an older copy.
    pub(crate) async fn lead_alone(self, mut begun: Begun, open: OpenStore) -> Result<(), Ended> {
        loop {
            let shown = match self.lead(begun).await {
                Err(OwnerError::Resigned { shown }) => shown,
                ended => return Ok(ended?),
            };
            tracing::warn!(
                %shown,
                "a peer has obeyed this epoch, which the store does not know: it was restored from \
                 an older copy, it seems; what it has forgotten is gone"
            );
            begun = self.again(&open, shown).await?;
            self.open(&begun);
        }
    }

    /// Takes office again, once the last term's writes are done.
    async fn again(&self, open: &OpenStore, shown: Epoch) -> Result<Begun, StartError> {
        let deadline = Instant::now() + CLOSES_WITHIN;
        let (store, office, records) = loop {
            match crate::take_office(open(), shown).await {
                Err(StoreError::InUse { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(CLOSES_LOOK).await;
                }
                taken => break taken?,
            }
        };
        self.begin(store, office, records, CancellationToken::new()).await
    }

    /// What the machine is made of.
    fn began(&self, office: Office, records: Records) -> Result<Began, StartError> {
        let unusable = |source| StartError::State { dir: self.state.clone(), source };
        Ok(Began {
            format: FORMAT,
            program: self.version.clone(),
            wall_ms: Clock::wall_ms(),
            at: Time(self.clock.nanos()),
            office,
            seed: seed().map_err(unusable)?,
            own_token: Some(self.own_token),
            records,
        })
    }

    /// Who records it, if that is wanted.
    fn recorder(&self, first: Option<Entry>) -> Result<Option<Recorder>, StartError> {
        let (Some(dir), Some(first)) = (&self.record, first) else { return Ok(None) };
        let recorder = Recorder::start(dir, first);
        let failed = |source| StartError::Record { dir: dir.clone(), source };
        recorder.map(Some).map_err(failed)
    }
}

/// Of the machine's random source.
fn seed() -> io::Result<u64> {
    let mut seed = [0; 8];
    random(&mut seed)?;
    Ok(u64::from_le_bytes(seed))
}
