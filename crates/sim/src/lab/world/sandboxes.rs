//! A function's sandboxes: which run, which are idle and in what order, who waits at which.

use std::collections::VecDeque;

use dirigent_core::policy::random::Pcg;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting,
    Idle,
    Busy,
    Gone,
}

#[derive(Clone, Debug)]
struct Sandbox {
    state: State,
    since: u64,
    /// A start ahead keeps it until then.
    until: Option<u64>,
    /// When it goes, while it is idle.
    end: u64,
    /// The entry in the agenda that will look at it.
    alarm: Option<u64>,
    used: bool,
    leaving: bool,
    call: Option<u32>,
    /// Early binding: calls that chose it.
    waiting: VecDeque<u32>,
}

/// What to do with a sandbox whose end may have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Now,
    Later(u64),
    Never,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Sandboxes {
    all: Vec<Sandbox>,
    vacant: Vec<u32>,
    /// The most recently used last.
    idle: Vec<u32>,
    /// Ready ones that are not leaving, in the order in which they came: the list of early binding.
    list: Vec<u32>,
    starting: u32,
    busy: u32,
    leaving: u32,
    waiting: u32,
}

impl Sandboxes {
    fn at(&mut self, sandbox: u32) -> &mut Sandbox {
        self.all.get_mut(sandbox as usize).expect("a sandbox that was made")
    }

    fn get(&self, sandbox: u32) -> &Sandbox {
        self.all.get(sandbox as usize).expect("a sandbox that was made")
    }

    /// All of them, those that start or leave included.
    pub(super) fn count(&self) -> u32 {
        self.starting + self.busy + self.idle()
    }

    /// Those that stay.
    pub(super) fn staying(&self) -> u32 {
        self.count() - self.leaving
    }

    pub(super) const fn busy(&self) -> u32 {
        self.busy
    }

    pub(super) const fn starting(&self) -> u32 {
        self.starting
    }

    pub(super) fn idle(&self) -> u32 {
        u32::try_from(self.idle.len()).unwrap_or(u32::MAX)
    }

    /// Those that calls may be bound to.
    pub(super) fn ready(&self) -> u32 {
        self.busy - self.leaving + self.idle()
    }

    /// Calls that chose one.
    pub(super) const fn waiting(&self) -> u32 {
        self.waiting
    }

    pub(super) fn start(&mut self, now: u64, until: Option<u64>) -> u32 {
        let sandbox = Sandbox {
            state: State::Starting,
            since: now,
            until,
            end: u64::MAX,
            alarm: None,
            used: false,
            leaving: false,
            call: None,
            waiting: VecDeque::new(),
        };
        self.starting += 1;
        if let Some(place) = self.vacant.pop() {
            *self.at(place) = sandbox;
            return place;
        }
        self.all.push(sandbox);
        u32::try_from(self.all.len() - 1).unwrap_or(u32::MAX)
    }

    /// It is idle now, behind all others. When its start began, and until when it is to be kept.
    pub(super) fn ready_now(&mut self, sandbox: u32, now: u64) -> (u64, Option<u64>) {
        let one = self.at(sandbox);
        debug_assert_eq!(one.state, State::Starting, "it becomes ready once");
        one.state = State::Idle;
        let since = std::mem::replace(&mut one.since, now);
        let until = one.until.take();
        self.starting -= 1;
        self.idle.insert(0, sandbox);
        self.list.push(sandbox);
        (since, until)
    }

    pub(super) fn is_idle(&self, sandbox: u32) -> bool {
        self.get(sandbox).state == State::Idle
    }

    pub(super) fn is_leaving(&self, sandbox: u32) -> bool {
        self.get(sandbox).leaving
    }

    /// The idle one that was used last.
    pub(super) fn latest_idle(&self) -> Option<u32> {
        self.idle.last().copied()
    }

    /// The idle one that was not used for the longest time.
    pub(super) fn longest_idle(&self) -> Option<u32> {
        self.idle.first().copied()
    }

    /// The idle one that became ready first.
    pub(super) fn first_idle(&self) -> Option<u32> {
        self.list.iter().copied().find(|&sandbox| self.is_idle(sandbox))
    }

    /// Any that calls may be bound to.
    pub(super) fn any(&self, random: &mut Pcg) -> Option<u32> {
        self.list.get(random.below(self.list.len())).copied()
    }

    /// An idle one runs a call; whether that is its first.
    pub(super) fn begin(&mut self, sandbox: u32, call: u32, now: u64) -> bool {
        self.take(sandbox);
        self.busy += 1;
        let one = self.at(sandbox);
        one.state = State::Busy;
        one.since = now;
        one.call = Some(call);
        !std::mem::replace(&mut one.used, true)
    }

    fn take(&mut self, sandbox: u32) {
        // Nearly always the last one.
        if let Some(place) = self.idle.iter().rposition(|&idle| idle == sandbox) {
            self.idle.remove(place);
        }
    }

    /// Its call, which has ended.
    pub(super) fn end(&mut self, sandbox: u32) -> Option<u32> {
        self.at(sandbox).call.take()
    }

    /// A busy one is the most recently used idle one.
    pub(super) fn free(&mut self, sandbox: u32, now: u64) {
        let one = self.at(sandbox);
        one.state = State::Idle;
        one.since = now;
        self.busy -= 1;
        self.idle.push(sandbox);
    }

    /// When it goes if it stays idle; whether an entry in the agenda is needed for that.
    pub(super) fn keep_until(&mut self, sandbox: u32, end: u64) -> bool {
        let one = self.at(sandbox);
        one.end = end;
        let needed = one.alarm.is_none_or(|alarm| alarm > end);
        if needed {
            one.alarm = Some(end);
        }
        needed
    }

    pub(super) fn kept_until(&self, sandbox: u32) -> u64 {
        self.get(sandbox).end
    }

    /// An entry in the agenda looks at it.
    pub(super) fn due(&mut self, sandbox: u32, now: u64) -> Due {
        let one = self.at(sandbox);
        if one.alarm != Some(now) {
            return Due::Never;
        }
        one.alarm = None;
        match one.state {
            State::Idle if one.end <= now => Due::Now,
            State::Idle => {
                one.alarm = Some(one.end);
                Due::Later(one.end)
            }
            State::Busy | State::Starting | State::Gone => Due::Never,
        }
    }

    /// A busy one runs its call to the end and takes no other. Who waited at it waits no longer.
    pub(super) fn leave(&mut self, sandbox: u32) -> Vec<u32> {
        self.at(sandbox).leaving = true;
        self.leaving += 1;
        self.unlist(sandbox)
    }

    /// It is gone. Who waited at it waits no longer.
    pub(super) fn remove(&mut self, sandbox: u32) -> Vec<u32> {
        match self.get(sandbox).state {
            State::Idle => self.take(sandbox),
            State::Busy => self.busy -= 1,
            State::Starting => self.starting -= 1,
            State::Gone => debug_assert!(false, "it goes once"),
        }
        self.leaving -= u32::from(self.is_leaving(sandbox));
        let one = self.at(sandbox);
        one.state = State::Gone;
        // An entry of the agenda that still looks at this place is not its next owner's.
        one.alarm = None;
        self.vacant.push(sandbox);
        self.unlist(sandbox)
    }

    fn unlist(&mut self, sandbox: u32) -> Vec<u32> {
        self.list.retain(|&other| other != sandbox);
        let waiting: Vec<u32> = self.at(sandbox).waiting.drain(..).collect();
        self.waiting -= u32::try_from(waiting.len()).unwrap_or(u32::MAX);
        waiting
    }

    pub(super) fn wait(&mut self, sandbox: u32, call: u32) {
        self.at(sandbox).waiting.push_back(call);
        self.waiting += 1;
    }

    /// The first who waits at it, no longer.
    pub(super) fn next_waiting(&mut self, sandbox: u32) -> Option<u32> {
        let next = self.at(sandbox).waiting.pop_front();
        self.waiting -= u32::from(next.is_some());
        next
    }

    /// It waits at none any more; whether it did.
    pub(super) fn stop_waiting(&mut self, call: u32) -> bool {
        for one in &mut self.all {
            if let Some(place) = one.waiting.iter().position(|&waiting| waiting == call) {
                one.waiting.remove(place);
                self.waiting -= 1;
                return true;
            }
        }
        false
    }
}
