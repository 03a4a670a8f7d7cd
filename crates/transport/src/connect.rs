//! A connection to a control plane, and what is said of one that is refused.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use dirigent_service::{
    Clock,
    tls::{Complaint, ConnectError, Files, Stream, Trust, connect},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};
use tonic::{
    Code, Status,
    metadata::{Ascii, MetadataMap, MetadataValue},
    transport::{Channel, Endpoint},
};

use crate::{CONNECT_WITHIN, NAME, PING_EVERY, PING_WITHIN};

/// How a control plane is to know who connects.
#[derive(Clone, Debug)]
pub(super) enum Proof {
    /// By a token that all peers have, and what they say that they are called.
    Token { name: MetadataValue<Ascii>, authorization: MetadataValue<Ascii> },
    /// By a certificate; a number tells several apart that share it.
    Certificate { files: Files, number: Option<MetadataValue<Ascii>> },
}

/// What the URIs of control planes begin with, behind that of their cluster.
pub(super) const CONTROL_PLANES: &str = "/control-plane/";

impl Proof {
    /// What is said at the beginning of each stream.
    pub(super) fn introduce(&self, headers: &mut MetadataMap) {
        match self {
            Self::Token { name, authorization } => {
                headers.insert(NAME, name.clone());
                headers.insert("authorization", authorization.clone());
            }
            Self::Certificate { number: Some(number), .. } => {
                headers.insert(NAME, number.clone());
            }
            Self::Certificate { number: None, .. } => {}
        }
    }

    /// To the control plane at this address.
    pub(super) async fn connect(&self, at: SocketAddr) -> Result<(Channel, Complaint), Status> {
        let scheme = if matches!(self, Self::Token { .. }) { "http" } else { "https" };
        let unusable = |error: tonic::transport::Error| Status::invalid_argument(error.to_string());
        let endpoint = Endpoint::from_shared(format!("{scheme}://{at}")).map_err(unusable)?;
        let endpoint = endpoint
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WITHIN)
            .keep_alive_while_idle(true);
        let stream = timeout(CONNECT_WITHIN, self.dial(at)).await;
        let stream = stream.map_err(|_elapsed| Status::deadline_exceeded("it is silent"))??;
        let complaint = stream.complaint();
        let mut once = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_uri| {
            // Whoever wants another connection makes another channel.
            let stream = once.take().ok_or(io::ErrorKind::NotConnected);
            async move { Ok::<_, io::Error>(stream?) }
        });
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|error| Status::from_error(Box::new(error)))?;
        Ok((channel, complaint))
    }

    async fn dial(&self, at: SocketAddr) -> Result<Stream, Status> {
        // With its cause: whether the host refuses or is silent makes a difference.
        let broken = |error: io::Error| Status::from_error(Box::new(error));
        let Self::Certificate { files, .. } = self else {
            let stream = TcpStream::connect(at).await.map_err(broken)?;
            stream.set_nodelay(true).map_err(broken)?;
            return Ok(Stream::plain(stream));
        };
        files.certificate().valid_at(Clock::wall()).map_err(|lapse| {
            Status::unauthenticated(format!("{lapse} (`dirigent join` gets one)"))
        })?;
        let stream = TcpStream::connect(at).await.map_err(broken)?;
        stream.set_nodelay(true).map_err(broken)?;
        let trust = Trust::Files(files.clone());
        let host = at.ip().to_string();
        connect(stream, &host, &trust, CONTROL_PLANES).await.map_err(|error| match error {
            ConnectError::Io(error) => broken(error),
            ConnectError::Silent => Status::deadline_exceeded("it is silent"),
            error => {
                Status::unauthenticated(format!("it is not taken for a control plane: {error}"))
            }
        })
    }
}

/// What the other side said against our certificate counts for more than that it hung up.
pub(super) fn explained(status: Status, complaint: &Complaint) -> Status {
    complaint.get().map_or(status, |why| {
        Status::unauthenticated(format!(
            "the control plane refuses this host: {why}; compare the clocks, else `dirigent join` again"
        ))
    })
}

/// Says why no control plane can be had: once, where somebody has to do something about it.
#[derive(Clone, Debug, Default)]
pub(super) struct Grievance(Arc<Mutex<String>>);

impl Grievance {
    pub(super) fn tell(&self, at: SocketAddr, status: &Status) {
        let theirs = matches!(
            status.code(),
            Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument
        );
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if theirs && *told != status.message() {
            status.message().clone_into(&mut told);
            tracing::warn!(%at, "{}", status.message());
        } else {
            tracing::info!(%at, %status, "no control plane there");
        }
    }

    /// That a certificate was not renewed.
    pub(super) fn certificate(&self, why: &str) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *told != why {
            why.clone_into(&mut told);
            tracing::warn!(why, "the certificate was not renewed; it is tried again");
        }
    }
}
