//! The simulated network: streams between peers and control planes, and what can go wrong on them.
//!
//! A stream is as TCP with keep-alive: packets of one direction keep their order; on a direction
//! that is cut they wait and come when it is mended, unless an end noticed the silence before. What
//! was on the way when an end closes may be lost. A host that loses power says nothing: its peers
//! find out by silence, or by the refusal of its next life.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use dirigent_core::{
    Epoch, StreamId, Time,
    frame::{FromDataPlane, FromWorker, ToDataPlane, ToWorker},
};

use crate::{
    agenda::{Host, What},
    world::World,
};

/// An end that hears nothing for so long closes (keep-alive of the transport).
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// An outbox in which nothing moves for so long is given up with its stream, as in the product.
const STUCK: Duration = Duration::from_secs(10);

/// How long a packet takes at most where nothing is wrong.
pub(crate) const SLOWEST: Duration = Duration::from_micros(500);

/// What travels on a stream.
#[derive(Clone, Debug)]
pub(crate) enum Packet {
    Opened,
    FromPlane(FromDataPlane),
    FromWorker(FromWorker),
    ToPlane(ToDataPlane),
    ToWorker(ToWorker),
    Closed,
}

/// One direction of a stream.
#[derive(Debug, Default)]
pub(crate) struct Way {
    pub(crate) queue: VecDeque<Packet>,
    /// Packets whose time came while the direction was cut.
    stalled: usize,
    last: Time,
    /// When something last moved, or began to wait.
    moved: Time,
    /// A slow reader takes the next one then.
    next: Time,
}

impl Way {
    fn is_stuck(&self, now: Time) -> bool {
        !self.queue.is_empty() && now.since(self.moved) >= STUCK
    }
}

/// A connection of a peer to a control plane.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) peer: Host,
    pub(crate) control: usize,
    /// Of the leader at its other end.
    pub(crate) epoch: Epoch,
    /// Whether the control plane's end and the peer's are open.
    pub(crate) control_open: bool,
    pub(crate) peer_open: bool,
    /// Of a second process with a worker's name.
    pub(crate) is_twin: bool,
    /// When its worker was last heard, once it was welcomed.
    pub(crate) heard: Option<Time>,
    pub(crate) up: Way,
    pub(crate) down: Way,
}

impl Stream {
    fn way(&mut self, up: bool) -> &mut Way {
        if up { &mut self.up } else { &mut self.down }
    }

    fn ends(&self, up: bool) -> (Host, Host) {
        let control = Host::Control(self.control);
        if up { (self.peer, control) } else { (control, self.peer) }
    }

    fn is_over(&self) -> bool {
        !self.control_open
            && !self.peer_open
            && self.up.queue.is_empty()
            && self.down.queue.is_empty()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Net {
    pub(crate) streams: BTreeMap<StreamId, Stream>,
    /// Directions that are cut, by how many faults.
    cut: BTreeMap<(Host, Host), u32>,
    /// Directions that are slow, by how many faults.
    slow: BTreeMap<(Host, Host), u32>,
    /// Hosts that read slowly, and how long each packet takes them.
    pub(crate) readers: BTreeMap<Host, Duration>,
    next: u64,
}

impl Net {
    pub(crate) fn is_cut(&self, from: Host, to: Host) -> bool {
        self.cut.contains_key(&(from, to))
    }

    /// Whether two hosts hear each other.
    pub(crate) fn joined(&self, a: Host, b: Host) -> bool {
        !self.is_cut(a, b) && !self.is_cut(b, a)
    }

    /// Streams whose ends died together are forgotten.
    pub(crate) fn sweep(&mut self) {
        self.streams.retain(|_, stream| !stream.is_over());
    }

    pub(crate) fn reads_slowly(&self, host: Host) -> bool {
        self.readers.contains_key(&host)
    }

    pub(crate) fn slow_down(&mut self, from: Host, to: Host) {
        *self.slow.entry((from, to)).or_default() += 1;
    }

    pub(crate) fn speed_up(&mut self, from: Host, to: Host) {
        release(&mut self.slow, (from, to));
    }
}

fn release(counted: &mut BTreeMap<(Host, Host), u32>, key: (Host, Host)) -> bool {
    let Some(count) = counted.get_mut(&key) else { return false };
    *count -= 1;
    let last = *count == 0;
    if last {
        counted.remove(&key);
    }
    last
}

impl World {
    /// How long a packet takes.
    pub(crate) fn delay(&mut self, from: Host, to: Host) -> Duration {
        let usual = 50_000 + u64::from(self.random.draw() % 450_000);
        let slow = self.net.slow.contains_key(&(from, to));
        let more = if slow { u64::from(self.random.draw() % 300_000_000) } else { 0 };
        Duration::from_nanos(usual + more)
    }

    pub(crate) fn cut(&mut self, from: Host, to: Host) {
        *self.net.cut.entry((from, to)).or_default() += 1;
        let hit: Vec<StreamId> = self
            .net
            .streams
            .iter()
            .filter(|(_, s)| s.ends(true) == (from, to) || s.ends(false) == (from, to))
            .map(|(id, _)| *id)
            .collect();
        for stream in hit {
            for up in [true, false] {
                let more = Duration::from_millis(u64::from(self.random.draw() % 500));
                self.after(KEEP_ALIVE + more, What::Silent { stream, up });
            }
        }
    }

    pub(crate) fn mend(&mut self, from: Host, to: Host) {
        if !release(&mut self.net.cut, (from, to)) {
            return;
        }
        let (mut due, mut late) = (Vec::new(), 0);
        for (&stream, s) in &mut self.net.streams {
            for up in [true, false] {
                if s.ends(up) == (from, to) {
                    let stalled = std::mem::take(&mut s.way(up).stalled);
                    let open = if up { s.control_open } else { s.peer_open };
                    late += if open { stalled as u64 } else { 0 };
                    due.extend(std::iter::repeat_n((stream, up), stalled));
                }
            }
        }
        self.counts.late_packets += late;
        for (stream, up) in due {
            self.after(Duration::from_micros(200), What::Deliver { stream, up });
        }
    }

    /// An end may notice that it hears nothing: it closes.
    pub(crate) fn silent(&mut self, stream: StreamId, up: bool) {
        let Some(s) = self.net.streams.get(&stream) else { return };
        let (from, to) = s.ends(up);
        let other = if up { s.peer_open } else { s.control_open };
        if !other || !self.net.joined(from, to) || !self.is_up(from) {
            self.close_end(stream, up);
        }
    }

    /// Opens a stream to a control plane.
    pub(crate) fn open(&mut self, peer: Host, control: usize) -> StreamId {
        self.net.next += 1;
        let stream = StreamId(self.net.next);
        let epoch = self.epoch_of(control).unwrap_or_default();
        self.net.streams.insert(
            stream,
            Stream {
                peer,
                control,
                epoch,
                control_open: true,
                peer_open: true,
                is_twin: false,
                heard: None,
                up: Way::default(),
                down: Way::default(),
            },
        );
        self.send(stream, true, Packet::Opened);
        stream
    }

    /// Whoever does not read is given up: it attaches anew.
    pub(crate) fn give_up_stuck(&mut self) {
        let now = self.now;
        let mut stuck = Vec::new();
        for (&stream, s) in &self.net.streams {
            stuck.extend([(true, &s.up), (false, &s.down)].into_iter().filter_map(|(up, way)| {
                let open = if up { s.peer_open } else { s.control_open };
                (open && way.is_stuck(now)).then_some((stream, up))
            }));
        }
        for (stream, up) in stuck {
            self.counts.stuck += 1;
            self.close_end(stream, !up);
        }
    }

    /// A host reads on as others do.
    pub(crate) fn read_on(&mut self, host: Host) {
        self.net.readers.remove(&host);
        let mut waiting = Vec::new();
        for (&stream, s) in &mut self.net.streams {
            for up in [true, false] {
                if s.ends(up).1 == host {
                    waiting.extend(s.way(up).queue.iter().map(|_| (stream, up)));
                }
            }
        }
        for (stream, up) in waiting {
            self.after(Duration::from_micros(200), What::Deliver { stream, up });
        }
    }

    /// Puts a packet on its way.
    pub(crate) fn send(&mut self, stream: StreamId, up: bool, packet: Packet) {
        let Some(s) = self.net.streams.get(&stream) else { return };
        let open = if up { s.peer_open } else { s.control_open };
        if !open && !matches!(packet, Packet::Closed) {
            return;
        }
        let (from, to) = s.ends(up);
        let Some(packet) = self.as_understood(stream, (from, to), packet) else { return };
        for packet in self.tamper(stream, up, packet) {
            let delay = self.delay(from, to);
            let now = self.now;
            let Some(s) = self.net.streams.get_mut(&stream) else { return };
            let way = s.way(up);
            let at = (now.after(delay)).max(Time(way.last.0 + 1));
            way.last = at;
            if way.queue.is_empty() {
                way.moved = now;
            }
            way.queue.push_back(packet);
            self.agenda.put(at, What::Deliver { stream, up });
        }
    }

    /// The next packet of a direction arrives.
    pub(crate) fn deliver(&mut self, stream: StreamId, up: bool) {
        let Some(s) = self.net.streams.get_mut(&stream) else { return };
        let (from, to) = s.ends(up);
        if self.net.cut.contains_key(&(from, to)) {
            s.way(up).stalled += 1;
            return;
        }
        if let Some(until) = self.paused_until(to) {
            self.agenda.put(until, What::Deliver { stream, up });
            return;
        }
        let (now, reads) = (self.now, self.net.readers.get(&to).copied());
        let Some(s) = self.net.streams.get_mut(&stream) else { return };
        let way = s.way(up);
        if let Some(reads) = reads {
            if now < way.next {
                let at = way.next;
                return self.agenda.put(at, What::Deliver { stream, up });
            }
            way.next = now.after(reads);
        }
        let Some(packet) = way.queue.pop_front() else { return };
        way.moved = now;
        let open = if up { s.control_open } else { s.peer_open };
        if open && self.is_up(to) {
            self.trace.note(self.now, &packet);
            if up { self.control_hears(stream, packet) } else { self.peer_hears(stream, packet) }
        } else if !matches!(packet, Packet::Closed) && self.is_up(to) {
            // The kernel of a host that knows nothing of this connection refuses it.
            self.send(stream, !up, Packet::Closed);
        }
        self.forget_if_over(stream);
    }

    /// One end closes: the control plane's (`up`), or the peer's.
    pub(crate) fn close_end(&mut self, stream: StreamId, up: bool) {
        let Some(s) = self.net.streams.get_mut(&stream) else { return };
        let open = if up { &mut s.control_open } else { &mut s.peer_open };
        if !std::mem::take(open) {
            return;
        }
        let (peer, control) = (s.peer, s.control);
        // A reset: what is on the way may be lost from some point on.
        if self.random.draw().is_multiple_of(2) {
            let n = self
                .net
                .streams
                .get(&stream)
                .map_or(0, |s| if up { s.down.queue.len() } else { s.up.queue.len() });
            let keep = self.random.below(n + 1);
            if let Some(s) = self.net.streams.get_mut(&stream) {
                s.way(!up).queue.truncate(keep);
            }
        }
        self.send(stream, !up, Packet::Closed);
        if up {
            self.control_lost(control, stream);
        } else {
            self.peer_lost(peer, stream);
        }
        self.forget_if_over(stream);
    }

    /// Every stream of a host that died; `silently` if its kernel died with it.
    pub(crate) fn drop_streams(&mut self, host: Host, silently: bool) {
        let mine: Vec<(StreamId, bool)> = self
            .net
            .streams
            .iter()
            .filter_map(|(&id, s)| match host {
                Host::Control(c) if s.control == c && s.control_open => Some((id, true)),
                _ if s.peer == host && s.peer_open => Some((id, false)),
                _ => None,
            })
            .collect();
        for (stream, up) in mine {
            let Some(s) = self.net.streams.get_mut(&stream) else { continue };
            if up {
                s.control_open = false;
            } else {
                s.peer_open = false;
            }
            if silently {
                self.after(KEEP_ALIVE, What::Silent { stream, up: !up });
            } else {
                self.send(stream, !up, Packet::Closed);
            }
        }
    }

    fn forget_if_over(&mut self, stream: StreamId) {
        if self.net.streams.get(&stream).is_some_and(Stream::is_over) {
            self.net.streams.remove(&stream);
        }
    }
}
