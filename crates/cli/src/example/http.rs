//! A blocking HTTP/1.1 server as small as the built-in functions need: a thread for each
//! connection, keep-alive, sized and chunked bodies. It refuses what it does not understand with a
//! 400 and closes.
//!
//! It exists so that a built-in function listens as soon as its program runs: no runtime, no pool
//! and no configuration stand before `listen`.

use std::{
    env,
    io::{self, Read as _, Write},
    net::{TcpListener, TcpStream},
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A head larger than this is refused.
const MAX_HEAD: usize = 64 << 10;
/// A body larger than this is refused: built-in functions keep bodies in memory.
const MAX_BODY: usize = 64 << 20;
/// Enough for the handlers, small enough that a thousand connections cost little.
const STACK: usize = 256 << 10;

/// A request, read whole.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    query: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    keep_alive: bool,
    chunked_allowed: bool,
}

impl Request {
    /// A header's first value; the name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A number in the query; absent or malformed is `None`.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .and_then(|(_, value)| value.parse().ok())
    }
}

/// Where the answer goes. A handler sends one response, or takes the stream over.
#[derive(Debug)]
pub(crate) struct Responder<'a> {
    stream: &'a TcpStream,
    head_only: bool,
    keep_alive: bool,
    chunked: bool,
}

impl<'a> Responder<'a> {
    /// A whole response, head and body in one write.
    pub(crate) fn send(&mut self, status: u16, content_type: &str, body: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(160 + body.len());
        write!(
            message,
            "HTTP/1.1 {status} {}\r\ncontent-type: {content_type}\r\n{}content-length: {}\r\n{}\r\n",
            reason(status),
            identity(),
            body.len(),
            if self.keep_alive { "" } else { "connection: close\r\n" },
        )?;
        if !self.head_only {
            message.extend_from_slice(body);
        }
        self.stream.write_all(&message)
    }

    /// The head of a response whose length is not known yet; `piece` and `end` follow.
    pub(crate) fn begin(&mut self, status: u16, content_type: &str) -> io::Result<()> {
        // HTTP/1.0 has no chunks: the end of the connection is the end of the body.
        self.keep_alive &= self.chunked;
        let framing = if self.chunked { "transfer-encoding: chunked" } else { "connection: close" };
        let head = format!(
            "HTTP/1.1 {status} {}\r\ncontent-type: {content_type}\r\n{}{framing}\r\n\r\n",
            reason(status),
            identity(),
        );
        self.stream.write_all(head.as_bytes())
    }

    /// A piece of the body.
    pub(crate) fn piece(&mut self, data: &[u8]) -> io::Result<()> {
        if self.head_only || data.is_empty() {
            return Ok(());
        }
        let mut message = Vec::with_capacity(data.len() + 16);
        if self.chunked {
            write!(message, "{:x}\r\n", data.len())?;
        }
        message.extend_from_slice(data);
        if self.chunked {
            message.extend_from_slice(b"\r\n");
        }
        self.stream.write_all(&message)
    }

    /// The end of the body.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        if self.chunked && !self.head_only { self.stream.write_all(b"0\r\n\r\n") } else { Ok(()) }
    }

    /// The bare connection, for protocols that HTTP is upgraded to. It is closed afterwards.
    pub(crate) fn take_over(&mut self) -> &'a TcpStream {
        self.keep_alive = false;
        self.stream
    }
}

/// Who answers, as header lines: the revision, and another `X-Sandbox` for each life of a sandbox,
/// so that load generators can count them. Nothing outside of a sandbox.
fn identity() -> &'static str {
    static IDENTITY: OnceLock<String> = OnceLock::new();
    IDENTITY.get_or_init(|| match env::var("K_REVISION") {
        Ok(revision) => {
            let born = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
            let port = env::var("PORT").unwrap_or_default();
            format!("k-revision: {revision}\r\nx-sandbox: {port}-{born:x}\r\n")
        }
        Err(_absent) => String::new(),
    })
}

/// What a built-in function does with a request.
pub(crate) type Handler = fn(&Request, &mut Responder<'_>) -> io::Result<()>;

/// Serve until killed.
pub(crate) fn serve(handler: Handler) -> ExitCode {
    let listener = match listener() {
        Ok(listener) => listener,
        Err(error) => return super::fail(&format!("cannot listen: {error}")),
    };
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let spawned = std::thread::Builder::new().stack_size(STACK).spawn(move || {
                    // The peer left, or spoke nonsense and was told so: nothing else to do.
                    drop(connection(&stream, handler));
                });
                if let Err(error) = spawned {
                    super::complain(&format!("no thread for a connection: {error}"));
                }
            }
            // Out of descriptors, or the peer was gone before it was accepted.
            Err(error) => {
                super::complain(&format!("accept: {error}"));
                super::pause(Duration::from_millis(10));
            }
        }
    }
}

/// The listener that was passed (`LISTEN_FDS`), else a new one on `$HOST` and `$PORT`.
pub(crate) fn listener() -> io::Result<TcpListener> {
    if let Some(passed) = listenfd::ListenFd::from_env().take_tcp_listener(0)? {
        passed.set_nonblocking(false)?;
        return Ok(passed);
    }
    let host = env::var("HOST").unwrap_or_else(|_absent| "127.0.0.1".to_owned());
    let port = match env::var("PORT") {
        Ok(text) => text.parse().map_err(|_not_a_port| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("PORT is `{text}`, not a port"))
        })?,
        Err(_absent) => 8080_u16,
    };
    TcpListener::bind((host.as_str(), port))
}

fn connection(stream: &TcpStream, handler: Handler) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = Input { stream, buffer: Vec::with_capacity(4096) };
    loop {
        let request = match input.request() {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) => {
                let mut responder =
                    Responder { stream, head_only: false, keep_alive: false, chunked: false };
                responder.send(400, "text/plain", format!("{error}\n").as_bytes())?;
                return Err(error);
            }
        };
        let mut responder = Responder {
            stream,
            head_only: request.method == "HEAD",
            keep_alive: request.keep_alive,
            chunked: request.chunked_allowed,
        };
        handler(&request, &mut responder)?;
        if !responder.keep_alive {
            return Ok(());
        }
    }
}

/// What was received and not yet used.
struct Input<'a> {
    stream: &'a TcpStream,
    buffer: Vec<u8>,
}

fn invalid(why: impl Into<Arc<str>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into().to_string())
}

impl Input<'_> {
    /// The next request; `None` when the peer has closed between two.
    fn request(&mut self) -> io::Result<Option<Request>> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; 100];
            let mut parsed = httparse::Request::new(&mut headers);
            let status = parsed.parse(&self.buffer).map_err(|error| invalid(error.to_string()))?;
            if let httparse::Status::Complete(length) = status {
                let mut request = head(&parsed);
                self.buffer.drain(..length);
                request.body = self.body(&request)?;
                return Ok(Some(request));
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(invalid("the head is too large"));
            }
            if !self.fill()? {
                return if self.buffer.is_empty() { Ok(None) } else { Err(invalid("cut head")) };
            }
        }
    }

    fn body(&mut self, request: &Request) -> io::Result<Vec<u8>> {
        let chunked = request.header("transfer-encoding").is_some();
        let length = match request.header("content-length") {
            Some(_) if chunked => return Err(invalid("both a length and chunks")),
            Some(text) => text.parse().map_err(|_not_a_length| invalid("bad content-length"))?,
            None => 0_usize,
        };
        if length > MAX_BODY {
            return Err(invalid("the body is too large"));
        }
        if request.header("expect").is_some() && (chunked || length > self.buffer.len()) {
            let mut stream = self.stream;
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if !chunked {
            return self.exactly(length);
        }
        let mut body = Vec::new();
        loop {
            let size = loop {
                match httparse::parse_chunk_size(&self.buffer) {
                    Ok(httparse::Status::Complete((used, size))) => {
                        self.buffer.drain(..used);
                        break usize::try_from(size).map_err(|_large| invalid("large chunk"))?;
                    }
                    Ok(httparse::Status::Partial) if self.fill()? => {}
                    _ => return Err(invalid("bad chunk")),
                }
            };
            if size == 0 {
                while self.line()?.len() > 2 {} // trailers
                return Ok(body);
            }
            if body.len() + size > MAX_BODY {
                return Err(invalid("the body is too large"));
            }
            body.extend(self.exactly(size)?);
            self.line()?;
        }
    }

    fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            if !self.fill()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.buffer.drain(..length).collect())
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return Ok(self.buffer.drain(..=end).collect());
            }
            if self.buffer.len() > MAX_HEAD || !self.fill()? {
                return Err(invalid("cut line"));
            }
        }
    }

    /// More bytes; whether there were any.
    fn fill(&mut self) -> io::Result<bool> {
        let mut piece = [0; 16 << 10];
        let count = loop {
            match self.stream.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.buffer.extend_from_slice(piece.get(..count).unwrap_or_default());
        Ok(count > 0)
    }
}

fn head(parsed: &httparse::Request<'_, '_>) -> Request {
    let headers: Vec<_> = parsed
        .headers
        .iter()
        .map(|header| {
            let value = String::from_utf8_lossy(header.value).into_owned();
            (header.name.to_ascii_lowercase(), value)
        })
        .collect();
    let target = parsed.path.unwrap_or("/");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let modern = parsed.version == Some(1);
    let connection = headers
        .iter()
        .find(|(name, _)| name == "connection")
        .map(|(_, value)| value.to_ascii_lowercase());
    let keep_alive = match connection.as_deref() {
        Some(value) if value.contains("close") => false,
        Some(value) if value.contains("keep-alive") => true,
        _ => modern,
    };
    Request {
        method: parsed.method.unwrap_or("GET").to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: Vec::new(),
        keep_alive,
        chunked_allowed: modern,
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        101 => "Switching Protocols",
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        426 => "Upgrade Required",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;

    use super::*;

    /// Sends `input` to a server with `handler` and returns all that comes back.
    fn exchange(input: &[u8], handler: Handler) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            drop(connection(&stream, handler));
        });
        let mut client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client.write_all(input).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        server.join().unwrap();
        String::from_utf8(answer).unwrap()
    }

    fn echo(request: &Request, responder: &mut Responder<'_>) -> io::Result<()> {
        responder.send(200, "text/plain", &request.body)
    }

    fn stream(_request: &Request, responder: &mut Responder<'_>) -> io::Result<()> {
        responder.begin(200, "text/plain")?;
        responder.piece(b"one")?;
        responder.piece(b"two")?;
        responder.end()
    }

    #[test]
    fn requests_on_one_connection_are_answered_in_turn() {
        let answer = exchange(
            b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nhiPOST /b HTTP/1.1\r\n\
              transfer-encoding: chunked\r\n\r\n3\r\nyou\r\n0\r\n\r\n",
            echo,
        );
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length";
        assert_eq!(answer, format!("{head}: 2\r\n\r\nhi{head}: 3\r\n\r\nyou"));
    }

    #[test]
    fn http_1_0_gets_a_body_that_ends_with_the_connection() {
        let answer = exchange(b"GET / HTTP/1.0\r\n\r\n", stream);
        assert!(answer.ends_with("connection: close\r\n\r\nonetwo"), "{answer}");
        let answer = exchange(b"GET / HTTP/1.1\r\n\r\n", stream);
        assert!(answer.ends_with("\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"), "{answer}");
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "NONSENSE\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        ] {
            assert!(exchange(bad.as_bytes(), echo).starts_with("HTTP/1.1 400"), "{bad}");
        }
    }

    #[test]
    fn numbers_are_read_from_the_query() {
        let request = Request { query: "a=1&sleep_ms=20&b=x".to_owned(), ..Request::default() };
        assert_eq!(request.number("sleep_ms"), Some(20));
        assert_eq!(request.number("b"), None);
        assert_eq!(request.number("c"), None);
    }
}
