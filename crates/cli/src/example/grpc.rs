//! `grpc`: a gRPC service over HTTP/2 without TLS. `/dirigent.example.Echo/Say` takes
//! `message Text { string text = 1; }` and returns the same. The message is not decoded: the
//! frame that came is the frame that goes back, which is what an echo is.

use std::{convert::Infallible, process::ExitCode, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};

const SAY: &str = "/dirigent.example.Echo/Say";
/// gRPC's status codes used here.
const OK: u8 = 0;
const INVALID_ARGUMENT: u8 = 3;
const UNIMPLEMENTED: u8 = 12;

pub(super) fn serve() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.and_then(|runtime| {
        let listener = super::http::listener()?;
        listener.set_nonblocking(true)?;
        tokio::task::LocalSet::new().block_on(&runtime, accept(listener))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => super::fail(&format!("cannot serve: {error}")),
    }
}

async fn accept(listener: std::net::TcpListener) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let builder = hyper::server::conn::http2::Builder::new(LocalExecutor);
    let builder = Rc::new(builder);
    loop {
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                super::complain(&format!("accept: {error}"));
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        stream.set_nodelay(true)?;
        let mut builder = (*builder).clone();
        tokio::task::spawn_local(async move {
            builder.timer(TokioTimer::new());
            // The peer left: nothing else to do.
            drop(builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await);
        });
    }
}

/// Runs hyper's tasks on this thread.
#[derive(Clone, Debug)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path().to_owned();
    super::say(&format!("{} {path}", request.method()));
    let body = request.into_body().collect().await?.to_bytes();
    let (message, status) = if path != SAY {
        (Bytes::new(), UNIMPLEMENTED)
    } else if is_one_message(&body) {
        (body, OK)
    } else {
        (Bytes::new(), INVALID_ARGUMENT)
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(u16::from(status)));
    let body = Full::new(message).with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(body.boxed());
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// Whether `body` is one uncompressed message: a zero byte, its length in four, and itself.
fn is_one_message(body: &[u8]) -> bool {
    let Some((head, message)) = body.split_first_chunk::<5>() else { return false };
    let [compressed, length @ ..] = *head;
    compressed == 0 && usize::try_from(u32::from_be_bytes(length)) == Ok(message.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_uncompressed_message_is_told_from_anything_else() {
        assert!(is_one_message(b"\0\0\0\0\x02hi"));
        assert!(is_one_message(b"\0\0\0\0\0"));
        assert!(!is_one_message(b""));
        assert!(!is_one_message(b"\x01\0\0\0\x02hi"));
        assert!(!is_one_message(b"\0\0\0\0\x03hi"));
    }
}
