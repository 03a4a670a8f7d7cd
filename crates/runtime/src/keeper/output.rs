//! What sandboxes write: read from their pipes, kept as lines in bounded files.
//!
//! A sandbox never waits long for its log and cannot fill the disk: above a rate its lines are
//! dropped and counted, a file has a bound and one predecessor, and all files together have a bound.
//! A full disk costs lines, never a sandbox.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    rc::{Rc, Weak},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use dirigent_core::{FunctionId, SandboxId};
use rustix::io::Errno;

use crate::logs;

/// Bounds of the logs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Of one file; a function has two.
    pub(crate) file: u64,
    /// Of all files.
    pub(crate) total: u64,
}

/// What one sandbox may write per second in the long run, and at once.
const RATE: f64 = 4.0 * 1024.0 * 1024.0;
const BURST: f64 = 8.0 * 1024.0 * 1024.0;

/// The last lines told with the end of a sandbox.
const TAIL_LINES: usize = 20;
const TAIL_TEXT: usize = 400;

/// The log files, opened while one of their sandboxes runs.
#[derive(Debug)]
pub(crate) struct Logs {
    directory: PathBuf,
    bounds: Bounds,
    open: HashMap<FunctionId, Weak<RefCell<LogFile>>>,
    /// Written since the total was last looked at.
    unchecked: Rc<RefCell<u64>>,
}

impl Logs {
    pub(crate) fn new(directory: PathBuf, bounds: Bounds) -> Self {
        Self { directory, bounds, open: HashMap::new(), unchecked: Rc::default() }
    }

    /// The file of a function.
    pub(crate) fn of(&mut self, function: FunctionId) -> Rc<RefCell<LogFile>> {
        if let Some(file) = self.open.get(&function).and_then(Weak::upgrade) {
            return file;
        }
        let file = Rc::new(RefCell::new(LogFile {
            path: logs::path(&self.directory, function),
            file: None,
            length: 0,
            bound: self.bounds.file,
            unchecked: Rc::clone(&self.unchecked),
        }));
        self.open.insert(function, Rc::downgrade(&file));
        file
    }

    /// Forget files that nobody writes any more.
    pub(crate) fn forget_closed(&mut self) {
        self.open.retain(|_, file| file.strong_count() > 0);
    }

    /// A file was removed: whoever writes it begins a new one.
    fn reopen(&self, path: &Path) {
        for file in self.open.values().filter_map(Weak::upgrade) {
            let mut file = file.borrow_mut();
            if file.path == path {
                file.file = None;
                file.length = 0;
            }
        }
    }

    /// Keep all files together within their bound: the longest untouched go first, those of removed
    /// functions among them. Costs a directory listing at most once per tenth of the bound written.
    pub(crate) fn tidy(&mut self) {
        if *self.unchecked.borrow() < self.bounds.total / 10 {
            return;
        }
        *self.unchecked.borrow_mut() = 0;
        let mut files: Vec<(SystemTime, u64, PathBuf)> = std::fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let metadata = entry.metadata().ok()?;
                Some((metadata.modified().ok()?, on_disk(metadata.len()), entry.path()))
            })
            .collect();
        files.sort_unstable();
        let mut total: u64 = files.iter().map(|(_, length, _)| length).sum();
        for (_, length, path) in files {
            if total <= self.bounds.total {
                break;
            }
            if std::fs::remove_file(&path).is_ok() {
                total = total.saturating_sub(length);
                self.reopen(&path);
            }
        }
    }
}

/// The log of a function.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: Option<File>,
    length: u64,
    bound: u64,
    unchecked: Rc<RefCell<u64>>,
}

impl LogFile {
    /// Append whole lines, all or none. A disk that is full or broken is not worth more than the
    /// lines.
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.length >= self.bound {
            self.file = None;
            // If it cannot be renamed, it is not opened for more either: the bound holds.
            std::fs::rename(&self.path, logs::previous(&self.path))?;
        }
        if self.file.is_none() {
            let file = open(&self.path)?;
            self.length = file.metadata().map_or(0, |m| m.len());
            if self.length == 0 {
                *self.unchecked.borrow_mut() += on_disk(0);
            }
            self.file = Some(file);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        if let Err(error) = file.write_all(lines) {
            // A disk takes what fits: the part of a line that did would begin the next one.
            if let Err(error) = file.set_len(self.length) {
                tracing::debug!(path = %self.path.display(), %error, "a part of a line stays");
            }
            return Err(error);
        }
        let length = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        self.length += length;
        *self.unchecked.borrow_mut() += length;
        Ok(())
    }
}

/// What a file takes, be it ever so short: many functions that say one line each are bounded too.
const fn on_disk(length: u64) -> u64 {
    const BLOCK: u64 = 4096;
    (length / BLOCK + 1) * BLOCK
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Everything that one sandbox writes.
#[derive(Debug)]
pub(crate) struct Output {
    sandbox: SandboxId,
    file: Rc<RefCell<LogFile>>,
    streams: [Stream; 2],
    tail: VecDeque<String>,
    allowance: f64,
    filled: Instant,
    /// Lines that were too many at once.
    dropped: u64,
    /// Lines that could not be written, and why the last one could not.
    lost: Option<(u64, String)>,
}

/// Which stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Stdout,
    Stderr,
}

#[derive(Debug)]
struct Stream {
    pipe: Option<OwnedFd>,
    /// A line that has not ended yet, cut at the longest text.
    line: Vec<u8>,
}

/// What came of reading a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// There may be more.
    More,
    /// Nothing more for now.
    Empty,
    /// Nothing more ever.
    Ended,
    /// It writes too fast: leave it for a moment.
    Flood,
}

impl Output {
    pub(crate) fn new(
        sandbox: SandboxId,
        file: Rc<RefCell<LogFile>>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Self {
        let stream = |pipe| Stream { pipe: Some(pipe), line: Vec::new() };
        Self {
            sandbox,
            file,
            streams: [stream(stdout), stream(stderr)],
            tail: VecDeque::new(),
            allowance: BURST,
            filled: Instant::now(),
            dropped: 0,
            lost: None,
        }
    }

    /// The pipe of a stream, unless it has ended.
    pub(crate) fn pipe(&self, which: Which) -> Option<&OwnedFd> {
        self.streams[index(which)].pipe.as_ref()
    }

    /// Read one bufferful of a stream and keep its lines.
    pub(crate) fn pump(&mut self, which: Which, buffer: &mut [u8]) -> Pumped {
        let Some(pipe) = &self.streams[index(which)].pipe else { return Pumped::Ended };
        match rustix::io::read(pipe, &mut *buffer) {
            Ok(0) => {
                self.end(which);
                Pumped::Ended
            }
            Ok(length) => {
                self.keep(which, &buffer[..length]);
                if self.allowance < 0.0 { Pumped::Flood } else { Pumped::More }
            }
            Err(Errno::INTR) => Pumped::More,
            Err(Errno::AGAIN) => Pumped::Empty,
            Err(_) => {
                self.end(which);
                Pumped::Ended
            }
        }
    }

    /// All that is left, when the sandbox is dead; its last lines.
    pub(crate) fn finish(&mut self, buffer: &mut [u8]) -> Vec<String> {
        for which in [Which::Stdout, Which::Stderr] {
            // A pipe holds a bounded amount and nobody writes any more; should somebody still, the
            // bound is ours.
            for _ in 0..64 {
                if matches!(self.pump(which, buffer), Pumped::Empty | Pumped::Ended) {
                    break;
                }
            }
            self.end(which);
        }
        self.report_missing();
        std::mem::take(&mut self.tail).into()
    }

    fn end(&mut self, which: Which) {
        let stream = &mut self.streams[index(which)];
        stream.pipe = None;
        if !stream.line.is_empty() {
            self.keep(which, b"\n");
        }
    }

    fn keep(&mut self, which: Which, bytes: &[u8]) {
        let now = Instant::now();
        let earned = now.duration_since(self.filled).as_secs_f64() * RATE;
        self.allowance = (self.allowance + earned).min(BURST);
        self.filled = now;
        if self.allowance >= 0.0 {
            self.report_missing();
        }
        let at_ms = wall_ms();
        let stderr = which == Which::Stderr;
        let mut out = Vec::with_capacity(bytes.len() + 64);
        let mut lines = 0_u64;
        let flood = self.allowance < 0.0;
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let line = &mut self.streams[index(which)].line;
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = logs::MAX_TEXT.saturating_sub(line.len());
            line.extend_from_slice(&text[..text.len().min(room)]);
            if text.len() == piece.len() {
                continue;
            }
            let line = std::mem::take(&mut self.streams[index(which)].line);
            lines += 1;
            remember(&mut self.tail, &line);
            if !flood {
                logs::format(&mut out, at_ms, self.sandbox, stderr, &line);
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no exact bytes")]
        let cost = bytes.len() as f64;
        self.allowance = (self.allowance - cost).max(-RATE);
        if flood {
            self.dropped += lines;
        } else if !out.is_empty()
            && let Err(error) = self.file.borrow_mut().append(&out)
        {
            let before = self.lost.take().map_or(0, |(lines, _)| lines);
            self.lost = Some((before + lines, error.to_string()));
        }
    }

    /// Says in the log what is missing from it, once it can be said.
    fn report_missing(&mut self) {
        let mut texts = Vec::new();
        if let Some((lines, why)) = &self.lost {
            texts.push(format!("[{lines} lines lost: the log could not be written: {why}]"));
        }
        if self.dropped > 0 {
            texts.push(format!("[{} lines dropped: too many at once]", self.dropped));
        }
        if texts.is_empty() {
            return;
        }
        let mut out = Vec::new();
        for text in texts {
            logs::format(&mut out, wall_ms(), self.sandbox, true, text.as_bytes());
        }
        if self.file.borrow_mut().append(&out).is_ok() {
            self.dropped = 0;
            self.lost = None;
        }
    }
}

/// How long a sandbox that writes too fast is left alone: it may wait so long for its log.
pub(crate) const FLOOD_PAUSE: Duration = Duration::from_millis(5);

const fn index(which: Which) -> usize {
    match which {
        Which::Stdout => 0,
        Which::Stderr => 1,
    }
}

fn remember(tail: &mut VecDeque<String>, line: &[u8]) {
    if tail.len() == TAIL_LINES {
        tail.pop_front();
    }
    let mut text = String::from_utf8_lossy(&line[..line.len().min(TAIL_TEXT)]).into_owned();
    // Replaced bytes are longer than what they replace.
    while text.len() > TAIL_TEXT {
        text.pop();
    }
    tail.push_back(text);
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use dirigent_core::Epoch;
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn output(directory: &Path, bounds: Bounds) -> (Logs, Output, File, File) {
        let mut logs = Logs::new(directory.to_owned(), bounds);
        let pipe = || pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe");
        let ((out_read, out), (err_read, err)) = (pipe(), pipe());
        let file = logs.of(FunctionId::new(Epoch(1), 1));
        let output = Output::new(SandboxId::new(Epoch(1), 1), file, out_read, err_read);
        (logs, output, out.into(), err.into())
    }

    fn kept(directory: &Path) -> String {
        std::fs::read_to_string(logs::path(directory, FunctionId::new(Epoch(1), 1)))
            .unwrap_or_default()
    }

    const BOUNDS: Bounds = Bounds { file: 64 * 1024, total: 200 * 1024 };

    #[test]
    fn lines_are_kept_with_their_stream_and_the_last_ones_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let (_logs, mut output, mut out, mut err) = output(directory.path(), BOUNDS);
        let mut buffer = [0; 4096];
        out.write_all(b"hello\nwor").expect("writes");
        assert_eq!(output.pump(Which::Stdout, &mut buffer), Pumped::More);
        assert_eq!(output.pump(Which::Stdout, &mut buffer), Pumped::Empty);
        err.write_all(b"oops").expect("writes");
        out.write_all(b"ld\n").expect("writes");
        assert_eq!(output.finish(&mut buffer), ["hello", "world", "oops"]);
        let kept = kept(directory.path());
        let kinds: Vec<_> =
            kept.lines().map(|l| l.splitn(3, ' ').nth(2).expect("three parts")).collect();
        assert_eq!(kinds, ["o hello", "o world", "e oops"]);
    }

    #[test]
    fn a_long_line_is_cut_and_a_tail_is_bounded() {
        let directory = tempfile::tempdir().expect("a directory");
        let (_logs, mut output, mut out, _err) = output(directory.path(), BOUNDS);
        let mut buffer = vec![0; 64 * 1024];
        out.write_all(&[b'x'; 40_000]).expect("writes");
        out.write_all(b"\n").expect("writes");
        for n in 0..30 {
            out.write_all(format!("line {n}\n").as_bytes()).expect("writes");
        }
        let tail = output.finish(&mut buffer);
        assert_eq!(tail.len(), 20);
        assert_eq!(tail.last().map(String::as_str), Some("line 29"));
        let longest = kept(directory.path()).lines().map(str::len).max();
        assert!(longest.is_some_and(|l| l < logs::MAX_TEXT + 64), "{longest:?}");
    }

    #[test]
    fn files_and_their_total_stay_within_their_bounds() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut logs, mut output, mut out, _err) = output(directory.path(), BOUNDS);
        let mut buffer = vec![0; 64 * 1024];
        std::fs::write(directory.path().join("fn_1_9.log"), vec![b'x'; 150 * 1024])
            .expect("writes");
        for _ in 0..100 {
            out.write_all(&[b'y'; 8000]).expect("writes");
            out.write_all(b"\n").expect("writes");
            assert_eq!(output.pump(Which::Stdout, &mut buffer), Pumped::More);
        }
        logs.tidy();
        let total: u64 = std::fs::read_dir(directory.path())
            .expect("lists")
            .map(|e| e.expect("an entry").metadata().expect("metadata").len())
            .sum();
        assert!(total <= BOUNDS.total, "{total}");
        assert!(!directory.path().join("fn_1_9.log").exists(), "the oldest goes first");
    }

    #[test]
    fn many_short_files_are_bounded_too() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut logs = Logs::new(directory.path().to_owned(), BOUNDS);
        for number in 1..=300 {
            let file = logs.of(FunctionId::new(Epoch(1), number));
            file.borrow_mut().append(b"a line\n").expect("writes");
            drop(file);
            logs.forget_closed();
            logs.tidy();
        }
        let files = std::fs::read_dir(directory.path()).expect("lists").count();
        assert!(files <= 60, "{files}");
    }

    #[test]
    fn who_was_quiet_when_its_file_was_removed_is_heard_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut logs, mut quiet, mut out, _err) = output(directory.path(), BOUNDS);
        let mut buffer = vec![0; 64 * 1024];
        out.write_all(b"before\n").expect("writes");
        quiet.pump(Which::Stdout, &mut buffer);
        let old = SystemTime::now() - Duration::from_secs(3600);
        let path = logs::path(directory.path(), FunctionId::new(Epoch(1), 1));
        File::open(&path).and_then(|file| file.set_modified(old)).expect("is made older");
        std::fs::write(directory.path().join("fn_1_9.log"), vec![b'x'; 300 * 1024])
            .expect("writes");
        *logs.unchecked.borrow_mut() = BOUNDS.total;
        logs.tidy();
        assert!(!path.exists(), "the longest untouched goes first");
        out.write_all(b"after\n").expect("writes");
        quiet.pump(Which::Stdout, &mut buffer);
        assert!(kept(directory.path()).ends_with("after\n"), "{:?}", kept(directory.path()));
    }

    #[test]
    fn a_flood_is_dropped_and_counted() {
        let directory = tempfile::tempdir().expect("a directory");
        let bounds = Bounds { file: 64 << 20, total: 256 << 20 };
        let (_logs, mut output, _out, _err) = output(directory.path(), bounds);
        let block = [b"z".repeat(999), b"\n".to_vec()].concat().repeat(1000);
        for _ in 0..12 {
            output.keep(Which::Stdout, &block);
        }
        assert!(output.dropped > 0);
        output.finish(&mut [0; 1024]);
        assert!(kept(directory.path()).ends_with("lines dropped: too many at once]\n"));
        assert!(kept(directory.path()).len() < 11_000_000);
    }

    #[test]
    fn a_directory_that_cannot_be_written_costs_only_the_lines() {
        let directory = tempfile::tempdir().expect("a directory");
        let missing = directory.path().join("missing");
        let (_logs, mut output, mut out, _err) = output(&missing, BOUNDS);
        out.write_all(b"hello\n").expect("writes");
        assert_eq!(output.finish(&mut [0; 1024]), ["hello"]);
        // Made meanwhile, as a disk gets room again.
        std::fs::create_dir(&missing).expect("a directory");
        output.keep(Which::Stdout, b"later\n");
        let kept = kept(&missing);
        let texts: Vec<_> = kept.lines().filter_map(|line| line.splitn(3, ' ').nth(2)).collect();
        assert!(texts.first().is_some_and(|text| text.starts_with("e [1 lines lost: ")), "{kept}");
        assert_eq!(texts.get(1..), Some(&["o later"][..]));
    }
}
