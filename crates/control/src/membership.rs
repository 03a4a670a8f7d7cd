//! Who is a member of the cluster: the authority's key, where this control plane has it, what it has
//! signed and for whom, and whose certificates are refused although they have not run out.
//!
//! All of it lies in the folder `tls` of the state directory:
//!
//! ```text
//! ca.pem             the authority's certificate; on every member
//! control-plane.pem  this one's certificate and key; other roles have a file of their own name
//! ca.key             the authority's key: on the control plane that signs
//! members.json       what it has signed, join tokens as hashes, refused certificates; beside the key
//! ```
//!
//! Where several control planes share a store, whose certificates are refused is in there too, for all
//! of them (`refusals`).
//!
//! A certificate is handed out only when it is on disk that it was.

mod record;
mod refused;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dirigent_core::{Member, MemberError, Role};
use dirigent_service::{
    Clock, OnCancel, Tasks,
    state::{atomic_write, private_dir},
    tls::{
        Authority, Certificate, CertificateError, Files, FilesError, Fingerprint, Issue, request,
    },
};
use tokio::sync::watch;

pub use self::record::Listed;
use self::{
    record::{Record, Ticket},
    refused::Refused,
};
use crate::token::{digest, secret};

/// How long a certificate is valid if nothing else is said: long enough for a holiday without its
/// authority, short enough that one that was lost is soon worth nothing.
pub const LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// When a renewal that failed is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// Why somebody gets no certificate, or a cluster has no members.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// There is an authority already.
    #[error("{} exists already: this directory belongs to a cluster", path.display())]
    Exists {
        /// Its key.
        path: PathBuf,
    },
    /// This control plane does not sign.
    #[error(
        "this control plane does not have the cluster's authority: ask the one where `dirigent cluster init` was run"
    )]
    NoAuthority,
    /// The token is unknown, used or has run out.
    #[error(
        "this join token is unknown, used up or has run out: get another one with `dirigent cluster token`"
    )]
    Token,
    /// The token is for somebody else.
    #[error("this join token is for the name `{name}`: join with --name {name}")]
    Name {
        /// For whom.
        name: String,
    },
    /// Nobody can be called so.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// Somebody is called so.
    #[error(
        "there is a {member} already: choose another --name, or remove that one with `dirigent cluster remove {member}`"
    )]
    Taken {
        /// Who.
        member: Member,
    },
    /// Nobody is called so.
    #[error("there is no {member}: `dirigent cluster members` lists them")]
    Unknown {
        /// Who.
        member: Member,
    },
    /// There are too many.
    #[error("there are {limit} {what} already")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// The certificate was refused before.
    #[error("the certificate of {member} is refused: it was removed, or joined again elsewhere")]
    Refused {
        /// Whose.
        member: Member,
    },
    /// Others may have refused it.
    #[error(
        "this control plane has not heard yet whose certificates are refused: it cannot reach its etcd"
    )]
    Unheard,
    /// The request cannot be signed.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The files cannot be used.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Nothing can be written, so that nothing is signed.
    #[error("the members cannot be written down")]
    Disk(#[from] io::Error),
}

/// What a new member gets.
#[derive(Debug)]
pub struct Joined {
    /// Who it is now.
    pub member: Member,
    /// Its certificate, PEM.
    pub certificate: String,
    /// The authority's, PEM.
    pub authority: String,
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Membership {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    files: Files,
    /// The cluster's URI, which those of its members begin with.
    cluster: String,
    life: Duration,
    signer: Option<Signer>,
    refused: Mutex<Refused>,
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct Signer {
    authority: Authority,
    path: PathBuf,
    /// Held while the record is written, which takes time: whoever reads it does not wait for that.
    writing: Mutex<()>,
    record: Mutex<Record>,
}

impl Signer {
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the record on disk, then in memory.
    fn commit<T>(
        &self,
        change: impl FnOnce(&mut Record) -> Result<T, MembershipError>,
    ) -> Result<T, MembershipError> {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = self.lock().clone();
        changed.forget(Clock::wall_ms());
        let done = change(&mut changed)?;
        changed.write(&self.path)?;
        *self.lock() = changed;
        Ok(done)
    }
}

/// The folder of a state directory with certificates.
#[must_use]
pub fn folder(state: &Path) -> PathBuf {
    state.join("tls")
}

/// The certificate and key of a role in a state directory.
#[must_use]
pub fn own(state: &Path, role: Role) -> PathBuf {
    folder(state).join(format!("{role}.pem"))
}

/// The authority's certificate in a state directory.
#[must_use]
pub fn authority(state: &Path) -> PathBuf {
    folder(state).join("ca.pem")
}

/// The certificate of a role in a state directory, if it has joined a cluster.
///
/// # Errors
/// If there is one that cannot be used.
pub fn files(state: &Path, role: Role) -> Result<Option<Files>, FilesError> {
    let own = own(state, role);
    if !own.exists() {
        return Ok(None);
    }
    Files::open(&authority(state), &own).map(Some)
}

/// Make the authority of a new cluster in a state directory, and the certificate of the control plane
/// `name` there, which is met at `hosts`. Returns the authority's fingerprint.
///
/// # Errors
/// If there is one already, or it cannot be written.
pub fn init(
    state: &Path,
    name: &str,
    hosts: &[String],
    life: Duration,
) -> Result<Fingerprint, MembershipError> {
    let dir = folder(state);
    private_dir(&dir)?;
    let key_path = dir.join("ca.key");
    for path in [key_path.clone(), authority(state), own(state, Role::ControlPlane)] {
        if path.exists() {
            return Err(MembershipError::Exists { path });
        }
    }
    let member = Member::new(Role::ControlPlane, name)?;
    let mut id = [0; 8];
    crate::random(&mut id)?;
    let cluster = format!("dirigent://{:016x}", u64::from_be_bytes(id));
    let (pem, key) = Authority::make(&cluster, Clock::wall())?;
    let signer = Authority::load(pem.clone(), &key)?;
    let (own_key, request) = request()?;
    let certificate = sign(&signer, &member, &request, hosts, life)?;
    let mut record = Record::default();
    record.enter(&member, &Certificate::of_pem(&certificate)?, hosts)?;
    record.write(&dir.join("members.json"))?;
    atomic_write(&own(state, Role::ControlPlane), (certificate + &own_key).as_bytes(), 0o600)?;
    atomic_write(&authority(state), pem.as_bytes(), 0o644)?;
    // Last: with it the directory belongs to a cluster.
    atomic_write(&key_path, key.as_bytes(), 0o600)?;
    Ok(Fingerprint::of_pem(&pem)?)
}

fn sign(
    authority: &Authority,
    member: &Member,
    request: &str,
    hosts: &[String],
    life: Duration,
) -> Result<String, CertificateError> {
    let uri = member.uri(authority.uri());
    // Data planes connect to workers that encrypt.
    let serves = matches!(member.role, Role::ControlPlane | Role::Worker);
    authority.sign(request, Issue { uri: &uri, serves, hosts, life, now: Clock::wall() })
}

impl Membership {
    /// Of a control plane's state directory; nothing if it does not belong to a cluster.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn open(state: &Path, life: Duration) -> Result<Option<Self>, MembershipError> {
        let Some(files) = files(state, Role::ControlPlane)? else { return Ok(None) };
        let dir = folder(state);
        let path = dir.join("members.json");
        // It counts where the key was taken elsewhere, too.
        let record = Record::read(&path)?;
        let refused = Mutex::new(Refused::new(record.refused()));
        let signer = match fs::read_to_string(dir.join("ca.key")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
            Ok(key) => {
                let pem = fs::read_to_string(authority(state))?;
                let authority = Authority::load(pem, &key)?;
                let (writing, record) = (Mutex::new(()), Mutex::new(record));
                Some(Signer { authority, path, writing, record })
            }
        };
        let uri = files.certificate().uri.unwrap_or_default();
        // `dirigent://CLUSTER/ROLE/NAME`, as it was made.
        let cluster = uri.rsplitn(3, '/').last().unwrap_or_default().to_owned();
        let changes = watch::Sender::new(0);
        let shared = Shared { files, cluster, life, signer, refused, changes };
        Ok(Some(Self { shared: Arc::new(shared) }))
    }

    /// This control plane's own certificate.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.shared.files
    }

    /// Whether it can sign.
    #[must_use]
    pub fn signs(&self) -> bool {
        self.shared.signer.is_some()
    }

    /// Changes when somebody may be no member any more.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    fn signer(&self) -> Result<&Signer, MembershipError> {
        self.shared.signer.as_ref().ok_or(MembershipError::NoAuthority)
    }

    /// Whom a certificate by the cluster's authority names.
    ///
    /// # Errors
    /// If it is nobody, or was refused.
    pub fn admit(&self, certificate: &Certificate) -> Result<Member, MembershipError> {
        let uri = certificate.uri.as_deref().unwrap_or_default();
        let member = Member::of(uri, &self.shared.cluster)?;
        let refused = self.refused();
        if refused.holds(&certificate.serial) {
            return Err(MembershipError::Refused { member });
        }
        if refused.is_partial() {
            return Err(MembershipError::Unheard);
        }
        Ok(member)
    }

    /// A token with which somebody may join in this role, for so long; once, unless it is for
    /// `many`. Its secret is not kept, only the hash.
    ///
    /// # Errors
    /// If this control plane does not sign, or cannot write.
    pub fn invite(
        &self,
        role: Role,
        name: Option<&str>,
        ttl: Duration,
        many: bool,
    ) -> Result<String, MembershipError> {
        let signer = self.signer()?;
        let name = name.map(|name| Member::new(role, name)).transpose()?;
        let fingerprint = Fingerprint::of_pem(signer.authority.pem())?;
        let secret = secret()?;
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let ticket = Ticket {
            hash: digest(&secret),
            role,
            name: name.map(|member| member.name().to_owned()),
            until_ms: Clock::wall_ms().saturating_add(ttl_ms),
            many,
        };
        signer.commit(|record| record.invite(ticket))?;
        Ok(format!("{role}.{fingerprint}.{secret}"))
    }

    /// Let somebody in who has a token's secret and asks to be called `name`; a control plane is met
    /// at `hosts`.
    ///
    /// # Errors
    /// Why not. The token is used up only if somebody joined.
    pub fn join(
        &self,
        secret: &str,
        name: &str,
        hosts: &[String],
        request: &str,
    ) -> Result<Joined, MembershipError> {
        let signer = self.signer()?;
        let life = self.shared.life;
        let (joined, refused) = signer.commit(|record| {
            let ticket = record.ticket(&digest(secret)).ok_or(MembershipError::Token)?.clone();
            let member = Member::new(ticket.role, name)?;
            let hosts = if member.role == Role::ControlPlane { hosts } else { &[] };
            let refused = match &ticket.name {
                Some(meant) if meant != name => {
                    return Err(MembershipError::Name { name: meant.clone() });
                }
                // Whoever has this token was meant to take the name over.
                Some(_) => record.refuse(&member),
                None if record.has(&member) => return Err(MembershipError::Taken { member }),
                None => None,
            };
            let certificate = sign(&signer.authority, &member, request, hosts, life)?;
            record.enter(&member, &Certificate::of_pem(&certificate)?, hosts)?;
            record.used(&ticket);
            let authority = signer.authority.pem().to_owned();
            Ok((Joined { member, certificate, authority }, refused))
        })?;
        // Everybody who is in is admitted again then: not for each who joins.
        if let Some(refused) = refused {
            self.refuse(&refused);
        }
        tracing::info!(member = %joined.member, "joined");
        Ok(joined)
    }

    /// Another certificate in place of this one.
    ///
    /// # Errors
    /// If whom it names is no member, or this control plane does not sign.
    pub fn renew(
        &self,
        certificate: &Certificate,
        request: &str,
    ) -> Result<String, MembershipError> {
        let member = self.admit(certificate)?;
        let signer = self.signer()?;
        signer.commit(|record| {
            let hosts = record.hosts(&member);
            let certificate = sign(&signer.authority, &member, request, &hosts, self.shared.life)?;
            record.enter(&member, &Certificate::of_pem(&certificate)?, &hosts)?;
            Ok(certificate)
        })
    }

    /// From now on nobody with a certificate of this member is let in; who is in has to leave.
    ///
    /// # Errors
    /// If there is none, or it cannot be written down.
    pub fn remove(&self, member: &Member) -> Result<(), MembershipError> {
        let unknown = || MembershipError::Unknown { member: member.clone() };
        let refused = self.signer()?.commit(|record| record.refuse(member).ok_or_else(unknown))?;
        self.refuse(&refused);
        tracing::info!(%member, "removed");
        Ok(())
    }

    /// Everybody who has a certificate.
    ///
    /// # Errors
    /// If this control plane does not sign.
    pub fn list(&self) -> Result<Vec<Listed>, MembershipError> {
        Ok(self.signer()?.lock().list())
    }

    fn refused(&self) -> MutexGuard<'_, Refused> {
        self.shared.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, serials: &BTreeMap<String, u64>) {
        self.refused().add(serials);
        self.changed();
    }

    fn changed(&self) {
        self.shared.changes.send_modify(|changes| *changes += 1);
    }

    /// Others may have refused certificates: until they are heard nobody is let in.
    pub(crate) fn awaits_others(&self) {
        self.refused().awaits_others();
    }

    /// Whether the others were not heard yet.
    pub(crate) fn awaits(&self) -> bool {
        self.refused().is_partial()
    }

    /// The store that the control planes share has these refused certificates, and no others.
    pub(crate) fn heard(&self, all: &BTreeMap<String, u64>) {
        let is_news = self.refused().heard(all);
        if is_news {
            self.changed();
        }
    }

    /// Refused certificates that the store is to be told.
    pub(crate) fn untold(&self) -> Vec<(String, u64)> {
        self.refused().untold(Clock::wall_ms())
    }

    /// The store was told these.
    pub(crate) fn told(&self, these: &[(String, u64)]) {
        self.refused().told(these);
    }

    /// Forgets refused certificates that have run out for good; those of them that the store has.
    pub(crate) fn forget(&self) -> Vec<String> {
        self.refused().forget(Clock::wall_ms())
    }

    /// This control plane's own certificate, which it renews in time where it signs itself.
    pub(crate) fn kept_renewed(&self, tasks: &Tasks) -> Files {
        if self.signs() {
            tasks.run("renew the certificate", OnCancel::Abort, self.clone().keep_renewed());
        }
        self.files().clone()
    }

    async fn keep_renewed(self) {
        loop {
            if !Clock::step_to(self.files().certificate().renew_at()).await {
                continue;
            }
            let again = self.clone();
            match tokio::task::spawn_blocking(move || again.renew_own()).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => tracing::warn!(%error, "the certificate was not renewed"),
                Err(error) => tracing::warn!(%error, "the certificate was not renewed"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn renew_own(&self) -> Result<(), MembershipError> {
        let (key, request) = request()?;
        let certificate = self.renew(&self.files().certificate(), &request)?;
        Ok(self.files().replace(&certificate, &key)?)
    }
}

#[cfg(test)]
mod tests;
