//! The control plane's side.

use std::{convert::Infallible, pin::Pin, sync::Arc, time::Duration};

use dirigent_core::{
    Epoch, Role,
    frame::{
        FromDataPlane, FromDataPlaneBulk, FromWorker, FromWorkerBulk, ToDataPlane, ToDataPlaneBulk,
        ToWorker, ToWorkerBulk,
    },
};
use dirigent_proto::v1::{
    self,
    control_plane_server::{ControlPlane, ControlPlaneServer},
};
use dirigent_service::{Dialer, End, OnCancel, OnError, Tasks, tls::incoming};
use futures_util::{Stream, StreamExt as _, stream::unfold};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, oneshot, watch},
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use crate::{
    CONNECT_WITHIN, EPOCH, MESSAGE_BYTES, PING_EVERY, PING_WITHIN,
    carry::{Words, answers, hear, outgoing},
    depot::{Depot, digest, outward},
    entrance::{Arrival, Entrance, Guest},
};

/// Callers that wait for this control plane to lead, at most; more are sent away. A cluster of 5,000
/// workers and 100 data planes has one call of each, and a second one that was made to a leader before.
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
    /// Artifacts, for other control planes.
    pub depot: Arc<dyn Depot>,
}

/// The epoch in which this control plane leads, while it does.
pub type Leads = watch::Receiver<Option<Epoch>>;

/// Takes the connections of peers to whom the entrance is open, until `tasks` end. While another
/// control plane leads they are let in and wait.
pub fn serve(listener: TcpListener, doors: Doors, leads: Leads, entrance: Entrance, tasks: &Tasks) {
    let shutdown = tasks.shutdown().clone();
    let callers = Arc::new(Semaphore::new(CALLERS));
    let files = match &entrance {
        Entrance::Token(_) => None,
        Entrance::Certificates(files, _) => Some(files.clone()),
    };
    let arrivals = unfold(incoming(listener, files, tasks), async |mut taken| {
        let stream = taken.recv().await?;
        Some((Ok::<_, Infallible>(Arrival(stream)), taken))
    });
    let porter = Porter { doors, leads, callers, entrance, tasks: tasks.clone() };
    let service = ControlPlaneServer::new(porter).max_decoding_message_size(MESSAGE_BYTES);
    let serving = Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_WITHIN))
        .add_service(service)
        .serve_with_incoming_shutdown(arrivals, shutdown.cancelled_owned());
    tasks.spawn("peers", OnError::StopRole, OnCancel::Abort, serving);
}

struct Porter {
    doors: Doors,
    leads: Leads,
    callers: Arc<Semaphore>,
    entrance: Entrance,
    tasks: Tasks,
}

type Batches<B> = Pin<Box<dyn Stream<Item = Result<B, Status>> + Send>>;

impl Porter {
    /// Who calls, if it may do what this role does.
    fn admit<T>(&self, request: &Request<T>, role: Role) -> Result<Guest, Status> {
        let guest = self.entrance.admit(request.metadata(), request.extensions(), role);
        guest.inspect_err(|status| {
            tracing::warn!(%role, why = status.message(), "a peer was refused");
        })
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
        role: Role,
        door: &Dialer<In::Frame, Out::Frame>,
    ) -> Result<Response<Batches<Out>>, Status> {
        let guest = self.admit(&request, role)?;
        let epoch = tokio::select! {
            biased;
            // Called anew it hears why.
            why = self.entrance.over(&guest) => return Err(Status::unavailable(why)),
            epoch = self.leading() => epoch?,
        };
        let (speak, words) = oneshot::channel();
        let (answer, answers) = answers();
        let (door, entrance) = (door.named(&guest.name), self.entrance.clone());
        self.tasks.run("peer", OnCancel::Abort, async move {
            let name = guest.name.as_str();
            let conversation = converse::<In, Out>(request.into_inner(), &door, speak, answer);
            tokio::select! {
                // Who may have been removed while it waited is not heard before that is known.
                biased;
                // Its end is dropped, and whoever is behind the door closes the other one.
                why = entrance.over(&guest) => tracing::info!(name, why, "a peer has to leave"),
                over = conversation => match over {
                    Ok(()) => tracing::debug!(name, "a peer's stream ended"),
                    Err(status) => tracing::info!(name, %status, "a peer's stream broke"),
                },
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
    type ReadArtifactStream = Batches<v1::ArtifactPiece>;

    async fn worker(
        &self,
        request: Request<Streaming<v1::FromWorkers>>,
    ) -> Result<Response<Self::WorkerStream>, Status> {
        self.meet(request, Role::Worker, &self.doors.workers).await
    }

    async fn worker_bulk(
        &self,
        request: Request<Streaming<v1::FromWorkerBulks>>,
    ) -> Result<Response<Self::WorkerBulkStream>, Status> {
        self.meet(request, Role::Worker, &self.doors.workers_bulk).await
    }

    async fn data_plane(
        &self,
        request: Request<Streaming<v1::FromDataPlanes>>,
    ) -> Result<Response<Self::DataPlaneStream>, Status> {
        self.meet(request, Role::DataPlane, &self.doors.data_planes).await
    }

    async fn data_plane_bulk(
        &self,
        request: Request<Streaming<v1::FromDataPlaneBulks>>,
    ) -> Result<Response<Self::DataPlaneBulkStream>, Status> {
        self.meet(request, Role::DataPlane, &self.doors.data_planes_bulk).await
    }

    async fn line(
        &self,
        request: Request<v1::LineRequest>,
    ) -> Result<Response<Self::LineStream>, Status> {
        self.admit(&request, Role::ControlPlane)?;
        let epoch = *self.leads.borrow();
        let epoch = epoch.ok_or_else(|| Status::failed_precondition("this one does not lead"))?;
        let over = self.tasks.shutdown().clone().cancelled_owned();
        Ok(Response::new(Box::pin(beats(self.leads.clone(), epoch).take_until(over))))
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::RenewResponse>, Status> {
        let (_, extensions, v1::RenewRequest { request }) = request.into_parts();
        let certificate = self.entrance.renew(&extensions, request).await;
        let certificate = certificate.inspect_err(|status| {
            tracing::warn!(why = status.message(), "a certificate was not renewed");
        })?;
        Ok(Response::new(v1::RenewResponse { certificate }))
    }

    async fn vouch(
        &self,
        request: Request<v1::VouchRequest>,
    ) -> Result<Response<v1::VouchResponse>, Status> {
        self.admit(&request, Role::Worker)?;
        self.entrance.vouch(request.into_inner()).map(Response::new)
    }

    async fn read_artifact(
        &self,
        request: Request<v1::ArtifactRequest>,
    ) -> Result<Response<Self::ReadArtifactStream>, Status> {
        self.admit(&request, Role::ControlPlane)?;
        let digest = digest(&request.get_ref().digest)?;
        let pieces = self.doors.depot.read(digest).await.map_err(Status::not_found)?;
        Ok(Response::new(Box::pin(outward(pieces))))
    }

    async fn keep_artifact(
        &self,
        request: Request<v1::KeepRequest>,
    ) -> Result<Response<v1::Kept>, Status> {
        self.admit(&request, Role::ControlPlane)?;
        let v1::KeepRequest { digest: bytes, from } = request.get_ref();
        let from = from.parse();
        let from = from.map_err(|_error| Status::invalid_argument("`from` is not HOST:PORT"))?;
        self.doors.depot.keep(digest(bytes)?, from).await.map_err(Status::unavailable)?;
        Ok(Response::new(v1::Kept {}))
    }
}
