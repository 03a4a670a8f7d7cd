//! The disk of containerd: which images stay on it, and what happens when it is full. It is a small tmpfs
//! in containerd's own mount namespace.

#![cfg(test)]

#[path = "common/mod.rs"]
mod common;
#[path = "oci/daemon.rs"]
mod daemon;
#[path = "oci/images.rs"]
mod images;
#[path = "oci/rig.rs"]
mod rig;

use std::{
    fs::{self, File},
    path::PathBuf,
    time::Duration,
};

use common::{next, until};
use dirigent_core::{Cause, Digest, Fault};
use dirigent_runtime::{
    Event, Runtime as _,
    container::{Keep, Writes},
};
use images::{Image, Layer};
use rig::{Rig, busybox, get, order, rig_on, rig_with, run, shell};
use rustix::fs::{FallocateFlags, fallocate, statvfs};

const MIB: u64 = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);

/// With a file of so many MiB, unlike any other image of this kind.
fn large(mib: u64, kind: u8) -> Image {
    let mut above = Layer::new();
    above.file("large", 0o644, &vec![kind; usize::try_from(mib * MIB).unwrap()]);
    busybox().and(above)
}

/// What fills containerd's disk.
struct Filler(PathBuf);

impl Filler {
    fn new(rig: &Rig) -> Self {
        Self(rig.daemon.disk().join("filler"))
    }

    /// Until no more than this is left.
    fn leave(&self, bytes: u64) {
        let stat = statvfs(self.0.parent().unwrap()).unwrap();
        let free = stat.f_bavail * stat.f_frsize;
        let file = File::create(&self.0).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, free - bytes).unwrap();
    }

    fn remove(&self) {
        fs::remove_file(&self.0).unwrap();
    }
}

impl Rig {
    fn discard(&self, digest: Digest) {
        self.runtime.discard(digest);
        until("it is not here any more", || !self.runtime.artifacts().contains(&digest));
    }

    fn leases(&self) -> usize {
        self.daemon.ctr(&["leases", "list", "--quiet"]).1.lines().count()
    }

    /// What containerd has of layers on their way, and of their bytes.
    fn bytes(&self) -> Vec<String> {
        let lines = |args: &[&str]| self.daemon.ctr(args).1;
        let said = lines(&["content", "active"]) + &lines(&["content", "list", "--quiet"]);
        said.lines().filter(|line| !line.starts_with("REF")).map(str::to_owned).collect()
    }

    fn revive(&mut self, digest: Digest) {
        assert!(self.runtime.revive(digest), "it is kept");
        assert_eq!(next(&mut self.events), Event::Unpacked { digest, result: Ok(()) });
        assert!(self.runtime.artifacts().contains(&digest));
    }
}

#[test]
fn an_image_that_nobody_needs_is_kept_and_wanted_back_without_being_fetched() {
    let keep = Keep { time: HOUR, full: 100, freed: 100 };
    let Some(mut rig) = rig_with(|config| config.keep = keep) else { return };
    let image = rig.take(&busybox());
    assert!(!rig.runtime.revive(image), "it is needed");
    rig.discard(image);
    rig.revive(image);
    let (sandbox, port) = rig.serve(order(image));
    assert_eq!(get(port), "from an image\n");
    rig.end(sandbox);
    // Over a restart, too; nobody is told that it is here.
    rig.discard(image);
    rig.restart_with(|config| config.keep = keep);
    assert_eq!(rig.runtime.recover().unwrap(), []);
    assert_eq!(rig.runtime.artifacts(), []);
    rig.revive(image);
    // As for one who did not ask whether it is kept.
    rig.discard(image);
    assert_eq!(rig.take(&busybox()), image);
    assert!(!rig.runtime.revive(image));
    // When its time is over it goes.
    rig.discard(image);
    let time = Duration::from_millis(1);
    rig.restart_with(|config| config.keep = Keep { time, ..keep });
    assert_eq!(rig.runtime.recover().unwrap(), []);
    let snapshots = || rig.daemon.ctr(&["snapshots", "list"]).1.lines().skip(1).count();
    until("containerd has nothing of it any more", || rig.leases() == 0 && snapshots() == 0);
    assert!(!rig.runtime.revive(image));
}

#[test]
fn a_full_disk_takes_the_oldest_that_nobody_needs_and_nothing_that_somebody_does() {
    let keep = Keep { time: HOUR, full: 85, freed: 80 };
    let Some(mut rig) = rig_on(64 * MIB, |config| config.keep = keep) else { return };
    let [oldest, older, needed] = [1, 2, 3].map(|kind| rig.take(&large(12, kind)));
    rig.discard(oldest);
    rig.discard(older);
    assert_eq!(rig.leases(), 3, "there is room");
    // Above the share with both of them, and below the lower one without the first.
    let filler = Filler::new(&rig);
    filler.leave(6 * MIB);
    let image = rig.take(&busybox());
    assert!(!rig.runtime.revive(oldest), "it had to go");
    rig.revive(older);
    assert_eq!(rig.runtime.artifacts().len(), 3);
    // However full it is.
    filler.leave(MIB / 4);
    assert_eq!(rig.take(&busybox()), image);
    let (sandbox, port) = rig.serve(order(needed));
    assert_eq!(get(port), "from an image\n");
    rig.end(sandbox);
    assert_eq!(rig.leases(), 3);
}

#[test]
fn an_image_for_which_there_is_no_space_is_refused_and_nothing_of_it_stays() {
    let keep = Keep { time: HOUR, full: 100, freed: 100 };
    let Some(mut rig) = rig_on(64 * MIB, |config| config.keep = keep) else { return };
    let image = rig.take(&busybox());
    let (serves, port) = rig.serve(order(image));
    let (leases, filler) = (rig.leases(), Filler::new(&rig));
    let path = rig.dir.path().join("archive");
    // Too little for its bytes, and for its bytes and its files.
    for left in [4 * MIB, 30 * MIB] {
        filler.leave(left);
        let digest = large(20, 1).docker_archive(&path);
        let failure = rig.unpack(digest, path.clone()).unwrap_err();
        assert!(failure.message.contains("no space left on containerd's disk"), "{failure:?}");
        assert!(failure.message.contains("free some"), "{failure:?}");
        assert_eq!(failure.fault, Fault::Worker);
        assert_eq!((rig.leases(), rig.bytes()), (leases, Vec::new()));
        assert_eq!(rig.runtime.artifacts(), [image]);
        assert!(!path.exists());
        assert_eq!(get(port), "from an image\n", "others are not harmed");
        filler.remove();
    }
    let again = rig.take(&large(20, 1));
    let (sandbox, second) = rig.serve(order(again));
    assert_eq!(get(second), "from an image\n");
    rig.end(sandbox);
    // What nobody needs makes room for it, be the disk not full by its shares.
    rig.discard(again);
    filler.leave(24 * MIB);
    let other = rig.take(&large(20, 2));
    assert!(!rig.runtime.revive(again));
    let (sandbox, second) = rig.serve(order(other));
    assert_eq!(get(second), "from an image\n");
    rig.end(sandbox);
    rig.end(serves);
    rig.nothing_left();
}

/// Its memory is 64 MiB, of which it may write half.
#[test]
fn what_a_sandbox_writes_is_bounded_and_not_on_the_disk() {
    let Some(mut rig) = rig_on(64 * MIB, |_config| {}) else { return };
    let image = rig.take(&busybox().and(large_layer()));
    let (other, port) = rig.serve(order(image));
    let free = |rig: &Rig| statvfs(rig.daemon.disk()).unwrap().f_bavail;
    let before = free(&rig);
    let fill = "dd if=/dev/zero of=/fill bs=1M count=100; wc -c < /fill; exit 9";
    let (cause, said) = run(&mut rig, shell(image, fill));
    assert_eq!(cause, Cause::Exited { code: 9 }, "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    // Which of its streams is read first is not known.
    let number = |said: &str| said.lines().find_map(|line| line.trim().parse::<u64>().ok());
    let written = number(&said).unwrap();
    assert!((20 * MIB..=32 * MIB).contains(&written), "{said}");
    // Files without bytes are bounded too.
    let many =
        "i=0; while true > /many$i && [ $i -lt 100000 ]; do i=$((i+1)); done; echo $i; exit 9";
    let (cause, said) = run(&mut rig, shell(image, many));
    assert_eq!(cause, Cause::Exited { code: 9 }, "{said}");
    let made = number(&said).unwrap();
    assert!((1_000..=40_000).contains(&made), "{said}");
    // What is below can be changed all the same, for oneself.
    let change = "rm /large && echo own > /www/index.html && cat /www/index.html";
    let (cause, said) = run(&mut rig, shell(image, change));
    assert_eq!((cause, said.as_str()), (Cause::Exited { code: 0 }, "own"));
    let used = before.saturating_sub(free(&rig)) * statvfs(rig.daemon.disk()).unwrap().f_frsize;
    assert!(used < MIB, "{used} bytes of containerd's disk");
    assert_eq!(get(port), "from an image\n", "nobody else notices");
    let below = rig.dir.path().join("oci/sandboxes").display().to_string();
    let mounted = || {
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", rig.daemon.pid())).unwrap();
        mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| at.starts_with(&below)))
    };
    until("nothing is mounted for those who run", || !mounted());
    rig.end(other);
    rig.nothing_left();
}

fn large_layer() -> Layer {
    let mut layer = Layer::new();
    layer.file("large", 0o644, &[1; 1 << 20]);
    layer
}

#[test]
fn who_wants_the_disk_has_it() {
    let Some(mut rig) = rig_with(|config| config.writes = Writes::Disk) else { return };
    let image = rig.take(&busybox());
    // More than would fit into its memory.
    let fill = "dd if=/dev/zero of=/fill bs=1M count=100 && wc -c < /fill; rm /fill";
    let (cause, said) = run(&mut rig, shell(image, fill));
    assert_eq!(cause, Cause::Exited { code: 0 }, "{said}");
    assert!(said.contains(&(100 * MIB).to_string()), "{said}");
    let (sandbox, port) = rig.serve(order(image));
    assert_eq!(get(port), "from an image\n");
    // Also after the operator has changed his mind.
    rig.restart();
    assert_eq!(rig.runtime.recover().unwrap().len(), 1);
    rig.end(sandbox);
    rig.nothing_left();
}

/// Its images are directories too, without overlays.
#[test]
fn a_snapshotter_that_copies_does_as_well() {
    let Some(mut rig) = rig_with(|config| config.snapshotter = "native".to_owned()) else { return };
    let image = rig.take(&busybox().and(large_layer()));
    let (sandbox, port) = rig.serve(order(image));
    assert_eq!(get(port), "from an image\n");
    let fill = "dd if=/dev/zero of=/fill bs=1M count=100; exit 9";
    let (cause, said) = run(&mut rig, shell(image, fill));
    assert_eq!(cause, Cause::Exited { code: 9 }, "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    rig.end(sandbox);
    rig.nothing_left();
}

/// Of two workers that share a containerd.
#[test]
fn layers_that_two_take_at_once_are_kept_for_both() {
    let Some(mut rig) = rig_with(|_config| {}) else { return };
    let place = rig.dir.path().join("other");
    let (other, mut events) = rig::start(&rig.daemon, &place, &rig.processes, |_config| {});
    assert_eq!(other.recover().unwrap(), []);
    for kind in 0..12 {
        let image = large(1, kind).and(large_layer());
        let archives = ["one", "two"].map(|name| rig.dir.path().join(name));
        let [digest, _same] = archives.each_ref().map(|path| image.docker_archive(path));
        let [one, two] = archives;
        other.unpack(digest, two);
        rig.unpack(digest, one).unwrap();
        assert_eq!(next(&mut events), Event::Unpacked { digest, result: Ok(()) });
        // What the other one has goes while this one uses it.
        other.discard(digest);
        let (sandbox, port) = rig.serve(order(digest));
        assert_eq!(get(port), "from an image\n");
        rig.end(sandbox);
        rig.discard(digest);
    }
    other.close();
}
