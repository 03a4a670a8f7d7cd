//! The control plane's side.

use std::{pin::Pin, sync::Arc};

use dirigent_core::frame::{
    FromDataPlane, FromDataPlaneBulk, FromWorker, FromWorkerBulk, ToDataPlane, ToDataPlaneBulk,
    ToWorker, ToWorkerBulk,
};
use dirigent_proto::v1::{
    self,
    control_plane_server::{ControlPlane, ControlPlaneServer},
};
use dirigent_service::{Dialer, End, OnCancel, OnError, Tasks};
use futures_util::{Stream, StreamExt as _};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status, Streaming,
    metadata::MetadataMap,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    CONNECT_WITHIN, MESSAGE_BYTES, NAME, NAME_BYTES, PING_EVERY, PING_WITHIN,
    carry::{Words, answers, hear, outgoing},
};

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

/// Takes the connections of peers who have the token, until `tasks` end.
pub fn serve(listener: TcpListener, doors: Doors, opens: Opens, tasks: &Tasks) {
    let shutdown = tasks.shutdown().clone();
    let service = ControlPlaneServer::new(Porter { doors, opens, tasks: tasks.clone() })
        .max_decoding_message_size(MESSAGE_BYTES);
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

    async fn meet<In: Words, Out: Words<Wire: Send>>(
        &self,
        request: Request<Streaming<In>>,
        door: &Dialer<In::Frame, Out::Frame>,
    ) -> Result<Response<Batches<Out>>, Status> {
        let name = self.admit(request.metadata())?.to_owned();
        let door = door.named(&name);
        let dialled = tokio::time::timeout(CONNECT_WITHIN, door.dial()).await;
        let Ok(Ok(End { tx, rx })) = dialled else {
            return Err(Status::unavailable("this control plane takes nobody now"));
        };
        let (answer, answers) = answers();
        self.tasks.run("peer", OnCancel::Abort, async move {
            match hear::<In, Out>(request.into_inner(), tx, answer).await {
                Ok(()) => tracing::debug!(name, "a peer's stream ended"),
                Err(status) => tracing::info!(name, %status, "a peer's stream broke"),
            }
        });
        Ok(Response::new(Box::pin(outgoing::<Out>(rx, answers).map(Ok))))
    }
}

#[tonic::async_trait]
impl ControlPlane for Porter {
    type WorkerStream = Batches<v1::ToWorkers>;
    type WorkerBulkStream = Batches<v1::ToWorkerBulks>;
    type DataPlaneStream = Batches<v1::ToDataPlanes>;
    type DataPlaneBulkStream = Batches<v1::ToDataPlaneBulks>;

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
}
