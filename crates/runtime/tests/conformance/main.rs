//! What every runtime does, run on each of them.
//!
//! This program is also the function that runs in the sandboxes of these tests, and the keeper of
//! the process runtime: which of them is its first argument. What cannot run on this machine is
//! counted as ignored, with the reason printed.

#![cfg(test)]

mod cases;
#[cfg(feature = "containerd")]
#[path = "../oci/daemon.rs"]
mod daemon;
mod function;
#[cfg(feature = "containerd")]
#[path = "../oci/images.rs"]
mod images;
mod subject;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use subject::Subject;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("function") => return function::main(),
        Some("keeper") => return subject::keeper(args),
        _ => {}
    }
    let mut trials = Vec::new();
    for &subject in Subject::ALL {
        let missing = subject.missing();
        if let Some(reason) = &missing {
            println!("skip: all cases on {}: {reason}", subject.name());
        }
        for case in cases::ALL {
            if !(case.applies)(subject) {
                continue;
            }
            let trial = Trial::test(format!("{}::{}", subject.name(), case.name), move || {
                case.run(subject);
                Ok(())
            });
            trials.push(trial.with_ignored_flag(missing.is_some()));
        }
    }
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    #[cfg(feature = "containerd")]
    drop(subject::SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
    conclusion.exit_code()
}
