//! What a fake sandbox answers.
//!
//! - `GET /env`: its environment, as JSON.
//! - `GET /exit?code=N`: it exits while the call runs. `GET /kill?signal=N`: a signal ends it.
//! - `GET /log?text=T`: it writes a line.
//! - anything with a body: the body back.
//! - all else: JSON with `sandbox`, `revision`, `method`, `path`, `headers` and `running`, the
//!   invocations in it now.
//!
//! `?sleep_ms=N` or the header `x-sleep-ms: N` delays the answer, `?status=N` sets its status.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dirigent_core::worker::CreateSandbox;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, header};
use tokio::sync::mpsc;

use super::{World, sandbox::Order};

/// The inside of one sandbox.
#[derive(Debug)]
pub(super) struct Inside {
    pub(super) world: Arc<World>,
    pub(super) create: CreateSandbox,
    pub(super) running: AtomicU32,
    pub(super) orders: mpsc::Sender<Order>,
}

/// Counts an invocation out, also when its client left and its future is dropped.
struct Running<'a>(&'a Inside);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Inside {
    pub(super) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let order = &self.create.order;
        let counts = &self.world.counts;
        let before = self.running.fetch_add(1, Ordering::AcqRel);
        let running = Running(&self);
        counts.invocations.fetch_add(1, Ordering::Relaxed);
        let limit = order.spec.concurrency;
        if limit != 0 && before >= limit {
            counts.violations.fetch_add(1, Ordering::Relaxed);
        }
        let query = request.uri().query().unwrap_or("").to_owned();
        let number = |key| parameter(&query, key).and_then(|value| value.parse::<u64>().ok());
        let header =
            request.headers().get("x-sleep-ms").and_then(|v| v.to_str().ok()?.parse().ok());
        if let Some(ms) = number("sleep_ms").or(header) {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        let narrow = |n: u64| i32::try_from(n).unwrap_or(1);
        let body = match request.uri().path() {
            "/env" => json(&self.environment()),
            "/exit" => self.end(Order::Exit { code: narrow(number("code").unwrap_or(0)) }).await,
            "/kill" => {
                self.end(Order::Kill { signal: narrow(number("signal").unwrap_or(9)) }).await
            }
            "/log" => {
                let text = parameter(&query, "text").unwrap_or("").to_owned();
                self.world.log.write(order.revision.function, order.sandbox, text);
                Bytes::from_static(b"written")
            }
            _ => self.echo(request, before + 1).await,
        };
        let status =
            number("status").and_then(|n| StatusCode::from_u16(u16::try_from(n).ok()?).ok());
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status.unwrap_or(StatusCode::OK);
        let kind = header::HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        counts.answered.fetch_add(1, Ordering::Relaxed);
        drop(running);
        Ok(response)
    }

    async fn echo(&self, request: Request<Incoming>, running: u32) -> Bytes {
        let (head, body) = request.into_parts();
        // A body that breaks off has nobody left to answer.
        let body = body.collect().await.map(http_body_util::Collected::to_bytes);
        if let Ok(body) = body
            && !body.is_empty()
        {
            return body;
        }
        let headers: BTreeMap<&str, String> = head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into()))
            .collect();
        json(&serde_json::json!({
            "sandbox": self.create.order.sandbox.to_string(),
            "revision": self.create.order.revision.to_string(),
            "method": head.method.as_str(),
            "path": head.uri.path(),
            "headers": headers,
            "running": running,
        }))
    }

    /// A process that exits answers nothing: the connection breaks when the order is obeyed.
    async fn end(&self, order: Order) -> Bytes {
        if self.orders.send(order).await.is_ok() {
            std::future::pending::<()>().await;
        }
        Bytes::new()
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let CreateSandbox { order, port } = &self.create;
        let mut env = order.spec.env.clone();
        let name = order.name.name().to_owned();
        env.insert("PORT".into(), port.to_string());
        env.insert("HOST".into(), self.world.config.address.to_string());
        env.insert("K_REVISION".into(), format!("{name}-{:05}", order.revision.number));
        env.insert("K_SERVICE".into(), name.clone());
        env.insert("K_CONFIGURATION".into(), name);
        env
    }
}

fn json(value: &impl serde::Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

fn parameter<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
}
