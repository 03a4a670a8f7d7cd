//! The side of workers and data planes.

use std::{net::SocketAddr, sync::Arc};

use dirigent_core::{
    Epoch,
    frame::{
        FromDataPlane, FromDataPlaneBulk, FromWorker, FromWorkerBulk, ToDataPlane, ToDataPlaneBulk,
        ToWorker, ToWorkerBulk,
    },
};
use dirigent_proto::{
    Batch,
    v1::{self, control_plane_client::ControlPlaneClient},
};
use dirigent_service::{
    Dialer, End, OnCancel, Tasks, acceptor,
    tls::{Complaint, Files},
};
use futures_util::Stream;
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status, Streaming, transport::Channel};

use crate::{
    EPOCH, MESSAGE_BYTES, NAME_BYTES,
    carry::{Words, answers, hear, outgoing},
    connect::{Proof, explained},
    link::{Order, keep, orders},
};

/// Why a control plane cannot be reached, whatever it does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReachError {
    /// There is nobody to call.
    #[error("no address of a control plane is given")]
    Nowhere,
    /// It is no name.
    #[error("the name must have 1 to {NAME_BYTES} printable ASCII characters")]
    Name,
    /// It is no token.
    #[error("the token's file does not hold a token")]
    Token,
}

/// How to reach a control plane, and as whom.
#[derive(Clone, Debug)]
pub struct Reach {
    addresses: Arc<[SocketAddr]>,
    name: Arc<str>,
    proof: Proof,
}

impl Reach {
    /// By the addresses of several, of which one leads; with a token, not encrypted.
    ///
    /// # Errors
    /// If it can never work.
    pub fn new(addresses: Vec<SocketAddr>, name: &str, token: &str) -> Result<Self, ReachError> {
        if addresses.is_empty() {
            return Err(ReachError::Nowhere);
        }
        if name.is_empty() || name.len() > NAME_BYTES {
            return Err(ReachError::Name);
        }
        if token.is_empty() {
            return Err(ReachError::Token);
        }
        let proof = Proof::Token {
            name: name.parse().map_err(|_error| ReachError::Name)?,
            authorization: format!("Bearer {token}").parse().map_err(|_error| ReachError::Token)?,
        };
        Ok(Self { addresses: addresses.into(), name: name.into(), proof })
    }

    /// As whom the certificate in `files` names, encrypted; `number` tells several apart that share
    /// the certificate.
    ///
    /// # Errors
    /// If there is nobody to call.
    pub fn certified(
        addresses: Vec<SocketAddr>,
        files: Files,
        number: Option<u32>,
    ) -> Result<Self, ReachError> {
        if addresses.is_empty() {
            return Err(ReachError::Nowhere);
        }
        let name = files.certificate().uri.unwrap_or_default().into();
        let proof = Proof::Certificate { files, number: number.map(Into::into) };
        Ok(Self { addresses: addresses.into(), name, proof })
    }

    /// As a worker: the first connection, and the second one, which goes where the first one went.
    #[must_use]
    pub fn worker(
        &self,
        tasks: &Tasks,
    ) -> (Dialer<FromWorker, ToWorker>, Dialer<FromWorkerBulk, ToWorkerBulk>) {
        self.links::<WorkerStream, WorkerBulk>(tasks)
    }

    /// As a data plane, as [`Self::worker`].
    #[must_use]
    pub fn data_plane(
        &self,
        tasks: &Tasks,
    ) -> (Dialer<FromDataPlane, ToDataPlane>, Dialer<FromDataPlaneBulk, ToDataPlaneBulk>) {
        self.links::<DataPlaneStream, DataPlaneBulk>(tasks)
    }

    fn links<First: Method, Second: Method>(&self, tasks: &Tasks) -> (Line<First>, Line<Second>) {
        let (first, second) = orders();
        (self.link::<First>(first, tasks), self.link::<Second>(second, tasks))
    }

    fn link<M: Method>(&self, order: Order, tasks: &Tasks) -> Line<M> {
        let (dialer, dialled) = acceptor::<Heard<M>, Said<M>>(&self.name);
        let keeping = keep::<M>(self.clone(), order, dialled);
        tasks.run("link to the control plane", OnCancel::Abort, keeping);
        dialer
    }

    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// By certificate, the files with it.
    pub(crate) fn files(&self) -> Option<&Files> {
        match &self.proof {
            Proof::Token { .. } => None,
            Proof::Certificate { files, .. } => Some(files),
        }
    }

    /// A connection, which costs the other side nothing, and what it says against us.
    pub(crate) async fn connect(
        &self,
        at: SocketAddr,
    ) -> Result<(ControlPlaneClient<Channel>, Complaint), Status> {
        let (channel, complaint) = self.proof.connect(at).await?;
        let client = ControlPlaneClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
        Ok((client, complaint))
    }

    /// As `value`, from whom our proof says.
    pub(crate) fn request<T>(&self, value: T) -> Request<T> {
        let mut request = Request::new(value);
        self.proof.introduce(request.metadata_mut());
        request
    }

    /// Connects and asks to be let in, which is answered when that control plane leads. Until then
    /// the connection is idle, and whoever dies is noticed by pings.
    pub(crate) async fn call<M: Method>(&self, at: SocketAddr) -> Result<Open<M>, Status> {
        let (mut client, complaint) = self.connect(at).await?;
        let (speak, words) = oneshot::channel();
        let (answer, answers) = answers();
        let request = self.request(outgoing::<M::Out>(words, answers));
        let response = M::call(&mut client, request).await;
        let response = response.map_err(|status| explained(status, &complaint))?;
        let epoch = response.metadata().get(EPOCH).and_then(|value| value.to_str().ok());
        let epoch = epoch.and_then(|value| value.parse().ok()).map(Epoch).unwrap_or_default();
        Ok(Open { epoch, speak, answer, heard: response.into_inner() })
    }
}

/// A call that a leader has taken, and on which nothing is said yet.
pub(crate) struct Open<M: Method> {
    /// The leader's term.
    pub(crate) epoch: Epoch,
    speak: oneshot::Sender<mpsc::Receiver<Said<M>>>,
    answer: mpsc::Sender<Said<M>>,
    heard: Streaming<M::In>,
}

impl<M: Method> Open<M> {
    /// One conversation from its first word to its end.
    pub(crate) async fn carry(self, end: End<Heard<M>, Said<M>>) -> Result<(), Status> {
        let Self { speak, answer, heard, .. } = self;
        // Whoever hung up meanwhile is heard to have done so.
        drop(speak.send(end.rx));
        hear::<M::In, M::Out>(None, heard, end.tx, answer).await
    }
}

pub(crate) type Said<M> = <<M as Method>::Out as Batch>::Frame;
pub(crate) type Heard<M> = <<M as Method>::In as Batch>::Frame;

type Line<M> = Dialer<Said<M>, Heard<M>>;

/// A method of the service: what is said and heard by it.
pub(crate) trait Method: 'static {
    type Out: Words<Wire: Send>;
    type In: Words;

    fn call(
        client: &mut ControlPlaneClient<Channel>,
        request: Request<impl Stream<Item = Self::Out> + Send + 'static>,
    ) -> impl Future<Output = Result<Response<Streaming<Self::In>>, Status>> + Send;
}

macro_rules! method {
    ($name:ident, $out:ident, $in:ident, $call:ident) => {
        struct $name;

        impl Method for $name {
            type Out = v1::$out;
            type In = v1::$in;

            async fn call(
                client: &mut ControlPlaneClient<Channel>,
                request: Request<impl Stream<Item = v1::$out> + Send + 'static>,
            ) -> Result<Response<Streaming<v1::$in>>, Status> {
                client.$call(request).await
            }
        }
    };
}

method!(WorkerStream, FromWorkers, ToWorkers, worker);
method!(WorkerBulk, FromWorkerBulks, ToWorkerBulks, worker_bulk);
method!(DataPlaneStream, FromDataPlanes, ToDataPlanes, data_plane);
method!(DataPlaneBulk, FromDataPlaneBulks, ToDataPlaneBulks, data_plane_bulk);
