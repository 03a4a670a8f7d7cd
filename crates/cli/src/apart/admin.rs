//! What a data plane that runs apart tells of itself: its metrics for Prometheus, and for whatever
//! stands before it whether it takes calls.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
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

const READY: &str = "/ready";
/// From a connection to its head.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Between two tries when the process has no descriptor left.
const BREATH: Duration = Duration::from_millis(20);

/// It listens.
pub(super) struct Admin {
    pub(super) address: SocketAddr,
    is_checked: Arc<AtomicBool>,
}

impl Admin {
    /// Whether anybody ever asked if it is ready: then something stands before it.
    pub(super) fn is_checked(&self) -> bool {
        self.is_checked.load(Relaxed)
    }
}

pub(super) async fn start(
    address: SocketAddr,
    proxy: &Arc<Running>,
    tasks: &Tasks,
) -> Result<Admin> {
    let listener =
        listen::bind(address, "--admin").await.or_fail(Kind::Unavailable, || "no metrics")?;
    let address = listener.local_addr()?;
    let is_checked = Arc::new(AtomicBool::new(false));
    let page = Page { proxy: Arc::downgrade(proxy), is_checked: Arc::clone(&is_checked) };
    tasks.run("admin", OnCancel::Abort, accept(listener, page, tasks.clone()));
    Ok(Admin { address, is_checked })
}

#[derive(Clone)]
struct Page {
    proxy: Weak<Running>,
    is_checked: Arc<AtomicBool>,
}

async fn accept(listener: TcpListener, page: Page, tasks: Tasks) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(BREATH).await;
            continue;
        };
        let page = page.clone();
        tasks.run("admin connection", OnCancel::Abort, async move {
            let service = service_fn(move |request: Request<Incoming>| {
                if request.uri().path() == READY {
                    page.is_checked.store(true, Relaxed);
                }
                let response = answer(&request, page.proxy.upgrade().as_deref());
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
        (&Method::GET, READY, Some(proxy)) if proxy.is_ready() => {
            (StatusCode::OK, "ready\n".to_owned())
        }
        (&Method::GET, READY, _) => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "/metrics, /health or /ready\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
