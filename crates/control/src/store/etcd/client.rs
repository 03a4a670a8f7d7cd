//! Asks etcd: several addresses, of which any will do, each request with a deadline, and an error
//! that says whether the request may have had an effect all the same.
//!
//! Refused: deciding what to do about such a doubt. A transaction is sent once more only where it is
//! certain that nobody took it.

use std::{
    error::Error,
    io,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use dirigent_service::tls::{Complaint, ConnectError as TlsError, Foreign, Stream};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tonic::{
    Code, ConnectError, Request, Status,
    transport::{Channel, Endpoint},
};

use super::rpc::{
    RangeRequest, RangeResponse, TxnRequest, TxnResponse, kv_client::KvClient, response_op,
};

/// Until a member of etcd is connected.
const CONNECT_WITHIN: Duration = Duration::from_millis(500);
/// Until it answers. What a member has passed on to a leader that died is never answered: it is asked
/// again, by etcd's defaults up to 2 s after the death, until when a member may believe in that leader.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Bytes of an answer: a page of records.
const ANSWER_BYTES: usize = 1 << 30;
/// Between two rounds through all members that take nothing.
const PAUSE: Duration = Duration::from_millis(50);

/// Why etcd did not do as it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum EtcdError {
    /// No member could be asked: nothing has happened, and nothing will.
    #[error("no member of etcd can be reached: {0}")]
    Unreached(String),
    /// etcd says no: nothing has happened, and nothing will.
    #[error("etcd refuses: {0}")]
    Refused(String),
    /// It may or may not have happened, or may still.
    #[error("etcd did not answer: {0}")]
    Doubtful(String),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Client {
    members: Vec<Member>,
    /// The member that is asked first: the last one that answered.
    first: AtomicUsize,
}

#[derive(Debug)]
struct Member {
    endpoint: Endpoint,
    /// How it is known, and knows us, where that is to be.
    tls: Option<Foreign>,
    channel: Mutex<Option<Line>>,
    /// The last reason for which one side did not trust the other: said once.
    told: Mutex<String>,
}

/// A connection, and what the other side has against our certificate.
#[derive(Clone, Debug)]
struct Line {
    channel: Channel,
    complaint: Complaint,
}

/// One side does not trust the other, and what is to be done about it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Untrusted(String);

impl Client {
    /// By these members' addresses, `http://HOST:PORT`, or `https://` where it is said how they are
    /// known. Nobody is connected yet.
    ///
    /// # Errors
    /// If one is no such address.
    pub(super) fn new(addresses: &[String], tls: Option<&Foreign>) -> Result<Self, String> {
        if addresses.is_empty() {
            return Err("no address of etcd is given".to_owned());
        }
        let scheme = if tls.is_some() { "https" } else { "http" };
        let member = |address: &String| {
            let endpoint = Endpoint::from_shared(address.clone()).ok().filter(|endpoint| {
                let uri = endpoint.uri();
                uri.scheme_str() == Some(scheme) && uri.host().is_some() && uri.path() == "/"
            });
            let endpoint = endpoint
                .ok_or_else(|| format!("`{address}` is not of the form {scheme}://HOST:PORT"))?;
            let endpoint = endpoint.connect_timeout(CONNECT_WITHIN).tcp_nodelay(true);
            let (tls, channel, told) = (tls.cloned(), Mutex::default(), Mutex::default());
            Ok(Member { endpoint, tls, channel, told })
        };
        let members = addresses.iter().map(member).collect::<Result<_, String>>()?;
        Ok(Self { members, first: AtomicUsize::new(0) })
    }

    /// A transaction, sent until a member takes it, at most until `deadline`.
    pub(super) async fn txn(
        &self,
        request: &TxnRequest,
        deadline: Instant,
    ) -> Result<Answered, EtcdError> {
        self.send(request, deadline, Again::Unreached).await
    }

    /// As [`Self::txn`], for one that changes nothing, or does the same when it is done twice.
    pub(super) async fn repeatable(
        &self,
        request: &TxnRequest,
        deadline: Instant,
    ) -> Result<Answered, EtcdError> {
        self.send(request, deadline, Again::Doubtful).await
    }

    async fn send(
        &self,
        request: &TxnRequest,
        deadline: Instant,
        again: Again,
    ) -> Result<Answered, EtcdError> {
        let call = |mut client: KvClient<Channel>| {
            let request = Request::new(request.clone());
            async move { client.txn(request).await.map(tonic::Response::into_inner) }
        };
        self.ask(deadline, again, call).await.map(Answered)
    }

    /// Keys and values.
    pub(super) async fn range(
        &self,
        request: &RangeRequest,
        deadline: Instant,
    ) -> Result<RangeResponse, EtcdError> {
        let call = |mut client: KvClient<Channel>| {
            let request = Request::new(request.clone());
            async move { client.range(request).await.map(tonic::Response::into_inner) }
        };
        self.ask(deadline, Again::Doubtful, call).await
    }

    async fn ask<T, F: Future<Output = Result<T, Status>>>(
        &self,
        deadline: Instant,
        again: Again,
        call: impl Fn(KvClient<Channel>) -> F,
    ) -> Result<T, EtcdError> {
        // Once an attempt may have had an effect, the whole may have, however the next ones went.
        let mut doubt = None;
        let mut last = None;
        loop {
            for _member in &self.members {
                let first = self.first.load(Ordering::Relaxed) % self.members.len();
                let Some(member) = self.members.get(first) else { break };
                let until = deadline.min(Instant::now() + ANSWER_WITHIN);
                let error = match member.client(until).await {
                    Err(unreached) => unreached,
                    Ok((client, complaint)) => match timeout_at(until, call(client)).await {
                        Ok(Ok(answer)) => return Ok(answer),
                        Ok(Err(status)) => match complaint.get() {
                            // It shut us out before it heard anything.
                            Some(why) => member.shut_out(why),
                            None => member.judged(&status),
                        },
                        // Whatever became of that connection, it is not waited for again.
                        Err(_elapsed) => {
                            member.forget();
                            EtcdError::Doubtful("it is silent".to_owned())
                        }
                    },
                };
                match &error {
                    EtcdError::Refused(_) => return Err(doubt.unwrap_or(error)),
                    EtcdError::Doubtful(_) => doubt = Some(error.clone()),
                    EtcdError::Unreached(_) => {}
                }
                self.first.store(first + 1, Ordering::Relaxed);
                let in_doubt = doubt.is_some() && again == Again::Unreached;
                let is_late = Instant::now() >= deadline;
                // An attempt that was cut short says less than the one before.
                if last.is_none() || !is_late {
                    last = Some(error);
                }
                if in_doubt || is_late {
                    return Err(given_up(doubt, last));
                }
            }
            if timeout(deadline.duration_since(Instant::now()), tokio::time::sleep(PAUSE))
                .await
                .is_err()
            {
                return Err(given_up(doubt, last));
            }
        }
    }
}

/// What there is to say in the end.
fn given_up(doubt: Option<EtcdError>, last: Option<EtcdError>) -> EtcdError {
    let untried = || EtcdError::Unreached("it was not tried".to_owned());
    doubt.or(last).unwrap_or_else(untried)
}

/// After which errors a request is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    Unreached,
    Doubtful,
}

impl Member {
    /// Connected: what is asked of it after that may have an effect, and not before.
    async fn client(&self, until: Instant) -> Result<(KvClient<Channel>, Complaint), EtcdError> {
        let kept = self.channel().clone();
        let Line { channel, complaint } = match kept {
            Some(line) => line,
            None => {
                let connected = timeout_at(until, self.connect()).await;
                let silent = |_elapsed| EtcdError::Unreached("it does not connect".to_owned());
                let line = connected.map_err(silent)??;
                self.channel().get_or_insert(line).clone()
            }
        };
        let client = KvClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
        Ok((client, complaint))
    }

    async fn connect(&self) -> Result<Line, EtcdError> {
        let Some(tls) = &self.tls else {
            let channel = self.endpoint.connect().await;
            let channel = channel.map_err(|error| EtcdError::Unreached(reason(&error)))?;
            return Ok(Line { channel, complaint: Complaint::default() });
        };
        let stream = dial(self.endpoint.uri(), tls).await.map_err(|error| {
            if error.is::<Untrusted>() {
                self.tell(&error.to_string());
            }
            EtcdError::Unreached(reason(&*error))
        })?;
        let complaint = stream.complaint();
        let mut once = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_uri| {
            // One that broke is dialled anew from here, where it is known why it was.
            let stream = once.take().ok_or(io::ErrorKind::NotConnected);
            async move { Ok::<_, io::Error>(stream?) }
        });
        let channel = self.endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|error| EtcdError::Unreached(reason(&error)))?;
        Ok(Line { channel, complaint })
    }

    /// What an error means for the request; a connection that is no more is forgotten.
    fn judged(&self, status: &Status) -> EtcdError {
        let error = judge(status);
        if self.tls.is_some() && matches!(error, EtcdError::Unreached(_)) {
            self.forget();
        }
        error
    }

    /// What is to be done when it does not want to know us.
    fn shut_out(&self, why: &str) -> EtcdError {
        self.forget();
        let what = refusal(self.tls.as_ref(), why);
        self.tell(&what);
        EtcdError::Unreached(what)
    }

    /// Says once what somebody has to do something about.
    fn tell(&self, what: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if *told != what {
            what.clone_into(&mut told);
            tracing::warn!(etcd = %self.endpoint.uri(), "{what}");
        }
    }

    fn channel(&self) -> MutexGuard<'_, Option<Line>> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self) {
        *self.channel() = None;
    }
}

/// What is to be done where a member does not let us in.
fn refusal(tls: Option<&Foreign>, why: &str) -> String {
    match tls.and_then(Foreign::certificate) {
        None => format!(
            "it refuses this control plane: {why}; name a certificate by its authority with \
             --etcd-cert, and its key with --etcd-key"
        ),
        Some(path) => format!(
            "it refuses the certificate in {}: {why}; have it made by the authority that etcd knows \
             (its --trusted-ca-file), and compare the clocks",
            path.display()
        ),
    }
}

/// A connection to the member there, once both sides have shown who they are, as far as is shown.
async fn dial(uri: &Uri, tls: &Foreign) -> Result<Stream, Box<dyn Error + Send + Sync>> {
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(443);
    let connected = timeout(CONNECT_WITHIN, TcpStream::connect(format!("{host}:{port}"))).await;
    let stream = connected.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    let authority = tls.authority().display();
    tls.connect(stream, host, b"h2").await.map_err(|error| {
        let what = match error {
            // Not a matter of trust yet: a member that ends does so too.
            TlsError::Io(error) => {
                let what = format!(
                    "it hung up instead of saying who it is ({error}): does it live, and is it to be \
                     met by http://?"
                );
                return io::Error::new(error.kind(), what).into();
            }
            error @ TlsError::Silent => return error.into(),
            TlsError::Stranger => format!(
                "its certificate is not by the authority in {authority}: --etcd-ca is to name that of \
                 who signed it"
            ),
            TlsError::Other(why) => format!(
                "its certificate is not that of `{host}` ({why}): have --etcd name it as its \
                 certificate does"
            ),
            TlsError::Protocol(why) => format!(
                "it does not speak TLS as expected ({why}): is it to be met by http://, or by an \
                 older version than TLS 1.3?"
            ),
            TlsError::Refused(why) => refusal(Some(tls), &why),
            TlsError::Files(error) => reasons(&error),
            error @ (TlsError::Clock(_) | TlsError::Own(_)) => reasons(&error),
        };
        Untrusted(what).into()
    })
}

/// An error with all its causes.
fn reasons(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What an error means for the request.
fn judge(status: &Status) -> EtcdError {
    let mut cause: Option<&dyn Error> = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return EtcdError::Unreached(reason(error));
        }
        cause = error.source();
    }
    let message = status.message().to_owned();
    match status.code() {
        // Too large, too many operations, no space, no right: it was looked at and not taken.
        Code::InvalidArgument
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => EtcdError::Refused(message),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => EtcdError::Doubtful(message),
    }
}

/// The innermost cause says most.
fn reason(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// What a transaction came to.
#[derive(Debug)]
pub(super) struct Answered(TxnResponse);

impl Answered {
    /// Whether its comparisons held.
    pub(super) const fn succeeded(&self) -> bool {
        self.0.succeeded
    }

    /// The key space's revision when it was carried out; its own if it changed something.
    pub(super) fn revision(&self) -> u64 {
        let revision = self.0.header.as_ref().map_or(0, |header| header.revision);
        u64::try_from(revision).unwrap_or_default()
    }

    /// What the ranges in it found, in their order.
    pub(super) fn ranges(self) -> impl Iterator<Item = RangeResponse> {
        self.0.responses.into_iter().filter_map(|response| match response.response {
            Some(response_op::Response::ResponseRange(range)) => Some(range),
            _ => None,
        })
    }

    /// By how many its puts and deletions under `prefix` changed the number of keys there. The puts
    /// must have asked for the values before.
    pub(super) fn growth(&self, requests: &TxnRequest, prefix: &[u8]) -> i64 {
        use super::rpc::request_op::Request;
        let pairs = requests.success.iter().zip(&self.0.responses);
        pairs
            .map(|(request, response)| match (&request.request, &response.response) {
                (
                    Some(Request::RequestPut(put)),
                    Some(response_op::Response::ResponsePut(response)),
                ) if put.key.starts_with(prefix) => i64::from(response.prev_kv.is_none()),
                (
                    Some(Request::RequestDeleteRange(delete)),
                    Some(response_op::Response::ResponseDeleteRange(response)),
                ) if delete.key.starts_with(prefix) => -response.deleted,
                _ => 0,
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_can_never_work_is_told() {
        for wrong in ["127.0.0.1:2379", "https://127.0.0.1:2379", "http://h:1/path", "http://"] {
            let error = Client::new(&[wrong.to_owned()], None).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
        assert!(Client::new(&[], None).is_err());
        assert!(Client::new(&["http://127.0.0.1:2379".to_owned()], None).is_ok());
    }

    #[test]
    fn what_etcd_looked_at_and_did_not_take_is_no_doubt() {
        let refused = judge(&Status::invalid_argument("etcdserver: request is too large"));
        assert!(matches!(refused, EtcdError::Refused(_)), "{refused}");
        let doubtful = judge(&Status::unavailable("etcdserver: request timed out"));
        assert!(matches!(doubtful, EtcdError::Doubtful(_)), "{doubtful}");
    }

    #[tokio::test]
    async fn where_nobody_listens_nothing_has_happened() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let client = Client::new(&[address], None).unwrap();
        let deadline = Instant::now() + Duration::from_millis(100);
        let error = client.txn(&TxnRequest::default(), deadline).await.unwrap_err();
        assert!(matches!(error, EtcdError::Unreached(_)), "{error}");
    }
}
