//! The data planes: who they are, what they are subscribed to, which functions know of them.
//!
//! A data plane whose stream broke is *silent*: it keeps its slots, since invocations may still
//! run in them. They come free when it attaches again and does not list them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    Auth, DataPlaneId, DataPlaneRecord, Duty, FunctionId, FunctionName, Serial, StreamId, Write,
    control::posting::Posting,
    frame::{CHECKS_TOKENS, DUTY, Hello, Incarnation},
};

/// Names that a data plane may be subscribed to. It bounds its own negative answers far below;
/// this only keeps a broken one from filling our memory.
pub(crate) const MAX_NAMES: usize = 1_000_000;

/// A data plane.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each may be so while the others are or are not")]
pub(crate) struct Peer {
    pub(crate) name: Arc<str>,
    pub(crate) stream: Option<StreamId>,
    pub(crate) incarnation: Incarnation,
    /// What it is told changes of, known or not.
    pub(crate) names: BTreeSet<FunctionName>,
    /// Functions that keep a level of it.
    pub(crate) functions: BTreeSet<FunctionId>,
    /// Whether it attached since this leader took office.
    pub(crate) heard: bool,
    /// Whether its record is durable. Before that it is granted nothing: the next leader would not
    /// know that slots may be held there.
    pub(crate) recorded: bool,
    /// Whether it keeps callers without a token out where one is asked for.
    checks_tokens: bool,
    /// What operators want of it.
    pub(crate) posting: Posting,
    /// Whether it understands that, as it said when it attached.
    pub(crate) takes_orders: bool,
    serial: u64,
}

impl Peer {
    pub(crate) fn new(name: Arc<str>, duty: Duty) -> Self {
        Self {
            name,
            stream: None,
            incarnation: Incarnation::default(),
            names: BTreeSet::new(),
            functions: BTreeSet::new(),
            heard: false,
            recorded: false,
            checks_tokens: false,
            posting: Posting::new(duty),
            takes_orders: false,
            serial: 0,
        }
    }

    /// Whether it may serve functions that are called like this. To one of an older version, which
    /// would let everybody in, others are not there.
    const fn may_serve(&self, auth: Auth) -> bool {
        match auth {
            Auth::None => true,
            Auth::Token => self.checks_tokens,
        }
    }

    /// The number of the next grant on its stream.
    pub(crate) const fn next_serial(&mut self) -> Serial {
        self.serial += 1;
        Serial(self.serial)
    }
}

/// What is known of a data plane's stream.
#[derive(Clone, Debug)]
pub(crate) enum Line {
    /// Its `Hello` is awaited.
    Open { name: Arc<str> },
    /// It said who it is.
    Said(DataPlaneId),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Peers {
    by_id: BTreeMap<DataPlaneId, Peer>,
    by_name: BTreeMap<Arc<str>, DataPlaneId>,
    lines: BTreeMap<StreamId, Line>,
    last: u64,
    /// Records of removed ones that keep a number until there is a newer one.
    tombstones: Vec<DataPlaneId>,
}

impl Peers {
    pub(crate) fn new(records: Vec<DataPlaneRecord>) -> Self {
        let mut peers = Self {
            by_id: BTreeMap::new(),
            by_name: BTreeMap::new(),
            lines: BTreeMap::new(),
            last: 0,
            tombstones: Vec::new(),
        };
        for DataPlaneRecord { id, name, duty, removed } in records {
            peers.last = peers.last.max(id.0);
            if removed {
                peers.tombstones.push(id);
                continue;
            }
            peers.by_name.insert(Arc::clone(&name), id);
            peers.by_id.insert(id, Peer { recorded: true, ..Peer::new(name, duty) });
        }
        peers
    }

    pub(crate) fn open(&mut self, stream: StreamId, name: Arc<str>) {
        self.lines.insert(stream, Line::Open { name });
    }

    pub(crate) fn line(&self, stream: StreamId) -> Option<&Line> {
        self.lines.get(&stream)
    }

    /// Who speaks on this stream.
    pub(crate) fn on(&self, stream: StreamId) -> Option<DataPlaneId> {
        match self.lines.get(&stream)? {
            Line::Said(id) => Some(*id),
            Line::Open { .. } => None,
        }
    }

    /// The stream is gone; `None` also if another one had taken its place.
    pub(crate) fn close(&mut self, stream: StreamId) -> Option<DataPlaneId> {
        let Line::Said(id) = self.lines.remove(&stream)? else { return None };
        let peer = self.by_id.get_mut(&id)?;
        (peer.stream == Some(stream)).then(|| {
            peer.stream = None;
            id
        })
    }

    /// The data plane of this name, and whether it is new.
    pub(crate) fn named(&mut self, name: &Arc<str>) -> (DataPlaneId, bool) {
        if let Some(&id) = self.by_name.get(name) {
            return (id, false);
        }
        self.last += 1;
        let id = DataPlaneId(self.last);
        self.by_name.insert(Arc::clone(name), id);
        self.by_id.insert(id, Peer::new(Arc::clone(name), Duty::InUse));
        (id, true)
    }

    /// The records that nobody needs any more now that there is a newer one.
    pub(crate) fn take_tombstones(&mut self) -> Vec<DataPlaneId> {
        std::mem::take(&mut self.tombstones)
    }

    /// What is to be written of a data plane now.
    pub(crate) fn record(&self, id: DataPlaneId) -> Option<Write> {
        let peer = self.by_id.get(&id)?;
        let record = DataPlaneRecord::new(id, Arc::clone(&peer.name));
        Some(match peer.posting.wanted() {
            Some(duty) => Write::PutDataPlane(DataPlaneRecord { duty, ..record }),
            // Its number must not be given again, also not by the next leader.
            None if id.0 == self.last => {
                Write::PutDataPlane(DataPlaneRecord { removed: true, ..record })
            }
            None => Write::DeleteDataPlane(id),
        })
    }

    /// Forgets a data plane.
    pub(crate) fn strike(&mut self, id: DataPlaneId) -> Option<Peer> {
        let peer = self.by_id.remove(&id)?;
        self.by_name.remove(&peer.name);
        if id.0 == self.last {
            self.tombstones.push(id);
        }
        if let Some(stream) = peer.stream {
            self.lines.remove(&stream);
        }
        Some(peer)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (DataPlaneId, &Peer)> {
        self.by_id.iter().map(|(id, peer)| (*id, peer))
    }

    /// From now on it speaks on this stream; gives back the one it spoke on before.
    pub(crate) fn attach(
        &mut self,
        id: DataPlaneId,
        stream: StreamId,
        hello: &Hello,
    ) -> Option<StreamId> {
        self.lines.insert(stream, Line::Said(id));
        let peer = self.by_id.get_mut(&id)?;
        peer.serial = 0;
        peer.heard = true;
        peer.incarnation = hello.incarnation.clone();
        peer.checks_tokens = hello.has(CHECKS_TOKENS);
        peer.takes_orders = hello.has(DUTY);
        let before = peer.stream.replace(stream).filter(|before| *before != stream);
        if let Some(before) = before {
            self.lines.remove(&before);
        }
        before
    }

    /// Whether another life of a data plane of this name is attached. A process that ended has ended its
    /// stream too, and one that is cut off is given up within seconds: who is attached lives.
    pub(crate) fn is_taken(&self, name: &Arc<str>, hello: &Hello) -> bool {
        let peer = self.by_name.get(name).and_then(|id| self.by_id.get(id));
        peer.is_some_and(|peer| peer.stream.is_some() && peer.incarnation != hello.incarnation)
    }

    pub(crate) fn id_of(&self, name: &str) -> Option<DataPlaneId> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn get(&self, id: DataPlaneId) -> Option<&Peer> {
        self.by_id.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: DataPlaneId) -> Option<&mut Peer> {
        self.by_id.get_mut(&id)
    }

    pub(crate) fn stream_of(&self, id: DataPlaneId) -> Option<StreamId> {
        self.by_id.get(&id)?.stream
    }

    pub(crate) fn is_attached(&self, id: DataPlaneId) -> bool {
        self.stream_of(id).is_some()
    }

    /// Whether slots may be granted to it.
    pub(crate) fn may_hold(&self, id: DataPlaneId) -> bool {
        self.by_id.get(&id).is_some_and(|peer| peer.stream.is_some() && peer.recorded)
    }

    /// Whether nothing else is wanted of it than to serve.
    pub(crate) fn stays(&self, id: DataPlaneId) -> bool {
        self.by_id.get(&id).is_some_and(|peer| peer.posting.is_in_use())
    }

    /// Whether slots of the function of this name, called like this, may be granted to it: it knows
    /// the function.
    pub(crate) fn may_hold_of(&self, id: DataPlaneId, name: &FunctionName, auth: Auth) -> bool {
        let knows = self.by_id.get(&id).is_some_and(|peer| peer.names.contains(name));
        knows && self.may_hold(id) && self.may_serve(id, auth)
    }

    /// Whether it can check who calls a function of this kind.
    pub(crate) fn may_serve(&self, id: DataPlaneId, auth: Auth) -> bool {
        self.by_id.get(&id).is_some_and(|peer| peer.may_serve(auth))
    }

    /// Those attached that are told which tokens count.
    pub(crate) fn checking_tokens(&self) -> impl Iterator<Item = DataPlaneId> + '_ {
        let told = |peer: &Peer| peer.stream.is_some() && peer.checks_tokens;
        self.by_id.iter().filter(move |(_, peer)| told(peer)).map(|(&id, _)| id)
    }

    /// Those attached and subscribed to `name`.
    pub(crate) fn subscribed<'a>(
        &'a self,
        name: &'a FunctionName,
    ) -> impl Iterator<Item = DataPlaneId> + 'a {
        self.by_id
            .iter()
            .filter(|(_, peer)| peer.stream.is_some() && peer.names.contains(name))
            .map(|(&id, _)| id)
    }

    /// Those recorded that have not attached since this leader took office.
    pub(crate) fn unheard(&self) -> impl Iterator<Item = DataPlaneId> + '_ {
        self.by_id.iter().filter(|(_, peer)| !peer.heard).map(|(&id, _)| id)
    }

    /// Whether every recorded one has attached since this leader took office.
    pub(crate) fn all_heard(&self) -> bool {
        self.by_id.values().all(|peer| peer.heard)
    }
}
