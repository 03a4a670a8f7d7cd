//! What an authority remembers, in one file that is replaced whole.

use std::{collections::BTreeMap, fs, io, path::Path, time::UNIX_EPOCH};

use dirigent_core::{Member, Role};
use dirigent_service::{state::atomic_write, tls::Certificate};
use serde::{Deserialize, Serialize};

use super::MembershipError;

/// Members at most: twice the workers that one control plane is made for.
const MEMBERS: usize = 10_000;
/// Join tokens that are neither used nor have run out.
const TICKETS: usize = 1_000;
/// Certificates of one member that have not run out: one that renews for sport is stopped here.
const CERTIFICATES: usize = 16;

/// A join token, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ticket {
    /// Of its secret.
    pub(super) hash: String,
    pub(super) role: Role,
    /// Only for who is called so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    pub(super) until_ms: u64,
    pub(super) many: bool,
}

/// A certificate that was signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    serial: String,
    until_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    member: Member,
    /// The newest last.
    certificates: Vec<Signed>,
    /// Where it is met, if it is a server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    hosts: Vec<String>,
}

/// A member, for people to look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// What it does.
    pub role: Role,
    /// What it is called.
    pub name: String,
    /// When its newest certificate runs out: milliseconds since 1970.
    pub until_ms: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    members: Vec<Entry>,
    tickets: Vec<Ticket>,
    refused: Vec<Signed>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    members: BTreeMap<Member, Entry>,
    tickets: Vec<Ticket>,
    /// By serial number, with the time at which they run out.
    refused: BTreeMap<String, u64>,
}

impl Record {
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let text = match fs::read(path) {
            Ok(text) => text,
            // The key alone is an authority too: it has signed what it cannot remember.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let OnDisk { members, tickets, refused } = serde_json::from_slice(&text)
            .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
        let members = members.into_iter().map(|entry| (entry.member.clone(), entry)).collect();
        let refused = refused.into_iter().map(|signed| (signed.serial, signed.until_ms)).collect();
        Ok(Self { members, tickets, refused })
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let refused = self.refused.iter();
        let all = OnDisk {
            members: self.members.values().cloned().collect(),
            tickets: self.tickets.clone(),
            refused: refused
                .map(|(serial, until)| Signed { serial: serial.clone(), until_ms: *until })
                .collect(),
        };
        atomic_write(path, &serde_json::to_vec_pretty(&all)?, 0o600)
    }

    /// What has run out need not be remembered.
    pub(super) fn forget(&mut self, now_ms: u64) {
        self.tickets.retain(|ticket| ticket.until_ms > now_ms);
        self.refused.retain(|_, until| *until > now_ms);
        for entry in self.members.values_mut() {
            let newest = entry.certificates.len().saturating_sub(1);
            let mut at = 0;
            entry.certificates.retain(|signed| {
                at += 1;
                // The newest shows since when a member has been away.
                signed.until_ms > now_ms || at > newest
            });
        }
    }

    pub(super) fn invite(&mut self, ticket: Ticket) -> Result<(), MembershipError> {
        if self.tickets.len() >= TICKETS {
            return Err(MembershipError::Full { what: "unused join tokens", limit: TICKETS });
        }
        self.tickets.push(ticket);
        Ok(())
    }

    /// The token with this hash. That hashes are compared in a time that depends on them tells
    /// nothing about a secret.
    pub(super) fn ticket(&self, hash: &str) -> Option<&Ticket> {
        self.tickets.iter().find(|ticket| ticket.hash == hash)
    }

    pub(super) fn used(&mut self, ticket: &Ticket) {
        self.tickets.retain(|kept| kept.many || kept != ticket);
    }

    pub(super) fn has(&self, member: &Member) -> bool {
        self.members.contains_key(member)
    }

    pub(super) fn hosts(&self, member: &Member) -> Vec<String> {
        self.members.get(member).map(|entry| entry.hosts.clone()).unwrap_or_default()
    }

    /// A certificate was signed for a member.
    pub(super) fn enter(
        &mut self,
        member: &Member,
        certificate: &Certificate,
        hosts: &[String],
    ) -> Result<(), MembershipError> {
        if self.members.len() >= MEMBERS && !self.has(member) {
            return Err(MembershipError::Full { what: "members", limit: MEMBERS });
        }
        let new = Entry { member: member.clone(), certificates: Vec::new(), hosts: hosts.to_vec() };
        let entry = self.members.entry(member.clone()).or_insert(new);
        if entry.certificates.len() >= CERTIFICATES {
            let what = "certificates of this member";
            return Err(MembershipError::Full { what, limit: CERTIFICATES });
        }
        let until = certificate.not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
        let until_ms = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        entry.certificates.push(Signed { serial: certificate.serial.clone(), until_ms });
        Ok(())
    }

    /// Nobody with a certificate of this member is one any more; which those are, if there is one.
    pub(super) fn refuse(&mut self, member: &Member) -> Option<BTreeMap<String, u64>> {
        let signed = self.members.remove(member)?.certificates.into_iter();
        let serials: BTreeMap<_, _> = signed.map(|one| (one.serial, one.until_ms)).collect();
        self.refused.extend(serials.clone());
        Some(serials)
    }

    /// Refused certificates.
    pub(super) const fn refused(&self) -> &BTreeMap<String, u64> {
        &self.refused
    }

    pub(super) fn list(&self) -> Vec<Listed> {
        let listed = |entry: &Entry| Listed {
            role: entry.member.role,
            name: entry.member.name().to_owned(),
            until_ms: entry.certificates.last().map_or(0, |signed| signed.until_ms),
        };
        self.members.values().map(listed).collect()
    }
}
