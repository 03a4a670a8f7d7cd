//! Members of a cluster: who may take part in which role, by the URI in a certificate,
//! `dirigent://CLUSTER/ROLE/NAME`.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// What a member does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It decides, and signs nothing but by the cluster's authority.
    ControlPlane,
    /// It takes invocations.
    DataPlane,
    /// It runs sandboxes.
    Worker,
}

impl Role {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::ControlPlane, Self::DataPlane, Self::Worker];

    /// As in URIs and on the command line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::ControlPlane => "control-plane",
            Self::DataPlane => "data-plane",
            Self::Worker => "worker",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Role {
    type Err = MemberError;

    fn from_str(text: &str) -> Result<Self, MemberError> {
        let found = Self::ALL.into_iter().find(|role| role.word() == text);
        found.ok_or_else(|| MemberError::Role { text: text.to_owned() })
    }
}

/// Characters of a name at most.
const NAME_MAX: usize = 128;

/// What is wrong with a role, a name or a URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// There is no such role.
    #[error("`{text}` is not a role: use worker, data-plane or control-plane")]
    Role {
        /// What was said.
        text: String,
    },
    /// No member can be called so.
    #[error(
        "`{text}` is not a name: use 1 to {NAME_MAX} letters, digits, `-`, `_` and `.`, the first a letter or digit"
    )]
    Name {
        /// What was said.
        text: String,
    },
    /// It is no member's URI.
    #[error("`{text}` is not the URI of a member, `dirigent://CLUSTER/ROLE/NAME`")]
    Uri {
        /// What was said.
        text: String,
    },
}

/// Somebody in a role, by a name that nobody else has in it. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Member {
    /// What it does.
    pub role: Role,
    name: Arc<str>,
}

impl Member {
    /// The one of this name.
    ///
    /// # Errors
    /// If nobody can be called so.
    pub fn new(role: Role, name: &str) -> Result<Self, MemberError> {
        if !is_name(name) {
            return Err(MemberError::Name { text: name.to_owned() });
        }
        Ok(Self { role, name: name.into() })
    }

    /// What it is called within its role.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The one that a URI names, of the cluster with the URI `cluster`.
    ///
    /// # Errors
    /// If it is none, or of another cluster.
    pub fn of(uri: &str, cluster: &str) -> Result<Self, MemberError> {
        let bad = || MemberError::Uri { text: uri.to_owned() };
        let rest = uri.strip_prefix(cluster).and_then(|rest| rest.strip_prefix('/'));
        let (role, name) = rest.and_then(|rest| rest.split_once('/')).ok_or_else(bad)?;
        Self::new(role.parse()?, name)
    }

    /// Its URI in the cluster with the URI `cluster`.
    #[must_use]
    pub fn uri(&self, cluster: &str) -> String {
        format!("{cluster}/{}/{}", self.role, self.name)
    }
}

/// Whether it needs no quotes anywhere: in URIs, paths, logs.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_one_member_of_one_cluster() {
        let cluster = "dirigent://00ff";
        let member = Member::new(Role::Worker, "w1").unwrap();
        let uri = member.uri(cluster);
        assert_eq!(uri, "dirigent://00ff/worker/w1");
        assert_eq!(Member::of(&uri, cluster), Ok(member));
        for bad in [
            "dirigent://00ff",
            "dirigent://00ff/worker",
            "dirigent://00ff/worker/",
            "dirigent://00ff/king/w1",
            "dirigent://00ff/worker/w1/2",
            "dirigent://00ff0/worker/w1",
            "dirigent://0100/worker/w1",
        ] {
            assert!(Member::of(bad, cluster).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_plain() {
        for good in ["w", "host-1.example.org", "A_b", &"x".repeat(128)] {
            assert!(Member::new(Role::Worker, good).is_ok(), "{good}");
        }
        for bad in ["", "-x", ".x", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(Member::new(Role::Worker, bad).is_err(), "{bad}");
        }
        for role in Role::ALL {
            assert_eq!(role.word().parse(), Ok(role));
        }
        assert!("king".parse::<Role>().is_err());
    }
}
