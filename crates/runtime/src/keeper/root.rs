//! The root file system of sandboxes.
//!
//! A template is mounted once, in the keeper's own mount namespace, and copied with it by every new
//! sandbox: programs and libraries of the host read-only, a few files of /etc, a minimal /dev.
//! A sandbox adds what is its own: /proc, temporary space, the artifact. Nothing of this is visible
//! outside the keeper, and all of it vanishes with it.

use std::{
    ffi::CString,
    fs, io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{PermissionsExt as _, chown, symlink},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::Mode,
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
        mount_change, mount_remount, unmount,
    },
    process::{chdir, getgid, getuid, pivot_root, umask},
};

use crate::{
    keeper::protocol::Run,
    network::resolvers,
    sys::mount::{Attributes, Recursive, restrict},
};

/// Directories with programs and libraries, where they exist.
const PROGRAMS: &[&str] =
    &["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix/store", "gnu/store"];

/// Files of /etc that programs need to run and to find names; copied, so that a file that is
/// replaced does not stay mounted.
const FILES: &[&str] = &[
    "debian_version",
    "gai.conf",
    "host.conf",
    "hosts",
    "ld.so.cache",
    "ld.so.conf",
    "localtime",
    "mime.types",
    "nsswitch.conf",
    "os-release",
    "protocols",
    "resolv.conf",
    "services",
    "timezone",
];

/// Directories of /etc.
const DIRECTORIES: &[&str] = &[
    "alternatives",
    "ca-certificates",
    "crypto-policies",
    "fonts",
    "ld.so.conf.d",
    "pki",
    "python3",
    "ssl",
];

const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// Where a sandbox finds the keeper's own binary.
pub(crate) const BUILTIN: &str = "/.dirigent/dirigent";

/// The working directory of a sandbox.
pub(crate) const WORK: &str = "/app";

/// A file costs the kernel about this much beside its bytes: of many small ones it is what counts.
const BYTES_PER_INODE: u64 = 1024;
const MIN_INODES: u64 = 1024;

/// A sandbox's own temporary space.
const OWN: &str = "/.sandbox";

/// Where init, and nobody else in a sandbox, finds all artifacts.
const ARTIFACTS: &str = "/.artifacts/all";

/// The template.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    root: PathBuf,
    /// When resolv.conf and hosts were copied last, by their times of change.
    copied: Vec<Option<std::time::SystemTime>>,
    /// What is read instead of resolv.conf by who has a network of its own.
    reachable: Option<String>,
}

/// What sandboxes with a network of their own find as their resolv.conf, where it differs.
const REACHABLE: &str = "etc/resolv.reachable.conf";

/// Files that change while a machine runs.
const CHANGING: [&str; 2] = ["resolv.conf", "hosts"];

impl Template {
    /// Mount the template at `root`. The caller is in a mount namespace of its own.
    pub(crate) fn make(root: PathBuf) -> io::Result<Self> {
        // What the host mounts later is seen here; what is mounted here is not seen by the host.
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .map_err(at("/"))?;
        fs::create_dir_all(&root)?;
        // Sandboxes are others than the keeper: what is made here is for them to read.
        let mask = umask(Mode::WGRP | Mode::WOTH);
        let template = Self::fill(root);
        umask(mask);
        template
    }

    fn fill(root: PathBuf) -> io::Result<Self> {
        mount(c"dirigent", &root, c"tmpfs", MountFlags::NOSUID, Some(c"mode=755,size=8m"))
            .map_err(at(&root))?;
        for name in PROGRAMS {
            program_directory(&root, name)?;
        }
        let mut template = Self { root, copied: vec![None; CHANGING.len()], reachable: None };
        template.etc()?;
        template.dev()?;
        for name in ["proc", "tmp", ".dirigent", &WORK[1..], &OWN[1..], &ARTIFACTS[1..]] {
            fs::create_dir_all(template.root.join(name))?;
        }
        let closed = template.root.join(".artifacts");
        fs::set_permissions(closed, fs::Permissions::from_mode(0o700))?;
        let builtin = template.root.join(&BUILTIN[1..]);
        fs::write(&builtin, "")?;
        let exe = fs::read_link("/proc/self/exe")?;
        bind(&exe, &builtin)?;
        Ok(template)
    }

    fn etc(&mut self) -> io::Result<()> {
        let etc = self.root.join("etc");
        fs::create_dir_all(&etc)?;
        for name in FILES {
            copy(name, &etc)?;
        }
        self.refresh();
        for name in DIRECTORIES {
            let (from, to) = (Path::new("/etc").join(name), etc.join(name));
            if from.is_dir() {
                fs::create_dir_all(&to)?;
                bind(&from, &to)?;
            }
        }
        for java in fs::read_dir("/etc")?.flatten() {
            if java.file_name().as_bytes().starts_with(b"java") && java.path().is_dir() {
                let to = etc.join(java.file_name());
                fs::create_dir_all(&to)?;
                bind(&java.path(), &to)?;
            }
        }
        symlink("/.sandbox/passwd", etc.join("passwd"))?;
        symlink("/.sandbox/group", etc.join("group"))?;
        fs::write(etc.join("hostname"), "sandbox\n")
    }

    fn dev(&self) -> io::Result<()> {
        let dev = self.root.join("dev");
        fs::create_dir_all(dev.join("shm"))?;
        for name in DEVICES {
            let to = dev.join(name);
            fs::write(&to, "")?;
            mount_bind(Path::new("/dev").join(name), &to).map_err(at(&to))?;
        }
        for (name, target) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
        ] {
            symlink(target, dev.join(name))?;
        }
        Ok(())
    }

    /// Copy again what has changed since.
    pub(crate) fn refresh(&mut self) {
        let etc = self.root.join("etc");
        for (name, copied) in CHANGING.iter().zip(&mut self.copied) {
            let changed =
                fs::metadata(Path::new("/etc").join(name)).and_then(|m| m.modified()).ok();
            if changed != *copied && copy(name, &etc).is_ok() {
                *copied = changed;
            }
        }
        self.refresh_reachable();
    }

    /// Where the machine's resolvers are out of reach for who has a network of its own: others.
    fn refresh_reachable(&mut self) {
        let reachable = resolvers::instead();
        if reachable == self.reachable {
            return;
        }
        let path = self.root.join(REACHABLE);
        let written = match &reachable {
            Some(text) => fs::write(&path, text),
            None => fs::remove_file(&path),
        };
        match written {
            Ok(()) => self.reachable = reachable,
            Err(error) => tracing::warn!(%error, "the resolvers of sandboxes"),
        }
    }

    /// In a new sandbox, before its start is known: everything that is the same for every start.
    /// With a uid of its own that is all but the artifact. Else the host's files stay in reach of
    /// this process, and of it alone, until [`Self::enter`]: what is only forbidden by mode bits
    /// would not be forbidden to the same user.
    pub(crate) fn prepare(&self, artifacts: &Path, uid: Option<u32>) -> io::Result<()> {
        if uid.is_none() {
            // In a user namespace of its own what was mounted before is locked in its place, and
            // cannot become the root; a copy can.
            mount_bind_recursive(&self.root, &self.root).map_err(at(&self.root))?;
        }
        restrict(&c_path(&self.root)?, Attributes::ReadOnly, Recursive::No)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let proc = self.root.join("proc");
        mount(c"proc", &proc, c"proc", flags, None).map_err(at(&proc))?;
        let own = self.root.join(&OWN[1..]);
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount(c"sandbox", &own, c"tmpfs", flags, Some(c"mode=755,size=1m")).map_err(at(&own))?;
        for (name, mode) in [("tmp", 0o1777), ("shm", 0o1777), ("work", 0o755), ("overlay", 0o700)]
        {
            let path = own.join(name);
            fs::create_dir(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
        let work = own.join("work");
        chown(&work, uid, uid)?;
        users(&own, uid)?;
        for (from, to) in [("tmp", "tmp"), ("shm", "dev/shm"), ("work", &WORK[1..])] {
            let to = self.root.join(to);
            mount_bind(own.join(from), &to).map_err(at(&to))?;
        }
        if uid.is_some() {
            let all = self.root.join(&ARTIFACTS[1..]);
            mount_bind(artifacts, &all).map_err(at(&all))?;
            restrict(&c_path(&all)?, Attributes::ReadOnlyNoDevices, Recursive::No)?;
            self.become_root()?;
        }
        Ok(())
    }

    /// In a sandbox whose start is known: the rest. The working directory is the artifact,
    /// read-only, under a layer of temporary space where the kernel can do that.
    pub(crate) fn enter(&self, run: &Run) -> io::Result<()> {
        let Run { uid, temporary, .. } = *run;
        let root = if uid.is_some() { Path::new("/") } else { &self.root };
        let own = root.join(&OWN[1..]);
        let size = CString::new(space(temporary))?;
        mount_remount(&own, MountFlags::NOSUID | MountFlags::NODEV, size.as_c_str())
            .map_err(at(&own))?;
        if let Some(artifact) = run.artifact.as_deref() {
            let lower = match (uid, artifact.file_name()) {
                (Some(_), Some(name)) => Path::new(ARTIFACTS).join(name),
                _ => artifact.to_owned(),
            };
            let (upper, scratch) = (own.join("work"), own.join("overlay"));
            let layer = Layer { upper: &upper, scratch: &scratch, as_root: uid.is_some() };
            work_on(&lower, &layer, &root.join(&WORK[1..]))?;
        }
        if run.own_network {
            let (from, to) = (root.join(REACHABLE), root.join("etc/resolv.conf"));
            match mount_bind(&from, &to) {
                // The machine's own will do.
                Err(Errno::NOENT) => {}
                bound => bound.map_err(at(&to))?,
            }
        }
        if uid.is_none() {
            self.become_root()?;
        }
        Ok(())
    }

    /// The host's files are out of reach from here on.
    fn become_root(&self) -> io::Result<()> {
        chdir(&self.root)?;
        pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        chdir("/")?;
        Ok(())
    }
}

/// What a tmpfs of so many bytes is mounted with.
pub(crate) fn space(bytes: u64) -> String {
    let inodes = (bytes / BYTES_PER_INODE).max(MIN_INODES);
    format!("size={bytes},nr_inodes={inodes}")
}

/// Who is who in a sandbox.
fn users(own: &Path, uid: Option<u32>) -> io::Result<()> {
    let id = uid.unwrap_or_else(|| getuid().as_raw());
    let gid = uid.unwrap_or_else(|| getgid().as_raw());
    let passwd = format!(
        "root:x:0:0:root:/:/bin/sh\nsandbox:x:{id}:{gid}:sandbox:/tmp:/bin/sh\n\
         nobody:x:65534:65534:nobody:/:/bin/false\n"
    );
    fs::write(own.join("passwd"), passwd)?;
    fs::write(own.join("group"), format!("root:x:0:\nsandbox:x:{gid}:\nnogroup:x:65534:\n"))
}

/// Temporary space that is laid over an artifact.
struct Layer<'a> {
    upper: &'a Path,
    scratch: &'a Path,
    as_root: bool,
}

/// Mount the artifact at `app`, changes going to `layer`; without that where the kernel refuses.
fn work_on(artifact: &Path, layer: &Layer<'_>, app: &Path) -> io::Result<()> {
    let mut options = b"lowerdir=".to_vec();
    escape(&mut options, artifact);
    options.extend_from_slice(b",upperdir=");
    escape(&mut options, layer.upper);
    options.extend_from_slice(b",workdir=");
    escape(&mut options, layer.scratch);
    if !layer.as_root {
        options.extend_from_slice(b",userxattr");
    }
    let options = CString::new(options)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    if mount(c"artifact", app, c"overlay", flags, Some(options.as_c_str())).is_ok() {
        return Ok(());
    }
    bind(artifact, app)
}

fn escape(out: &mut Vec<u8>, path: &Path) {
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b',' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
}

/// A directory of programs: the same link as on the host, or the directory itself, read-only.
fn program_directory(root: &Path, name: &str) -> io::Result<()> {
    let (from, to) = (Path::new("/").join(name), root.join(name));
    let Ok(metadata) = fs::symlink_metadata(&from) else { return Ok(()) };
    if metadata.is_symlink() {
        symlink(fs::read_link(&from)?, to)
    } else {
        fs::create_dir_all(&to)?;
        bind(&from, &to)
    }
}

/// Show `from` at `to`, read-only, with everything that is mounted below it.
fn bind(from: &Path, to: &Path) -> io::Result<()> {
    mount_bind_recursive(from, to).map_err(at(to))?;
    restrict(&c_path(to)?, Attributes::ReadOnlyNoDevices, Recursive::Yes)
}

/// Copy a file of /etc through its links; a file that is not there is not missed.
fn copy(name: &str, etc: &Path) -> io::Result<()> {
    match fs::read(Path::new("/etc").join(name)) {
        Ok(bytes) => fs::write(etc.join(name), bytes),
        Err(_absent) => Ok(()),
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Say what was being mounted.
fn at<E: Into<io::Error>>(path: impl AsRef<Path>) -> impl FnOnce(E) -> io::Error {
    move |error| {
        let error: io::Error = error.into();
        io::Error::new(error.kind(), format!("mounting {}: {error}", path.as_ref().display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_mount_options_are_escaped() {
        let mut out = Vec::new();
        escape(&mut out, Path::new("/a:b,c\\d"));
        assert_eq!(out, b"/a\\:b\\,c\\\\d");
    }
}
