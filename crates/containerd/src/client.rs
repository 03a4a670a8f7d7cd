//! The connection: made when it is needed, made again after containerd was restarted.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

use crate::api::containerd::services::{
    containers::v1::containers_client::ContainersClient,
    content::v1::content_client::ContentClient, diff::v1::diff_client::DiffClient,
    introspection::v1::introspection_client::IntrospectionClient,
    leases::v1::leases_client::LeasesClient, namespaces::v1::namespaces_client::NamespacesClient,
    snapshots::v1::snapshots_client::SnapshotsClient, tasks::v1::tasks_client::TasksClient,
    version::v1::version_client::VersionClient,
};

/// What the clients are made of.
pub type Service = InterceptedService<Channel, Headers>;

/// What containerd sends at once at most, as its own clients allow: 16 MiB.
const MAX_MESSAGE: usize = 16 << 20;

/// How long a socket may take to accept.
const CONNECT: Duration = Duration::from_secs(5);

/// A connection to containerd in one of its namespaces. Cheap to clone; the clones share it.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    socket: PathBuf,
    headers: Headers,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// What goes with every call.
#[derive(Clone, Debug)]
pub struct Headers {
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
    deadline: Duration,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert("containerd-lease", lease.clone());
        }
        request.set_timeout(self.deadline);
        Ok(request)
    }
}

impl Client {
    /// For a socket and a namespace. Connects with the first call; to be called within a tokio
    /// runtime with I/O.
    ///
    /// # Errors
    /// If the namespace's name has characters that no header may have.
    pub fn new(socket: &Path, namespace: &str, deadline: Duration) -> Result<Self, Failure> {
        let namespace = namespace.parse().map_err(|_bad| Failure {
            kind: Kind::Refused,
            message: format!("{namespace:?} cannot be the name of a namespace of containerd"),
        })?;
        let socket = socket.to_owned();
        let place = socket.clone();
        // The authority is in no use on a Unix socket; some is demanded.
        let channel = Endpoint::from_static("http://containerd")
            .connect_timeout(CONNECT)
            .connect_with_connector_lazy(service_fn(move |_: Uri| {
                let place = place.clone();
                async move { tokio::net::UnixStream::connect(place).await.map(TokioIo::new) }
            }));
        let headers = Headers { namespace, lease: None, deadline };
        Ok(Self { channel, socket, headers })
    }

    /// Where containerd listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The same connection, with everything made on it held by a lease, so that containerd's
    /// garbage collector leaves it.
    ///
    /// # Errors
    /// If the lease's name has characters that no header may have.
    pub fn under(&self, lease: &str) -> Result<Self, Failure> {
        let lease = lease.parse().map_err(|_bad| Failure {
            kind: Kind::Refused,
            message: format!("{lease:?} cannot be the name of a lease of containerd"),
        })?;
        let mut client = self.clone();
        client.headers.lease = Some(lease);
        Ok(client)
    }

    /// The same connection, with another deadline for each call.
    #[must_use]
    pub fn within(&self, deadline: Duration) -> Self {
        let mut client = self.clone();
        client.headers.deadline = deadline;
        client
    }

    fn service(&self) -> Service {
        InterceptedService::new(self.channel.clone(), self.headers.clone())
    }

    /// Tasks: what runs.
    #[must_use]
    pub fn tasks(&self) -> TasksClient<Service> {
        TasksClient::new(self.service()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Containers: what a task is made from.
    #[must_use]
    pub fn containers(&self) -> ContainersClient<Service> {
        ContainersClient::new(self.service()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Snapshots: file systems in layers.
    #[must_use]
    pub fn snapshots(&self) -> SnapshotsClient<Service> {
        SnapshotsClient::new(self.service()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Content: bytes by their digest.
    #[must_use]
    pub fn content(&self) -> ContentClient<Service> {
        ContentClient::new(self.service()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Diff: layers made into snapshots.
    #[must_use]
    pub fn diff(&self) -> DiffClient<Service> {
        DiffClient::new(self.service())
    }

    /// Leases: what the garbage collector leaves.
    #[must_use]
    pub fn leases(&self) -> LeasesClient<Service> {
        LeasesClient::new(self.service()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Namespaces.
    #[must_use]
    pub fn namespaces(&self) -> NamespacesClient<Service> {
        NamespacesClient::new(self.service())
    }

    /// What containerd says of itself and its plugins.
    #[must_use]
    pub fn introspection(&self) -> IntrospectionClient<Service> {
        IntrospectionClient::new(self.service())
    }

    /// Which containerd answers.
    ///
    /// # Errors
    /// If none does.
    pub async fn version(&self) -> Result<String, Failure> {
        let mut version = VersionClient::new(self.service());
        let answer = version.version(()).await.map_err(|status| self.failure(&status))?;
        Ok(answer.into_inner().version)
    }

    /// What a status says, with what to do about it.
    #[must_use]
    pub fn failure(&self, status: &Status) -> Failure {
        let kind = match status.code() {
            Code::NotFound => Kind::NotFound,
            Code::AlreadyExists => Kind::Exists,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Kind::Unreachable,
            _ => Kind::Refused,
        };
        let socket = self.socket.display();
        let message = if kind == Kind::Unreachable {
            format!("containerd does not answer at {socket}: {}", said(status))
        } else {
            said(status)
        };
        Failure { kind, message }
    }
}

/// The innermost cause is what says why a socket cannot be connected to.
fn said(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}

/// Why a call failed, by what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// There is no such thing.
    NotFound,
    /// It is there already.
    Exists,
    /// containerd did not answer: whether the call was carried out is not known.
    Unreachable,
    /// It answered that it will not.
    Refused,
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What can be done about it.
    pub kind: Kind,
    /// What went wrong.
    pub message: String,
}

impl Failure {
    /// Whether there is no such thing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.kind == Kind::NotFound
    }

    /// Whether it is there already.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.kind == Kind::Exists
    }

    /// Whether containerd did not answer.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        self.kind == Kind::Unreachable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_not_there_is_named_with_the_reason() {
        let client = Client::new(Path::new("/nonexistent/sock"), "test", CONNECT).unwrap();
        let failure = client.version().await.unwrap_err();
        assert!(failure.is_unreachable());
        assert!(failure.message.contains("/nonexistent/sock"), "{failure}");
        assert!(failure.message.contains("No such file"), "{failure}");
    }

    #[tokio::test]
    async fn names_that_no_header_may_have_are_refused() {
        assert!(Client::new(Path::new("/x"), "a\nb", CONNECT).is_err());
        let client = Client::new(Path::new("/x"), "ab", CONNECT).unwrap();
        assert!(client.under("a\nb").is_err());
        client.under("ab").unwrap();
    }
}
