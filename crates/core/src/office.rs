//! A standby's way into office: when may it take over?
//!
//! Two witnesses must agree. The leader's stream is broken, *and* its beat in the store stands
//! still: for 500 ms if the leader's host refuses the connection (the process is gone), for 2 s if
//! nobody answers (it may only be slow). What decides in the end is the store, which raises the
//! epoch by one for exactly one of those who ask: [`Effect::Take`] names the seat that is replaced.
//!
//! Refused: reading, writing, dialling. The shell reads the seat every 200 ms and says how it went.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Epoch, Time};

/// How long the beat must stand when the leader's host refuses connections.
const GONE: Duration = Duration::from_millis(500);
/// How long it must stand when nothing is heard of the leader.
const SILENT: Duration = Duration::from_secs(2);
/// An attempt whose outcome the shell could not tell is forgotten after this.
const UNANSWERED: Duration = Duration::from_secs(2);

/// The office as it stands in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// The term; 0 if nobody ever led.
    pub epoch: Epoch,
    /// Which control plane leads.
    pub holder: u64,
    /// Raised by the leader at each of its beats.
    pub beat: u64,
}

/// A fact that a standby learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The stream to the leader is up.
    Connected,
    /// The stream broke, or could not be opened: the leader's host refuses it.
    Refused,
    /// The stream broke, or could not be opened: nothing is heard.
    Silent,
    /// The store's seat was read.
    Read(Seat),
    /// The store answered `Take`: the seat now, if this control plane has it.
    Took(Option<Seat>),
    /// A peer has obeyed this epoch, which the store may know nothing of: it was restored from an
    /// older copy.
    Shown(Epoch),
}

/// An order of a standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Replace this seat, and only this one, by one of the next epoch.
    Take {
        /// The seat as read; a beat since then does not save it, another epoch does.
        over: Seat,
        /// The next term is the one after this: of the seat, or of the highest one shown.
        above: Epoch,
    },
    /// This control plane leads from now on, with this epoch.
    Lead {
        /// The term.
        epoch: Epoch,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Up,
    Refused,
    Silent,
}

/// See the module.
#[derive(Debug)]
pub struct Candidate {
    line: Line,
    broken_since: Time,
    seat: Option<Seat>,
    stands_since: Time,
    asked: Option<Time>,
    /// The highest one that a peer showed.
    shown: Epoch,
    effects: VecDeque<Effect>,
}

impl Candidate {
    /// A standby that knows nothing yet.
    #[must_use]
    pub const fn new(now: Time) -> Self {
        Self {
            line: Line::Silent,
            broken_since: now,
            seat: None,
            stands_since: now,
            asked: None,
            shown: Epoch(0),
            effects: VecDeque::new(),
        }
    }

    /// The world says something.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Connected => self.line = Line::Up,
            Event::Refused => self.broke(now, Line::Refused),
            Event::Silent => self.broke(now, Line::Silent),
            Event::Read(seat) => {
                if self.seat != Some(seat) {
                    self.seat = Some(seat);
                    self.stands_since = now;
                }
            }
            Event::Shown(epoch) => self.shown = self.shown.max(epoch),
            Event::Took(seat) => {
                self.asked = None;
                // Whoever was first: the next look at the store tells.
                self.seat = None;
                if let Some(seat) = seat {
                    self.effects.push_back(Effect::Lead { epoch: seat.epoch });
                    return;
                }
            }
        }
        self.consider(now);
    }

    /// What to do, in order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn broke(&mut self, now: Time, line: Line) {
        if self.line == Line::Up {
            self.broken_since = now;
        }
        self.line = line;
    }

    fn consider(&mut self, now: Time) {
        if self.asked.is_some_and(|at| now.since(at) < UNANSWERED) {
            return;
        }
        let Some(over) = self.seat else { return };
        let patience = match self.line {
            _ if over.epoch == Epoch(0) => Duration::ZERO,
            Line::Up => return,
            Line::Refused => GONE,
            Line::Silent => SILENT,
        };
        if now.since(self.stands_since.max(self.broken_since)) >= patience {
            self.asked = Some(now);
            let above = over.epoch.max(self.shown);
            self.effects.push_back(Effect::Take { over, above });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEAT: Seat = Seat { epoch: Epoch(3), holder: 1, beat: 7 };
    const TAKE: Effect = Effect::Take { over: SEAT, above: SEAT.epoch };

    fn at(ms: u64) -> Time {
        Time(ms * 1_000_000)
    }

    fn effects(candidate: &mut Candidate) -> Vec<Effect> {
        std::iter::from_fn(|| candidate.poll_effect()).collect()
    }

    #[test]
    fn an_office_that_nobody_ever_held_is_taken_at_once() {
        let mut candidate = Candidate::new(at(0));
        candidate.handle(at(1), Event::Read(Seat::default()));
        assert_eq!(
            effects(&mut candidate),
            [Effect::Take { over: Seat::default(), above: Epoch(0) }]
        );
        candidate.handle(at(2), Event::Took(Some(Seat { epoch: Epoch(1), ..SEAT })));
        assert_eq!(effects(&mut candidate), [Effect::Lead { epoch: Epoch(1) }]);
    }

    #[test]
    fn a_leader_that_is_connected_or_beats_keeps_the_office() {
        let mut candidate = Candidate::new(at(0));
        candidate.handle(at(0), Event::Connected);
        candidate.handle(at(0), Event::Read(SEAT));
        candidate.handle(at(9000), Event::Read(SEAT));
        assert_eq!(effects(&mut candidate), [], "its stream is up");
        candidate.handle(at(9000), Event::Refused);
        for beat in 8..40 {
            candidate.handle(at(9000 + 200 * beat), Event::Read(Seat { beat, ..SEAT }));
        }
        assert_eq!(effects(&mut candidate), [], "its beat moves");
    }

    #[test]
    fn a_host_that_refuses_is_given_500_ms_and_a_silent_one_2_s() {
        for (event, patience) in [(Event::Refused, 500), (Event::Silent, 2000)] {
            let mut candidate = Candidate::new(at(0));
            candidate.handle(at(0), Event::Connected);
            candidate.handle(at(0), Event::Read(SEAT));
            candidate.handle(at(5000), event);
            candidate.handle(at(5000 + patience - 1), event);
            assert_eq!(effects(&mut candidate), [], "counted from the break");
            candidate.handle(at(5000 + patience), event);
            assert_eq!(effects(&mut candidate), [TAKE]);
            candidate.handle(at(5000 + patience + 1), event);
            assert_eq!(effects(&mut candidate), [], "asked once");
        }
    }

    #[test]
    fn who_was_not_first_looks_anew_and_an_unanswered_attempt_is_repeated() {
        let mut candidate = Candidate::new(at(0));
        candidate.handle(at(0), Event::Read(SEAT));
        candidate.handle(at(2000), Event::Silent);
        assert_eq!(effects(&mut candidate), [TAKE]);
        candidate.handle(at(4000), Event::Read(SEAT));
        assert_eq!(effects(&mut candidate), [TAKE], "unanswered");
        candidate.handle(at(4001), Event::Took(None));
        let other = Seat { epoch: Epoch(4), holder: 2, beat: 0 };
        candidate.handle(at(4100), Event::Read(other));
        assert_eq!(effects(&mut candidate), []);
    }

    #[test]
    fn the_next_term_is_above_what_was_shown_though_the_store_has_forgotten_it() {
        let mut candidate = Candidate::new(at(0));
        candidate.handle(at(0), Event::Shown(Epoch(9)));
        candidate.handle(at(0), Event::Shown(Epoch(5)));
        candidate.handle(at(0), Event::Read(SEAT));
        candidate.handle(at(2000), Event::Silent);
        assert_eq!(effects(&mut candidate), [Effect::Take { over: SEAT, above: Epoch(9) }]);
    }
}
