//! Which program the `runc` kind of handler runs, where nothing is said: crun, if containerd's machine
//! has it and it works there. It makes a sandbox in less time and memory than runc.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use rustix::net::sockopt::socket_peercred;

use crate::keeper::launch::PATH;

/// What containerd chooses.
pub(super) const USUAL: &str = "runc";

/// Where packages put it. A path is given, as containerd may have another `PATH`.
const PLACES: [&str; 3] = ["/usr/bin/crun", "/usr/local/bin/crun", "/usr/sbin/crun"];

/// The process that listens at a socket.
pub(super) fn listener(socket: &Path) -> Option<i32> {
    let stream = UnixStream::connect(socket).ok()?;
    Some(socket_peercred(&stream).ok()?.pid.as_raw_nonzero().get())
}

/// crun, as the containerd that listens there sees it; `None` leaves the choice to containerd.
pub(super) fn best(socket: &Path) -> Option<String> {
    let containerd = listener(socket)?;
    let seen = |path: &str| Path::new(&format!("/proc/{containerd}/root{path}")).is_file();
    let place = PLACES.into_iter().find(|place| seen(place))?;
    let mounts = fs::read_to_string(format!("/proc/{containerd}/mounts")).ok()?;
    works(&mounts).then(|| place.to_owned())
}

/// Where a program is, as the containerd that listens there sees it.
pub(super) fn place(socket: &Path, name: &str) -> Option<PathBuf> {
    let containerd = listener(socket)?;
    let mut places = PATH.split(':').map(|directory| Path::new(directory).join(name));
    // Perhaps a link, which leads elsewhere from there than from here.
    places.find(|place| {
        let below = place.strip_prefix("/").unwrap_or(place);
        Path::new(&format!("/proc/{containerd}/root")).join(below).symlink_metadata().is_ok()
    })
}

/// It refuses machines that have the second version of control groups beside the first.
fn works(mounts: &str) -> bool {
    let places = || mounts.lines().filter_map(|line| line.split(' ').nth(1));
    places().any(|place| place == "/sys/fs/cgroup" || place.starts_with("/sys/fs/cgroup/"))
        && !places().any(|place| place == "/sys/fs/cgroup/unified")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_control_groups_are_one_too_many() {
        let first = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/pids cgroup rw 0 0\n";
        assert!(works(first));
        assert!(!works(&format!("{first}cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n")));
        assert!(works("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"));
        assert!(!works("proc /proc proc rw 0 0\n"));
    }
}
