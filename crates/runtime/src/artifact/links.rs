//! Where a symbolic link leads, judged as the kernel would follow it, confined to a directory.
//!
//! Looking at the text of a link alone is not enough: `l -> a/b/..` leads elsewhere if `b` is a
//! link itself. So this walks the real tree.

use std::{
    ffi::OsString,
    fs, io,
    path::{Component, Path, PathBuf},
};

/// Links followed before it counts as a circle, as in the kernel.
const MAX_HOPS: u32 = 40;

/// Whether following `link` (relative to `root`) never leaves `root`. A link to something that
/// is not there leads nowhere, which is inside.
pub(super) fn stays_inside(root: &Path, link: &Path) -> io::Result<bool> {
    // What is still to be walked, last first.
    let mut todo: Vec<OsString> = Vec::new();
    if !push(&mut todo, link) {
        return Ok(false);
    }
    let mut at: Vec<OsString> = Vec::new();
    let mut hops = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            if at.pop().is_none() {
                return Ok(false);
            }
            continue;
        }
        at.push(name);
        let here: PathBuf = root.join(at.iter().collect::<PathBuf>());
        match fs::symlink_metadata(&here) {
            Ok(found) if found.is_symlink() => {
                hops += 1;
                at.pop();
                if hops > MAX_HOPS || !push(&mut todo, &fs::read_link(&here)?) {
                    return Ok(false);
                }
            }
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                // It dangles. Still no way out may be hidden behind what is missing: judged by
                // its text, since there is nothing to follow.
                return Ok(stays_by_text(at.len(), &todo));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn stays_by_text(mut depth: usize, todo: &[OsString]) -> bool {
    for name in todo.iter().rev() {
        if name == ".." {
            let Some(up) = depth.checked_sub(1) else { return false };
            depth = up;
        } else {
            depth += 1;
        }
    }
    true
}

/// Put the components of `path` before what is to be walked; `false` if it is absolute.
fn push(todo: &mut Vec<OsString>, path: &Path) -> bool {
    for component in path.components().rev() {
        match component {
            Component::RootDir | Component::Prefix(_) => return false,
            Component::CurDir => {}
            Component::ParentDir => todo.push("..".into()),
            Component::Normal(name) => todo.push(name.to_owned()),
        }
    }
    true
}
