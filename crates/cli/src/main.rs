//! The binary `dirigent`: the user's verbs and every role.
//!
//! Two arguments are dispatched before anything is set up, because their processes are started
//! often or must stay small: `example` (a built-in function) and `keeper` (the parent of a
//! worker's sandboxes).

mod apart;
mod args;
mod client;
mod commands;
mod config;
mod context;
mod detect;
mod example;
mod fail;
mod format;
mod manifest;
mod printer;
mod project;
#[cfg(test)]
mod reference;
mod roles;
mod service_manager;
mod signals;
mod up;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{args::Cli, printer::Printer};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let first = args.next();
    if first.as_deref().is_some_and(|first| first == "example") {
        let rest: Vec<String> = args.map(|arg| arg.to_string_lossy().into_owned()).collect();
        return example::main(&rest);
    }
    if first.as_deref().is_some_and(|first| first == "keeper") {
        return dirigent_runtime::keeper::main(args.map(|arg| arg.to_string_lossy().into_owned()));
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let printer = Printer::new(cli.json, cli.verbose);
    match commands::run(cli.command, printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fail) => fail.report(&printer),
    }
}

/// Help, the version, or what is wrong with the arguments, in clap's words.
fn usage(error: &clap::Error) -> ExitCode {
    // Nobody reading it is no reason to fail otherwise.
    drop(error.print());
    ExitCode::from(if error.use_stderr() { fail::Kind::Config.code() } else { 0 })
}
