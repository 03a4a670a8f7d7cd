//! `cargo xtask policy`: measures every policy on a trace, prints the table and the bars, and writes
//! `policy.json` and `policy.html`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use dirigent_trace::{arrivals::Arrivals, trace::Trace};
use serde::Serialize;

use super::{
    Lab, MINUTE,
    calls::{StartTime, Subject},
    contenders::{self, Contender},
    frontier::{self, Bar, Point},
    measure::Figures,
    page,
    planes::{self, Spread},
};

/// What to measure.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// A directory with invocations.csv, durations.csv and memory.csv
    #[arg(long, default_value = "../shared/traces/azure500")]
    trace: PathBuf,
    /// Minutes that are measured, as the trace numbers them, the last one left out. Those before
    /// them warm up. Parameters are tuned on 480..720 and judged on 720..960
    #[arg(long, default_value = "720..960", value_parser = minutes)]
    pub(super) minutes: (usize, usize),
    /// Minutes before those measured; all there are if it is left out
    #[arg(long)]
    pub(super) warm_up: Option<usize>,
    /// How long a start takes: a time, or `lognormal:MEDIAN,SIGMA`
    #[arg(long, default_value = "175ms")]
    start: StartTime,
    /// How calls are spread over a minute: exponential, uniform or equidistant
    #[arg(long, default_value = "exponential")]
    arrivals: Arrivals,
    /// Seed of arrivals, durations and starts
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Also the published design, one step at a time towards ours
    #[arg(long)]
    ablations: bool,
    /// Where policy.json and policy.html go
    #[arg(long, default_value = "target/policy")]
    out: PathBuf,
}

impl PolicyArgs {
    /// The defaults for a trace, with the report in a directory.
    #[must_use]
    pub fn of(trace: &Path, out: &Path) -> Self {
        Self {
            trace: trace.to_owned(),
            minutes: (720, 960),
            warm_up: None,
            start: StartTime::Fixed(Duration::from_millis(175)),
            arrivals: Arrivals::Exponential,
            seed: 1,
            ablations: false,
            out: out.to_owned(),
        }
    }
}

/// `480..720`.
fn minutes(text: &str) -> Result<(usize, usize), String> {
    let parsed = text
        .split_once("..")
        .and_then(|(from, to)| Some((from.trim().parse().ok()?, to.trim().parse().ok()?)));
    let range = parsed.filter(|(from, to): &(usize, usize)| from < to);
    range.ok_or_else(|| format!("`{text}`: want two minutes as in 720..960, the first one less"))
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Trace, window, starts, arrivals, seed.
    pub setting: String,
    /// One table each.
    pub sections: Vec<Section>,
    /// Several data planes, if they were asked for.
    pub spreads: Vec<Spread>,
    /// What must hold.
    pub bars: Vec<Bar>,
}

/// One table.
#[derive(Debug, Serialize)]
pub struct Section {
    /// What it shows.
    pub title: String,
    /// Whether it is a frontier.
    pub plotted: bool,
    /// Its rows.
    pub points: Vec<Point>,
}

/// Above the data planes.
pub const SPREADS: &str =
    "Data planes: the product's machines, 16 sandboxes, busy 80 % of the time";

/// Columns of a table.
pub const HEAD: [&str; 8] = ["policy", "cost", "by MiB", "tail", "p50", "p99", "cold", "sandboxes"];

/// A row of a table.
#[must_use]
pub fn row(point: &Point) -> [String; 8] {
    let Figures { cost, cost_by_memory, tail, slowdown_p50, slowdown_p99, cold, created, .. } =
        &point.figures;
    [
        point.name.clone(),
        format!("{cost:.3}"),
        format!("{cost_by_memory:.3}"),
        format!("{tail:.3}"),
        format!("{slowdown_p50:.3}"),
        format!("{slowdown_p99:.2}"),
        cold.to_string(),
        created.to_string(),
    ]
}

/// Measures, writes the report, and gives what to print.
///
/// # Errors
/// If the trace cannot be read or does not have these minutes, or a report cannot be written.
pub fn measure(args: &PolicyArgs) -> Result<Report> {
    let trace = Trace::read(&args.trace).with_context(|| {
        format!("cannot use the trace {}; name its directory with --trace", args.trace.display())
    })?;
    let lab = judged(&trace, args)?;
    let called: usize = lab.subjects.iter().map(|subject| subject.calls.len()).sum();
    let setting = format!(
        "{}: {} functions, {called} calls with those that warm up; minutes {}..{}, starts {:?}, \
         arrivals {:?}, seed {}",
        trace.origin,
        lab.subjects.len(),
        args.minutes.0,
        args.minutes.1,
        args.start,
        args.arrivals,
        args.seed
    );
    let measured = |lab: &Lab, contenders: Vec<Contender>| -> Result<Vec<Point>> {
        let point = |contender: Contender| {
            let figures = lab.figures(&contender)?;
            Ok(Point { name: contender.name, family: contender.family, figures })
        };
        contenders.into_iter().map(point).collect()
    };
    let points = measured(&lab, contenders::all())?;
    let mut bars = frontier::bars(&points);
    let mut spreads = Vec::new();
    let mut sections = vec![Section { title: "The frontier".to_owned(), plotted: true, points }];
    if args.ablations {
        let title = "The published design and ours, one step at a time".to_owned();
        let points = measured(&lab, contenders::ablations())?;
        sections.push(Section { title, plotted: false, points });
        spreads = planes::measure(&planes::SERVICES, planes::CALLS, args.seed)?;
        bars.extend(spreads.iter().filter(|spread| spread.is_judged()).map(Spread::bar));
    }
    if let Some(lab) = published(&trace, args.seed) {
        let mut contenders = contenders::all();
        contenders.extend([Contender::machines(), Contender::learned()]);
        let points = measured(&lab, contenders)?;
        let named = |name: &str| points.iter().find(|point| point.name == name);
        if let (Some(ours), Some(fixed)) =
            (named(&Contender::ours(contenders::PRICE).name), named(&Contender::fixed(60).name))
        {
            bars.extend(frontier::published_bars(&ours.figures, &fixed.figures));
        }
        let title = "The published setting: starts of 175 ms, equidistant calls, 30 minutes of \
                     which the first 10 warm up"
            .to_owned();
        sections.push(Section { title, plotted: true, points });
    }
    let report = Report { setting, sections, spreads, bars };
    write(&args.out, &report)?;
    Ok(report)
}

/// The trace as the arguments want it.
fn judged(trace: &Trace, args: &PolicyArgs) -> Result<Lab> {
    let (from, to) = args.minutes;
    let (first, last) = (trace.first_minute, trace.first_minute + trace.minutes());
    ensure!(
        first <= from && to <= last,
        "the trace has the minutes {first}..{last}, not {from}..{to}; choose others with --minutes"
    );
    let (from, to) = (from - first, to - first);
    let mut subjects = Subject::all(trace, to, args.arrivals, args.seed);
    let begin = args.warm_up.map_or(0, |minutes| from.saturating_sub(minutes));
    for subject in &mut subjects {
        subject.calls.retain(|call| call.at >= begin as u64 * MINUTE);
    }
    let window = (from as u64 * MINUTE, to as u64 * MINUTE);
    Ok(Lab { subjects, start: args.start, seed: args.seed, window })
}

/// The setting in which the artifact was published, if the trace is long enough.
fn published(trace: &Trace, seed: u64) -> Option<Lab> {
    (trace.minutes() >= 30).then(|| Lab {
        subjects: Subject::all(trace, 30, Arrivals::Equidistant, seed),
        start: StartTime::Fixed(Duration::from_millis(175)),
        seed,
        window: (10 * MINUTE, 30 * MINUTE),
    })
}

fn write(directory: &Path, report: &Report) -> Result<()> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let json = serde_json::to_string_pretty(report).context("a report is plain data")?;
    for (name, text) in [("policy.json", json), ("policy.html", page::whole(report))] {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The report as text; whether every bar holds.
#[must_use]
pub fn text(report: &Report, args: &PolicyArgs) -> (String, bool) {
    let mut lines = vec![report.setting.clone()];
    for section in &report.sections {
        lines.push(String::new());
        lines.push(section.title.clone());
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        table.set_header(HEAD);
        table.add_rows(section.points.iter().map(row));
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
        lines.extend(table.to_string().lines().map(|line| line.trim_end().to_owned()));
    }
    if !report.spreads.is_empty() {
        lines.push(String::new());
        lines.push(SPREADS.to_owned());
        lines.extend(report.spreads.iter().map(|spread| format!("  {}", spread.bar().text)));
    }
    lines.push(String::new());
    for Bar { text, holds } in &report.bars {
        lines.push(format!("{}  {text}", if *holds { "ok  " } else { "MISS" }));
    }
    let holding = report.bars.iter().filter(|bar| bar.holds).count();
    lines.push(format!("report: {}", args.out.join("policy.html").display()));
    lines.push(format!("{holding} of {} bars hold", report.bars.len()));
    (lines.join("\n"), holding == report.bars.len())
}
