//! Identifiers: newtypes that print with a prefix and are never reused.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A term of office of a leader; it moves with the store and only grows.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

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
                write!(f, concat!($prefix, "_{}_{}"), self.epoch.0, self.counter)
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
                    epoch: Epoch(epoch.parse().map_err(|_not_a_number| bad())?),
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
