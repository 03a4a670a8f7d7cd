//! Several control planes on one store, of which one leads: this one stands by, takes office when
//! it falls to it, leads, and stands by again.
//!
//! [`Candidate`] decides by what is read every 200 ms and by what is heard of the leader. While
//! this one leads it shows a beat; a beat or a write that is refused because another leads ends
//! the term. A leader that cannot reach the store goes on, and is detached meanwhile.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use dirigent_core::{
    Epoch, Time,
    office::{self, Candidate, Effect, Seat},
};
use dirigent_service::{Clock, OnCancel};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{
    StartError,
    copies::Others,
    metrics::Metrics,
    owner::OwnerError,
    store::{
        EtcdStore, StoreError,
        etcd::{Beat, Chair, EtcdConfig, Leader, Term},
    },
    term::Chambers,
};

/// How often a leader beats and a standby looks.
const LOOK: Duration = Duration::from_millis(200);
/// A leader whose beat is not told for so long has lost its store.
const UNTOLD: Duration = Duration::from_secs(2);
/// How often it is looked whether all control planes know a newer format of the records.
const FORMATS: Duration = Duration::from_secs(10);
/// What is heard of the leader and not looked at yet.
const HEARD: usize = 16;

/// What a control plane among several is started with.
#[derive(Clone)]
pub struct Shared {
    /// The store that they share.
    pub etcd: EtcdConfig,
    /// This one's name, one of a kind among them.
    pub name: String,
    /// Where workers, data planes and other control planes reach it.
    pub peers: SocketAddr,
    /// How it reaches them.
    pub others: Arc<dyn Others>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("etcd", &self.etcd)
            .field("name", &self.name)
            .field("peers", &self.peers)
            .finish_non_exhaustive()
    }
}

/// Who leads, as this control plane knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stand {
    /// The leader as it stood in the store, this one or another.
    pub(crate) leader: Option<Leader>,
    /// Why the store could not be read the last time.
    pub(crate) trouble: Option<String>,
}

/// See the module.
pub(crate) struct Contest {
    pub(crate) chair: Chair,
    pub(crate) others: Arc<dyn Others>,
    pub(crate) clock: Clock,
    pub(crate) stand: watch::Sender<Stand>,
    pub(crate) chambers: Chambers,
}

impl Contest {
    /// Stands by and leads in turn, until the role is told to stop.
    pub(crate) async fn run(self) -> Result<(), StartError> {
        let shutdown = self.chambers.tasks.shutdown().clone();
        let mut enrolled = false;
        let mut shown = Epoch(0);
        loop {
            let term = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                term = self.stand_by(&mut enrolled, shown) => term?,
            };
            match self.lead(term).await {
                Ok(()) => return Ok(()),
                Err(Over::Resigned(epoch)) => {
                    tracing::warn!(%epoch, "a peer has obeyed this epoch; standing by");
                    shown = shown.max(epoch);
                }
                Err(Over::Deposed) => tracing::warn!("another control plane leads; standing by"),
                Err(Over::Failed(StartError::Store(error))) => {
                    tracing::warn!(%error, "office was taken in vain; standing by");
                }
                Err(Over::Failed(error)) => return Err(error),
            }
        }
    }

    fn now(&self) -> Time {
        Time(self.clock.nanos())
    }

    /// Looks after the office until it is this one's.
    async fn stand_by(&self, enrolled: &mut bool, shown: Epoch) -> Result<Term, StoreError> {
        let mut candidate = Candidate::new(self.now());
        candidate.handle(self.now(), office::Event::Shown(shown));
        let (told, mut heard) = mpsc::channel(HEARD);
        let others = Arc::clone(&self.others);
        let mut line = Watched { others, told, at: None, talk: None };
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut term = None;
        loop {
            tokio::select! {
                biased;
                Some(event) = heard.recv() => candidate.handle(self.now(), event),
                () = line.talk() => line.talk = None,
                _now = look.tick() => {
                    if !*enrolled {
                        *enrolled = self.enrol().await?;
                    }
                    if let Some(seat) = self.look(&mut line).await? {
                        if seat.holder == self.chair.life() {
                            // A term of its own that is over: nobody else beats for it.
                            candidate.handle(self.now(), office::Event::Refused);
                        }
                        candidate.handle(self.now(), office::Event::Read(seat));
                    }
                }
            }
            while let Some(effect) = candidate.poll_effect() {
                match effect {
                    Effect::Take { over, above } => {
                        if let Some(taken) = self.take(over, above).await? {
                            let seat = taken.as_ref().map(|term| Seat {
                                epoch: term.office.epoch,
                                holder: self.chair.life(),
                                beat: 0,
                            });
                            term = taken;
                            candidate.handle(self.now(), office::Event::Took(seat));
                        }
                    }
                    Effect::Lead { .. } => {
                        if let Some(term) = term {
                            return Ok(term);
                        }
                    }
                }
            }
        }
    }

    /// Whether office was taken; nothing, if that is not known: it is looked at again.
    async fn take(&self, over: Seat, above: Epoch) -> Result<Option<Option<Term>>, StoreError> {
        tracing::info!(epoch = %over.epoch, "taking over from the leader of this epoch");
        match self.chair.take(over, above).await {
            Ok(taken) => Ok(Some(taken)),
            Err(error @ StoreError::Newer { .. }) => Err(error),
            Err(error) => {
                tracing::warn!(%error, "office was not taken");
                Ok(None)
            }
        }
    }

    /// Whether this control plane is entered among the others now.
    async fn enrol(&self) -> Result<bool, StoreError> {
        match self.chair.enrol().await {
            Ok(()) => Ok(true),
            Err(error @ StoreError::Newer { .. }) => Err(error),
            Err(error) => {
                tracing::debug!(%error, "not entered among the control planes yet");
                Ok(false)
            }
        }
    }

    /// The seat now, if the store can be read.
    async fn look(&self, line: &mut Watched) -> Result<Option<Seat>, StoreError> {
        match self.chair.look().await {
            Ok(look) => {
                line.watch(look.leader.as_ref(), self.chair.life());
                let stand = Stand { leader: look.leader, trouble: None };
                self.stand.send_if_modified(|known| {
                    let differs = *known != stand;
                    *known = stand;
                    differs
                });
                Ok(Some(look.seat))
            }
            Err(error @ StoreError::Newer { .. }) => Err(error),
            Err(error) => {
                tracing::debug!(%error, "the office cannot be looked at");
                self.stand.send_modify(|stand| stand.trouble = Some(error.to_string()));
                Ok(None)
            }
        }
    }

    async fn lead(&self, term: Term) -> Result<(), Over> {
        let (deposed, over) = (CancellationToken::new(), CancellationToken::new());
        let _over = over.clone().drop_guard();
        let pulse = Pulse {
            chair: self.chair.clone(),
            term,
            metrics: Arc::clone(&self.chambers.metrics),
            format: Arc::clone(&self.chambers.format),
            stand: self.stand.clone(),
            deposed: deposed.clone(),
        };
        // A task of its own: it beats while a large store is read.
        self.chambers.tasks.run("beat", OnCancel::Abort, async move {
            over.run_until_cancelled_owned(pulse.beat()).await;
        });
        let store = EtcdStore::new(self.chair.clone(), Some(term), Handle::current());
        let (store, office, records) = crate::take_office(Box::new(store), Epoch(0)).await?;
        let begun = self.chambers.begin(store, office, records, deposed).await?;
        self.chambers.open(&begun);
        self.chambers.lead(begun).await.map_err(|error| match error {
            OwnerError::Resigned { shown } => Over::Resigned(shown),
            OwnerError::Deposed | OwnerError::StoreGone => Over::Deposed,
        })
    }
}

/// A leader's beat.
struct Pulse {
    chair: Chair,
    term: Term,
    metrics: Arc<Metrics>,
    format: Arc<AtomicU64>,
    stand: watch::Sender<Stand>,
    deposed: CancellationToken,
}

impl Pulse {
    /// Shows that this leader lives, until another leads.
    async fn beat(self) {
        let mut every = interval(LOOK);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut told, mut formats) = (Instant::now(), None::<Instant>);
        for beat in 1.. {
            every.tick().await;
            match self.chair.beat(&self.term, beat).await {
                Beat::Told => {
                    told = Instant::now();
                    self.attached();
                }
                Beat::Deposed => return self.deposed.cancel(),
                Beat::Untold => self.untold(told),
            }
            if formats.is_none_or(|at| at.elapsed() >= FORMATS) {
                formats = Some(Instant::now());
                match self.chair.raise_format(&self.term).await {
                    Ok(format) => self.format.store(format, Relaxed),
                    Err(error) => tracing::debug!(%error, "formats are not compared now"),
                }
            }
        }
    }

    fn attached(&self) {
        if self.metrics.is_detached() {
            tracing::info!("the store is reached again");
            self.metrics.detached(false);
        }
        self.stand.send_if_modified(|known| {
            let stand = Stand { leader: Some(self.chair.leader(&self.term)), trouble: None };
            let differs = *known != stand;
            *known = stand;
            differs
        });
    }

    fn untold(&self, told: Instant) {
        if told.elapsed() >= UNTOLD && !self.metrics.is_detached() {
            tracing::warn!("the store cannot be reached; leading on without it");
            self.metrics.detached(true);
        }
    }
}

/// Why a term ends.
enum Over {
    /// Another leads.
    Deposed,
    /// A peer has obeyed this epoch: the next term is above it.
    Resigned(Epoch),
    /// It could not begin.
    Failed(StartError),
}

impl<E: Into<StartError>> From<E> for Over {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// The line to whoever leads.
struct Watched {
    others: Arc<dyn Others>,
    told: mpsc::Sender<office::Event>,
    at: Option<(Epoch, SocketAddr)>,
    talk: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Watched {
    /// Listens to this leader from now on, unless it is oneself.
    fn watch(&mut self, leader: Option<&Leader>, life: u64) {
        let other = leader.filter(|leader| leader.life != life);
        let at = other.and_then(|leader| {
            leader.member.peers.parse().ok().map(|address| (leader.epoch, address))
        });
        if self.at != at || (at.is_some() && self.talk.is_none()) {
            self.at = at;
            self.talk = at.map(|(_, address)| self.others.line(address, self.told.clone()));
        }
    }

    /// Waits for the end of the line, which nobody tells but the one who is listened to.
    async fn talk(&mut self) {
        match &mut self.talk {
            Some(talk) => talk.await,
            None => std::future::pending().await,
        }
    }
}
