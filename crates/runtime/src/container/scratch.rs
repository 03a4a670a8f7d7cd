//! What a sandbox writes to its root: in memory, bounded, and counted as the sandbox's, as the temporary
//! space of processes is.
//!
//! The writable layer of its overlay is on a tmpfs of its own. That is mounted where containerd looks for
//! it, and let go as soon as the overlay is made: the overlay holds it, and takes it with it, so that
//! nothing stays mounted whoever dies.
//!
//! containerd may have other mounts than this process. So one thread does it, which enters the
//! namespace of the containerd that listens.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use dirigent_core::Bytes;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    mount::{UnmountFlags, unmount},
    process::{Pid, PidfdFlags, pidfd_open},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tokio::sync::{mpsc, oneshot};

use super::program;
use crate::{keeper::layer, sys::process::unshare};

/// In the directory of a sandbox.
const PLACE: &str = "root";

/// Orders that wait for the thread; each takes some 0.1 ms.
const ORDERS: usize = 64;

/// The layers of an image, as `overlayfs` is told of them, and what else it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layers {
    pub(super) lower: String,
    pub(super) options: Vec<String>,
}

/// The thread.
#[derive(Clone, Debug)]
pub(super) struct Scratch(mpsc::Sender<Order>);

#[derive(Debug)]
struct Order {
    /// The sandbox's.
    directory: PathBuf,
    what: What,
    done: Option<oneshot::Sender<io::Result<()>>>,
}

#[derive(Debug)]
enum What {
    Make { top: PathBuf, size: Bytes },
    LetGo,
}

impl Scratch {
    /// For the containerd that listens there.
    pub(super) fn start(socket: &Path) -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel(ORDERS);
        let socket = socket.to_owned();
        std::thread::Builder::new()
            .name("container-mounts".to_owned())
            .spawn(move || run(&socket, inbox))?;
        Ok(Self(orders))
    }

    /// Makes an empty layer on an image's; the options of the overlay.
    pub(super) async fn make(
        &self,
        directory: &Path,
        layers: &Layers,
        size: Bytes,
    ) -> io::Result<Vec<String>> {
        let top = layers.lower.split(':').next().unwrap_or_default().into();
        self.order(directory, What::Make { top, size }).await?;
        let place = directory.join(PLACE);
        let own = ["upper", "work"].map(|name| format!("{name}dir={}", place.join(name).display()));
        let lower = format!("lowerdir={}", layers.lower);
        Ok(layers.options.iter().cloned().chain(own).chain([lower]).collect())
    }

    /// The overlay is made, and holds it; or none is made.
    pub(super) fn let_go(&self, directory: &Path) {
        let order = Order { directory: directory.to_owned(), what: What::LetGo, done: None };
        // Where too many wait it is done with the removal of the sandbox.
        drop(self.0.try_send(order));
    }

    /// Whether a sandbox has its layer here, rather than in containerd.
    pub(super) fn is_here(directory: &Path) -> bool {
        directory.join(PLACE).exists()
    }

    /// Whatever there is of it.
    pub(super) async fn remove(&self, directory: &Path) {
        if Self::is_here(directory)
            && let Err(error) = self.order(directory, What::LetGo).await
        {
            tracing::debug!(path = %directory.display(), %error, "a layer is not let go of");
        }
    }

    async fn order(&self, directory: &Path, what: What) -> io::Result<()> {
        let ended = || io::Error::other("the thread that mounts has ended");
        let (done, answer) = oneshot::channel();
        let order = Order { directory: directory.to_owned(), what, done: Some(done) };
        self.0.send(order).await.map_err(|_order| ended())?;
        answer.await.unwrap_or_else(|_dropped| Err(ended()))
    }
}

fn run(socket: &Path, mut orders: mpsc::Receiver<Order>) {
    let mut seen = None;
    while let Some(Order { directory, what, done }) = orders.blocking_recv() {
        let result = enter(socket, &mut seen).and_then(|()| {
            let place = directory.join(PLACE);
            match what {
                What::Make { top, size } => layer::make(&place, &top, size.0),
                What::LetGo => match unmount(&place, UnmountFlags::DETACH) {
                    // It is let go already.
                    Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
                    Err(error) => Err(error.into()),
                },
            }
        });
        if let Some(done) = done {
            // Who does not wait any more will remove it.
            drop(done.send(result));
        }
    }
}

/// Goes where the containerd is that listens now, unless this thread is there.
fn enter(socket: &Path, seen: &mut Option<OwnedFd>) -> io::Result<()> {
    if seen.as_ref().is_some_and(lives) {
        return Ok(());
    }
    let (held, space) = whereabouts(socket)?;
    // Threads that share a working directory cannot have mounts of their own.
    unshare(libc::CLONE_FS)?;
    move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Mount))?;
    *seen = Some(held);
    Ok(())
}

/// The process that listens, held, and its mount namespace.
pub(super) fn whereabouts(socket: &Path) -> io::Result<(OwnedFd, File)> {
    let pid = program::listener(socket)
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("containerd does not listen"))?;
    let held = pidfd_open(pid, PidfdFlags::empty())?;
    Ok((held, File::open(format!("/proc/{}/ns/mnt", pid.as_raw_nonzero()))?))
}

/// Whether a process that is held has not ended.
pub(super) fn lives(held: &OwnedFd) -> bool {
    let mut ended = [PollFd::new(held, PollFlags::IN)];
    matches!(poll(&mut ended, Some(&Timespec::default())), Ok(0))
}

/// What an image's layers are mounted by, of what containerd would mount to read them; `None` if that is no
/// overlay.
pub(super) fn layers<'a>(
    kind: &str,
    source: &str,
    options: impl Iterator<Item = &'a String>,
) -> Option<Layers> {
    match kind {
        // There is one.
        "bind" => Some(Layers { lower: source.to_owned(), options: Vec::new() }),
        "overlay" => {
            let (lower, rest): (Vec<&String>, Vec<&String>) =
                options.partition(|option| option.starts_with("lowerdir="));
            let [lower] = lower[..] else { return None };
            let ours = |option: &&String| {
                *option != "ro"
                    && !["upperdir=", "workdir="].iter().any(|own| option.starts_with(own))
            };
            Some(Layers {
                lower: lower.trim_start_matches("lowerdir=").to_owned(),
                options: rest.into_iter().filter(ours).cloned().collect(),
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_read_from_what_containerd_would_mount() {
        let layers = |kind, options: &[&str]| {
            let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
            layers(kind, "/s/1/fs", options.iter())
        };
        let one = Layers { lower: "/s/1/fs".to_owned(), options: Vec::new() };
        assert_eq!(layers("bind", &["ro", "rbind"]), Some(one));
        let two = Layers { lower: "/s/2/fs:/s/1/fs".to_owned(), options: vec!["index=off".into()] };
        assert_eq!(layers("overlay", &["index=off", "ro", "lowerdir=/s/2/fs:/s/1/fs"]), Some(two));
        assert_eq!(layers("ext4", &[]), None);
        assert_eq!(layers("overlay", &["ro"]), None);
    }
}
