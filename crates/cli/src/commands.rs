//! The user's verbs, a file each. They talk to the HTTP API and to nothing else.

mod bench;
mod cluster;
mod context;
mod demo;
mod deploy;
mod describe;
mod doctor;
mod export;
mod functions;
mod invoke;
mod logs;
mod peers;
mod store;
mod token;
mod top;

pub(crate) use self::{bench::BenchArgs, demo::DemoArgs};

use std::{fmt, future::Future};

use clap::CommandFactory as _;
use dirigent_core::{Duty, FunctionName, control::Answer, name::DEFAULT_NAMESPACE};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{
    apart,
    args::{ApiArgs, Cli, Command, ConfigCommand},
    config,
    fail::{Fail, Result},
    printer::Printer,
    up,
};

/// Runs a verb to its end.
pub(crate) fn run(command: Command, printer: Printer) -> Result {
    match command {
        Command::Up(args) => up::run(&args, printer),
        Command::ControlPlane(args) => apart::control_plane(&args, printer),
        Command::DataPlane(args) => apart::data_plane(&args, printer),
        Command::Worker(args) => apart::worker(&args, printer),
        Command::Config(ConfigCommand::Show { origin, up }) => config::show(&*up, origin, printer),
        Command::Cluster(command) => cluster::cluster(command, printer),
        Command::Store(command) => store::store(command, printer),
        Command::Token(command) => wait(token::token(command, printer)),
        Command::Context(command) => context::context(command, printer),
        Command::Join(args) => wait(cluster::join(&args, printer)),
        Command::Bench(args) => busy(bench::bench(args, printer)),
        Command::Demo(args) => busy(demo::demo(args, printer)),
        Command::Deploy(args) => wait(deploy::deploy(&args, printer)),
        Command::Export(args) => wait(export::export(&args, printer)),
        Command::Rollback(args) => wait(deploy::rollback(&args, printer)),
        Command::Revisions(args) => wait(describe::revisions(&args, printer)),
        Command::List(args) => wait(functions::list(&args, printer)),
        Command::Describe(args) => wait(describe::describe(&args, printer)),
        Command::Invoke(args) => wait(invoke::invoke(&args, printer)),
        Command::Logs(args) => wait(logs::logs(&args, printer)),
        Command::Rm(args) => wait(functions::remove(&args, printer)),
        Command::Top(args) => wait(top::top(&args, printer)),
        Command::Workers(args) => wait(peers::workers(&args, printer)),
        Command::DataPlanes(args) => wait(peers::data_planes(&args, printer)),
        Command::Cordon(args) => wait(peers::order(&args, Duty::Cordoned, printer)),
        Command::Uncordon(args) => wait(peers::order(&args, Duty::InUse, printer)),
        Command::Drain(args) => wait(peers::drain(&args, printer)),
        Command::Remove(args) => wait(peers::remove(&args, printer)),
        Command::Doctor(args) => doctor::doctor(&args, printer),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "dirigent", &mut script);
            printer.raw(&script)
        }
        Command::Version => {
            let version = env!("CARGO_PKG_VERSION");
            if printer.is_json() {
                printer.json(&serde_json::json!({ "version": version }))
            } else {
                printer.line(&format_args!("dirigent {version}"))
            }
        }
    }
}

/// A verb needs one thread: it waits for one answer.
fn wait(verb: impl Future<Output = Result>) -> Result {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(verb)
}

/// A load needs every thread that there is.
fn busy(verb: impl Future<Output = Result>) -> Result {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(verb)
}

/// What needs no escape in a path.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What a user has typed, as one segment of a path.
fn segment(text: &str) -> impl fmt::Display {
    utf8_percent_encode(text, IN_PATH)
}

/// A function's place in the API.
pub(crate) fn path(name: &FunctionName) -> String {
    format!("/v1/functions/{}/{}", name.namespace(), name.name())
}

/// Where a function is called, if that is known here.
fn url(api: &ApiArgs, name: &FunctionName) -> Option<String> {
    function_url(&api.functions_url().ok()?, name)
}

/// A function's URL under a data plane's.
pub(crate) fn function_url(base: &str, name: &FunctionName) -> Option<String> {
    let (_, port) = base.trim_end_matches('/').rsplit_once(':')?;
    let host = if name.namespace() == DEFAULT_NAMESPACE {
        name.name().to_owned()
    } else {
        format!("{}.{}", name.name(), name.namespace())
    };
    Some(format!("http://{host}.localhost:{port}/"))
}

/// The API answered something else than what was asked for.
fn unexpected(answer: &Answer) -> Fail {
    Fail::internal(format!("the API gave an answer to another question: {answer:?}"))
        .hint("is the API of the same version? `dirigent version` prints this one's")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_stays_one_segment_of_a_path() {
        assert_eq!(segment("rack-1_a.b~c").to_string(), "rack-1_a.b~c");
        assert_eq!(segment("w/0?x#%2F \u{e9}").to_string(), "w%2F0%3Fx%23%252F%20%C3%A9");
    }
}
