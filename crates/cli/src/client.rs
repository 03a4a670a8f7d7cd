//! A client of the HTTP API and of the data plane: one connection for each request, HTTP/1.1 only.
//!
//! Where the API is: `--server`, else the file `api` in the state directory, which `dirigent up`
//! writes; the token is beside it.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use dirigent_control::membership;
use dirigent_core::control::Answer;
use dirigent_service::{
    OnCancel, Tasks,
    tls::{self, Stream, Trust},
};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::net::TcpStream;

use crate::{
    fail::{Fail, Kind, OrFail as _, Result},
    format::duration,
};

/// A body to send.
pub(crate) type Body = BoxBody<Bytes, io::Error>;

/// Connecting on loopback or in a data centre takes far less.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The API answers most questions at once, and none of these later than this.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Where it waits for a deploy, at most fifteen minutes, or takes what may be large.
const LONG_TIMEOUT: Duration = Duration::from_secs(16 * 60);

/// How long a change of leader, here or in etcd, may take that nobody is bothered with.
const RIDE_OUT: Duration = Duration::from_secs(10);

/// Until it is asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// Where a server is, for people who give it as a URL or as `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    host: String,
    port: u16,
    is_encrypted: bool,
}

impl Place {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| Fail::config(format!("`{text}` is not an address: {why}"));
        let (is_encrypted, rest) = match text.strip_prefix("https://") {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix("http://").unwrap_or(text)),
        };
        let rest = rest.trim_end_matches('/');
        let (host, port) =
            rest.rsplit_once(':').ok_or_else(|| bad("use HOST:PORT or http://HOST:PORT"))?;
        let port = port.parse().map_err(|_not_a_port| bad("the port must be 1 to 65535"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host.contains('/') {
            return Err(bad("use HOST:PORT or http://HOST:PORT"));
        }
        Ok(Self { host: host.to_owned(), port, is_encrypted })
    }

    /// The same place, where TLS is spoken.
    pub(crate) fn encrypted(self) -> Self {
        Self { is_encrypted: true, ..self }
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.is_encrypted { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }

    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Whether others may read what is sent there.
    pub(crate) fn is_open(&self) -> bool {
        let is_here = self.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        !self.is_encrypted && !is_here && self.host != "localhost"
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

/// A client of one API.
#[derive(Debug)]
pub(crate) struct Client {
    api: Place,
    /// Where a control plane that stands by has sent us.
    leader: Mutex<Option<Place>>,
    /// Whom to trust, where TLS is spoken.
    trust: Option<Trust>,
    token: Option<String>,
    tasks: Tasks,
}

impl Client {
    /// The API that `api` names, or the one running on the state directory.
    pub(crate) fn find(api: Option<&str>, state: &Path, token: Option<String>) -> Result<Self> {
        let api = match api {
            Some(text) => Place::parse(text)?,
            None => Place::parse(read_state(state, "api")?.trim())?,
        };
        let token = match token {
            Some(token) => Some(token),
            None => read_token(state)?,
        };
        let ca = membership::authority(state);
        let trust = if api.is_encrypted && ca.exists() {
            Some(Trust::file(&ca).or_fail(Kind::Config, || "no authority is known")?)
        } else {
            None
        };
        Ok(Self::new(api, trust, token))
    }

    pub(crate) fn new(api: Place, trust: Option<Trust>, token: Option<String>) -> Self {
        Self { api, leader: Mutex::default(), trust, token, tasks: Tasks::new() }
    }

    /// The same, trusting others.
    pub(crate) fn trusting(self, trust: Trust) -> Self {
        Self { trust: Some(trust), ..self }
    }

    /// Asks and reads the whole answer of the control machine.
    pub(crate) async fn ask(&self, method: Method, path: &str) -> Result<Answer> {
        self.call(method, path, None::<&()>).await
    }

    /// Sends `body` as JSON, if any, and reads the answer as JSON. What may be asked twice is, while
    /// there is no leader or no store to write to, which is over in seconds.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let body = match body {
            Some(body) => Bytes::from(serde_json::to_vec(body)?),
            None => Bytes::new(),
        };
        let deadline = Instant::now() + RIDE_OUT;
        let response = loop {
            let (passes, fail) = match self.follow(method.clone(), path, body.clone()).await {
                Ok(response) if response.status().is_success() => break response,
                Ok(response) => {
                    let (code, fail) = refusal(response).await;
                    (passes(&method, &code), fail)
                }
                // Whom we were sent to may be gone, and another lead.
                Err(fail) => (method.is_idempotent() && self.forget_leader(), fail),
            };
            if !passes || Instant::now() >= deadline {
                return Err(fail);
            }
            tokio::time::sleep(PAUSE).await;
        };
        let text = read(response).await?;
        serde_json::from_slice(&text).or_fail(Kind::Internal, || {
            format!("the API's answer to {path} is not understood: is it another version?")
        })
    }

    /// Sends a body and returns the response once it is a success.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<Incoming>> {
        succeeded(self.try_send(method, path, body).await?).await
    }

    /// Sends bytes and returns whatever comes back; from a control plane that stands by it goes on to
    /// the leader, and so does what is sent after it.
    pub(crate) async fn follow(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let response = self.try_send(method.clone(), path, full(body.clone())).await?;
        let Some(leader) = elsewhere(&response)? else { return Ok(response) };
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = Some(leader);
        // Once: who is sent on and on has no leader to talk to.
        self.try_send(method, path, full(body)).await
    }

    /// Begins again where it was told to; whether it was sent on from there.
    fn forget_leader(&self) -> bool {
        self.leader.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    /// Sends a body and returns whatever comes back, failures of the API included.
    pub(crate) async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<Incoming>> {
        let leader = self.leader.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let place = leader.as_ref().unwrap_or(&self.api);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, place.authority())
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(body).or_fail(Kind::Config, || "a malformed request")?;
        let limit = limit(path);
        let sent = send(place, self.trust.as_ref(), request, &self.tasks);
        let sent = tokio::time::timeout(limit, sent).await.unwrap_or_else(|_elapsed| {
            let text = format!("{} does not answer within {}", place.url(), duration(limit));
            Err(Fail::unavailable(text).hint("it may be stopped, or have far too much to do"))
        });
        sent.map_err(|fail| {
            fail.hint("start Dirigent with `dirigent up`, or name its API with --server")
        })
    }
}

/// How long an answer to this may take to begin.
fn limit(path: &str) -> Duration {
    let waits = ["wait=true", "/revisions/", "/artifacts/"].iter().any(|part| path.contains(part));
    if waits { LONG_TIMEOUT } else { ANSWER_TIMEOUT }
}

/// A file that `dirigent up` writes into its state directory.
pub(crate) fn read_state(state: &Path, file: &str) -> Result<String> {
    let path = state.join(file);
    fs::read_to_string(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Fail::unavailable(format!("no Dirigent runs on {}", state.display()))
                .hint("start it with `dirigent up`")
                .hint("or name its directory with --state, or its API with --server")
        }
        _ => Fail::new(Kind::Config, error)
            .details([format!("reading {}", path.display())])
            .hint("run as the user who runs `dirigent up`, or name the API with --server"),
    })
}

/// The token of the one that runs on a state directory, if there is one.
pub(crate) fn read_token(state: &Path) -> Result<Option<String>> {
    match fs::read_to_string(state.join("token")) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Fail::new(Kind::Config, error)
            .details([format!("reading {}", state.join("token").display())])
            .hint("run as the user who runs `dirigent up`, or set DIRIGENT_TOKEN")),
    }
}

/// One request over a new connection, encrypted where the place is.
pub(crate) async fn send(
    place: &Place,
    trust: Option<&Trust>,
    request: Request<Body>,
    tasks: &Tasks,
) -> Result<Response<Incoming>> {
    let nobody = || format!("nothing answers at {}", place.url());
    let connect = TcpStream::connect((place.host.as_str(), place.port));
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect)
        .await
        .or_fail(Kind::Unavailable, nobody)?
        .or_fail(Kind::Unavailable, nobody)?;
    stream.set_nodelay(true)?;
    let stream = if place.is_encrypted {
        let usual = if trust.is_none() { Some(usual_trust()?) } else { None };
        let trust = trust.or(usual.as_ref()).ok_or_else(|| Fail::internal("nobody is trusted"))?;
        tls::connect(stream, &place.host, trust, "/control-plane/")
            .await
            .or_fail(Kind::Unavailable, || format!("{} is not trusted", place.url()))?
    } else {
        Stream::plain(stream)
    };
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .handshake(TokioIo::new(stream))
        .await
        .or_fail(Kind::Unavailable, nobody)?;
    tasks.run("connection", OnCancel::Abort, async {
        // What breaks the connection is seen by the request too.
        drop(connection.await);
    });
    let sent = sender.send_request(request).await;
    sent.or_fail(Kind::Unavailable, || format!("{} broke the connection", place.url()))
}

/// Where systems keep the authorities that everybody trusts.
const AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Whom everybody trusts on this machine.
fn usual_trust() -> Result<Trust> {
    let path = AUTHORITIES.into_iter().map(Path::new).find(|path| path.exists());
    let path = path.ok_or_else(|| {
        Fail::config("this machine has no list of authorities that are trusted")
            .hint("--ca names the file with the certificate of the authority")
    })?;
    Trust::file(path).or_fail(Kind::Config, || "no authority is known")
}

pub(crate) fn full(body: Bytes) -> Body {
    Full::new(body).map_err(|never| match never {}).boxed()
}

/// The whole body of a response.
pub(crate) async fn read(response: Response<Incoming>) -> Result<Bytes> {
    let body = tokio::time::timeout(ANSWER_TIMEOUT, response.into_body().collect()).await;
    let body = body.or_fail(Kind::Unavailable, || "the answer stopped halfway")?;
    Ok(body.or_fail(Kind::Unavailable, || "the answer was cut")?.to_bytes())
}

/// The response, once it is a success.
pub(crate) async fn succeeded(response: Response<Incoming>) -> Result<Response<Incoming>> {
    if response.status().is_success() { Ok(response) } else { Err(refused(response).await) }
}

/// Where a control plane that stands by says that the leader is.
fn elsewhere(response: &Response<Incoming>) -> Result<Option<Place>> {
    if response.status() != StatusCode::TEMPORARY_REDIRECT {
        return Ok(None);
    }
    let Some(url) = header_text(response.headers(), header::LOCATION.as_str()) else {
        return Ok(None);
    };
    // Without the path, which is the same there.
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let authority = rest.split('/').next().unwrap_or_default();
    Place::parse(&format!("{scheme}://{authority}")).map(Some)
}

/// How the API says no.
#[derive(Debug, Deserialize)]
struct Refused {
    error: RefusedBody,
}

#[derive(Debug, Deserialize)]
struct RefusedBody {
    code: String,
    message: String,
}

/// Whether a refusal with this code is of this moment: another leads, here or in etcd, in a few
/// seconds. What may have been removed is not there to be removed again.
fn passes(method: &Method, code: &str) -> bool {
    match code {
        "not_leader" | "store_unavailable" => method.is_idempotent(),
        "in_doubt" => method.is_idempotent() && method != Method::DELETE,
        _ => false,
    }
}

/// The failure that a response tells of.
pub(crate) async fn refused(response: Response<Incoming>) -> Fail {
    refusal(response).await.1
}

/// With the API's code for it, if it gives one.
async fn refusal(response: Response<Incoming>) -> (String, Fail) {
    let status = response.status();
    let text = match read(response).await {
        Ok(text) => text,
        Err(fail) => return (String::new(), fail),
    };
    let kind = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Kind::Config,
        StatusCode::TOO_MANY_REQUESTS => Kind::Unavailable,
        status if status.is_client_error() => Kind::User,
        StatusCode::INTERNAL_SERVER_ERROR => Kind::Internal,
        _ => Kind::Unavailable,
    };
    let Ok(Refused { error }) = serde_json::from_slice::<Refused>(&text) else {
        let text = String::from_utf8_lossy(&text);
        let fail = Fail::new(kind, anyhow::anyhow!("the API answered {status}: {}", text.trim()));
        return (String::new(), again(kind, fail));
    };
    let fail = Fail::new(kind, anyhow::anyhow!("{}", error.message));
    let fail = match error.code.as_str() {
        "unauthorized" | "forbidden" => fail.hint(
            "the token is in the state directory of `dirigent up`: name it with --state, or set \
             DIRIGENT_TOKEN",
        ),
        "no_authority" => {
            fail.hint("name the control plane that has the cluster's authority with --server")
        }
        "untold" => fail,
        _ => again(kind, fail),
    };
    (error.code, fail)
}

/// Says so of what passes.
fn again(kind: Kind, fail: Fail) -> Fail {
    if kind == Kind::Unavailable { fail.hint("try again in a moment") } else { fail }
}

/// Pieces of a streamed body as lines, cut at line ends.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// The lines completed by `data`.
    pub(crate) fn push(&mut self, data: &[u8]) -> Vec<Vec<u8>> {
        self.rest.extend_from_slice(data);
        let mut lines = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let mut line: Vec<u8> = self.rest.drain(..=end).collect();
            line.pop();
            if !line.is_empty() {
                lines.push(line);
            }
        }
        lines
    }
}

/// A header as text, or nothing.
pub(crate) fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Where state is kept if nobody says otherwise.
pub(crate) fn default_state(
    is_root: bool,
    env: impl Fn(&str) -> Option<std::ffi::OsString>,
) -> PathBuf {
    if is_root {
        return PathBuf::from("/var/lib/dirigent");
    }
    let set = |name| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_STATE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(std::env::temp_dir)
        .join("dirigent")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_waits_may_take_long() {
        assert_eq!(limit("/v1/functions"), ANSWER_TIMEOUT);
        assert_eq!(limit("/v1/functions/default/f?check=true&wait=false"), ANSWER_TIMEOUT);
        assert_eq!(limit("/v1/functions/default/f?check=true&wait=true"), LONG_TIMEOUT);
        assert_eq!(limit("/v1/functions/default/f/revisions/3"), LONG_TIMEOUT);
    }

    #[test]
    fn places_are_urls_or_host_and_port() {
        for text in ["127.0.0.1:9091", "http://127.0.0.1:9091", "http://127.0.0.1:9091/"] {
            assert_eq!(Place::parse(text).unwrap().authority(), "127.0.0.1:9091");
        }
        assert_eq!(Place::parse("[::1]:80").unwrap().authority(), "[::1]:80");
        let encrypted = Place::parse("https://x:1").unwrap();
        assert_eq!(encrypted.url(), "https://x:1");
        for (text, is_open) in [
            ("https://x:1", false),
            ("127.0.0.1:1", false),
            ("[::1]:1", false),
            ("localhost:1", false),
            ("http://x:1", true),
            ("10.0.0.1:1", true),
        ] {
            assert_eq!(Place::parse(text).unwrap().is_open(), is_open, "{text}");
        }
        for bad in ["", "host", "https://x", "host:port", "host:99999", ":1", "a/b:1"] {
            assert_eq!(Place::parse(bad).unwrap_err().kind(), Kind::Config, "{bad}");
        }
    }

    #[test]
    fn lines_are_cut_where_they_end() {
        let mut lines = Lines::default();
        assert!(lines.push(b"on").is_empty());
        assert_eq!(lines.push(b"e\n\ntwo\nth"), [b"one".to_vec(), b"two".to_vec()]);
        assert_eq!(lines.push(b"ree\n"), [b"three".to_vec()]);
    }

    #[test]
    fn state_is_kept_where_the_user_may_write() {
        let env = |name: &str| (name == "HOME").then(|| "/home/me".into());
        assert_eq!(default_state(true, env), Path::new("/var/lib/dirigent"));
        assert_eq!(default_state(false, env), Path::new("/home/me/.local/state/dirigent"));
        let env = |name: &str| (name == "XDG_STATE_HOME").then(|| "/state".into());
        assert_eq!(default_state(false, env), Path::new("/state/dirigent"));
    }
}
