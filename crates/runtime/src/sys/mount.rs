//! Attributes of whole mount trees, which `mount(2)` cannot set at once.

#![expect(unsafe_code, reason = "rustix has no mount_setattr")]

use std::{ffi::CStr, io};

/// What a mount tree forbids.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Attributes {
    /// Nothing can be written, no set-user-id bit counts.
    ReadOnly,
    /// As `ReadOnly`, and device files cannot be opened.
    ReadOnlyNoDevices,
}

/// Restrict the mount at `path`; with `recursive`, everything mounted below too.
pub(crate) fn restrict(
    path: &CStr,
    attributes: Attributes,
    recursive: Recursive,
) -> io::Result<()> {
    let mut set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID;
    if matches!(attributes, Attributes::ReadOnlyNoDevices) {
        set |= libc::MOUNT_ATTR_NODEV;
    }
    let attr = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = match recursive {
        Recursive::Yes => libc::AT_RECURSIVE,
        Recursive::No => 0,
    };
    // SAFETY: `path` is a C string and `attr` a `mount_attr` of the size given; both live through
    // the call, which keeps neither.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether mounts below are meant too.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Recursive {
    /// The whole tree.
    Yes,
    /// This mount only.
    No,
}
