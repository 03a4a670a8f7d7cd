//! What a run gave, kept as a file, and how it compares with another.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::run;

const DIRECTORY: &str = "bench/results";

/// Which way a figure gets worse, and by how much it may.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Better {
    /// It may grow by this part of the last one.
    Lower(f64),
    /// It may shrink by this part of the last one.
    Higher(f64),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    pub(super) value: f64,
    pub(super) better: Better,
}

#[derive(Clone, Debug)]
pub(super) struct Results {
    pub(super) machine: BTreeMap<String, String>,
    commit: String,
    pub(super) figures: BTreeMap<String, Figure>,
    /// What was not measured, and why.
    pub(super) skipped: Vec<String>,
}

/// A figure in two runs.
#[derive(Clone, Debug)]
pub(super) struct Change {
    name: String,
    last: f64,
    now: f64,
    better: Better,
}

impl Change {
    /// Of the last one.
    fn ratio(&self) -> f64 {
        if self.last > 0.0 { self.now / self.last } else { 1.0 }
    }

    pub(super) fn is_regression(&self) -> bool {
        match self.better {
            Better::Lower(tolerance) => self.ratio() > 1.0 + tolerance,
            Better::Higher(tolerance) => self.ratio() < 1.0 - tolerance,
        }
    }

    pub(super) fn text(&self) -> String {
        let percent = (self.ratio() - 1.0) * 100.0;
        format!("{} {percent:+.1} % ({:.3} -> {:.3})", self.name, self.last, self.now)
    }
}

impl Results {
    pub(super) fn begin() -> Result<Self> {
        let mut commit = run::output("git", &["rev-parse", "HEAD"])?.trim().to_owned();
        if !run::output("git", &["status", "--porcelain", "--untracked-files=no"])?.is_empty() {
            commit.push_str("-modified");
        }
        let (figures, skipped) = (BTreeMap::new(), Vec::new());
        Ok(Self { machine: machine()?, commit, figures, skipped })
    }

    pub(super) fn add(&mut self, name: &str, value: f64, better: Better) {
        println!("xtask: bench: {name}: {value:.3}");
        self.figures.insert(name.to_owned(), Figure { value, better });
    }

    pub(super) fn machine_text(&self) -> String {
        self.machine.values().map(String::as_str).collect::<Vec<_>>().join(", ")
    }

    /// Figures of both.
    pub(super) fn against(&self, last: &Self) -> Vec<Change> {
        let change = |(name, figure): (&String, &Figure)| {
            let last = last.figures.get(name)?.value;
            Some(Change { name: name.clone(), last, now: figure.value, better: figure.better })
        };
        self.figures.iter().filter_map(change).collect()
    }

    pub(super) fn print(&self, changes: &[Change]) -> Result<()> {
        let width = self.figures.keys().map(String::len).max().unwrap_or_default();
        println!("{:width$}  {:>12}  {:>12}  change", "figure", "last", "now");
        for (name, figure) in &self.figures {
            let change = changes.iter().find(|change| change.name == *name);
            let (last, by) = change.map_or_else(
                || ("-".to_owned(), String::new()),
                |change| {
                    let mark = if change.is_regression() { "  WORSE" } else { "" };
                    let percent = (change.ratio() - 1.0) * 100.0;
                    (format!("{:.3}", change.last), format!("{percent:+.1} %{mark}"))
                },
            );
            println!("{name:width$}  {last:>12}  {:>12.3}  {by}", figure.value);
        }
        Ok(())
    }

    /// Beside the others, with the next number.
    pub(super) fn write(&self) -> Result<PathBuf> {
        fs::create_dir_all(DIRECTORY).context("cannot make the directory of results")?;
        let names = fs::read_dir(DIRECTORY).context("cannot list the results")?;
        let names: Vec<String> =
            names.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        let number = names.iter().filter_map(|name| number(name)).max().unwrap_or(0) + 1;
        let commit: String = self.commit.chars().take(7).collect();
        let path = Path::new(DIRECTORY).join(format!("{number:04}-{commit}.json"));
        let text = serde_json::to_string_pretty(&self.to_json()).context("plain data")?;
        fs::write(&path, text + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn to_json(&self) -> Value {
        let figure = |(name, figure): (&String, &Figure)| {
            let (better, may_lose) = match figure.better {
                Better::Lower(tolerance) => ("lower", tolerance),
                Better::Higher(tolerance) => ("higher", tolerance),
            };
            let value = json!({ "value": figure.value, "better": better, "may_lose": may_lose });
            (name.clone(), value)
        };
        let figures: serde_json::Map<String, Value> = self.figures.iter().map(figure).collect();
        let (commit, machine, skipped) = (&self.commit, &self.machine, &self.skipped);
        json!({ "commit": commit, "machine": machine, "figures": figures, "skipped": skipped })
    }

    fn from_json(value: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let machine = value["machine"].as_object().context("no `machine`")?;
        let machine =
            machine.iter().filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect();
        let mut figures = BTreeMap::new();
        for (name, figure) in value["figures"].as_object().context("no `figures`")? {
            let of = |key: &str| {
                figure[key].as_f64().with_context(|| format!("`{name}` has no number `{key}`"))
            };
            let better = match figure["better"].as_str() {
                Some("higher") => Better::Higher(of("may_lose")?),
                _ => Better::Lower(of("may_lose")?),
            };
            figures.insert(name.clone(), Figure { value: of("value")?, better });
        }
        let commit = text(&value["commit"]).context("no `commit`")?;
        Ok(Self { machine, commit, figures, skipped: Vec::new() })
    }
}

/// Of a result's file name.
fn number(name: &str) -> Option<u32> {
    name.strip_suffix(".json")?.split('-').next()?.parse().ok()
}

/// The last result that is committed, with its path.
pub(super) fn last_committed() -> Result<Option<(String, Results)>> {
    let listing = run::output("git", &["ls-tree", "--name-only", "HEAD", "bench/results/"])?;
    let name = |path: &str| path.rsplit('/').next().and_then(number);
    let Some(path) =
        listing.lines().filter(|path| name(path).is_some()).max_by_key(|path| name(path))
    else {
        return Ok(None);
    };
    let text = run::output("git", &["show", &format!("HEAD:{path}")])?;
    let value = serde_json::from_str(&text).with_context(|| format!("{path} is no JSON"))?;
    let results = Results::from_json(&value).with_context(|| path.to_owned())?;
    Ok(Some((path.to_owned(), results)))
}

fn machine() -> Result<BTreeMap<String, String>> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    let value_of = |text: &str, key: &str, separator: char| {
        let line = text.lines().find(|line| line.starts_with(key));
        let value = line.and_then(|line| line.split_once(separator));
        value.map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
    };
    let cpu = value_of(&read("/proc/cpuinfo")?, "model name", ':');
    let memory = value_of(&read("/proc/meminfo")?, "MemTotal", ':');
    let system = value_of(&read("/etc/os-release")?, "PRETTY_NAME", '=');
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let compiler = run::output("rustc", &["--version"])?.trim().to_owned();
    Ok(BTreeMap::from([
        ("compiler".to_owned(), compiler),
        ("cores".to_owned(), format!("{cores} cores")),
        ("cpu".to_owned(), cpu),
        ("kernel".to_owned(), kernel),
        ("memory".to_owned(), memory),
        ("system".to_owned(), system.trim_matches('"').to_owned()),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(figures: &[(&str, f64, Better)]) -> Results {
        let figure = |(name, value, better): &(&str, f64, Better)| {
            ((*name).to_owned(), Figure { value: *value, better: *better })
        };
        Results {
            machine: BTreeMap::from([("cpu".to_owned(), "one".to_owned())]),
            commit: "0123456789".to_owned(),
            figures: figures.iter().map(figure).collect(),
            skipped: Vec::new(),
        }
    }

    #[test]
    fn a_figure_regresses_only_beyond_what_it_may_lose() {
        let last = with(&[
            ("cost", 100.0, Better::Lower(0.1)),
            ("rate", 100.0, Better::Higher(0.1)),
            ("gone", 1.0, Better::Lower(0.1)),
        ]);
        let worse = |cost: f64, rate: f64| -> Vec<String> {
            let now = with(&[
                ("cost", cost, Better::Lower(0.1)),
                ("rate", rate, Better::Higher(0.1)),
                ("new", 5.0, Better::Lower(0.1)),
            ]);
            let changes = now.against(&last);
            // What only one of them has is not compared.
            assert_eq!(changes.len(), 2);
            changes.iter().filter(|c| c.is_regression()).map(Change::text).collect()
        };
        assert_eq!(worse(109.0, 91.0), Vec::<String>::new());
        assert_eq!(worse(50.0, 200.0), Vec::<String>::new());
        assert_eq!(worse(112.0, 100.0), ["cost +12.0 % (100.000 -> 112.000)"]);
        assert_eq!(worse(100.0, 88.0), ["rate -12.0 % (100.000 -> 88.000)"]);
    }

    #[test]
    fn results_are_read_as_they_were_written() {
        let results =
            with(&[("cost", 1.5, Better::Lower(0.03)), ("rate", 2.0, Better::Higher(0.2))]);
        let read = Results::from_json(&results.to_json()).unwrap();
        assert_eq!((read.figures, read.machine), (results.figures, results.machine));
        let error = Results::from_json(&json!({ "machine": {}, "figures": { "a": {} } }));
        assert!(format!("{:#}", error.unwrap_err()).contains("`a` has no number"));
    }

    #[test]
    fn results_are_numbered_by_their_names() {
        assert_eq!(number("0012-0123456.json"), Some(12));
        assert_eq!((number("notes.json"), number("0012-0123456.txt")), (None, None));
    }
}
