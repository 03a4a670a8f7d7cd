//! Functions that are built into the binary, so that the first call, the benches and the tests
//! need no interpreter and no artifact: `dirigent example NAME`.
//!
//! They run before any other part of the program is set up: what counts is the time from exec to
//! listening. They print to standard output and error directly, as any function does.

mod bulk;
mod fast;
mod grpc;
mod hello;
mod http;
mod spin;
mod trace;
mod ws;

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

const NAMES: &str = "hello, spin, trace, ws, grpc, fast, bulk";

/// Runs the built-in function that the arguments name.
pub(crate) fn main(args: &[String]) -> ExitCode {
    match args.first().map(String::as_str) {
        Some("hello") => http::serve(hello::answer),
        Some("spin") => http::serve(spin::answer),
        Some("trace") => http::serve(trace::answer),
        Some("ws") => http::serve(ws::answer),
        Some("grpc") => grpc::serve(),
        Some("fast") => fast::serve(),
        Some("bulk") => bulk::serve(),
        Some("--help" | "-h") => {
            say(&format!(
                "Runs a built-in function on $PORT: dirigent example NAME, with NAME one of {NAMES}"
            ));
            ExitCode::SUCCESS
        }
        Some(other) => fail(&format!("there is no example `{other}`, only {NAMES}")),
        None => fail(&format!("which example? One of {NAMES}")),
    }
}

/// A line for the function's log. A log that nobody reads any more is no reason to stop.
fn say(line: &str) {
    drop(writeln!(io::stdout(), "{line}"));
}

fn complain(line: &str) {
    drop(writeln!(io::stderr(), "{line}"));
}

fn fail(line: &str) -> ExitCode {
    complain(line);
    ExitCode::from(2)
}

#[expect(clippy::disallowed_methods, reason = "the caller asked for a pause; threads are blocking")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Keeps a processor busy for so long.
fn burn(time: Duration) {
    let begin = Instant::now();
    let mut value = 10.0_f64;
    while begin.elapsed() < time {
        for _ in 0..1000 {
            value = std::hint::black_box(value).sqrt() + 9.0;
        }
    }
}
