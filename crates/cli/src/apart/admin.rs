//! What a data plane that runs apart tells of itself: its metrics for Prometheus, and for whatever
//! stands before it whether it takes calls.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use dirigent_proxy::Running;
use dirigent_service::{OnCancel, Tasks, listen};
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::fail::{Kind, OrFail as _, Result};

/// From a connection to its head.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Between two tries when the process has no descriptor left.
const BREATH: Duration = Duration::from_millis(20);

/// Listens; where.
pub(super) async fn start(
    address: SocketAddr,
    proxy: &Arc<Running>,
    tasks: &Tasks,
) -> Result<SocketAddr> {
    let listener =
        listen::bind(address, "--admin").await.or_fail(Kind::Unavailable, || "no metrics")?;
    let address = listener.local_addr()?;
    let accepting = accept(listener, Arc::downgrade(proxy), tasks.clone());
    tasks.run("admin", OnCancel::Abort, accepting);
    Ok(address)
}

async fn accept(listener: TcpListener, proxy: Weak<Running>, tasks: Tasks) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(BREATH).await;
            continue;
        };
        let proxy = Weak::clone(&proxy);
        tasks.run("admin connection", OnCancel::Abort, async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let response = answer(&request, proxy.upgrade().as_deref());
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_WITHIN)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an admin connection broke");
            }
        });
    }
}

fn answer(request: &Request<Incoming>, proxy: Option<&Running>) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path(), proxy) {
        (&Method::GET, "/metrics", Some(proxy)) => (StatusCode::OK, proxy.metrics_page()),
        (&Method::GET, "/health", _) => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET, "/ready", Some(proxy)) if proxy.is_ready() => {
            (StatusCode::OK, "ready\n".to_owned())
        }
        (&Method::GET, "/ready", _) => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "/metrics, /health or /ready\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
