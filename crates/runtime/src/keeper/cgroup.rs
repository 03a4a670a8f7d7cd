//! Control groups: limits of memory, processor weight and number of processes, in versions 1, 2 and
//! mixed.
//!
//! All groups of a keeper are below one directory per hierarchy, named after its state directory,
//! below the keeper's own group where that is possible: limits that hold for the keeper hold for its
//! sandboxes. A process is put into its group while it is parked, never on the path of a start.
//!
//! A group is used again: the kernel makes one under a lock that it also holds while it takes others
//! apart, 3 to 14 ms on a machine that makes and removes fifty a second, in which the keeper does
//! nothing else.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use dirigent_core::{Bytes, MilliCpu};
use rustix::process::{Pid, Signal, kill_process};

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Controller {
    Memory,
    Cpu,
    Pids,
}

const CONTROLLERS: [(Controller, &str); 3] =
    [(Controller::Memory, "memory"), (Controller::Cpu, "cpu"), (Controller::Pids, "pids")];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// A directory that limits something.
#[derive(Clone, Debug)]
struct Directory {
    path: PathBuf,
    version: Version,
    controllers: Vec<Controller>,
}

impl Directory {
    fn has(&self, controller: Controller) -> bool {
        self.controllers.contains(&controller)
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.path.join(file), value)
    }
}

/// Groups that nobody is in are kept for new sandboxes, so many at most.
const SPARE_MAX: usize = 64;

/// Bytes that a group may still hold to be used again: what it held for files is taken from it when
/// the next sandbox's limit is set, before that sandbox starts.
const SPARE_MEMORY: u64 = 4 << 20;

/// The keeper's directories.
#[derive(Debug)]
pub(crate) struct Groups {
    parents: Vec<Directory>,
    /// Of sandboxes that are gone, as good as new.
    spare: Vec<Group>,
    /// How many of those were not needed since the last [`Groups::trim`].
    unused: usize,
    /// The roots of the hierarchies that they are in.
    roots: Vec<PathBuf>,
    /// The number of processes in one sandbox.
    most_processes: u32,
}

impl Groups {
    /// Find out what can be limited, and make the keeper's directories; with what is missing.
    pub(crate) fn find(name: &str, most_processes: u32) -> (Self, Vec<String>) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut parents: Vec<Directory> = Vec::new();
        let mut roots = Vec::new();
        let mut missing = Vec::new();
        for (controller, word) in CONTROLLERS {
            if parents.iter().any(|p| p.has(controller)) {
                continue;
            }
            let Some(place) = locate(&mounts, &own, word) else {
                missing.push(format!("cgroup {word}: this machine has no such controller"));
                continue;
            };
            match make_parent(&place, name, word) {
                Ok(path) => {
                    if !roots.contains(&place.root) {
                        roots.push(place.root.clone());
                    }
                    match parents.iter_mut().find(|p| p.path == path) {
                        Some(parent) => parent.controllers.push(controller),
                        None => parents.push(Directory {
                            path,
                            version: place.version,
                            controllers: vec![controller],
                        }),
                    }
                }
                Err(error) => missing.push(format!(
                    "cgroup {word}: {} cannot be used: {error}; run as root, or where it is \
                     delegated to you",
                    place.own.display()
                )),
            }
        }
        (Self { parents, spare: Vec::new(), unused: 0, roots, most_processes }, missing)
    }

    /// Whether memory is limited by the kernel.
    pub(crate) fn limit_memory(&self) -> bool {
        self.parents.iter().any(|p| p.has(Controller::Memory))
    }

    /// The roots of the hierarchies in which groups are made.
    pub(crate) fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// A group in which nobody is; one that is made for this gets this name.
    pub(crate) fn take(&mut self, name: &str) -> io::Result<Group> {
        let spare = self.spare.pop();
        self.unused = self.unused.min(self.spare.len());
        spare.map_or_else(|| self.make(name), Ok)
    }

    /// Keep the group of a sandbox that is gone for another, or remove it, with whoever is left
    /// inside; whether it is dealt with.
    pub(crate) fn give_back(&mut self, group: &mut Group) -> bool {
        let whole = group.directories.len() == self.parents.len();
        if whole && self.spare.len() < SPARE_MAX && group.renew().unwrap_or(false) {
            let directories = std::mem::take(&mut group.directories);
            self.spare.push(Group { directories });
            return true;
        }
        group.remove()
    }

    /// Remove the groups that were kept and not needed since the last time; whether some are left.
    pub(crate) fn trim(&mut self) -> bool {
        let unused: Vec<Group> = self.spare.drain(..self.unused.min(self.spare.len())).collect();
        self.spare.extend(unused.into_iter().filter_map(|mut group| {
            let gone = group.remove();
            (!gone).then_some(group)
        }));
        self.unused = self.spare.len();
        !self.spare.is_empty()
    }

    /// A new group. What was made of one that cannot be made whole is removed.
    fn make(&self, name: &str) -> io::Result<Group> {
        let mut group = Group { directories: Vec::with_capacity(self.parents.len()) };
        let made = self.parents.iter().try_for_each(|parent| {
            let directory = Directory { path: parent.path.join(name), ..parent.clone() };
            fs::create_dir(&directory.path)?;
            group.directories.push(directory.clone());
            if directory.has(Controller::Pids) {
                directory.write("pids.max", &self.most_processes.to_string())?;
            }
            Ok(())
        });
        if made.is_err() {
            // Nobody is inside.
            group.remove();
        }
        made.map(|()| group)
    }

    /// Kill and remove every group that an earlier keeper left.
    pub(crate) fn sweep(&self) {
        for parent in &self.parents {
            let children = fs::read_dir(&parent.path).into_iter().flatten().flatten();
            for child in children.filter(|c| c.file_type().is_ok_and(|t| t.is_dir())) {
                let directory = Directory { path: child.path(), ..parent.clone() };
                let mut group = Group { directories: vec![directory] };
                group.remove_within(Duration::from_secs(5));
            }
        }
    }

    /// Remove the keeper's own directories, once all groups of sandboxes are gone.
    pub(crate) fn remove(&mut self) {
        for mut group in self.spare.drain(..) {
            group.remove();
        }
        for parent in &self.parents {
            if let Err(error) = fs::remove_dir(&parent.path) {
                tracing::debug!(path = %parent.path.display(), %error, "cgroup stays");
            }
        }
    }
}

/// The group of one sandbox.
#[derive(Debug)]
pub(crate) struct Group {
    directories: Vec<Directory>,
}

impl Group {
    /// What somebody left, of which nothing but where it is matters; inner directories first.
    pub(crate) fn left(paths: Vec<PathBuf>) -> Self {
        let directory = |path| Directory { path, version: Version::V2, controllers: Vec::new() };
        Self { directories: paths.into_iter().map(directory).collect() }
    }

    /// The files into which a process writes "0" to join.
    pub(crate) fn doors(&self) -> Vec<PathBuf> {
        self.directories.iter().map(|d| d.path.join("cgroup.procs")).collect()
    }

    /// Set the limit of a start. The weight comes later.
    pub(crate) fn limit(&self, memory: Bytes) -> io::Result<()> {
        for directory in &self.directories {
            if directory.has(Controller::Memory) {
                let bytes = memory.0.to_string();
                match directory.version {
                    Version::V1 => {
                        directory.write("memory.limit_in_bytes", &bytes)?;
                        // Not there without accounting of swap.
                        ignore_absent(directory.write("memory.memsw.limit_in_bytes", &bytes))?;
                    }
                    Version::V2 => {
                        directory.write("memory.max", &bytes)?;
                        ignore_absent(directory.write("memory.swap.max", "0"))?;
                        ignore_absent(directory.write("memory.oom.group", "1"))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Weigh it against others by its share of a core. Until then it has a whole one's weight, so
    /// that a small function does not start slowly on a busy machine.
    pub(crate) fn weigh(&self, cpu: MilliCpu) -> io::Result<()> {
        for directory in self.directories.iter().filter(|d| d.has(Controller::Cpu)) {
            match directory.version {
                Version::V1 => directory.write("cpu.shares", &shares(cpu).to_string())?,
                Version::V2 => directory.write("cpu.weight", &weight(cpu).to_string())?,
            }
        }
        Ok(())
    }

    /// Make it as it was when it was new; whether it is: nobody may be inside, little may be held, and
    /// nothing may have been killed for want of memory, of which the kernel keeps a count.
    fn renew(&self) -> io::Result<bool> {
        for directory in &self.directories {
            if !fs::read(directory.path.join("cgroup.procs"))?.is_empty() {
                return Ok(false);
            }
        }
        if self.out_of_memory() {
            return Ok(false);
        }
        for directory in &self.directories {
            if directory.has(Controller::Memory) {
                let held = match directory.version {
                    Version::V1 => "memory.usage_in_bytes",
                    Version::V2 => "memory.current",
                };
                let held = fs::read_to_string(directory.path.join(held))?;
                if held.trim().parse::<u64>().is_ok_and(|held| held > SPARE_MEMORY) {
                    return Ok(false);
                }
                match directory.version {
                    Version::V1 => {
                        // First, since it may not be below the other.
                        ignore_absent(directory.write("memory.memsw.limit_in_bytes", "-1"))?;
                        directory.write("memory.limit_in_bytes", "-1")?;
                    }
                    Version::V2 => directory.write("memory.max", "max")?,
                }
            }
            if directory.has(Controller::Cpu) {
                match directory.version {
                    Version::V1 => directory.write("cpu.shares", "1024")?,
                    Version::V2 => directory.write("cpu.weight", "100")?,
                }
            }
        }
        Ok(true)
    }

    /// Whether the kernel killed something here for want of memory.
    pub(crate) fn out_of_memory(&self) -> bool {
        self.directories.iter().filter(|d| d.has(Controller::Memory)).any(|directory| {
            let file = match directory.version {
                Version::V1 => "memory.oom_control",
                Version::V2 => "memory.events",
            };
            let text = fs::read_to_string(directory.path.join(file)).unwrap_or_default();
            text.lines()
                .filter_map(|line| line.strip_prefix("oom_kill "))
                .any(|count| count.trim() != "0")
        })
    }

    /// Kill what is left inside and remove the directories; whether all are gone.
    pub(crate) fn remove(&mut self) -> bool {
        self.directories.retain(|directory| match fs::remove_dir(&directory.path) {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(_busy) => {
                kill_inside(&directory.path);
                true
            }
        });
        self.directories.is_empty()
    }

    /// As `remove`, again and again until a deadline.
    pub(crate) fn remove_within(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while !self.remove() {
            if Instant::now() >= deadline {
                tracing::warn!(group = ?self.directories, "cgroup cannot be removed");
                return;
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }
}

fn ignore_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Refused by kernels without the feature compiled in.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        other => other,
    }
}

fn kill_inside(path: &Path) {
    let processes = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
        if let Err(error) = kill_process(pid, Signal::KILL) {
            tracing::debug!(?pid, %error, "not killed");
        }
    }
}

/// Version 1: 1024 is a core.
pub(crate) fn shares(cpu: MilliCpu) -> u64 {
    (u64::from(cpu.0) * 1024 / 1000).clamp(2, 262_144)
}

/// Version 2: as Kubernetes translates shares.
fn weight(cpu: MilliCpu) -> u64 {
    1 + (shares(cpu) - 2) * 9999 / 262_142
}

/// Where a controller is.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    version: Version,
    /// The root of the hierarchy, as far as we see it.
    root: PathBuf,
    /// Our own group in it.
    own: PathBuf,
}

/// Find a controller in what `/proc/self/mountinfo` and `/proc/self/cgroup` say; version 1 first,
/// since a controller that is there cannot be in version 2.
fn locate(mounts: &str, own: &str, controller: &str) -> Option<Place> {
    let parsed = mounts.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let mut right = right.split(' ');
        let (kind, _source, options) = (right.next()?, right.next()?, right.next()?);
        Some((*left.get(3)?, *left.get(4)?, kind, options))
    });
    let mut second = None;
    for (root, point, kind, options) in parsed {
        let version = match kind {
            "cgroup" if options.split(',').any(|o| o == controller) => Version::V1,
            "cgroup2" => Version::V2,
            _ => continue,
        };
        let own = own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_number, names, path) = (parts.next()?, parts.next()?, parts.next()?);
            let here = match version {
                Version::V1 => names.split(',').any(|name| name == controller),
                Version::V2 => names.is_empty(),
            };
            here.then_some(path)
        });
        let below = own.and_then(|own| Path::new(own).strip_prefix(root).ok());
        let point = PathBuf::from(point);
        let own = below.map_or_else(|| point.clone(), |below| point.join(below));
        let place = Place { version, root: point, own };
        match version {
            Version::V1 => return Some(place),
            Version::V2 => second = Some(place),
        }
    }
    second.filter(|place| {
        fs::read_to_string(place.root.join("cgroup.controllers"))
            .or_else(|_not_the_root| fs::read_to_string(place.own.join("cgroup.controllers")))
            .is_ok_and(|all| all.split_whitespace().any(|name| name == controller))
    })
}

/// Of a group whose processes had to make room.
const LEAF: &str = "dirigent.processes";

/// How often it is tried to empty a group of which new processes come.
const EVACUATIONS: u32 = 16;

/// Make the keeper's directory for a controller, below our own group or else below the root.
fn make_parent(place: &Place, name: &str, controller: &str) -> io::Result<PathBuf> {
    make_parent_in(&place.own, place.version, name, controller).or_else(
        |first| match make_parent_in(&place.root, place.version, name, controller) {
            Ok(path) => Ok(path),
            Err(_second) => Err(first),
        },
    )
}

fn make_parent_in(
    below: &Path,
    version: Version,
    name: &str,
    controller: &str,
) -> io::Result<PathBuf> {
    // An earlier keeper made room here, and we were started by one of those who moved.
    let below = match below.parent() {
        Some(parent) if below.ends_with(LEAF) => parent,
        _ => below,
    };
    if version == Version::V2 {
        hand_down(below, controller)?;
    }
    let path = below.join(name);
    let made = match fs::create_dir(&path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error),
    };
    let tried = try_parent(&path, version, controller);
    if tried.is_err()
        && made
        && let Err(error) = fs::remove_dir(&path)
    {
        tracing::debug!(path = %path.display(), %error, "cgroup stays");
    }
    tried.map(|()| path)
}

/// A directory may be there and still not be ours to use.
fn try_parent(path: &Path, version: Version, controller: &str) -> io::Result<()> {
    if version == Version::V2 {
        fs::write(path.join("cgroup.subtree_control"), format!("+{controller}"))?;
    }
    let probe = path.join("probe");
    fs::create_dir(&probe)?;
    fs::remove_dir(&probe)
}

/// Let groups below this one have a controller. Version 2 refuses that where a group other than the
/// root has processes of its own: they make room if the group is ours. As root it usually is not,
/// but the service manager's, which counts on finding its processes there.
fn hand_down(below: &Path, controller: &str) -> io::Result<()> {
    for _ in 0..EVACUATIONS {
        match fs::write(below.join("cgroup.subtree_control"), format!("+{controller}")) {
            // Again after that: a process that was just being made keeps the group busy.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && is_ours(below) => {
                evacuate(below)?;
            }
            handed => return handed,
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// Move the processes of a group to a leaf beside the keeper's directory.
fn evacuate(group: &Path) -> io::Result<()> {
    let leaf = group.join(LEAF);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for pid in fs::read_to_string(group.join("cgroup.procs"))?.lines() {
        match fs::write(leaf.join("cgroup.procs"), pid) {
            // It has ended.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            moved => moved?,
        }
    }
    Ok(())
}

/// Whether the processes of a group may be moved: it is the top of what we see, as in a namespace,
/// or we are an ordinary user, who can write to it only because it was delegated.
fn is_ours(group: &Path) -> bool {
    let is_top = || !group.parent().is_some_and(|above| above.join("cgroup.procs").exists());
    !rustix::process::geteuid().is_root() || is_top()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const OWN: &str = "8:pids:/\n4:memory:/service/one\n1:cpu,cpuacct:/\n0::/\n";

    #[test]
    fn controllers_are_found_where_they_are_mounted() {
        let memory = locate(HYBRID, OWN, "memory").expect("is there");
        assert_eq!(memory.version, Version::V1);
        assert_eq!(memory.own, Path::new("/sys/fs/cgroup/memory/service/one"));
        let cpu = locate(HYBRID, OWN, "cpu").expect("is there");
        assert_eq!(cpu.own, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(locate("", OWN, "memory"), None);
    }

    #[test]
    fn a_mount_of_a_part_of_the_hierarchy_is_understood() {
        let mounts = "35 31 0:32 /service /mnt/memory rw - cgroup cgroup rw,memory\n";
        let place = locate(mounts, OWN, "memory").expect("is there");
        assert_eq!(place.own, Path::new("/mnt/memory/one"));
    }

    /// Needs a hierarchy of version 2 with a controller, whichever, that may be written to.
    #[test]
    fn processes_of_our_own_group_make_room_in_version_2() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let own = fs::read_to_string("/proc/self/cgroup").expect("groups");
        let found = ["hugetlb", "pids", "memory", "cpu"].into_iter().find_map(|controller| {
            let place = locate(&mounts, &own, controller)?;
            let group = place.root.join(format!("dirigent-test-{}", std::process::id()));
            let all = place.root.join("cgroup.subtree_control");
            let made = place.version == Version::V2
                && fs::write(all, format!("+{controller}")).is_ok()
                && fs::create_dir(&group).is_ok();
            made.then_some((group, controller))
        });
        let Some((group, controller)) = found else {
            println!("skip: no cgroup of version 2 with a controller can be made here");
            return;
        };
        let mut process = std::process::Command::new("sleep").arg("60").spawn().expect("sleeps");
        let pid = process.id().to_string();
        fs::write(group.join("cgroup.procs"), &pid).expect("joins");
        let busy = hand_down(&group, controller).expect_err("it is a group of others");
        assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
        evacuate(&group).expect("makes room");
        let moved = fs::read_to_string(group.join(LEAF).join("cgroup.procs")).expect("a leaf");
        assert_eq!(moved.trim(), pid);
        // The same for those who are where the group's processes are now.
        let leaf = group.join(LEAF);
        for below in [&group, &leaf] {
            let made = make_parent_in(below, Version::V2, "keeper", controller).expect("is made");
            assert_eq!(made, group.join("keeper"));
            let handed = fs::read_to_string(made.join("cgroup.subtree_control")).expect("reads");
            assert_eq!(handed.trim(), controller);
        }
        process.kill().and_then(|()| process.wait()).expect("ends");
        let mut left = Group::left(vec![group.join("keeper"), leaf, group]);
        left.remove_within(Duration::from_secs(5));
        assert!(left.directories.is_empty(), "{left:?}");
    }

    #[test]
    fn weights_grow_with_the_share_and_stay_in_their_range() {
        assert_eq!(shares(MilliCpu(1000)), 1024);
        assert_eq!(shares(MilliCpu(0)), 2);
        assert_eq!(weight(MilliCpu(0)), 1);
        assert_eq!(weight(MilliCpu(1000)), 39);
        assert_eq!(weight(MilliCpu(u32::MAX)), 10_000);
    }

    #[test]
    fn nothing_stays_of_a_group_that_could_not_be_made_whole() {
        let here = tempfile::tempdir().expect("a directory");
        let parent = |path, controller| Directory {
            path,
            version: Version::V1,
            controllers: vec![controller],
        };
        let absent = here.path().join("absent");
        let parents = vec![
            parent(here.path().to_owned(), Controller::Memory),
            parent(absent, Controller::Cpu),
        ];
        let groups =
            Groups { parents, spare: Vec::new(), unused: 0, roots: Vec::new(), most_processes: 1 };
        assert!(groups.make("one").is_err());
        assert!(!here.path().join("one").exists());
    }

    #[test]
    fn a_group_is_used_again_as_if_it_were_new() {
        let name = format!("dirigent-test-again-{}", std::process::id());
        let (mut groups, missing) = Groups::find(&name, 100);
        if groups.parents.is_empty() {
            println!("skip: {}", missing.join("; "));
            return;
        }
        let settings = |group: &Group| {
            let mut all = Vec::new();
            for directory in &group.directories {
                for file in [
                    "memory.limit_in_bytes",
                    "memory.memsw.limit_in_bytes",
                    "memory.max",
                    "cpu.shares",
                    "cpu.weight",
                    "pids.max",
                ] {
                    all.extend(fs::read_to_string(directory.path.join(file)).ok());
                }
            }
            all
        };
        let mut first = groups.take("first").expect("is made");
        let place = first.directories[0].path.clone();
        let new = settings(&first);
        first.limit(Bytes::mib(64)).expect("limits");
        first.weigh(MilliCpu(10)).expect("weighs");
        assert_ne!(settings(&first), new);
        assert!(groups.give_back(&mut first));
        let mut second = groups.take("second").expect("is there");
        assert_eq!((second.directories[0].path.clone(), settings(&second)), (place.clone(), new));
        // Whoever is left inside is killed first; then it is kept or removed, as it comes.
        let mut left = groups.take("left").expect("is made");
        let mut process = std::process::Command::new("sleep").arg("60").spawn().expect("sleeps");
        for door in left.doors() {
            fs::write(door, process.id().to_string()).expect("joins");
        }
        assert!(!groups.give_back(&mut left));
        assert!(!process.wait().expect("waits").success());
        let deadline = Instant::now() + Duration::from_secs(5);
        while !groups.give_back(&mut left) {
            assert!(Instant::now() < deadline, "{left:?} stays");
            std::thread::park_timeout(Duration::from_millis(1));
        }
        groups.unused = groups.spare.len();
        assert!(!groups.trim());
        // What nobody needs goes, and not what was needed just now.
        assert!(groups.give_back(&mut second));
        assert!(groups.trim());
        let mut third = groups.take("third").expect("is there");
        assert!(groups.give_back(&mut third));
        assert!(groups.trim());
        assert!(place.exists());
        assert!(!groups.trim());
        assert!(!place.exists());
        groups.remove();
        assert!(groups.parents.iter().all(|parent| !parent.path.exists()));
    }
}
