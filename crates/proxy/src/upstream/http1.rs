//! HTTP/1.1 to a sandbox, driven by the task of the client's connection.
//!
//! Written here rather than taken from hyper's client for three reasons: no second task is woken for
//! an invocation; whether a byte was sent, and whether one came back, is known exactly, which is
//! what decides about another attempt; and a connection can be watched after an invocation was
//! abandoned. What a sandbox says is parsed strictly: it is not trusted.
//!
//! ```text
//! sending:   head + body ... -> sent          receiving:   head (1xx skipped) -> body -> over
//! ```

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts};
use http_body::Frame;
use tokio::io::AsyncWrite as _;
use tokio_util::io::poll_read_buf;

use crate::{
    headers::{self, Forward, Framing},
    source::{Source, SourceError},
    upstream::{Home, Stream, home},
};

/// Of a response's head, and of its trailers.
const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 128;
/// Read at once: doubled while reads fill it.
const ROOM: usize = 8 << 10;
const MAX_ROOM: usize = 32 << 10;
/// A piece of body up to this size is copied behind what goes out already, to go in one write.
const COPIED: usize = 16 << 10;

/// A connection on which nothing is under way.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) stream: Stream,
    /// The thread on whose event queue `stream` is.
    pub(crate) home: Home,
    pub(crate) input: BytesMut,
    output: BytesMut,
    room: usize,
}

impl Conn {
    /// On a stream made by this thread.
    pub(crate) fn new(stream: Stream) -> Self {
        let (input, output) = (BytesMut::new(), BytesMut::new());
        Self { stream, home: home(), input, output, room: ROOM }
    }

    /// One that was kept, ready to be used on this thread; `None` if it cannot be any more.
    pub(crate) fn reuse(mut self, home: Home) -> Option<Self> {
        if self.home == home {
            return self.stream.is_quiet().then_some(self);
        }
        self.stream = self.stream.moved()?;
        self.home = home;
        Some(self)
    }
}

/// Why a request could not be sent in full.
#[derive(Debug)]
enum SendError {
    Io(io::Error),
    Source(SourceError),
}

/// Why there is no response, or no more of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecvError {
    #[error("the sandbox closed the connection")]
    Closed,
    #[error(
        "the sandbox answered in HTTP/2, not in HTTP/1 as `sandbox.protocol = \"http1\"` says; \
         deploy it with \"h2c\""
    )]
    Http2,
    #[error("the sandbox answered with what is not HTTP: {0}")]
    Invalid(&'static str),
    #[error(transparent)]
    Source(SourceError),
}

/// A response's head.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
}

/// What of the response's body is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    Length(u64),
    Size,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    UntilClose,
    Over,
}

/// One invocation on a connection.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts that are learned independently")]
pub(crate) struct Exchange {
    conn: Conn,
    source: Source,
    framing: Framing,
    /// A large piece of body behind `conn.output`, and what follows it.
    large: Bytes,
    tail: &'static [u8],
    source_over: bool,
    all_sent: bool,
    send_failed: bool,
    pub(crate) sent: bool,
    /// A byte of an answer came.
    pub(crate) answered: bool,
    is_head: bool,
    rest: Rest,
    keep: bool,
    /// Reading failed: the end of the connection is not the end of the body.
    broken: bool,
}

impl Exchange {
    pub(crate) fn new(mut conn: Conn, parts: &Parts, forward: &Forward, source: Source) -> Self {
        let framing = match source.length() {
            Some(0) if !parts.headers.contains_key(header::CONTENT_LENGTH) => Framing::None,
            Some(length) => Framing::Length(length),
            None => Framing::Chunked,
        };
        conn.output.clear();
        headers::put_http1(&mut conn.output, parts, forward, framing);
        Self {
            conn,
            source_over: source.is_empty(),
            source,
            framing,
            large: Bytes::new(),
            tail: &[],
            all_sent: false,
            send_failed: false,
            sent: false,
            answered: false,
            is_head: parts.method == http::Method::HEAD,
            rest: Rest::Over,
            keep: true,
            broken: false,
        }
    }

    /// The body, for another attempt.
    pub(crate) fn into_source(self) -> Source {
        self.source
    }

    /// The connection after a switch of protocols, or to watch it.
    pub(crate) fn into_conn(self) -> Conn {
        self.conn
    }

    /// The connection, if the next invocation may use it.
    pub(crate) fn into_kept(self) -> Option<Conn> {
        let fit = self.rest == Rest::Over && self.keep && self.all_sent && !self.send_failed;
        (fit && self.conn.input.is_empty()).then_some(self.conn)
    }

    /// Bytes of the client's body that were taken so far.
    pub(crate) fn uploaded(&self) -> u64 {
        self.source.read()
    }

    /// Whether the sandbox does not take what is to be sent, so that no more of it is read.
    pub(crate) fn is_stuck(&self) -> bool {
        let held_up = !self.conn.output.is_empty() || !self.large.is_empty();
        !self.source_over && (held_up || self.send_failed)
    }

    /// Whether the response has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.rest == Rest::Over
    }

    /// How many bytes of body are still to come, if known.
    pub(crate) fn rest(&self) -> Option<u64> {
        match self.rest {
            Rest::Length(rest) => Some(rest),
            Rest::Over => Some(0),
            _ => None,
        }
    }

    /// No other attempt will be made.
    pub(crate) fn keep_nothing(&mut self) {
        self.source.keep_nothing();
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        while !self.all_sent {
            // As much as goes into one write: the head and a small body leave together.
            while !self.source_over && self.large.is_empty() && self.conn.output.len() < COPIED {
                match self.source.poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => self.put_frame(frame),
                    Poll::Ready(Some(Err(error))) => {
                        return Poll::Ready(Err(SendError::Source(error)));
                    }
                    Poll::Ready(None) => self.put_end(None),
                    Poll::Pending => break,
                }
            }
            if self.conn.output.is_empty() && self.large.is_empty() && self.tail.is_empty() {
                if self.source_over {
                    self.all_sent = true;
                    break;
                }
                return Poll::Pending;
            }
            let wrote = ready!(self.poll_write(cx)).map_err(SendError::Io)?;
            if wrote == 0 {
                return Poll::Ready(Err(SendError::Io(io::ErrorKind::WriteZero.into())));
            }
            self.sent = true;
            self.wrote(wrote);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.conn.stream);
        if self.large.is_empty() && self.tail.is_empty() {
            return stream.poll_write(cx, &self.conn.output);
        }
        let parts =
            [IoSlice::new(&self.conn.output), IoSlice::new(&self.large), IoSlice::new(self.tail)];
        stream.poll_write_vectored(cx, &parts)
    }

    fn wrote(&mut self, mut bytes: usize) {
        let part = bytes.min(self.conn.output.len());
        self.conn.output.advance(part);
        bytes -= part;
        let part = bytes.min(self.large.len());
        self.large.advance(part);
        bytes -= part;
        self.tail = self.tail.get(bytes..).unwrap_or_default();
    }

    fn put_frame(&mut self, frame: Frame<Bytes>) {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return self.put_end(frame.into_trailers().ok().as_ref()),
        };
        if data.is_empty() {
            return;
        }
        let chunked = self.framing == Framing::Chunked;
        let output = &mut self.conn.output;
        if chunked {
            output.put_slice(format!("{:x}\r\n", data.len()).as_bytes());
        }
        if data.len() <= COPIED {
            output.put_slice(&data);
            if chunked {
                output.put_slice(b"\r\n");
            }
        } else {
            self.large = data;
            self.tail = if chunked { b"\r\n" } else { b"" };
        }
    }

    fn put_end(&mut self, trailers: Option<&HeaderMap>) {
        self.source_over = true;
        if self.framing != Framing::Chunked {
            return;
        }
        let output = &mut self.conn.output;
        output.put_slice(b"0\r\n");
        let goes = |(name, _): &(&HeaderName, &HeaderValue)| !headers::ends_here(name);
        for (name, value) in trailers.into_iter().flatten().filter(goes) {
            output.put_slice(name.as_str().as_bytes());
            output.put_slice(b": ");
            output.put_slice(value.as_bytes());
            output.put_slice(b"\r\n");
        }
        output.put_slice(b"\r\n");
    }

    /// Sends on while there is something to send. A connection that does not take it may still
    /// bring an answer, so only the client's failure ends the exchange here.
    fn push(&mut self, cx: &mut Context<'_>) -> Result<(), RecvError> {
        if self.all_sent || self.send_failed {
            return Ok(());
        }
        match self.poll_send(cx) {
            Poll::Ready(Err(SendError::Source(error))) => Err(RecvError::Source(error)),
            Poll::Ready(Err(SendError::Io(error))) => {
                tracing::debug!(%error, "the sandbox does not take the request");
                self.send_failed = true;
                Ok(())
            }
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// More input; `false` at its end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.send_failed && !self.sent {
            return Poll::Ready(false);
        }
        self.conn.input.reserve(self.conn.room);
        let stream = Pin::new(&mut self.conn.stream);
        match ready!(poll_read_buf(stream, cx, &mut self.conn.input)) {
            Ok(0) => Poll::Ready(false),
            Ok(read) => {
                self.answered = true;
                if read >= self.conn.room {
                    self.conn.room = (self.conn.room * 2).min(MAX_ROOM);
                }
                Poll::Ready(true)
            }
            Err(error) => {
                tracing::debug!(%error, "the connection to the sandbox broke");
                self.broken = true;
                Poll::Ready(false)
            }
        }
    }

    /// The response's head. The request is sent on meanwhile.
    pub(crate) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, RecvError>> {
        self.push(cx)?;
        loop {
            if let Some(head) = self.parse_head()? {
                return Poll::Ready(Ok(head));
            }
            if self.conn.input.len() > MAX_HEAD {
                return Poll::Ready(Err(RecvError::Invalid("its head is too large")));
            }
            if !ready!(self.poll_fill(cx)) {
                return Poll::Ready(Err(RecvError::Closed));
            }
        }
    }

    fn parse_head(&mut self) -> Result<Option<Head>, RecvError> {
        loop {
            if self.conn.input.is_empty() {
                return Ok(None);
            }
            let mut slots = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut response = httparse::Response::new(&mut slots);
            let length = match response.parse(&self.conn.input) {
                Ok(httparse::Status::Complete(length)) => length,
                Ok(httparse::Status::Partial) => return Ok(None),
                Err(_malformed) if is_http2(&self.conn.input) => return Err(RecvError::Http2),
                Err(_malformed) => return Err(RecvError::Invalid("its head is malformed")),
            };
            let code = response.code.unwrap_or(0);
            if (100..200).contains(&code) && code != 101 {
                // `100 Continue` and `103 Early Hints` concern the hop.
                self.conn.input.advance(length);
                continue;
            }
            let Ok(status) = StatusCode::from_u16(code) else {
                return Err(RecvError::Invalid("its status is out of range"));
            };
            let old = response.version == Some(0);
            let spans: Spans =
                response.headers.iter().map(|header| Span::of(&self.conn.input, header)).collect();
            let raw = self.conn.input.split_to(length).freeze();
            return self.take_head(status, old, &raw, &spans).map(Some);
        }
    }

    fn take_head(
        &mut self,
        status: StatusCode,
        old: bool,
        raw: &Bytes,
        spans: &[Span],
    ) -> Result<Head, RecvError> {
        let mut headers = HeaderMap::with_capacity(spans.len() + 3);
        let (mut length, mut chunked, mut named) = (None, false, false);
        let (mut close, mut keep_alive) = (false, false);
        let switching = status == StatusCode::SWITCHING_PROTOCOLS;
        for span in spans {
            let name = raw.get(span.name.0..span.name.1).unwrap_or_default();
            let bytes = raw.get(span.value.0..span.value.1).unwrap_or_default();
            match name.len() {
                14 if name.eq_ignore_ascii_case(b"content-length") => {
                    let given = decimal(bytes)?;
                    if length.replace(given).is_some_and(|before| before != given) {
                        return Err(RecvError::Invalid("it has two lengths"));
                    }
                    if headers.contains_key(header::CONTENT_LENGTH) {
                        continue;
                    }
                }
                17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                    if chunked || !bytes.eq_ignore_ascii_case(b"chunked") {
                        return Err(RecvError::Invalid("its Transfer-Encoding is not understood"));
                    }
                    chunked = true;
                }
                10 if name.eq_ignore_ascii_case(b"connection") => {
                    for token in bytes.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                        if token.eq_ignore_ascii_case(b"close") {
                            close = true;
                        } else if token.eq_ignore_ascii_case(b"keep-alive") {
                            keep_alive = true;
                        } else {
                            named = true;
                        }
                    }
                }
                _ => {}
            }
            let text = std::str::from_utf8(name).unwrap_or_default();
            let switches =
                text.eq_ignore_ascii_case("connection") || text.eq_ignore_ascii_case("upgrade");
            let goes = headers::goes_back(text) || (switching && switches);
            if !goes {
                continue;
            }
            let value = raw.slice(span.value.0..span.value.1);
            let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(name), HeaderValue::from_maybe_shared(value))
            else {
                return Err(RecvError::Invalid("a header is malformed"));
            };
            headers.append(name, value);
        }
        if named && !switching {
            for token in connection_tokens(raw, spans) {
                headers.remove(token);
            }
        }
        self.keep = !close && (!old || keep_alive);
        self.rest = if self.is_head || matches!(status.as_u16(), 101 | 204 | 304) {
            Rest::Over
        } else if chunked {
            headers.remove(header::CONTENT_LENGTH);
            self.keep &= length.is_none();
            Rest::Size
        } else {
            match length {
                Some(0) => Rest::Over,
                Some(length) => Rest::Length(length),
                None => {
                    self.keep = false;
                    Rest::UntilClose
                }
            }
        };
        Ok(Head { status, headers })
    }

    /// The next piece of the body. The request is sent on meanwhile.
    pub(crate) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RecvError>>> {
        if self.rest != Rest::Over {
            self.push(cx)?;
        }
        loop {
            match self.parse_body() {
                Ok(Piece::Frame(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(Piece::Over) => return Poll::Ready(None),
                Ok(Piece::More) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
            if !ready!(self.poll_fill(cx)) {
                if self.rest == Rest::UntilClose && !self.broken {
                    self.rest = Rest::Over;
                    return Poll::Ready(None);
                }
                return Poll::Ready(Some(Err(RecvError::Closed)));
            }
        }
    }

    fn parse_body(&mut self) -> Result<Piece, RecvError> {
        loop {
            let input = &mut self.conn.input;
            match self.rest {
                Rest::Over => return Ok(Piece::Over),
                _ if input.is_empty() => return Ok(Piece::More),
                Rest::UntilClose => return Ok(Piece::data(input.split().freeze())),
                Rest::Length(left) => {
                    let (data, left) = take(input, left);
                    self.rest = if left == 0 { Rest::Over } else { Rest::Length(left) };
                    return Ok(Piece::data(data));
                }
                Rest::Chunk(left) => {
                    let (data, left) = take(input, left);
                    self.rest = if left == 0 { Rest::ChunkEnd } else { Rest::Chunk(left) };
                    return Ok(Piece::data(data));
                }
                Rest::ChunkEnd => {
                    if input.len() < 2 {
                        return Ok(Piece::More);
                    }
                    if !input.starts_with(b"\r\n") {
                        return Err(RecvError::Invalid("a chunk does not end where it should"));
                    }
                    input.advance(2);
                    self.rest = Rest::Size;
                }
                Rest::Size => match httparse::parse_chunk_size(input) {
                    Ok(httparse::Status::Complete((used, size))) => {
                        input.advance(used);
                        self.rest = if size == 0 { Rest::Trailers } else { Rest::Chunk(size) };
                    }
                    Ok(httparse::Status::Partial) if input.len() < 1024 => return Ok(Piece::More),
                    Ok(httparse::Status::Partial) | Err(_) => {
                        return Err(RecvError::Invalid("a chunk's size is malformed"));
                    }
                },
                Rest::Trailers => return self.parse_trailers(),
            }
        }
    }

    fn parse_trailers(&mut self) -> Result<Piece, RecvError> {
        let input = &mut self.conn.input;
        if input.starts_with(b"\r\n") {
            input.advance(2);
            self.rest = Rest::Over;
            return Ok(Piece::Over);
        }
        let mut slots = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let (used, trailers) = match httparse::parse_headers(input, &mut slots) {
            Ok(httparse::Status::Complete((used, fields))) => {
                let mut trailers = HeaderMap::with_capacity(fields.len());
                for field in fields.iter().filter(|field| headers::goes_back(field.name)) {
                    let name = HeaderName::from_bytes(field.name.as_bytes());
                    if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value)) {
                        trailers.append(name, value);
                    }
                }
                (used, trailers)
            }
            Ok(httparse::Status::Partial) if input.len() <= MAX_HEAD => return Ok(Piece::More),
            Ok(httparse::Status::Partial) | Err(_) => {
                return Err(RecvError::Invalid("its trailers are malformed"));
            }
        };
        input.advance(used);
        self.rest = Rest::Over;
        Ok(Piece::Frame(Frame::trailers(trailers)))
    }
}

/// Whether it begins as a server of HTTP/2 does: with a frame of settings, or the one that says why
/// it ends, on stream 0 (RFC 9113, 4.1).
fn is_http2(input: &[u8]) -> bool {
    matches!(input, [0, _, _, 4 | 7, _, 0, 0, 0, 0, ..])
}

enum Piece {
    Frame(Frame<Bytes>),
    More,
    Over,
}

impl Piece {
    fn data(data: Bytes) -> Self {
        Self::Frame(Frame::data(data))
    }
}

type Spans = Vec<Span>;

/// Where a header stands in the raw head.
#[derive(Clone, Copy, Debug)]
struct Span {
    name: (usize, usize),
    value: (usize, usize),
}

impl Span {
    fn of(raw: &[u8], header: &httparse::Header<'_>) -> Self {
        let start = raw.as_ptr().addr();
        let place = |part: &[u8]| {
            let from = part.as_ptr().addr().wrapping_sub(start).min(raw.len());
            (from, (from + part.len()).min(raw.len()))
        };
        Self { name: place(header.name.as_bytes()), value: place(header.value) }
    }
}

fn connection_tokens<'a>(
    raw: &'a Bytes,
    spans: &'a [Span],
) -> impl Iterator<Item = HeaderName> + 'a {
    spans
        .iter()
        .filter(|span| {
            raw.get(span.name.0..span.name.1)
                .is_some_and(|name| name.eq_ignore_ascii_case(b"connection"))
        })
        .flat_map(|span| {
            raw.get(span.value.0..span.value.1).unwrap_or_default().split(|b| *b == b',')
        })
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
}

/// At most `left` bytes from the front, and how many are left after them.
fn take(input: &mut BytesMut, left: u64) -> (Bytes, u64) {
    let here = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
    let data = input.split_to(here).freeze();
    (data, left - u64::try_from(here).unwrap_or(left))
}

fn decimal(value: &[u8]) -> Result<u64, RecvError> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    if text.starts_with('+') {
        return Err(RecvError::Invalid("its Content-Length is malformed"));
    }
    text.parse().map_err(|_malformed| RecvError::Invalid("its Content-Length is malformed"))
}
