//! Asks etcd: several addresses, of which any will do, each request with a deadline, and an error
//! that says whether the request may have had an effect all the same.
//!
//! Refused: deciding what to do about such a doubt. A transaction is sent once more only where it is
//! certain that nobody took it.

use std::{
    error::Error,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, timeout, timeout_at};
use tonic::{
    Code, ConnectError, Request, Status,
    transport::{Channel, Endpoint},
};

use super::rpc::{
    RangeRequest, RangeResponse, TxnRequest, TxnResponse, kv_client::KvClient, response_op,
};

/// Until a member of etcd is connected.
const CONNECT_WITHIN: Duration = Duration::from_millis(500);
/// Until it answers. etcd itself takes up to about 1.5 s to have another leader.
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);
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
    channel: Mutex<Option<Channel>>,
}

impl Client {
    /// By these members' addresses, `http://HOST:PORT`. Nobody is connected yet.
    ///
    /// # Errors
    /// If one is no such address.
    pub(super) fn new(addresses: &[String]) -> Result<Self, String> {
        if addresses.is_empty() {
            return Err("no address of etcd is given".to_owned());
        }
        let member = |address: &String| {
            let endpoint = Endpoint::from_shared(address.clone()).ok().filter(|endpoint| {
                let uri = endpoint.uri();
                uri.scheme_str() == Some("http") && uri.host().is_some() && uri.path() == "/"
            });
            let endpoint = endpoint
                .ok_or_else(|| format!("`{address}` is not of the form http://HOST:PORT"))?;
            let endpoint = endpoint.connect_timeout(CONNECT_WITHIN).tcp_nodelay(true);
            Ok(Member { endpoint, channel: Mutex::new(None) })
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
        loop {
            let mut last = EtcdError::Unreached("it was not tried".to_owned());
            for _member in &self.members {
                let first = self.first.load(Ordering::Relaxed) % self.members.len();
                let Some(member) = self.members.get(first) else { return Err(last) };
                let until = deadline.min(Instant::now() + ANSWER_WITHIN);
                last = match member.client(until).await {
                    Err(unreached) => unreached,
                    Ok(client) => match timeout_at(until, call(client)).await {
                        Ok(Ok(answer)) => return Ok(answer),
                        Ok(Err(status)) => judge(&status),
                        // Whatever became of that connection, it is not waited for again.
                        Err(_elapsed) => {
                            member.forget();
                            EtcdError::Doubtful("it is silent".to_owned())
                        }
                    },
                };
                match &last {
                    EtcdError::Refused(_) => return Err(doubt.unwrap_or(last)),
                    EtcdError::Doubtful(_) => doubt = Some(last.clone()),
                    EtcdError::Unreached(_) => {}
                }
                self.first.store(first + 1, Ordering::Relaxed);
                let in_doubt = doubt.is_some() && again == Again::Unreached;
                if in_doubt || Instant::now() >= deadline {
                    return Err(doubt.unwrap_or(last));
                }
            }
            if timeout(deadline.duration_since(Instant::now()), tokio::time::sleep(PAUSE))
                .await
                .is_err()
            {
                return Err(doubt.unwrap_or(last));
            }
        }
    }
}

/// After which errors a request is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    Unreached,
    Doubtful,
}

impl Member {
    /// Connected: what is asked of it after that may have an effect, and not before.
    async fn client(&self, until: Instant) -> Result<KvClient<Channel>, EtcdError> {
        let kept = self.channel().clone();
        let channel = match kept {
            Some(channel) => channel,
            None => {
                let connected = timeout_at(until, self.endpoint.connect()).await;
                let silent = |_elapsed| EtcdError::Unreached("it does not connect".to_owned());
                let channel = connected
                    .map_err(silent)?
                    .map_err(|error| EtcdError::Unreached(reason(&error)))?;
                self.channel().get_or_insert(channel).clone()
            }
        };
        Ok(KvClient::new(channel).max_decoding_message_size(ANSWER_BYTES))
    }

    fn channel(&self) -> MutexGuard<'_, Option<Channel>> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self) {
        *self.channel() = None;
    }
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
            let error = Client::new(&[wrong.to_owned()]).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
        assert!(Client::new(&[]).is_err());
        assert!(Client::new(&["http://127.0.0.1:2379".to_owned()]).is_ok());
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
        let client = Client::new(&[address]).unwrap();
        let deadline = Instant::now() + Duration::from_millis(100);
        let error = client.txn(&TxnRequest::default(), deadline).await.unwrap_err();
        assert!(matches!(error, EtcdError::Unreached(_)), "{error}");
    }
}
