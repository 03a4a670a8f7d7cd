//! Follows a recording of a live control plane: a machine made of the same is told the same and has
//! to order the same, in the same order.

use std::{
    fmt::Debug,
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use dirigent_core::{
    Time,
    control::Control,
    recording::{Began, Entry, FORMAT, segment},
};

/// What was followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// Files.
    pub segments: u32,
    /// What the machine was told, deadlines included.
    pub events: u64,
    /// What it ordered.
    pub effects: u64,
    /// Why the recording ends; `None` if it just breaks off, as when its process was killed.
    pub ended: Option<String>,
}

/// Follows the recording in a directory.
///
/// # Errors
/// If it cannot be read, or the machine orders something else than it did then: where, and both.
pub fn replay(directory: &Path) -> Result<Followed> {
    let mut replay = Replay { followed: Followed::default(), machine: None, last: Time(0) };
    loop {
        let path = directory.join(segment(replay.followed.segments + 1));
        if !path.exists() {
            break;
        }
        replay.followed.segments += 1;
        replay.follow(&path)?;
    }
    if replay.followed.segments == 0 {
        bail!("{} has no recording: `dirigent up --record DIR` makes one", directory.display());
    }
    Ok(replay.followed)
}

struct Replay {
    followed: Followed,
    machine: Option<Control>,
    last: Time,
}

impl Replay {
    fn follow(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut lines = BufReader::new(file).split(b'\n').enumerate().peekable();
        while let Some((number, line)) = lines.next() {
            let place = || format!("{}:{}", path.display(), number + 1);
            let line = line.with_context(place)?;
            let entry = match serde_json::from_slice(&line) {
                Ok(entry) => entry,
                // The process died while it wrote.
                Err(error) if error.is_eof() && lines.peek().is_none() => return Ok(()),
                Err(error) => return Err(error).with_context(place),
            };
            self.step(entry).with_context(place)?;
        }
        Ok(())
    }

    fn step(&mut self, entry: Entry) -> Result<()> {
        let machine = match entry {
            Entry::Began(began) if self.machine.is_none() => {
                self.machine = Some(begin(*began)?);
                return Ok(());
            }
            Entry::Began(_) => bail!("the recording begins a second time"),
            Entry::Ended { why } => {
                self.followed.ended = Some(why);
                return Ok(());
            }
            Entry::Told { .. } | Entry::Expired { .. } | Entry::Did(_) => {
                self.machine.as_mut().context("the recording has no beginning")?
            }
        };
        match entry {
            Entry::Told { at, event } => {
                self.followed.events += 1;
                self.last = at;
                machine.handle(at, *event);
            }
            Entry::Expired { at } => {
                self.followed.events += 1;
                self.last = at;
                machine.expire(at);
            }
            Entry::Did(effect) => {
                self.followed.effects += 1;
                let ordered = machine.poll_effect();
                if ordered.as_ref() != Some(&*effect) {
                    bail!(differs(self.last, &*effect, ordered.as_ref()));
                }
            }
            Entry::Began(_) | Entry::Ended { .. } => {}
        }
        Ok(())
    }
}

fn begin(began: Began) -> Result<Control> {
    if began.format != FORMAT {
        let Began { format, program, .. } = began;
        bail!("the recording has format {format} (of dirigent {program}), this follows {FORMAT}");
    }
    Ok(began.machine())
}

fn differs<T: Debug>(at: Time, then: &T, now: Option<&T>) -> String {
    let now = now.map_or_else(|| "nothing".to_owned(), |now| format!("{now:#?}"));
    format!("at {at:?} the machine ordered\n{then:#?}\nand now it orders\n{now}")
}
