//! The control plane's side.

use std::{pin::Pin, sync::Arc, time::Duration};

use dirigent_core::{
    Epoch,
    frame::{
        FromDataPlane, FromDataPlaneBulk, FromWorker, FromWorkerBulk, ToDataPlane, ToDataPlaneBulk,
        ToWorker, ToWorkerBulk,
    },
};
use dirigent_proto::v1::{
    self,
    control_plane_server::{ControlPlane, ControlPlaneServer},
};
use dirigent_service::{Dialer, End, OnCancel, OnError, Tasks};
use futures_util::{Stream, StreamExt as _, stream::unfold};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, oneshot, watch},
};
use tonic::{
    Request, Response, Status, Streaming,
    metadata::MetadataMap,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    CONNECT_WITHIN, EPOCH, MESSAGE_BYTES, NAME, NAME_BYTES, PING_EVERY, PING_WITHIN,
    carry::{Words, answers, hear, outgoing},
};

/// Callers that wait for this control plane to lead, at most; more are sent away. A cluster of 5,000
/// workers and 100 data planes has two calls of each.
const CALLERS: usize = 16_384;
/// How often a leader says to those who stand by that it lives.
const BEAT: Duration = Duration::from_millis(200);

/// How a control plane is reached by its peers.
#[derive(Clone, Debug)]
pub struct Doors {
    /// Workers' streams.
    pub workers: Dialer<FromWorker, ToWorker>,
    /// Their second ones.
    pub workers_bulk: Dialer<FromWorkerBulk, ToWorkerBulk>,
    /// Data planes' streams.
    pub data_planes: Dialer<FromDataPlane, ToDataPlane>,
    /// Their second ones.
    pub data_planes_bulk: Dialer<FromDataPlaneBulk, ToDataPlaneBulk>,
}

/// Whether a token opens the doors.
type Opens = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// The epoch in which this control plane leads, while it does.
pub type Leads = watch::Receiver<Option<Epoch>>;

/// Takes the connections of peers who have the token, until `tasks` end. While another control plane
/// leads they are let in and wait.
pub fn serve(listener: TcpListener, doors: Doors, leads: Leads, opens: Opens, tasks: &Tasks) {
    let shutdown = tasks.shutdown().clone();
    let callers = Arc::new(Semaphore::new(CALLERS));
    let porter = Porter { doors, leads, callers, opens, tasks: tasks.clone() };
    let service = ControlPlaneServer::new(porter).max_decoding_message_size(MESSAGE_BYTES);
    let serving = Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_WITHIN))
        .add_service(service)
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            shutdown.cancelled_owned(),
        );
    tasks.spawn("peers", OnError::StopRole, OnCancel::Abort, serving);
}

struct Porter {
    doors: Doors,
    leads: Leads,
    callers: Arc<Semaphore>,
    opens: Opens,
    tasks: Tasks,
}

type Batches<B> = Pin<Box<dyn Stream<Item = Result<B, Status>> + Send>>;

impl Porter {
    /// Who calls, if it may.
    fn admit<'a>(&self, headers: &'a MetadataMap) -> Result<&'a str, Status> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let token = text("authorization").and_then(|value| value.strip_prefix("Bearer "));
        if !token.is_some_and(|token| (self.opens)(token)) {
            return Err(Status::unauthenticated(
                "wrong token: --peer-token names the file that this control plane made",
            ));
        }
        match text(NAME) {
            Some(name) if !name.is_empty() && name.len() <= NAME_BYTES => Ok(name),
            _ => Err(Status::invalid_argument(format!(
                "{NAME} must be a name of up to {NAME_BYTES} characters"
            ))),
        }
    }

    /// Waits until this control plane leads, however long; whoever hangs up waits no more.
    async fn leading(&self) -> Result<Epoch, Status> {
        let _caller = self.callers.try_acquire().map_err(|_full| {
            Status::resource_exhausted(format!("{CALLERS} callers wait for this control plane"))
        })?;
        let mut leads = self.leads.clone();
        let leading = leads.wait_for(Option::is_some).await;
        let epoch = leading.ok().and_then(|epoch| *epoch);
        epoch.ok_or_else(|| Status::unavailable("this control plane takes nobody any more"))
    }

    async fn meet<In: Words, Out: Words<Wire: Send>>(
        &self,
        request: Request<Streaming<In>>,
        door: &Dialer<In::Frame, Out::Frame>,
    ) -> Result<Response<Batches<Out>>, Status> {
        let name = self.admit(request.metadata())?.to_owned();
        let epoch = self.leading().await?;
        let (speak, words) = oneshot::channel();
        let (answer, answers) = answers();
        let door = door.named(&name);
        self.tasks.run("peer", OnCancel::Abort, async move {
            match converse::<In, Out>(request.into_inner(), &door, speak, answer).await {
                Ok(()) => tracing::debug!(name, "a peer's stream ended"),
                Err(status) => tracing::info!(name, %status, "a peer's stream broke"),
            }
        });
        let batches: Batches<Out> = Box::pin(outgoing::<Out>(words, answers).map(Ok));
        let mut response = Response::new(batches);
        response.metadata_mut().insert(EPOCH, epoch.0.into());
        Ok(response)
    }
}

/// One conversation, which the peer begins.
async fn converse<In: Words, Out: Words<Wire: Send>>(
    mut batches: Streaming<In>,
    door: &Dialer<In::Frame, Out::Frame>,
    speak: oneshot::Sender<mpsc::Receiver<Out::Frame>>,
    answer: mpsc::Sender<Out::Frame>,
) -> Result<(), Status> {
    let Some(first) = batches.message().await? else { return Ok(()) };
    let dialled = tokio::time::timeout(CONNECT_WITHIN, door.dial()).await;
    let Ok(Ok(End { tx, rx })) = dialled else {
        return Err(Status::unavailable("this control plane takes nobody now"));
    };
    // Whoever hung up meanwhile is heard to have done so.
    drop(speak.send(rx));
    hear::<In, Out>(Some(first), batches, tx, answer).await
}

/// Beats while this control plane leads in `epoch`, then the end.
fn beats(leads: Leads, epoch: Epoch) -> impl Stream<Item = Result<v1::Beat, Status>> + Send {
    let every = tokio::time::interval(BEAT);
    unfold((leads, every), move |(leads, mut every)| async move {
        every.tick().await;
        let leads_still = *leads.borrow() == Some(epoch);
        leads_still.then(|| (Ok(v1::Beat { epoch: epoch.0 }), (leads, every)))
    })
}

#[tonic::async_trait]
impl ControlPlane for Porter {
    type WorkerStream = Batches<v1::ToWorkers>;
    type WorkerBulkStream = Batches<v1::ToWorkerBulks>;
    type DataPlaneStream = Batches<v1::ToDataPlanes>;
    type DataPlaneBulkStream = Batches<v1::ToDataPlaneBulks>;
    type LineStream = Batches<v1::Beat>;

    async fn worker(
        &self,
        request: Request<Streaming<v1::FromWorkers>>,
    ) -> Result<Response<Self::WorkerStream>, Status> {
        self.meet(request, &self.doors.workers).await
    }

    async fn worker_bulk(
        &self,
        request: Request<Streaming<v1::FromWorkerBulks>>,
    ) -> Result<Response<Self::WorkerBulkStream>, Status> {
        self.meet(request, &self.doors.workers_bulk).await
    }

    async fn data_plane(
        &self,
        request: Request<Streaming<v1::FromDataPlanes>>,
    ) -> Result<Response<Self::DataPlaneStream>, Status> {
        self.meet(request, &self.doors.data_planes).await
    }

    async fn data_plane_bulk(
        &self,
        request: Request<Streaming<v1::FromDataPlaneBulks>>,
    ) -> Result<Response<Self::DataPlaneBulkStream>, Status> {
        self.meet(request, &self.doors.data_planes_bulk).await
    }

    async fn line(
        &self,
        request: Request<v1::LineRequest>,
    ) -> Result<Response<Self::LineStream>, Status> {
        self.admit(request.metadata())?;
        let epoch = *self.leads.borrow();
        let epoch = epoch.ok_or_else(|| Status::failed_precondition("this one does not lead"))?;
        let over = self.tasks.shutdown().clone().cancelled_owned();
        Ok(Response::new(Box::pin(beats(self.leads.clone(), epoch).take_until(over))))
    }
}
