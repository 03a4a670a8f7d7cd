//! `hello`: answers with a greeting and who answered, and prints one line for each call, with how
//! many others go on. The query bends the answer for tests: `sleep_ms`, `status`, `bytes`,
//! `stream_ms`, `echo=1`, `exit`.

use std::{
    env, io,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use super::http::{Request, Responder};

/// How often a streamed answer gets another line.
const STREAM_STEP: Duration = Duration::from_millis(100);

/// Calls that are being answered.
static GOING_ON: AtomicUsize = AtomicUsize::new(0);

/// One of them, until it is dropped.
struct GoingOn;

impl Drop for GoingOn {
    fn drop(&mut self) {
        GOING_ON.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) fn answer(request: &Request, responder: &mut Responder<'_>) -> io::Result<()> {
    let others = GOING_ON.fetch_add(1, Ordering::Relaxed);
    let mine = GoingOn;
    let id = request.header("x-request-id").unwrap_or("none");
    let beside = if others > 0 { format!(", beside {others}") } else { String::new() };
    super::say(&format!("{} {} request {id}{beside}", request.method, request.path));
    if let Some(code) = request.number("exit") {
        exit(code);
    }
    if let Some(time) = request.number("sleep_ms") {
        super::pause(Duration::from_millis(time));
    }
    let status =
        request.number("status").and_then(|status| u16::try_from(status).ok()).unwrap_or(200);
    if let Some(time) = request.number("stream_ms") {
        return stream(status, Duration::from_millis(time), responder);
    }
    // Before the answer: whoever has it may send the next call, which is beside nobody then.
    drop(mine);
    if request.number("echo").is_some() {
        return responder.send(status, "application/octet-stream", &request.body);
    }
    if let Some(count) = request.number("bytes") {
        let count = usize::try_from(count.min(64 << 20)).unwrap_or_default();
        return responder.send(status, "application/octet-stream", &vec![b'x'; count]);
    }
    let revision = env::var("K_REVISION").unwrap_or_else(|_absent| "none".to_owned());
    let text = format!(
        "Hello from Dirigent!\nrequest {id}\nrevision {revision}\nprocess {}\n",
        std::process::id(),
    );
    responder.send(status, "text/plain; charset=utf-8", text.as_bytes())
}

/// A line at once and then one in each step until the time is over.
fn stream(status: u16, time: Duration, responder: &mut Responder<'_>) -> io::Result<()> {
    let begin = Instant::now();
    responder.begin(status, "text/plain; charset=utf-8")?;
    let mut line = 0;
    loop {
        line += 1;
        responder.piece(format!("line {line}\n").as_bytes())?;
        let left = time.saturating_sub(begin.elapsed());
        if left.is_zero() {
            responder.piece(b"end\n")?;
            return responder.end();
        }
        super::pause(left.min(STREAM_STEP));
    }
}

#[expect(clippy::exit, reason = "a caller asked this function to crash")]
fn exit(code: u64) {
    std::process::exit(i32::try_from(code).unwrap_or(1));
}
