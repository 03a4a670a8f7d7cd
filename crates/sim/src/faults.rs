//! What goes wrong, and how it is healed.

use std::time::Duration;

use dirigent_core::{Bytes, Cause, SandboxId};

use crate::{
    agenda::{Host, What},
    plane::{Durable, PlaneHost},
    plant::Plant,
    store::Mood,
    worker::WorkerHost,
    world::{HEALED, World},
};

/// All kinds, as they are counted.
pub const FAULTS: [&str; 25] = [
    "control plane dies",
    "cut one way",
    "data plane dies",
    "data plane joins",
    "data plane leaves",
    "leader without store",
    "minority of disks lost",
    "mumbling store",
    "partition",
    "pause",
    "program downgraded",
    "program upgraded",
    "refusing store",
    "sandbox crashes",
    "sandbox out of memory",
    "slow link",
    "slow reader",
    "slow store",
    "store restored from an older copy",
    "two data planes of one name",
    "two workers of one name",
    "worker's daemon dies",
    "worker joins",
    "worker leaves",
    "worker's host dies",
];

/// Enough for another to take office, to hear everybody who can reach it, and to act.
const TWO_LEAD: Duration = Duration::from_secs(8);

/// What is undone later.
#[derive(Clone, Debug)]
pub(crate) enum Undo {
    Cut(Vec<(Host, Host)>),
    Slow(Host, Host),
    Store,
    Disks(Vec<usize>),
    Reader(Host),
}

impl World {
    /// Something goes wrong.
    pub(crate) fn fault(&mut self) {
        if !self.faulty() {
            return;
        }
        let pause = 500 + u64::from(self.random.draw() % 3500);
        self.after(Duration::from_millis(pause), What::Fault);
        // Some last longer than anybody waits for anything.
        let lasts = Duration::from_millis(
            match self.random.draw() % 16 {
                0..4 => 50,
                4..8 => 500,
                8..12 => 2500,
                12..14 => 6000,
                _ => 14_000,
            } + u64::from(self.random.draw() % 1000),
        );
        let kind = match self.random.below(19) {
            0 => self.cut_one_way(lasts),
            1 => self.partition(lasts),
            2 => self.slow_link(lasts),
            3 => self.crash(Host::Control(0), lasts),
            4 => self.crash(Host::Plane(0), lasts),
            5 | 6 => self.crash(Host::Worker(0), lasts),
            7 => self.pause(lasts),
            8 => self.sour_store(lasts),
            9 => self.cut_off_store(lasts),
            10 => self.join(),
            11 => self.leave(),
            12 => self.restore_store(),
            13 => self.lose_some_disks(lasts),
            14 => self.read_slowly(lasts),
            15 => self.replace_program(),
            16 => self.twin(),
            _ => self.kill_sandbox(),
        };
        if matches!(self.plant, Some(Plant::SettledAtOnce | Plant::SettledLost)) {
            // It shows only when somebody is silent for longer than a call may take.
            self.silence_a_plane(Duration::from_secs(14));
        }
        if let Some(kind) = kind {
            *self.counts.faults.entry(kind).or_default() += 1;
        }
    }

    pub(crate) fn any_host(&mut self) -> Host {
        let (c, p, w) = (self.controls.len(), self.planes.len(), self.workers.len());
        match self.random.below(c + p + w) {
            n if n < c => Host::Control(n),
            n if n < c + p => Host::Plane(n - c),
            n => Host::Worker(n - c - p),
        }
    }

    fn undo_after(&mut self, lasts: Duration, undo: Undo) {
        self.next_undo += 1;
        let number = self.next_undo;
        self.undos.insert(number, undo);
        self.after(lasts, What::Mend { number });
    }

    pub(crate) fn undo(&mut self, number: u64) {
        match self.undos.remove(&number) {
            Some(Undo::Cut(ways)) => ways.into_iter().for_each(|(from, to)| self.mend(from, to)),
            Some(Undo::Slow(from, to)) => self.net.speed_up(from, to),
            Some(Undo::Store) => self.store.mood = Mood::Well,
            Some(Undo::Reader(host)) => self.read_on(host),
            Some(Undo::Disks(lost)) => self.replace_disks(&lost),
            None => {}
        }
    }

    fn cut_one_way(&mut self, lasts: Duration) -> Option<&'static str> {
        let (from, to) = (self.any_host(), self.any_host());
        if from == to {
            return None;
        }
        self.cut(from, to);
        self.undo_after(lasts, Undo::Cut(vec![(from, to)]));
        Some("cut one way")
    }

    /// A set of hosts is cut from the others.
    fn partition(&mut self, lasts: Duration) -> Option<&'static str> {
        let mut all = self.hosts();
        all.push(Host::Store);
        let side: Vec<Host> =
            all.iter().copied().filter(|_| self.random.draw().is_multiple_of(3)).collect();
        let mut ways = Vec::new();
        for &a in &side {
            for &b in all.iter().filter(|b| !side.contains(b)) {
                ways.push((a, b));
                ways.push((b, a));
            }
        }
        if ways.is_empty() {
            return None;
        }
        for &(from, to) in &ways {
            self.cut(from, to);
        }
        self.undo_after(lasts, Undo::Cut(ways));
        Some("partition")
    }

    /// A data plane serves on while no control plane hears it.
    fn silence_a_plane(&mut self, lasts: Duration) {
        let plane = Host::Plane(self.random.below(self.planes.len()));
        let controls = (0..self.controls.len()).map(Host::Control);
        let ways: Vec<_> = controls.flat_map(|c| [(c, plane), (plane, c)]).collect();
        for &(from, to) in &ways {
            self.cut(from, to);
        }
        self.undo_after(lasts, Undo::Cut(ways));
    }

    fn slow_link(&mut self, lasts: Duration) -> Option<&'static str> {
        let (from, to) = (self.any_host(), self.any_host());
        self.net.slow_down(from, to);
        self.undo_after(lasts, Undo::Slow(from, to));
        Some("slow link")
    }

    fn crash(&mut self, kind: Host, lasts: Duration) -> Option<&'static str> {
        let silently = self.random.draw().is_multiple_of(3);
        let (host, word) = match kind {
            Host::Control(_) => {
                (Host::Control(self.random.below(self.controls.len())), "control plane dies")
            }
            Host::Plane(_) => {
                (Host::Plane(self.random.below(self.planes.len())), "data plane dies")
            }
            Host::Worker(_) | Host::Store => {
                let word = if silently { "worker's host dies" } else { "worker's daemon dies" };
                (Host::Worker(self.random.below(self.workers.len())), word)
            }
        };
        if !self.is_up(host) {
            return None;
        }
        self.kill(host, silently);
        self.after(lasts, What::Restart { host });
        Some(word)
    }

    /// A process dies; `silently` with its host.
    pub(crate) fn kill(&mut self, host: Host, silently: bool) {
        match host {
            Host::Control(c) => self.crash_control(c, silently),
            Host::Plane(p) => self.crash_plane(p, silently),
            Host::Worker(w) => self.crash_worker(w, silently),
            Host::Store => {}
        }
    }

    /// One more host.
    fn join(&mut self) -> Option<&'static str> {
        let now = self.now;
        let (host, word) = if self.random.draw().is_multiple_of(2) {
            self.planes.push(PlaneHost::new(now, Durable::default(), 1));
            (Host::Plane(self.planes.len() - 1), "data plane joins")
        } else {
            let room = self.workers.first()?.room;
            self.workers.push(WorkerHost::new(now, room, self.plant));
            (Host::Worker(self.workers.len() - 1), "worker joins")
        };
        self.install_some_version(host);
        self.after(Duration::from_millis(5), What::Dial { host, life: 1 });
        if let Host::Worker(worker) = host {
            self.arm_worker(worker);
        }
        Some(word)
    }

    /// A host dies and never comes back; enough others stay.
    fn leave(&mut self) -> Option<&'static str> {
        let silently = self.random.draw().is_multiple_of(2);
        let here = |host: &Host| !self.left.contains(host);
        let planes: Vec<Host> = (0..self.planes.len()).map(Host::Plane).filter(here).collect();
        let workers: Vec<Host> = (0..self.workers.len()).map(Host::Worker).filter(here).collect();
        let (from, word) = if self.random.draw().is_multiple_of(2) {
            (planes, "data plane leaves")
        } else {
            (workers, "worker leaves")
        };
        let host = *from.get(self.random.below(from.len())).filter(|_| from.len() > 2)?;
        self.left.insert(host);
        if self.is_up(host) {
            match host {
                Host::Plane(p) => self.crash_plane(p, silently),
                Host::Worker(w) => self.crash_worker(w, true),
                Host::Control(_) | Host::Store => {}
            }
        }
        if let Host::Worker(worker) = host {
            self.lose_sandboxes(worker);
        }
        Some(word)
    }

    pub(crate) fn restart(&mut self, host: Host) {
        if self.is_up(host) || self.left.contains(&host) {
            return;
        }
        match host {
            Host::Control(c) => self.start_control(c),
            Host::Plane(p) => self.start_plane(p),
            Host::Worker(w) => self.start_worker(w),
            Host::Store => {}
        }
    }

    /// A process stands still, and does not know it.
    fn pause(&mut self, lasts: Duration) -> Option<&'static str> {
        let until = self.now.after(lasts).min(HEALED);
        let host = self.any_host();
        match host {
            Host::Control(c) => self.controls.get_mut(c)?.paused = until,
            Host::Plane(p) => {
                let p = self.planes.get_mut(p)?;
                p.paused = until;
                p.resumed = until;
            }
            Host::Worker(w) => self.workers.get_mut(w)?.paused = until,
            Host::Store => {}
        }
        Some("pause")
    }

    /// A host takes its time for each packet, up to more than anybody waits.
    fn read_slowly(&mut self, lasts: Duration) -> Option<&'static str> {
        let host = self.any_host();
        if self.net.readers.contains_key(&host) {
            return None;
        }
        let each = [5, 50, 500, 20_000].get(self.random.below(4)).copied().unwrap_or(5);
        self.net.readers.insert(host, Duration::from_millis(each));
        self.undo_after(lasts, Undo::Reader(host));
        Some("slow reader")
    }

    fn lose_some_disks(&mut self, lasts: Duration) -> Option<&'static str> {
        let lost = self.lose_disks()?;
        self.undo_after(lasts, Undo::Disks(lost));
        Some("minority of disks lost")
    }

    fn sour_store(&mut self, lasts: Duration) -> Option<&'static str> {
        let moods = [Mood::Slow, Mood::Refusing, Mood::Mumbling];
        self.store.mood = moods.get(self.random.below(3)).copied().unwrap_or_default();
        self.undo_after(lasts, Undo::Store);
        Some(match self.store.mood {
            Mood::Slow => "slow store",
            Mood::Refusing => "refusing store",
            Mood::Well | Mood::Mumbling => "mumbling store",
        })
    }

    fn cut_off_store(&mut self, mut lasts: Duration) -> Option<&'static str> {
        let control = Host::Control(self.leader()?);
        let mut ways = vec![(Host::Store, control), (control, Host::Store)];
        ways.truncate(1 + self.random.below(2));
        if self.random.draw().is_multiple_of(2) {
            // The others see neither it nor its beat: they elect, and two lead for a while. Some
            // of those that call go over to the new one, the rest stays with the old one.
            lasts = lasts.max(TWO_LEAD);
            let others = (0..self.controls.len()).map(Host::Control).filter(|c| *c != control);
            let mut cut_off: Vec<Host> = others.collect();
            let callers = (0..self.workers.len()).map(Host::Worker);
            let callers = callers.chain((0..self.planes.len()).map(Host::Plane));
            cut_off.extend(callers.filter(|_| self.random.draw().is_multiple_of(2)));
            for other in cut_off {
                ways.push((other, control));
                ways.push((control, other));
            }
        }
        for &(from, to) in &ways {
            self.cut(from, to);
        }
        self.undo_after(lasts, Undo::Cut(ways));
        Some("leader without store")
    }

    fn kill_sandbox(&mut self) -> Option<&'static str> {
        let all: Vec<(usize, u64, SandboxId)> = self
            .workers
            .iter()
            .enumerate()
            .flat_map(|(n, w)| w.sandboxes.keys().map(move |id| (n, w.durable.boot, *id)))
            .collect();
        let pick = self.random.below(all.len());
        let &(worker, boot, sandbox) = all.get(pick)?;
        let (cause, word) = if self.random.draw().is_multiple_of(2) {
            (Cause::Signalled { signal: 11 }, "sandbox crashes")
        } else {
            (Cause::OutOfMemory { limit: Bytes::mib(128) }, "sandbox out of memory")
        };
        self.sandbox_gone(worker, sandbox, boot, cause);
        Some(word)
    }

    /// Everything is well again, and stays so.
    pub(crate) fn heal(&mut self) {
        self.healed = true;
        let all: Vec<u64> = self.undos.keys().copied().collect();
        for number in all {
            self.undo(number);
        }
        self.store.mood = Mood::Well;
        for host in self.hosts() {
            self.restart(host);
        }
    }
}
