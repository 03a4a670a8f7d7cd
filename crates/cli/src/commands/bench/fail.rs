//! `dirigent bench fail`: a part is killed under load, and started again as a supervisor would.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use dirigent_bench::{
    fail::{self, Fail as Seen, Options, Part, WARM},
    load::Progress,
    report,
    traces::processes_of,
};
use rustix::process::{Pid, Signal, kill_process};

use super::{Bar, judge, row, sweep::rate, system::System};
use crate::{
    fail::{Fail, Kind, OrFail as _, Result},
    printer::Printer,
};

#[derive(Debug, Args)]
pub(crate) struct FailArgs {
    /// What is killed
    #[arg(value_enum)]
    part: Which,
    /// Calls a second to sandboxes that run
    #[arg(long, default_value_t = 200.0, value_parser = rate)]
    rate: f64,
    /// Calls a second to functions without a sandbox
    #[arg(long, default_value_t = 10.0, value_parser = rate)]
    cold: f64,
    /// Each call sleeps for so many milliseconds
    #[arg(long, default_value_t = 20)]
    execution: u64,
    /// Seconds of the load
    #[arg(long, default_value_t = 20.0, value_parser = rate)]
    seconds: f64,
    /// Seconds from its begin to the kill
    #[arg(long, default_value_t = 5.0, value_parser = rate)]
    at: f64,
    /// Milliseconds from the kill until the part is started again; the units wait as long
    #[arg(long, default_value_t = 1000)]
    restart_after: u64,
    /// Where report.json and report.html go
    #[arg(long, default_value = "dirigent-report")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Which {
    /// The only control plane
    ControlPlane,
    /// The only data plane
    DataPlane,
    /// The worker daemon; its sandboxes run on
    Worker,
    /// The program in a sandbox that is called
    Sandbox,
}

impl From<Which> for Part {
    fn from(which: Which) -> Self {
        match which {
            Which::ControlPlane => Self::ControlPlane,
            Which::DataPlane => Self::DataPlane,
            Which::Worker => Self::Worker,
            Which::Sandbox => Self::Sandbox,
        }
    }
}

/// Of a window.
const WINDOW_MS: u64 = 100;
/// Seconds at the end of the load in which nothing may fail.
const END_S: f64 = 0.5;
/// A killed sandbox is replaced within this.
const REPLACED_WITHIN: Duration = Duration::from_secs(30);

pub(super) async fn bench(system: &mut System, args: &FailArgs, printer: Printer) -> Result {
    let options = Options {
        part: args.part.into(),
        per_second: args.rate,
        cold_per_second: args.cold,
        execution_ms: args.execution,
        seconds: args.seconds,
        kill_at: args.at,
        window_ms: WINDOW_MS,
    };
    if args.at >= args.seconds {
        let (at, seconds) = (args.at, args.seconds);
        let fail =
            Fail::config(format!("the load is over after {seconds} s, the kill after {at} s"));
        return Err(fail.hint("raise --seconds, or lower --at"));
    }
    let failed = || "the measurement failed";
    let sandboxes = fail::prepare(&*system, &options).await.or_fail(Kind::User, failed)?;
    let (target, progress) = (system.address(), Arc::new(Progress::default()));
    let restart_after = Duration::from_millis(args.restart_after);
    let kill = async {
        tokio::time::sleep(Duration::from_secs_f64(options.kill_at)).await;
        let at = Instant::now();
        match options.part {
            Part::Sandbox => replace(system, sandboxes).await?,
            part => {
                let part = part.name();
                system.kill(part).map_err(Fail::into_error)?;
                tokio::time::sleep(restart_after).await;
                system.start_again(part, printer).await.map_err(Fail::into_error)?;
            }
        }
        printer.note(&format_args!("the {} was killed and works again", options.part.name()));
        Ok((at, Instant::now()))
    };
    let seen = fail::run(target, options, progress, kill).await.or_fail(Kind::User, failed)?;
    report::write(&args.out, &seen, &seen.page())
        .or_fail(Kind::Unavailable, || "cannot write the report")?;
    print(&seen, args, printer)?;
    judge(printer, &bars(&seen))
}

fn print(seen: &Seen, args: &FailArgs, printer: Printer) -> Result {
    if printer.is_json() {
        return printer.json(seen);
    }
    let rows = seen.series.iter().flat_map(|series| {
        [("before", &series.before_ms), ("after", &series.after_ms)]
            .map(|(when, summary)| row(&format!("{} {when}", series.name), summary))
    });
    printer.table(&["CALLS, ms", "p50", "p90", "p99", "max"], rows.collect())?;
    for (kind, count) in &seen.failed {
        printer.line(&format_args!("failed: {count} {kind}"))?;
    }
    printer.line(&format_args!("back {:.0} ms after the kill", seen.back_after_ms))?;
    for series in &seen.series {
        let (name, after) = (series.name, series.as_before_after_ms);
        printer
            .line(&format_args!("{name} calls: all is as before {after:.0} ms after the kill"))?;
    }
    printer.line(&format_args!("report: {}", args.out.join("report.html").display()))
}

fn bars(seen: &Seen) -> Vec<Bar> {
    let Seen { calls, lost, explained, unexplained, .. } = seen;
    let part = seen.options.part;
    // By when they were due: of few calls the last ones are not at the end.
    let end = seen.options.seconds - seen.options.kill_at - END_S;
    let windows = seen.series.iter().flat_map(|series| &series.windows);
    let last = windows.filter(|window| window.at_s >= end);
    let at_the_end: usize = last.map(|window| window.failed).sum();
    vec![
        Bar { text: format!("{calls} calls, {lost} lost"), holds: *lost == 0 },
        Bar {
            text: format!(
                "{} failed, {unexplained} more than a {} may cost: {}",
                explained + unexplained,
                part.name(),
                part.cost()
            ),
            holds: *unexplained == 0,
        },
        Bar { text: format!("{at_the_end} failed at the end"), holds: at_the_end == 0 },
    ]
}

/// Kills the program in a sandbox that is ready, and waits until it is gone and there are as many
/// sandboxes as before it was called; there may have been more, and none is started for it then.
async fn replace(system: &System, sandboxes: usize) -> anyhow::Result<()> {
    use dirigent_bench::Cluster as _;

    let before = system.addresses(WARM).await?;
    let is_ready = |port| before.iter().any(|address| address.port() == port);
    let (pid, port) = programs(&system.state(), WARM)
        .into_iter()
        .find(|(_, port)| is_ready(*port))
        .context("no sandbox's program was found")?;
    kill_process(pid, Signal::KILL).context("cannot kill it")?;
    let begun = Instant::now();
    loop {
        let now = system.addresses(WARM).await?;
        let is_gone = now.iter().all(|address| address.port() != port);
        if is_gone && now.len() >= sandboxes {
            return Ok(());
        }
        let left = now.len();
        anyhow::ensure!(
            begun.elapsed() < REPLACED_WITHIN,
            "{left} of {sandboxes} sandboxes are ready {REPLACED_WITHIN:?} later, it is gone: {is_gone}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The processes that serve this function, each with its port: of this system, as its directory
/// shows, and as their environments say.
fn programs(state: &Path, function: &str) -> Vec<(Pid, u16)> {
    let served = |pid: i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let environment = String::from_utf8_lossy(&environment);
        let of = |name| environment.split('\0').find_map(|it| it.strip_prefix(name));
        let port = of("PORT=").filter(|_| of("K_SERVICE=") == Some(function))?.parse().ok()?;
        Some((Pid::from_raw(pid)?, port))
    };
    processes_of(state).into_iter().filter_map(served).collect()
}
