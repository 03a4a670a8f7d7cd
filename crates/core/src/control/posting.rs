//! What is wanted of one worker or data plane, and the change of it that is on its way to the store.
//!
//! ```text
//! durable --order--> wanted, written --durable--> durable
//!     ^                   |  refused: as before; in doubt: written again until it is known
//!     +-------------------+
//! ```
//! One change at a time, and one write of it: an answer to any other write says nothing of it. What
//! only takes away counts at once; what gives back, or sets things moving, when it is durable.

use crate::{
    Duty, RequestId, WriteToken,
    control::{Outcome, Refusal},
};

/// What a change comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Duty(Duty),
    /// Its record goes.
    Removed,
}

#[derive(Debug)]
struct Change {
    to: To,
    /// Who waits; nobody once it was in doubt.
    asker: Option<RequestId>,
    /// The write that carries it; `None` while it is to be written again.
    write: Option<WriteToken>,
    in_doubt: bool,
}

/// What the store's answer comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The write carried no change.
    Nothing,
    /// It is durable.
    Done { to: To, asker: Option<RequestId> },
    /// It was not applied, and nothing is changed.
    Refused { asker: Option<RequestId> },
    /// It is not known; to be written again.
    Again { asker: Option<RequestId> },
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Posting {
    durable: Duty,
    change: Option<Change>,
}

impl Posting {
    pub(crate) const fn new(durable: Duty) -> Self {
        Self { durable, change: None }
    }

    /// What is durable.
    pub(crate) const fn duty(&self) -> Duty {
        self.durable
    }

    /// What the record is to say; nothing, if it is to go.
    pub(crate) fn wanted(&self) -> Option<Duty> {
        match self.change.as_ref().map(|change| change.to) {
            None => Some(self.durable),
            Some(To::Duty(duty)) => Some(duty),
            Some(To::Removed) => None,
        }
    }

    /// Whether it serves, now and after a change that is on its way.
    pub(crate) fn is_in_use(&self) -> bool {
        self.durable == Duty::InUse && self.wanted() == Some(Duty::InUse)
    }

    /// Whether a change is on its way to the store: nothing else is written until that is answered.
    pub(crate) fn is_on_its_way(&self) -> bool {
        self.change.as_ref().is_some_and(|change| change.write.is_some())
    }

    /// This write says what is wanted.
    pub(crate) fn written_by(&mut self, write: WriteToken) {
        if let Some(change) = &mut self.change {
            change.write = Some(write);
        }
    }

    /// Begins a change, to be written; false if there is nothing to change.
    pub(crate) fn begin(&mut self, asker: RequestId, to: To) -> Result<bool, Refusal> {
        if self.change.is_some() {
            return Err(Refusal::Busy { limit: 1 });
        }
        if to == To::Duty(self.durable) {
            return Ok(false);
        }
        self.change = Some(Change { to, asker: Some(asker), write: None, in_doubt: false });
        Ok(true)
    }

    /// The store answered a write.
    pub(crate) fn written(&mut self, write: WriteToken, outcome: Outcome) -> Settled {
        let Some(mut change) = self.change.take_if(|change| change.write == Some(write)) else {
            return Settled::Nothing;
        };
        let asker = change.asker.take();
        match outcome {
            Outcome::Ok { .. } => {
                if let To::Duty(duty) = change.to {
                    self.durable = duty;
                }
                Settled::Done { to: change.to, asker }
            }
            Outcome::Refused if !change.in_doubt => Settled::Refused { asker },
            Outcome::Refused | Outcome::Unknown => {
                change.in_doubt = true;
                change.write = None;
                self.change = Some(change);
                Settled::Again { asker }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Outcome = Outcome::Ok { revision: 1 };
    const ASKER: RequestId = RequestId(1);

    /// Written once more, and answered.
    fn answered(posting: &mut Posting, outcome: Outcome) -> Settled {
        posting.written_by(WriteToken(7));
        posting.written(WriteToken(7), outcome)
    }

    #[test]
    fn what_takes_away_counts_at_once_and_what_gives_back_when_it_is_durable() {
        let mut posting = Posting::new(Duty::InUse);
        assert_eq!(posting.begin(ASKER, To::Duty(Duty::InUse)), Ok(false));
        assert_eq!(posting.begin(ASKER, To::Duty(Duty::Cordoned)), Ok(true));
        assert!(!posting.is_in_use() && posting.duty() == Duty::InUse);
        let done = Settled::Done { to: To::Duty(Duty::Cordoned), asker: Some(ASKER) };
        assert_eq!(answered(&mut posting, OK), done);
        assert_eq!(posting.begin(ASKER, To::Duty(Duty::InUse)), Ok(true));
        assert!(!posting.is_in_use(), "not before it is durable");
        assert_eq!(posting.begin(ASKER, To::Removed), Err(Refusal::Busy { limit: 1 }));
        answered(&mut posting, OK);
        assert!(posting.is_in_use());
    }

    #[test]
    fn what_is_refused_changes_nothing_and_what_is_in_doubt_is_written_until_it_is_known() {
        let mut posting = Posting::new(Duty::InUse);
        assert_eq!(answered(&mut posting, Outcome::Unknown), Settled::Nothing);
        posting.begin(ASKER, To::Duty(Duty::Draining)).unwrap();
        let refused = Settled::Refused { asker: Some(ASKER) };
        assert_eq!(answered(&mut posting, Outcome::Refused), refused);
        assert!(posting.is_in_use());
        posting.begin(ASKER, To::Removed).unwrap();
        let again = Settled::Again { asker: Some(ASKER) };
        assert_eq!(answered(&mut posting, Outcome::Unknown), again);
        assert!(!posting.is_on_its_way());
        assert_eq!(answered(&mut posting, Outcome::Refused), Settled::Again { asker: None });
        assert_eq!((posting.wanted(), posting.is_in_use()), (None, false));
        assert_eq!(answered(&mut posting, OK), Settled::Done { to: To::Removed, asker: None });
    }

    #[test]
    fn the_answer_to_another_write_says_nothing_of_the_change() {
        let mut posting = Posting::new(Duty::InUse);
        posting.begin(ASKER, To::Duty(Duty::Draining)).unwrap();
        posting.written_by(WriteToken(2));
        for outcome in [OK, Outcome::Refused, Outcome::Unknown] {
            assert_eq!(posting.written(WriteToken(1), outcome), Settled::Nothing);
        }
        assert_eq!(posting.duty(), Duty::InUse);
        let done = Settled::Done { to: To::Duty(Duty::Draining), asker: Some(ASKER) };
        assert_eq!(posting.written(WriteToken(2), OK), done);
    }
}
