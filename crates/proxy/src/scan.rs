//! Follows the framing of HTTP/1 requests as they are read, and refuses what two parsers might read
//! differently: that is how requests are smuggled.
//!
//! It does not parse for anybody: the server's own parser does. It refuses heads that are too large,
//! bare line feeds, folded lines, spaces before a colon, a second or missing Host, a second or
//! malformed Content-Length, any Transfer-Encoding but one `chunked`, and both of them at once.
//!
//! ```text
//! Head -> (end of head) -> Head | Length(n) | Size <-> Data(n) | Open
//!                                                Size -> Trailers -> Head
//! ```

/// Why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) status: u16,
    pub(crate) reason: &'static str,
}

const fn bad(reason: &'static str) -> Violation {
    Violation { status: 400, reason }
}

/// Lines of a head at most, so that the server's parser never meets its own limit first.
const MAX_LINES: u32 = 100;
/// Bytes of a line that frames a chunk, its extensions included.
const MAX_CHUNK_LINE: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In a head, or between two messages.
    Head,
    /// So many bytes of body to come.
    Length(u64),
    /// In the line that gives a chunk's size.
    Size,
    /// So many bytes to come of a chunk and the line end behind it.
    Data(u64),
    /// In the lines after the last chunk.
    Trailers,
    /// Nothing is checked any more: the protocol may be switched.
    Open,
    /// Refused: the rest is not HTTP to anybody.
    Refused,
}

/// What a head said so far.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    bytes: usize,
    /// Empty lines that came first.
    blanks: u32,
    lines: u32,
    hosts: u32,
    length: Option<u64>,
    chunked: bool,
    /// The protocol may be switched.
    switches: bool,
    old: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Scanner {
    state: State,
    head: Head,
    /// The part of a line that came with earlier reads.
    partial: Vec<u8>,
    max_head: usize,
}

impl Scanner {
    pub(crate) fn new(max_head: usize) -> Self {
        Self { state: State::Head, head: Head::default(), partial: Vec::new(), max_head }
    }

    /// Whether a head has begun and not ended.
    pub(crate) fn in_head(&self) -> bool {
        self.state == State::Head && (self.head.bytes > 0 || !self.partial.is_empty())
    }

    /// Has no memory of its own until the next message; to be told between two.
    pub(crate) fn rest(&mut self) {
        self.partial.shrink_to_fit();
    }

    /// Whether it is between two messages.
    pub(crate) fn between(&self) -> bool {
        self.state == State::Head && !self.in_head()
    }

    /// Whether another protocol may be spoken from here on.
    pub(crate) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether a message has begun and not ended.
    pub(crate) fn in_message(&self) -> bool {
        match self.state {
            State::Head => self.in_head(),
            State::Open | State::Refused => false,
            State::Length(_) | State::Size | State::Data(_) | State::Trailers => true,
        }
    }

    /// Follows `bytes`. On a violation: why, and from which index on nothing may be believed.
    pub(crate) fn scan(&mut self, bytes: &[u8]) -> Result<(), (Violation, usize)> {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..)
            && !rest.is_empty()
        {
            match self.state {
                State::Length(left) => {
                    let (used, left) = take(left, rest.len());
                    at += used;
                    self.state = if left == 0 { State::Head } else { State::Length(left) };
                }
                State::Data(left) => {
                    let (used, left) = take(left, rest.len());
                    at += used;
                    self.state = if left == 0 { State::Size } else { State::Data(left) };
                }
                State::Open | State::Refused => return Ok(()),
                State::Head | State::Size | State::Trailers => {
                    at += self.scan_line(rest).map_err(|(violation, offset)| {
                        self.state = State::Refused;
                        (violation, at + offset)
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Takes a line, or the part of one that is here; how many bytes that was.
    fn scan_line(&mut self, rest: &[u8]) -> Result<usize, (Violation, usize)> {
        let newline = rest.iter().position(|&byte| byte == b'\n');
        let used = newline.map_or(rest.len(), |at| at + 1);
        let limit = if self.state == State::Size { MAX_CHUNK_LINE } else { self.max_head };
        self.head.bytes += used;
        if self.head.bytes > limit {
            return Err((Violation { status: 431, reason: "the head is too large" }, 0));
        }
        let Some(end) = newline else {
            self.partial.extend_from_slice(rest);
            return Ok(used);
        };
        let line = rest.get(..end).unwrap_or_default();
        let verdict = if self.partial.is_empty() {
            self.take_line(line)
        } else {
            let mut whole = std::mem::take(&mut self.partial);
            whole.extend_from_slice(line);
            let verdict = self.take_line(&whole);
            // Its capacity serves the next long head.
            whole.clear();
            self.partial = whole;
            verdict
        };
        verdict.map(|()| used).map_err(|violation| (violation, end))
    }

    /// A whole line without its line feed.
    fn take_line(&mut self, line: &[u8]) -> Result<(), Violation> {
        let Some(line) = line.strip_suffix(b"\r") else {
            return Err(bad("a line ends without a carriage return"));
        };
        if line.contains(&b'\r') {
            return Err(bad("a line contains a bare carriage return"));
        }
        match self.state {
            State::Size => self.take_size(line),
            State::Trailers => {
                if line.is_empty() {
                    self.state = State::Head;
                    self.head = Head::default();
                }
                Ok(())
            }
            _ => self.take_head_line(line),
        }
    }

    fn take_head_line(&mut self, line: &[u8]) -> Result<(), Violation> {
        if self.head.lines == 0 {
            // An empty line before a request is tolerated, as RFC 9112 2.2 asks. It begins the head:
            // whoever sends nothing else is not idle but slow.
            if line.is_empty() {
                self.head.blanks += 1;
                let many = self.head.blanks > 1;
                return if many { Err(bad("empty lines before a request")) } else { Ok(()) };
            }
            self.head.old = line.ends_with(b"HTTP/1.0");
            self.head.switches = line.starts_with(b"CONNECT ");
            self.head.lines = 1;
            return Ok(());
        }
        if line.is_empty() {
            return self.end_head();
        }
        self.head.lines += 1;
        if self.head.lines > MAX_LINES {
            return Err(Violation { status: 431, reason: "the head has too many lines" });
        }
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            return Err(bad("a header is folded over two lines"));
        }
        let Some(colon) = line.iter().position(|&byte| byte == b':') else {
            return Err(bad("a header has no colon"));
        };
        let (name, value) = line.split_at(colon);
        if name.is_empty() || name.ends_with(b" ") || name.ends_with(b"\t") {
            return Err(bad("a header's name is malformed"));
        }
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.head.hosts += 1,
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.head.switches = true,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let twice = self.head.length.replace(decimal(value)?).is_some();
                if twice {
                    return Err(bad("Content-Length is given twice"));
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.head.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(bad("the only Transfer-Encoding understood is one `chunked`"));
                }
                self.head.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn end_head(&mut self) -> Result<(), Violation> {
        let head = std::mem::take(&mut self.head);
        match (head.chunked, head.length) {
            (true, Some(_)) => {
                return Err(bad("both Content-Length and Transfer-Encoding are given"));
            }
            (true, None) if head.old => {
                return Err(bad("HTTP/1.0 has no Transfer-Encoding"));
            }
            _ => {}
        }
        if head.hosts > 1 || (head.hosts == 0 && !head.old) {
            return Err(bad("exactly one Host is needed"));
        }
        self.state = if head.switches {
            State::Open
        } else if head.chunked {
            State::Size
        } else {
            match head.length {
                None | Some(0) => State::Head,
                Some(length) => State::Length(length),
            }
        };
        Ok(())
    }

    fn take_size(&mut self, line: &[u8]) -> Result<(), Violation> {
        self.head.bytes = 0;
        let digits = line.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii_end();
        if digits.is_empty() || digits.len() > 15 {
            return Err(bad("a chunk's size is malformed"));
        }
        let mut size = 0;
        for &digit in digits {
            let Some(digit) = char::from(digit).to_digit(16) else {
                return Err(bad("a chunk's size is malformed"));
            };
            size = size * 16 + u64::from(digit);
        }
        self.state = if size == 0 { State::Trailers } else { State::Data(size + 2) };
        Ok(())
    }
}

/// How many of `here` bytes belong to the `left` ones, and how many are left after them.
fn take(left: u64, here: usize) -> (usize, u64) {
    let used = usize::try_from(left).map_or(here, |left| left.min(here));
    (used, left - u64::try_from(used).unwrap_or(left))
}

fn decimal(value: &[u8]) -> Result<u64, Violation> {
    let malformed = bad("Content-Length is malformed");
    if value.is_empty() || value.len() > 18 {
        return Err(malformed);
    }
    value.iter().try_fold(0_u64, |sum, byte| match byte {
        b'0'..=b'9' => Ok(sum * 10 + u64::from(byte - b'0')),
        _ => Err(malformed),
    })
}

/// The whole at once and byte by byte is read the same way, and a head that is let through is one to
/// the server's parser too, which finds its end and the body's length where they are found here.
#[cfg(any(test, fuzzing))]
pub(crate) fn agree(message: &[u8]) -> Result<(), &'static str> {
    let whole = Scanner::new(1000).scan(message).map_err(|(v, _)| v.reason);
    let mut scanner = Scanner::new(1000);
    let (mut single, mut begin) = (Ok(()), 0);
    for (at, byte) in message.iter().enumerate() {
        let before = (scanner.state, scanner.head);
        if scanner.state == State::Head && !scanner.in_head() {
            begin = at;
        }
        single = scanner.scan(std::slice::from_ref(byte)).map_err(|(v, _)| v.reason);
        if single.is_err() {
            break;
        }
        if before.0 == State::Head && before.1.lines > 0 && scanner.head.lines == 0 {
            parse(&message[begin..=at], scanner.state);
        }
    }
    assert_eq!(whole, single, "{:?}", message.escape_ascii().to_string());
    whole
}

#[cfg(any(test, fuzzing))]
#[expect(clippy::panic, reason = "tells a test or a fuzzer")]
fn parse(head: &[u8], next: State) {
    let shown = head.escape_ascii();
    let mut headers = [httparse::EMPTY_HEADER; 2 * MAX_LINES as usize];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        // The server refuses it, and the connection ends.
        Err(_) => return,
        Ok(httparse::Status::Partial) => panic!("the parser reads on: {shown}"),
        Ok(httparse::Status::Complete(end)) => assert_eq!(end, head.len(), "{shown}"),
    }
    let is = |header: &httparse::Header<'_>, name: &str| header.name.eq_ignore_ascii_case(name);
    let all = |name| request.headers.iter().filter(move |header| is(header, name));
    let lengths: Vec<_> = all("content-length").map(|header| header.value.trim_ascii()).collect();
    let chunked = all("transfer-encoding").count();
    let expected = match (&lengths[..], chunked) {
        _ if next == State::Open => return,
        ([], 0) => State::Head,
        ([], 1) => State::Size,
        ([length], 0) => {
            let length = std::str::from_utf8(length).ok().and_then(|text| text.parse().ok());
            match length.unwrap_or_else(|| panic!("not a length: {shown}")) {
                0 => State::Head,
                length => State::Length(length),
            }
        }
        _ => panic!("{lengths:?} and {chunked} encodings: {shown}"),
    };
    assert_eq!(next, expected, "{shown}");
    assert!(all("host").count() <= 1, "{shown}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus;

    fn verdict(message: &str) -> Result<(), &'static str> {
        agree(message.as_bytes())
    }

    #[test]
    fn what_a_fuzzer_found_is_read_as_the_parser_reads_it_or_refused() {
        corpus::replay("requests", |bytes| {
            // What is refused is refused by rules of its own.
            let _verdict = agree(bytes);
        });
    }

    #[test]
    fn plain_messages_pass_one_after_the_other() {
        let mut scanner = Scanner::new(1000);
        for message in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\nGET / HTTP/1.0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\na\nb\nc",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\na\nb\nc\r\n0\r\nT: 1\r\n\r\n",
        ] {
            assert_eq!(scanner.scan(message.as_bytes()), Ok(()), "{message:?}");
            assert!(!scanner.in_message(), "{message:?}");
            assert_eq!(verdict(message), Ok(()));
        }
    }

    #[test]
    fn what_two_parsers_may_read_differently_is_refused() {
        for (head, reason) in [
            ("Host: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked", "both"),
            ("Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1", "both"),
            ("Host: a\r\nContent-Length: 1\r\nContent-Length: 1", "twice"),
            ("Host: a\r\nContent-Length: +1", "malformed"),
            ("Host: a\r\nContent-Length: 1, 1", "malformed"),
            ("Host: a\r\nContent-Length: ", "malformed"),
            ("Host: a\r\nContent-Length: 99999999999999999999", "malformed"),
            ("Host: a\r\nTransfer-Encoding: xchunked", "chunked"),
            ("Host: a\r\nTransfer-Encoding: gzip, chunked", "chunked"),
            ("Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "chunked"),
            ("Host: a\r\nTransfer-Encoding : chunked", "malformed"),
            ("Host: a\r\n x: y", "folded"),
            ("Host: a\r\nx", "colon"),
            ("Host: a\nx: y", "carriage return"),
            ("Host: a\r\nx: y\rz: w", "carriage return"),
            ("Host: a\r\nHost: b", "Host"),
            ("x: y", "Host"),
        ] {
            let message = format!("POST / HTTP/1.1\r\n{head}\r\n\r\n");
            let verdict = verdict(&message);
            assert!(verdict.is_err_and(|why| why.contains(reason)), "{message:?}: {verdict:?}");
        }
    }

    #[test]
    fn the_size_of_a_head_is_bounded_but_not_that_of_all_heads() {
        let mut scanner = Scanner::new(100);
        for _ in 0..10 {
            assert_eq!(scanner.scan(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Ok(()));
        }
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(100));
        assert_eq!(scanner.scan(long.as_bytes()).map_err(|(v, _)| v.status), Err(431));
    }

    #[test]
    fn after_an_upgrade_nothing_is_checked() {
        let mut scanner = Scanner::new(1000);
        scanner.scan(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: ws\r\n\r\n\n\n\0").unwrap();
        assert!(!scanner.in_message());
    }
}
