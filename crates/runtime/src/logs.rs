//! The log files: a line per line that a sandbox wrote, one file per function, two generations.
//!
//! ```text
//! 1760000000123 sbx_1_7 o the text
//! ```
//! milliseconds since 1970, the sandbox, `o` or `e` for standard output or error, the text. The keeper
//! writes, everybody reads. A file that has reached its bound becomes `.1` and the former `.1` goes.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use dirigent_core::{
    FunctionId, SandboxId,
    frame::{LogLine, LogQuery},
};
use tokio::sync::mpsc;

/// The longest text of a line; what is longer is cut.
pub(crate) const MAX_TEXT: usize = 16 * 1024;

/// Lines sent at once.
const BATCH: usize = 500;

/// How often a follower looks for new lines.
const FOLLOW_EVERY: Duration = Duration::from_millis(50);

/// The current file of a function.
pub(crate) fn path(directory: &Path, function: FunctionId) -> PathBuf {
    directory.join(format!("{function}.log"))
}

/// Its predecessor.
pub(crate) fn previous(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// Append a line as it is kept. Line breaks cannot be in `text`: it was cut at them.
pub(crate) fn format(out: &mut Vec<u8>, at_ms: u64, sandbox: SandboxId, stderr: bool, text: &[u8]) {
    let kind = if stderr { 'e' } else { 'o' };
    out.extend_from_slice(format!("{at_ms} {sandbox} {kind} ").as_bytes());
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Read a kept line; `None` if it is damaged, as after a full disk.
fn parse(line: &[u8]) -> Option<LogLine> {
    let line = line.strip_suffix(b"\n")?;
    let mut parts = line.splitn(4, |b| *b == b' ');
    let mut text = || std::str::from_utf8(parts.next()?).ok();
    let at_ms = text()?.parse().ok()?;
    let sandbox = text()?.parse().ok()?;
    let stderr = match text()? {
        "o" => false,
        "e" => true,
        _ => return None,
    };
    let text = String::from_utf8_lossy(parts.next()?).into_owned();
    Some(LogLine { at_ms, sandbox, stderr, text })
}

fn wanted(query: &LogQuery, line: &LogLine) -> bool {
    query.sandbox.is_none_or(|sandbox| sandbox == line.sandbox)
        && query.since_ms.is_none_or(|since| line.at_ms >= since)
        && query.until_ms.is_none_or(|until| line.at_ms < until)
}

/// Send the lines that `query` wants; see [`crate::Runtime::logs`].
pub(crate) fn read(directory: &Path, query: &LogQuery, lines: &mpsc::Sender<Vec<LogLine>>) {
    let path = path(directory, query.function);
    let tail = usize::try_from(query.tail).unwrap_or(usize::MAX);
    let mut newest = VecDeque::new();
    let mut keep = |line: LogLine| {
        if newest.len() == tail {
            newest.pop_front();
        }
        if tail > 0 {
            newest.push_back(line);
        }
    };
    if let Ok(file) = File::open(previous(&path)) {
        Reader::new(file).each(|line| wanted(query, &line).then(|| keep(line)));
    }
    let mut reader = File::open(&path).ok().map(Reader::new);
    if let Some(reader) = &mut reader {
        reader.each(|line| wanted(query, &line).then(|| keep(line)));
    }
    let newest: Vec<_> = newest.into();
    for batch in newest.chunks(BATCH) {
        if lines.blocking_send(batch.to_vec()).is_err() {
            return;
        }
    }
    if query.follow {
        follow(&path, query, reader, lines);
    }
}

/// Go on with what is appended, also after the file was replaced, until the reader leaves or
/// nothing more can match.
fn follow(
    path: &Path,
    query: &LogQuery,
    mut reader: Option<Reader>,
    lines: &mpsc::Sender<Vec<LogLine>>,
) {
    let now_ms = || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
    };
    while !lines.is_closed() && query.until_ms.is_none_or(|until| now_ms() <= until) {
        let mut batch = Vec::new();
        if let Some(reader) = &mut reader {
            reader.each(|line| wanted(query, &line).then(|| batch.push(line)));
        }
        let replaced = reader.as_ref().is_none_or(|reader| !reader.is(path));
        if replaced && let Ok(file) = File::open(path) {
            let mut next = Reader::new(file);
            next.each(|line| wanted(query, &line).then(|| batch.push(line)));
            reader = Some(next);
        }
        if batch.is_empty() {
            std::thread::park_timeout(FOLLOW_EVERY);
        } else if lines.blocking_send(batch).is_err() {
            return;
        }
    }
}

/// A log file being read to its end, again and again.
struct Reader {
    file: BufReader<File>,
    /// A line whose end is not written yet.
    rest: Vec<u8>,
}

impl Reader {
    fn new(file: File) -> Self {
        Self { file: BufReader::with_capacity(64 * 1024, file), rest: Vec::new() }
    }

    /// Whether this is still the file at `path`.
    fn is(&self, path: &Path) -> bool {
        match (self.file.get_ref().metadata(), std::fs::metadata(path)) {
            (Ok(mine), Ok(theirs)) => (mine.dev(), mine.ino()) == (theirs.dev(), theirs.ino()),
            _ => false,
        }
    }

    /// Give all whole lines up to the present end.
    fn each<R>(&mut self, mut line: impl FnMut(LogLine) -> R) {
        // A line is far below this: it bounds what a damaged file can make us hold.
        let limit = u64::try_from(4 * MAX_TEXT).unwrap_or(u64::MAX);
        while let Ok(1..) = self.file.by_ref().take(limit).read_until(b'\n', &mut self.rest) {
            if self.rest.ends_with(b"\n") || self.rest.len() >= 4 * MAX_TEXT {
                if let Some(parsed) = parse(&self.rest) {
                    line(parsed);
                }
                self.rest.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dirigent_core::Epoch;

    use super::*;

    fn sandbox(n: u64) -> SandboxId {
        SandboxId::new(Epoch(1), n)
    }

    fn query(function: FunctionId) -> LogQuery {
        LogQuery {
            id: 1,
            function,
            sandbox: None,
            since_ms: None,
            until_ms: None,
            tail: 100,
            follow: false,
        }
    }

    fn write(path: &Path, lines: &[(u64, u64, &[u8])]) {
        let mut bytes = Vec::new();
        for (at, n, text) in lines {
            format(&mut bytes, *at, sandbox(*n), n % 2 == 0, text);
        }
        std::fs::write(path, bytes).expect("writes");
    }

    fn texts(directory: &Path, query: &LogQuery) -> Vec<String> {
        let (tx, mut rx) = mpsc::channel(16);
        read(directory, query, &tx);
        drop(tx);
        let mut texts = Vec::new();
        while let Ok(batch) = rx.try_recv() {
            texts.extend(batch.into_iter().map(|line| line.text));
        }
        texts
    }

    #[test]
    fn both_generations_are_read_and_filtered() {
        let directory = tempfile::tempdir().expect("a directory");
        let function = FunctionId::new(Epoch(1), 1);
        let path = path(directory.path(), function);
        write(&previous(&path), &[(10, 1, b"one"), (20, 2, b"two")]);
        write(&path, &[(30, 1, b"three"), (40, 2, b"bad \xff utf"), (50, 1, b"")]);
        let all = texts(directory.path(), &query(function));
        assert_eq!(all, ["one", "two", "three", "bad \u{fffd} utf", ""]);
        let one = LogQuery { sandbox: Some(sandbox(1)), ..query(function) };
        assert_eq!(texts(directory.path(), &one), ["one", "three", ""]);
        let window = LogQuery { since_ms: Some(20), until_ms: Some(40), ..query(function) };
        assert_eq!(texts(directory.path(), &window), ["two", "three"]);
        let last = LogQuery { tail: 2, ..query(function) };
        assert_eq!(texts(directory.path(), &last), ["bad \u{fffd} utf", ""]);
    }

    #[test]
    fn damaged_lines_are_skipped() {
        let directory = tempfile::tempdir().expect("a directory");
        let function = FunctionId::new(Epoch(1), 1);
        let path = path(directory.path(), function);
        std::fs::write(&path, b"garbage\n\n12 sbx_1_1 x bad\n12 sbx_1_1 o good\n13 sbx_1_1 o cut")
            .expect("writes");
        assert_eq!(texts(directory.path(), &query(function)), ["good"]);
    }

    #[test]
    fn a_follower_gets_what_is_appended_and_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let function = FunctionId::new(Epoch(1), 1);
        let path = path(directory.path(), function);
        write(&path, &[(10, 1, b"one")]);
        let (tx, mut rx) = mpsc::channel(16);
        let follower = std::thread::spawn({
            let directory = directory.path().to_owned();
            let query = LogQuery { follow: true, ..query(function) };
            move || read(&directory, &query, &tx)
        });
        let mut next = || rx.blocking_recv().expect("lines").remove(0).text;
        assert_eq!(next(), "one");
        std::fs::rename(&path, previous(&path)).expect("renames");
        write(&path, &[(20, 1, b"two")]);
        assert_eq!(next(), "two");
        drop(rx);
        follower.join().expect("ends");
    }
}
