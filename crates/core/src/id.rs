//! Identifiers: newtypes that print with a prefix and are never reused.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A term of office of a leader; it moves with the store and only grows.
///
/// It is a number, raised by one with each term, and a mark drawn at random. The number alone would
/// not do: a store that was restored from an older copy counts on from there, so that numbers are
/// given a second time. By the mark epochs, and with them the ids made in them, are never the same.
/// The lower [`Epoch::TERM_BITS`] bits are the number; epochs are in its order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Bits of the number.
    pub const TERM_BITS: u32 = 33;
    /// Bits of the mark. Together they are 53: exact in every JSON reader.
    pub const MARK_BITS: u32 = 20;

    /// The term after this one. `random` marks it.
    #[must_use]
    pub const fn next(self, random: u64) -> Self {
        let mark = random & ((1 << Self::MARK_BITS) - 1);
        Self(mark << Self::TERM_BITS | (self.term() + 1))
    }

    /// The number of the term, from 1; 0 is none.
    #[must_use]
    pub const fn term(self) -> u64 {
        self.0 & ((1 << Self::TERM_BITS) - 1)
    }

    /// Whether a leader of this epoch, to whom a peer shows that it has obeyed `other`, must stand
    /// down: `other` is later, or its number was given twice.
    #[must_use]
    pub fn is_over_by(self, other: Self) -> bool {
        other.term() >= self.term() && other != self
    }

    /// The number is what counts most.
    const fn rank(self) -> u64 {
        self.0.rotate_left(64 - Self::TERM_BITS)
    }
}

impl Ord for Epoch {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for Epoch {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The letters of a mark: no vowels, so that they are no words.
const LETTERS: &[u8; 20] = b"bcdfghjklmnpqrstvwxz";

/// The number, then the mark in letters, the last digit first: `3kqf`.
impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.term())?;
        let mut mark = self.0 >> Self::TERM_BITS;
        while mark > 0 {
            let letter = LETTERS.get((mark % 20) as usize).copied().unwrap_or_default();
            write!(f, "{}", char::from(letter))?;
            mark /= 20;
        }
        Ok(())
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epoch({self})")
    }
}

impl FromStr for Epoch {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = || IdError { text: text.to_owned(), prefix: "epoch" };
        let letters = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (term, letters) = text.split_at(letters);
        let term: u64 = term.parse().map_err(|_not_a_number| bad())?;
        let mark = letters.bytes().rev().try_fold(0_u64, |mark, letter| {
            let digit = LETTERS.iter().position(|l| *l == letter)?;
            mark.checked_mul(20)?.checked_add(digit as u64)
        });
        let mark = mark.filter(|mark| *mark >> (64 - Self::TERM_BITS) == 0).ok_or_else(bad)?;
        if term >> Self::TERM_BITS > 0 || letters.ends_with('b') {
            return Err(bad());
        }
        Ok(Self(mark << Self::TERM_BITS | term))
    }
}

/// Ids made by a leader: its epoch and a counter within it. Two leaders never make the same one.
macro_rules! epoch_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name {
            /// The epoch of the leader that made it.
            pub epoch: Epoch,
            /// Its number within that epoch, from 1.
            pub counter: u64,
        }

        impl $name {
            /// The id with this number within `epoch`.
            #[must_use]
            pub const fn new(epoch: Epoch, counter: u64) -> Self {
                Self { epoch, counter }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "_{}_{}"), self.epoch, self.counter)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let bad = || IdError { text: text.to_owned(), prefix: $prefix };
                let rest = text.strip_prefix(concat!($prefix, "_")).ok_or_else(bad)?;
                let (epoch, counter) = rest.split_once('_').ok_or_else(bad)?;
                Ok(Self {
                    epoch: epoch.parse().map_err(|_not_an_epoch| bad())?,
                    counter: counter.parse().map_err(|_not_a_number| bad())?,
                })
            }
        }
    };
}

epoch_id!(
    /// A function. Deleting and recreating one with the same name gives a new id.
    FunctionId,
    "fn"
);
epoch_id!(
    /// A sandbox.
    SandboxId,
    "sbx"
);

/// Counters that one process hands out.
macro_rules! counter_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "_{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

counter_id!(
    /// A worker, numbered when it first joined the cluster; stable over its restarts.
    WorkerId,
    "wrk"
);
counter_id!(
    /// A data plane, numbered when it first joined the cluster; stable over its restarts.
    DataPlaneId,
    "dp"
);
counter_id!(
    /// One connection of a peer to the control plane; numbered by the shell that accepted it.
    StreamId,
    "str"
);
counter_id!(
    /// A caller of the control plane's API who waits for a reply.
    RequestId,
    "req"
);
counter_id!(
    /// One invocation within its data plane; numbered by the shell that received it. The request
    /// id that users see is a header's text, not this.
    InvocationId,
    "inv"
);
counter_id!(
    /// A write on its way to the store.
    WriteToken,
    "wt"
);
counter_id!(
    /// The number of a grant on one stream: a `Returned` quotes the last one seen, so that grants
    /// and returns that cross on the way are told apart.
    Serial,
    "ser"
);

/// A revision: the function and its number, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RevisionId {
    /// Whose revision.
    pub function: FunctionId,
    /// Its number, from 1, never reused within the function.
    pub number: u32,
}

impl fmt::Display for RevisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:05}", self.function, self.number)
    }
}

impl fmt::Debug for RevisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not an id of the wanted kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an id of the form `{prefix}_EPOCH_NUMBER`")]
pub struct IdError {
    text: String,
    prefix: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_in_the_order_of_their_numbers_whatever_their_marks() {
        let first = Epoch(0).next(u64::MAX);
        let second = first.next(0);
        assert_eq!((first.term(), second.term()), (1, 2));
        assert!(first < second && Epoch(0) < first);
        assert!(first.is_over_by(second) && !second.is_over_by(first) && !first.is_over_by(first));
        let again = Epoch(0).next(5);
        assert!(first.is_over_by(again) && again.is_over_by(first), "a number given twice");
    }

    #[test]
    fn ids_are_read_as_they_are_written() {
        for epoch in [Epoch(0), Epoch(7), Epoch(3).next(1), Epoch(3).next(20), Epoch(8).next(!0)] {
            let id = SandboxId::new(epoch, 17);
            assert_eq!(id.to_string().parse(), Ok(id), "{id}");
        }
        assert_eq!(SandboxId::new(Epoch(1), 5).to_string(), "sbx_1_5");
        assert_eq!(FunctionId::new(Epoch(2).next(21), 5).to_string(), "fn_3cc_5");
        for bad in ["sbx_1", "sbx_x_1", "sbx_1a_1", "sbx_1cb_1", "sbx_8589934592_1", "fn_1_1"] {
            assert!(bad.parse::<SandboxId>().is_err(), "{bad}");
        }
    }
}
