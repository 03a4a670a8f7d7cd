//! A writable layer in memory: bounded, and counted as whose processes write to it.

use std::{
    ffi::CString,
    fs, io,
    os::unix::fs::{MetadataExt as _, chown},
    path::Path,
};

use rustix::mount::{MountFlags, mount};

use super::root::space;

/// Mounts one at `place`, which it makes: `upper` and `work` in it are for an overlay whose root belongs
/// to whom `top` does.
pub(crate) fn make(place: &Path, top: &Path, size: u64) -> io::Result<()> {
    fs::create_dir(place).map_err(|error| at(place, &error))?;
    let options = CString::new(format!("mode=700,{}", space(size)))?;
    mount(c"dirigent", place, c"tmpfs", MountFlags::empty(), options.as_c_str())
        .map_err(|error| at(place, &error.into()))?;
    for name in ["upper", "work"] {
        fs::create_dir(place.join(name)).map_err(|error| at(place, &error))?;
    }
    // The root of a sandbox belongs to whom the image's does.
    let (upper, root) = (place.join("upper"), fs::metadata(top).map_err(|error| at(top, &error))?);
    chown(&upper, Some(root.uid()), Some(root.gid())).map_err(|error| at(&upper, &error))
}

/// An error with the path that it is about.
pub(super) fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
