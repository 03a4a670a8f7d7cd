//! What operators want of workers and data planes: to serve, to take nothing new, to be emptied.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::Role;

/// What operators want of a worker or a data plane.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Duty {
    /// To serve.
    #[default]
    InUse,
    /// A worker gets no new sandboxes, and serves with what it has. A data plane says that it is not
    /// ready, and serves whoever calls it all the same.
    Cordoned,
    /// A worker's sandboxes are recalled. A data plane leaves: it says that it is not ready, then
    /// accepts nothing more, ends what it has begun, and ends itself.
    Draining,
}

impl Duty {
    /// As operators read it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::InUse => "in use",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
        }
    }

    /// Whether nobody wants anything else of it than to serve; for records, which are silent then.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
    pub(crate) const fn is_in_use(&self) -> bool {
        matches!(self, Self::InUse)
    }
}

impl fmt::Display for Duty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A worker or a data plane, by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whom {
    /// A worker.
    Worker(Arc<str>),
    /// A data plane.
    DataPlane(Arc<str>),
}

impl Whom {
    /// What it is called.
    #[must_use]
    pub const fn name(&self) -> &Arc<str> {
        match self {
            Self::Worker(name) | Self::DataPlane(name) => name,
        }
    }

    /// What it does.
    #[must_use]
    pub const fn role(&self) -> Role {
        match self {
            Self::Worker(_) => Role::Worker,
            Self::DataPlane(_) => Role::DataPlane,
        }
    }
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker(name) => write!(f, "worker {name}"),
            Self::DataPlane(name) => write!(f, "data plane {name}"),
        }
    }
}
