//! The office in etcd: who leads, whether it beats, and how it is taken and kept.
//!
//! `leader` is changed only by comparing its revision, which by that is the term's: every later
//! write of the term compares it, so one deposed leader's write cannot come after another's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use dirigent_core::{ClusterId, Epoch, Office, Records, office::Seat};
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, time::Instant};

use super::{
    Place,
    client::{Answered, EtcdError},
    keys::{
        beginning, changed_since, json, none_changed, put, read, read_all, unchanged, unsigned,
    },
    load::load,
    rpc::{KeyValue, TxnRequest},
};
use crate::store::StoreError;

/// For a look at the office: the next one comes soon.
const LOOK_WITHIN: Duration = Duration::from_secs(2);
/// For taking it: whoever does not know after that begins anew.
const TAKE_WITHIN: Duration = Duration::from_secs(4);

/// A control plane as others see it in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name, one of a kind in the cluster.
    pub name: String,
    /// Where workers, data planes and other control planes reach it.
    pub peers: String,
    /// Where its API is.
    pub api: String,
    /// The program's version.
    pub version: String,
    /// The newest format of records that it knows.
    pub format: u64,
}

/// Who leads, as it stands in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// The term.
    pub epoch: Epoch,
    /// One life of one control plane.
    pub life: u64,
    /// Which.
    pub member: Member,
    /// The last terms, oldest first, this one included.
    #[serde(default)]
    pub terms: Vec<Epoch>,
}

/// The office as read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// What a standby judges.
    pub seat: Seat,
    /// Who leads; `None` if nobody ever did.
    pub leader: Option<Leader>,
    /// When `leader` was last changed.
    revision: u64,
    cluster: Known<Cluster>,
    format: Known<u64>,
}

/// A value and when it was last changed; 0 if it is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known<T> {
    value: T,
    revision: u64,
}

/// Hexadecimal: not every reader of JSON knows numbers of that size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cluster {
    id: String,
}

impl Cluster {
    pub(super) fn of(id: ClusterId) -> Self {
        Self { id: format!("{:032x}", id.0) }
    }

    fn id(&self) -> Result<ClusterId, String> {
        u128::from_str_radix(&self.id, 16).map(ClusterId).map_err(|error| error.to_string())
    }
}

/// A term of office.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// The cluster and the epoch.
    pub office: Office,
    /// The revision of `leader`: whatever is written in this term compares it.
    pub(super) revision: u64,
}

/// How a beat went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// It is in the store.
    Told,
    /// Another leads.
    Deposed,
    /// The store cannot be reached now.
    Untold,
}

/// The office of a cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Chair {
    pub(super) place: Arc<Place>,
    member: Member,
    life: u64,
    /// The revision of the chain's last transaction that this leader knows to be taken.
    known: Arc<AtomicU64>,
}

impl Chair {
    pub(super) fn new(place: Arc<Place>, member: Member) -> std::io::Result<Self> {
        let mut life = [0; 8];
        crate::random(&mut life)?;
        let known = Arc::new(AtomicU64::new(0));
        Ok(Self { place, member, life: u64::from_le_bytes(life), known })
    }

    /// This much of the chain is known to be taken: a store that lacks it is an older copy.
    pub(super) fn knows(&self, revision: u64) {
        self.known.store(revision, Relaxed);
    }

    /// This life of this control plane, as it stands in a seat.
    #[must_use]
    pub const fn life(&self) -> u64 {
        self.life
    }

    /// This control plane.
    #[must_use]
    pub const fn member(&self) -> &Member {
        &self.member
    }

    /// All control planes that have entered themselves, by name.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn members(&self) -> Result<Vec<Member>, StoreError> {
        let request = beginning(self.place.keys.of("members/"));
        let range = self.place.client.range(&request, Instant::now() + LOOK_WITHIN).await;
        let range = range.map_err(|error| self.place.unavailable(&error))?;
        range.kvs.iter().map(|kv| self.place.parse(kv)).collect()
    }

    /// Everything that is recorded, as anybody may read it.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn records(&self, runtime: &Handle) -> Result<Records, StoreError> {
        load(&self.place, None, runtime)
    }

    /// What this control plane writes as the leader of `term`.
    #[must_use]
    pub fn leader(&self, term: &Term) -> Leader {
        let (epoch, member) = (term.office.epoch, self.member.clone());
        Leader { epoch, life: self.life, member, terms: Vec::new() }
    }

    /// How the office stands.
    ///
    /// # Errors
    /// If the store cannot be read, or is one of a newer program.
    pub async fn look(&self) -> Result<Look, StoreError> {
        self.look_by(Instant::now() + LOOK_WITHIN).await
    }

    async fn look_by(&self, deadline: Instant) -> Result<Look, StoreError> {
        let keys = &self.place.keys;
        let names = ["leader", "beat", "cluster", "format", "migration"];
        let success = names.iter().map(|name| read(keys.of(name))).collect();
        let request = TxnRequest { success, ..TxnRequest::default() };
        let answered = self.place.client.repeatable(&request, deadline).await;
        let answered = answered.map_err(|error| self.place.unavailable(&error))?;
        let found = |range: Option<super::rpc::RangeResponse>| {
            range.and_then(|range| range.kvs.into_iter().next())
        };
        let mut ranges = answered.ranges();
        let mut next = || found(ranges.next());
        let (leader, beat, cluster, format) = (next(), next(), next(), next());
        if let Some(kv) = next() {
            let from = self.place.parse::<serde_json::Value>(&kv)?;
            let from = from["from"].as_str().unwrap_or("another store").to_owned();
            return Err(StoreError::Moving { place: self.place.name.clone(), from });
        }
        let revision = leader.as_ref().map_or(0, |kv| unsigned(kv.mod_revision));
        let leader: Option<Leader> = leader.map(|kv| self.place.parse(&kv)).transpose()?;
        let beat = beat.map_or(Ok(0), |kv| self.place.parse(&kv))?;
        let look = Look {
            seat: leader.as_ref().map_or_else(Seat::default, |leader| Seat {
                epoch: leader.epoch,
                holder: leader.life,
                beat,
            }),
            leader,
            revision,
            cluster: self.known(cluster)?,
            format: self.known(format)?,
        };
        if look.format.value > self.member.format {
            return Err(self.place.newer(look.format.value, self.member.format));
        }
        Ok(look)
    }

    fn known<T: Default + for<'a> Deserialize<'a>>(
        &self,
        found: Option<KeyValue>,
    ) -> Result<Known<T>, StoreError> {
        let Some(kv) = found else { return Ok(Known::default()) };
        Ok(Known { revision: unsigned(kv.mod_revision), value: self.place.parse(&kv)? })
    }

    /// Take the office over from `over`, and only from it; `None` if another was first. A beat since
    /// then does not save it, another epoch does. The new epoch is above that one, and above `shown`.
    ///
    /// # Errors
    /// If it cannot be known whether it was taken: the next look tells.
    pub async fn take(&self, over: Seat, shown: Epoch) -> Result<Option<Term>, StoreError> {
        let deadline = Instant::now() + TAKE_WITHIN;
        let epoch = crate::store::next_epoch(over.epoch, shown)
            .map_err(|error| self.place.broken(error))?;
        loop {
            let look = self.look_by(deadline).await?;
            let cluster = self.cluster(&look)?;
            let id = cluster.id().map_err(|why| self.place.broken(why))?;
            let office = Office { cluster: id, epoch };
            if let Some(leader) = &look.leader
                && (leader.epoch, leader.life) == (epoch, self.life)
            {
                // An earlier attempt of this loop went through after all.
                return Ok(Some(Term { office, revision: look.revision }));
            }
            if look.seat.epoch != over.epoch {
                return Ok(None);
            }
            let request = self.taking(&look, epoch, &cluster)?;
            match self.place.client.txn(&request, deadline).await {
                Ok(answered) if answered.succeeded() => {
                    return Ok(Some(Term { office, revision: answered.revision() }));
                }
                // Somebody changed something: another look tells what.
                Ok(_) => {}
                Err(EtcdError::Doubtful(why)) if Instant::now() < deadline => {
                    tracing::info!(why, "whether office was taken is looked up");
                }
                Err(error) => return Err(self.place.unavailable(&error)),
            }
        }
    }

    /// The cluster's record, or a fresh one.
    fn cluster(&self, look: &Look) -> Result<Cluster, StoreError> {
        if look.cluster.revision > 0 {
            return Ok(look.cluster.value.clone());
        }
        let id = crate::store::new_cluster().map_err(|error| self.place.broken(error))?;
        Ok(Cluster::of(id))
    }

    fn taking(
        &self,
        look: &Look,
        epoch: Epoch,
        cluster: &Cluster,
    ) -> Result<TxnRequest, StoreError> {
        let keys = &self.place.keys;
        let mut terms = look.leader.as_ref().map_or_else(Vec::new, |leader| leader.terms.clone());
        Records::enter(&mut terms, epoch);
        let leader = Leader { epoch, life: self.life, member: self.member.clone(), terms };
        let value = |bytes: Result<Vec<u8>, String>| bytes.map_err(|why| self.place.broken(why));
        let mut success = vec![
            put(keys.of("leader"), value(json(&leader))?),
            put(keys.of("beat"), value(json(&0))?),
            put(keys.of("writes"), value(json(&0))?),
        ];
        if look.cluster.revision == 0 {
            success.push(put(keys.of("cluster"), value(json(cluster))?));
        }
        if look.format.revision == 0 {
            success.push(put(keys.of("format"), value(json(&1))?));
        }
        Ok(TxnRequest {
            compare: vec![
                unchanged(keys.of("leader"), look.revision),
                unchanged(keys.of("cluster"), look.cluster.revision),
                unchanged(keys.of("format"), look.format.revision),
            ],
            success,
            failure: Vec::new(),
        })
    }

    /// Show that the leader of `term` lives. It is deposed too by a store that lacks what it took: that
    /// was restored from an older copy, while the leader was cut off from it perhaps.
    pub async fn beat(&self, term: &Term, beat: u64) -> Beat {
        let keys = &self.place.keys;
        let Ok(value) = json(&beat) else { return Beat::Untold };
        let request = TxnRequest {
            compare: vec![
                unchanged(keys.of("leader"), term.revision),
                changed_since(keys.of("writes"), self.known.load(Relaxed).max(term.revision)),
            ],
            success: vec![put(keys.of("beat"), value)],
            failure: Vec::new(),
        };
        match self.place.client.repeatable(&request, Instant::now() + LOOK_WITHIN).await {
            Ok(answered) if answered.succeeded() => Beat::Told,
            Ok(_) => Beat::Deposed,
            Err(error) => {
                tracing::debug!(%error, "the leader's beat is not told");
                Beat::Untold
            }
        }
    }

    /// Enter this control plane among the cluster's, whose programs say which format may be written.
    ///
    /// # Errors
    /// If the store cannot be reached, or is one of a newer program.
    pub async fn enrol(&self) -> Result<(), StoreError> {
        let deadline = Instant::now() + LOOK_WITHIN;
        let keys = &self.place.keys;
        let value = json(&self.member).map_err(|why| self.place.broken(why))?;
        loop {
            let look = self.look_by(deadline).await?;
            let request = TxnRequest {
                // A format that is raised meanwhile is looked at first.
                compare: vec![unchanged(keys.of("format"), look.format.revision)],
                success: vec![put(
                    keys.of(&format!("members/{}", self.member.name)),
                    value.clone(),
                )],
                failure: Vec::new(),
            };
            let answered = self.place.client.repeatable(&request, deadline).await;
            if answered.map_err(|error| self.place.unavailable(&error))?.succeeded() {
                return Ok(());
            }
        }
    }

    /// Raise the format of the records to the newest that all control planes know. The format of
    /// the records then.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub async fn raise_format(&self, term: &Term) -> Result<u64, StoreError> {
        let deadline = Instant::now() + LOOK_WITHIN;
        let keys = &self.place.keys;
        let members = keys.of("members/");
        let request = TxnRequest {
            success: vec![read(keys.of("format")), read_all(beginning(members.clone()))],
            ..TxnRequest::default()
        };
        let answered = self.place.client.repeatable(&request, deadline).await;
        let answered: Answered = answered.map_err(|error| self.place.unavailable(&error))?;
        let seen = answered.revision();
        let mut ranges = answered.ranges();
        let format = ranges.next().and_then(|range| range.kvs.into_iter().next());
        let format: Known<u64> = self.known(format)?;
        let mut common = self.member.format;
        for kv in ranges.next().map(|range| range.kvs).unwrap_or_default() {
            let member: Member = self.place.parse(&kv)?;
            common = common.min(member.format);
        }
        if common <= format.value {
            return Ok(format.value);
        }
        let value = json(&common).map_err(|why| self.place.broken(why))?;
        let request = TxnRequest {
            compare: vec![
                unchanged(keys.of("leader"), term.revision),
                unchanged(keys.of("format"), format.revision),
                // Nobody came meanwhile who does not know it.
                none_changed(members, seen),
            ],
            success: vec![put(keys.of("format"), value)],
            failure: Vec::new(),
        };
        let answered = self.place.client.repeatable(&request, deadline).await;
        let raised = answered.map_err(|error| self.place.unavailable(&error))?.succeeded();
        if raised {
            tracing::info!(format = common, "records are written in a newer format from now on");
        }
        Ok(if raised { common } else { format.value })
    }
}
