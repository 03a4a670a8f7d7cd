//! What a sandbox writes: two named pipes that its keeper opens, or its shim, read here.
//!
//! Those keep both of their ends open, so that they outlive whoever reads: what is written
//! meanwhile waits in the pipe, up to its size, and is read by the next life of the worker. A sandbox that
//! writes more than that while no worker is there waits for one.

use std::{io, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, mknodat, open},
    pipe::fcntl_setpipe_size,
};
use tokio::io::unix::AsyncFd;

use crate::keeper::{
    execute::PIPES,
    output::{FLOOD_PAUSE, Output, Pumped, Which},
};
use crate::sys::watch;

/// What a pipe holds while nobody reads: the most that any user may ask for.
const PIPE: usize = 1 << 20;

/// Read at once.
const BUFFER: usize = 64 << 10;

/// The names of the pipes within a sandbox's directory.
pub(super) const NAMES: [&str; 2] = PIPES;

/// Makes the pipes in a directory.
pub(super) fn make(directory: &Path) -> io::Result<()> {
    for name in NAMES {
        let path = directory.join(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    }
    Ok(())
}

/// Opens the pipes in a directory for reading; nobody needs to have opened them for writing.
pub(super) fn open_both(directory: &Path) -> io::Result<[OwnedFd; 2]> {
    let one = |name: &str| -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let pipe = open(directory.join(name), flags, Mode::empty())?;
        if let Err(error) = fcntl_setpipe_size(&pipe, PIPE) {
            tracing::debug!(%error, "a pipe stays small");
        }
        Ok(pipe)
    };
    Ok([one(NAMES[0])?, one(NAMES[1])?])
}

/// Reads both pipes of a sandbox.
#[derive(Debug)]
pub(super) struct Reader {
    output: Output,
    /// The same pipes, to be told when there is something in them.
    ready: [Option<AsyncFd<OwnedFd>>; 2],
    buffer: Vec<u8>,
}

impl Reader {
    pub(super) fn new(output: Output) -> io::Result<Self> {
        let watched = |which| -> io::Result<Option<AsyncFd<OwnedFd>>> {
            let Some(pipe) = output.pipe(which) else { return Ok(None) };
            Ok(Some(watch::readable(pipe.try_clone()?)?))
        };
        let ready = [watched(Which::Stdout)?, watched(Which::Stderr)?];
        Ok(Self { output, ready, buffer: vec![0; BUFFER] })
    }

    /// Reads what comes, once; never returns when both pipes have ended. Cancelling it loses nothing.
    pub(super) async fn read(&mut self) {
        let [out, err] = &self.ready;
        let which = tokio::select! {
            () = readable(out.as_ref()) => Which::Stdout,
            () = readable(err.as_ref()) => Which::Stderr,
        };
        let pumped = self.output.pump(which, &mut self.buffer);
        let ready = &mut self.ready[usize::from(which == Which::Stderr)];
        match pumped {
            Pumped::More => {}
            Pumped::Empty => {
                if let Some(ready) = ready
                    && let Ok(mut guard) = ready.readable().await
                {
                    guard.clear_ready();
                }
            }
            Pumped::Ended => *ready = None,
            // A sandbox that writes too fast waits a little.
            Pumped::Flood => tokio::time::sleep(FLOOD_PAUSE).await,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ready.iter().all(Option::is_none)
    }

    /// All that is left; the last lines.
    pub(super) fn finish(mut self) -> Vec<String> {
        self.ready = [None, None];
        self.output.finish(&mut self.buffer)
    }
}

async fn readable(pipe: Option<&AsyncFd<OwnedFd>>) {
    match pipe {
        Some(pipe) => match pipe.readable().await {
            Ok(_guard) => {}
            Err(error) => {
                tracing::warn!(%error, "a sandbox's output cannot be waited for");
                std::future::pending::<()>().await;
            }
        },
        None => std::future::pending().await,
    }
}
