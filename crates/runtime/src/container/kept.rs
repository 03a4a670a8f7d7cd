//! Images that no revision needs any more. They are kept for a while, as what was taken away by mistake is
//! wanted back soon, and go before that where the disk of containerd gets full: oldest first, until it is
//! less full again. What a revision needs is not touched, however full the disk is.
//!
//! ```text
//! held --nobody needs it--> kept --its time is over, or the disk is full--> removed
//!   ^                        |
//!   +------wanted again------+
//! ```
//!
//! What is kept counts as not here for everybody else, so that nothing is placed by it.

use std::{
    collections::BTreeSet,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dirigent_containerd::{
    Client, Failure, api::containerd::services::introspection::v1::PluginsRequest,
};
use dirigent_core::Digest;
use rustix::fs::statvfs;

use super::{driver::World, images::wall_ms, program};

/// How often it is looked whether something's time is over, or the disk has become full.
pub(super) const LOOK: Duration = Duration::from_secs(60);

/// When images that nobody needs are removed.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// How long they are kept.
    pub time: Duration,
    /// How full the disk of containerd may get, in percent, before they go earlier.
    pub full: u8,
    /// How full it may be when no more of them go.
    pub freed: u8,
}

impl Default for Keep {
    /// The shares are those of Kubernetes' kubelet.
    fn default() -> Self {
        Self { time: Duration::from_secs(24 * 3600), full: 85, freed: 80 }
    }
}

/// What is here, for those who ask from their own threads.
#[derive(Clone, Debug, Default)]
pub(super) struct Stock(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    held: Vec<Digest>,
    kept: BTreeSet<Digest>,
}

impl Stock {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn held(&self) -> Vec<Digest> {
        self.inner().held.clone()
    }

    pub(super) fn publish(&self, held: Vec<Digest>) {
        self.inner().held = held;
    }

    pub(super) fn keep(&self, digest: Digest) {
        self.inner().kept.insert(digest);
    }

    /// Whoever takes it out of what is kept decides what becomes of it: one wants it back, or one
    /// removes it, never both.
    pub(super) fn withdraw(&self, digest: Digest) -> bool {
        self.inner().kept.remove(&digest)
    }

    fn is_kept(&self, digest: Digest) -> bool {
        self.inner().kept.contains(&digest)
    }
}

/// Why one goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Old,
    Full,
}

/// Whether the oldest goes; `relieving` is whether another one went because the disk is full.
fn verdict(keep: Keep, age: Duration, used: Option<u8>, relieving: bool) -> Option<Why> {
    let most = if relieving { keep.freed } else { keep.full };
    if used.is_some_and(|used| used > most) {
        return Some(Why::Full);
    }
    (age >= keep.time).then_some(Why::Old)
}

/// Removes what is due.
pub(super) async fn collect(world: &World) {
    // Two of them would free twice what is wanted.
    let _alone = world.collecting.lock().await;
    let keep = world.config.keep;
    let mut relieving = false;
    while let Some((since, digest)) = oldest(world) {
        let used = disk_used(world).await;
        let age = Duration::from_millis(wall_ms().saturating_sub(since));
        let Some(why) = verdict(keep, age, used, relieving) else { return };
        relieving = why == Why::Full;
        remove(world, digest, why, used).await;
    }
    if let Some(used) = disk_used(world).await.filter(|used| *used > keep.full) {
        tracing::warn!(
            used_percent = used,
            "containerd's disk is fuller than `containerd.disk_full` ({}) allows, and every image on \
             it is needed: free some, or give it a larger one",
            keep.full
        );
    }
}

/// Removes all that are kept, as a disk has no space left; whether there were any.
pub(super) async fn give_up(world: &World) -> bool {
    let _alone = world.collecting.lock().await;
    let mut any = false;
    while let Some((_, digest)) = oldest(world) {
        remove(world, digest, Why::Full, None).await;
        any = true;
    }
    any
}

/// Since when nobody needs it, and which.
fn oldest(world: &World) -> Option<(u64, Digest)> {
    let kept = world.images.kept().into_iter();
    kept.filter(|(_, digest)| world.stock.is_kept(*digest)).min()
}

async fn remove(world: &World, digest: Digest, why: Why, used: Option<u8>) {
    if !world.stock.withdraw(digest) {
        return;
    }
    let why = match why {
        Why::Old => "its time is over",
        Why::Full => "the disk is full",
    };
    tracing::info!(%digest, why, used_percent = used, "an image that nobody needs is removed");
    if world.images.forget(digest) {
        world.images.let_go_of(digest).await;
    }
}

/// How full the disk is on which containerd has the files of images, in percent; `None` if that cannot be
/// found out.
async fn disk_used(world: &World) -> Option<u8> {
    let root = match root(&world.client, &world.config.snapshotter).await {
        Ok(root) => root?,
        Err(error) => {
            tracing::debug!(%error, "how full containerd's disk is is not known");
            return None;
        }
    };
    // It may have another view of the machine's files.
    let containerd = program::listener(&world.config.socket)?;
    let mut seen = PathBuf::from(format!("/proc/{containerd}/root"));
    seen.push(root.strip_prefix("/").unwrap_or(&root));
    used(&seen)
}

/// The directory of a snapshotter.
async fn root(client: &Client, snapshotter: &str) -> Result<Option<PathBuf>, Failure> {
    let filter = format!("type==io.containerd.snapshotter.v1,id=={snapshotter}");
    let plugins = client.introspection().plugins(PluginsRequest { filters: vec![filter] }).await;
    let plugins = plugins.map_err(|status| client.failure(&status))?.into_inner().plugins;
    Ok(plugins.into_iter().find_map(|mut plugin| plugin.exports.remove("root")).map(PathBuf::from))
}

/// As `df` says it: of what ordinary users may have, rounded up.
fn used(path: &Path) -> Option<u8> {
    let stat = statvfs(path.as_os_str().as_bytes()).ok()?;
    let used = stat.f_blocks.saturating_sub(stat.f_bfree);
    let all = used + stat.f_bavail;
    u8::try_from((used * 100).div_ceil(all.max(1))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_and_a_full_disk_are_reasons_and_a_disk_is_freed_to_the_lower_share() {
        let keep = Keep { time: Duration::from_secs(10), full: 85, freed: 80 };
        let young = Duration::from_secs(9);
        let old = Duration::from_secs(10);
        assert_eq!(verdict(keep, young, Some(85), false), None);
        assert_eq!(verdict(keep, young, Some(86), false), Some(Why::Full));
        assert_eq!(verdict(keep, young, Some(81), true), Some(Why::Full));
        assert_eq!(verdict(keep, young, Some(80), true), None);
        assert_eq!(verdict(keep, old, Some(10), false), Some(Why::Old));
        assert_eq!(
            verdict(keep, old, None, false),
            Some(Why::Old),
            "it is not known how full it is"
        );
        assert_eq!(verdict(keep, young, None, false), None);
    }

    #[test]
    fn one_that_is_wanted_back_is_not_removed_too() {
        let stock = Stock::default();
        let digest = Digest([7; 32]);
        assert!(!stock.withdraw(digest));
        stock.keep(digest);
        assert!(stock.withdraw(digest));
        assert!(!stock.withdraw(digest));
    }

    #[test]
    fn a_disk_is_neither_empty_nor_overfull() {
        let used = used(Path::new("/")).unwrap();
        assert!((1..=100).contains(&used), "{used}");
    }
}
