//! `trace`: speaks the protocol of the published system's sample workload, so that its load
//! generator can be pointed at Dirigent: the headers `workload`, `requested_cpu` (milliseconds),
//! `multiplier` and `function` in, a JSON object with its four keys out.
//!
//! Two deviations: the time is slept, not burned (a trace of hundreds of functions would measure
//! the machine's cores instead of the platform; `TRACE_BURN=1` burns), and a bad request
//! says what is wrong with it.

use std::{
    env, fs, io,
    time::{Duration, Instant},
};

use super::http::{Request, Responder};

#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct Reply<'a> {
    status: &'a str,
    function: &'a str,
    machine_name: &'a str,
    /// Microseconds.
    execution_time: u128,
}

pub(super) fn answer(request: &Request, responder: &mut Responder<'_>) -> io::Result<()> {
    if request.path == "/health" {
        return responder.send(200, "text/plain", b"");
    }
    let begin = Instant::now();
    let status = match request.header("workload") {
        Some("empty") => "OK - EMPTY",
        Some("trace") => {
            let number = |name| request.header(name).and_then(|text| text.parse::<u32>().ok());
            let (Some(time), Some(_multiplier)) = (number("requested_cpu"), number("multiplier"))
            else {
                let why = b"the headers requested_cpu and multiplier must be numbers\n";
                return responder.send(400, "text/plain", why);
            };
            let time = Duration::from_millis(time.into());
            if env::var_os("TRACE_BURN").is_some_and(|value| value == "1") {
                super::burn(time);
            } else {
                super::pause(time);
            }
            "OK"
        }
        _ => {
            let why = b"the header workload must be `empty` or `trace`\n";
            return responder.send(400, "text/plain", why);
        }
    };
    let machine = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let reply = Reply {
        status,
        function: request.header("function").unwrap_or_default(),
        machine_name: machine.trim(),
        execution_time: if status == "OK" { begin.elapsed().as_micros() } else { 0 },
    };
    let body = serde_json::to_vec(&reply).map_err(io::Error::other)?;
    responder.send(200, "text/plain; charset=utf-8", &body)
}
