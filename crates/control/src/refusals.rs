//! Whom one control plane refuses, all do: each tells the store that they share what it knows, and hears
//! from it what others know.
//!
//! Refused: going through the leader. Who stands by lets members in too, and the authority may be there.

use std::time::Duration;

use dirigent_service::{OnCancel, Tasks};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::{
    membership::Membership,
    store::{StoreError, etcd::Chair},
};

/// How often it is looked whether there is more.
const LOOK: Duration = Duration::from_secs(1);
/// How often everything is compared: a store that was restored from an older copy lacks some.
const WHOLE: Duration = Duration::from_secs(60);
/// How long a start waits for what others know; until it is known nobody is let in.
const FIRST: Duration = Duration::from_secs(2);

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Refusals {
    membership: Membership,
    chair: Chair,
}

impl Refusals {
    /// Begins to tell and to hear, and waits a while for the first news.
    pub(crate) async fn start(membership: Membership, chair: Chair, tasks: &Tasks) -> Self {
        membership.awaits_others();
        let mut changes = membership.changes();
        let this = Self { membership, chair };
        tasks.run("refused certificates", OnCancel::Abort, this.clone().keep());
        let heard = changes.wait_for(|_| !this.membership.awaits());
        if timeout(FIRST, heard).await.is_err() {
            tracing::warn!(
                "the store does not say which certificates are refused: nobody is let in"
            );
        }
        this
    }

    /// Has the store know what is refused here.
    ///
    /// # Errors
    /// If it may not: it will be told as soon as it can be.
    pub(crate) async fn tell(&self) -> Result<(), StoreError> {
        let untold = self.membership.untold();
        if !untold.is_empty() {
            self.chair.refuse(&untold).await?;
            self.membership.told(&untold);
        }
        Ok(())
    }

    async fn keep(self) {
        let mut changes = self.membership.changes();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut seen, mut compared) = (None, Instant::now());
        loop {
            tokio::select! {
                _now = look.tick() => {}
                changed = changes.changed() => if changed.is_err() {
                    return;
                },
            }
            let begun = Instant::now();
            let since = seen.filter(|_| compared.elapsed() < WHOLE);
            match self.exchange(since).await {
                Ok(revision) => {
                    if since.is_none() {
                        compared = begun;
                    }
                    seen = revision;
                }
                Err(error) => tracing::debug!(%error, "refused certificates are not compared now"),
            }
        }
    }

    /// Hears what was added after `seen`, and tells what the store lacks; until when it is known now.
    async fn exchange(&self, seen: Option<u64>) -> Result<Option<u64>, StoreError> {
        let mut seen = seen;
        if let Some(refusals) = self.chair.refusals(seen).await? {
            self.membership.heard(&refusals.serials);
            seen = Some(refusals.revision);
            let over = self.membership.forget();
            self.chair.forget_refusals(&over).await?;
        }
        self.tell().await?;
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use dirigent_bench::etcd::Etcd;
    use dirigent_core::{Member, Role};
    use dirigent_service::tls::{Certificate, request};
    use tempfile::TempDir;

    use super::*;
    use crate::{
        membership::{self, LIFE, MembershipError, folder},
        store::{
            SCHEMA,
            etcd::{self, EtcdConfig},
        },
    };

    const HOUR: Duration = Duration::from_secs(3600);
    const PATIENCE: Duration = Duration::from_secs(20);

    /// One life of a control plane.
    struct Life {
        membership: Membership,
        refusals: Refusals,
        tasks: Tasks,
    }

    impl Life {
        async fn begin(state: &Path, etcd: &[String]) -> Self {
            let config =
                EtcdConfig { members: etcd.to_vec(), tls: None, prefix: "/refused".to_owned() };
            let member = etcd::Member { format: SCHEMA, ..etcd::Member::default() };
            let chair = etcd::chair(&config, member).unwrap();
            let membership = Membership::open(state, LIFE).unwrap().unwrap();
            let tasks = Tasks::new();
            let refusals = Refusals::start(membership.clone(), chair, &tasks).await;
            Self { membership, refusals, tasks }
        }

        fn refuses(&self, certificate: &Certificate) -> bool {
            matches!(self.membership.admit(certificate), Err(MembershipError::Refused { .. }))
        }

        async fn until_refused(&self, certificate: &Certificate) {
            let mut changes = self.membership.changes();
            let refused = changes.wait_for(|_| self.refuses(certificate));
            timeout(PATIENCE, refused).await.expect("it is refused in time").unwrap();
        }

        async fn end(self) {
            self.tasks.stop();
            assert!(self.tasks.wait(PATIENCE).await);
        }
    }

    /// The state directory of a control plane that has made a cluster, and of another one in it.
    fn two() -> (TempDir, TempDir) {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        membership::init(first.path(), "c1", &[], LIFE).unwrap();
        fs::create_dir(folder(second.path())).unwrap();
        for file in ["ca.pem", "control-plane.pem"] {
            fs::copy(folder(first.path()).join(file), folder(second.path()).join(file)).unwrap();
        }
        (first, second)
    }

    fn join(authority: &Membership, name: &str) -> Certificate {
        let token = authority.invite(Role::Worker, Some(name), HOUR, false).unwrap();
        let secret = token.rsplit('.').next().unwrap();
        let joined = authority.join(secret, name, &[], &request().unwrap().1).unwrap();
        Certificate::of_pem(&joined.certificate).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whom_the_authority_refuses_all_refuse_in_this_life_and_the_next() {
        if !Etcd::is_installed() {
            return println!("{}", Etcd::MISSING);
        }
        let scratch = tempfile::tempdir().unwrap();
        let running = Etcd::start(scratch.path(), 1).unwrap();
        let etcd = running.addresses();
        let (first, second) = two();
        let one = Life::begin(first.path(), &etcd).await;
        let two = Life::begin(second.path(), &etcd).await;
        let (removed, replaced) = (join(&one.membership, "w1"), join(&one.membership, "w2"));
        for life in [&one, &two] {
            life.membership.admit(&removed).unwrap();
        }
        one.membership.remove(&Member::new(Role::Worker, "w1").unwrap()).unwrap();
        one.refusals.tell().await.unwrap();
        two.until_refused(&removed).await;
        two.membership.admit(&replaced).unwrap();
        // Whose name was taken over is told without being asked.
        let good = join(&one.membership, "w2");
        two.until_refused(&replaced).await;

        // Neither of them lives on; one has lost what it wrote down.
        one.end().await;
        two.end().await;
        fs::remove_file(folder(first.path()).join("members.json")).unwrap();
        for state in [&first, &second] {
            let next = Life::begin(state.path(), &etcd).await;
            assert!(next.refuses(&removed) && next.refuses(&replaced));
            next.membership.admit(&good).unwrap();
            next.end().await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_restored_store_has_forgotten_is_told_again_by_whoever_knows() {
        if !Etcd::is_installed() {
            return println!("{}", Etcd::MISSING);
        }
        let scratch = tempfile::tempdir().unwrap();
        let running = Etcd::start(scratch.path(), 1).unwrap();
        let etcd = running.addresses();
        let (first, second) = two();
        let one = Life::begin(first.path(), &etcd).await;
        let removed = join(&one.membership, "w1");
        one.membership.remove(&Member::new(Role::Worker, "w1").unwrap()).unwrap();
        one.refusals.tell().await.unwrap();
        let two = Life::begin(second.path(), &etcd).await;
        assert!(two.refuses(&removed));
        one.end().await;
        let chair = &two.refusals.chair;
        chair.forget_refusals(std::slice::from_ref(&removed.serial)).await.unwrap();
        two.refusals.exchange(None).await.unwrap();
        assert!(two.refuses(&removed));
        let known = chair.refusals(None).await.unwrap().unwrap();
        assert!(known.serials.contains_key(&removed.serial), "{known:?}");
        // Nothing was added since.
        assert_eq!(chair.refusals(Some(known.revision)).await.unwrap(), None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_the_store_nobody_is_let_in_who_may_be_refused_and_a_removal_counts_here() {
        let (first, _second) = two();
        // Nobody listens there.
        let nowhere = ["http://127.0.0.1:1".to_owned()];
        let one = Life::begin(first.path(), &nowhere).await;
        let certificate = join(&one.membership, "w1");
        let error = one.membership.admit(&certificate).unwrap_err();
        assert!(matches!(error, MembershipError::Unheard), "{error}");
        one.membership.remove(&Member::new(Role::Worker, "w1").unwrap()).unwrap();
        let error = one.refusals.tell().await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        assert!(one.refuses(&certificate));
    }
}
