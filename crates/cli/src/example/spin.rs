//! `spin`: burns a processor for `ms`, or sleeps for `sleep_ms`, and says how long it took. The
//! function of the benches: nothing else happens here.

use std::{
    io,
    time::{Duration, Instant},
};

use super::http::{Request, Responder};

pub(super) fn answer(request: &Request, responder: &mut Responder<'_>) -> io::Result<()> {
    let begin = Instant::now();
    if let Some(time) = request.number("ms") {
        super::burn(Duration::from_millis(time));
    }
    if let Some(time) = request.number("sleep_ms") {
        super::pause(Duration::from_millis(time));
    }
    let text = format!("{}\n", begin.elapsed().as_micros());
    responder.send(200, "text/plain", text.as_bytes())
}
