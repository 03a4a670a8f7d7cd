//! The trace format of Azure Functions 2019 (Shahrad et al., ATC 2020), as sampled by In-Vitro:
//! `invocations.csv` with a count per minute, `durations.csv` with percentiles in milliseconds,
//! `memory.csv` in megabytes per application. A file instead of a directory is a trace call by call.

mod calls;

use std::{collections::HashMap, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

/// Percentiles of the columns `percentile_Average_*`.
pub const PERCENTILES: [f64; 7] = [0.0, 1.0, 25.0, 50.0, 75.0, 99.0, 100.0];

/// One function of a trace.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TraceFunction {
    /// The name that it is deployed as.
    pub name: String,
    /// Invocations in each minute.
    pub per_minute: Vec<u32>,
    /// Durations in milliseconds at [`PERCENTILES`], never falling.
    pub durations_ms: [f64; 7],
    /// Memory of its application in MiB, if the trace says.
    pub memory_mib: Option<u64>,
    /// Its calls in the order of their begins, where each was recorded; else there are counts only.
    pub calls: Vec<Recorded>,
}

/// One call as it was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Recorded {
    /// When it began, from the begin of the trace.
    pub at: Duration,
    /// How long it took.
    pub duration: Duration,
}

/// Functions with their invocations.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trace {
    /// Where it is from, for the report.
    pub origin: String,
    /// The number of its first minute in the recording.
    pub first_minute: usize,
    /// The functions.
    pub functions: Vec<TraceFunction>,
}

impl Trace {
    /// Invocations in the first `minutes`.
    #[must_use]
    pub fn invocations(&self, minutes: usize) -> u64 {
        let counts = self.functions.iter().flat_map(|f| f.per_minute.iter().take(minutes));
        counts.map(|count| u64::from(*count)).sum()
    }

    /// The minutes that it covers.
    #[must_use]
    pub fn minutes(&self) -> usize {
        self.functions.iter().map(|f| f.per_minute.len()).max().unwrap_or_default()
    }

    /// Whether the moment of each call is known.
    #[must_use]
    pub fn is_recorded_by_call(&self) -> bool {
        self.functions.iter().any(|function| !function.calls.is_empty())
    }

    /// Reads a directory in that format, or a file that has a line for each call: the columns `app`,
    /// `func`, `end_timestamp` and `duration` in seconds, as of Azure Functions 2021.
    ///
    /// # Errors
    /// If a file is missing or a line does not parse; the message names file and line.
    pub fn read(path: &Path) -> Result<Self> {
        if path.is_file() { calls::read(path) } else { Self::read_directory(path) }
    }

    fn read_directory(directory: &Path) -> Result<Self> {
        let durations = durations(&directory.join("durations.csv"))?;
        let memory = memory(&directory.join("memory.csv"))?;
        let table = Table::read(&directory.join("invocations.csv"))?;
        let (function, app) = (table.column("HashFunction")?, table.column("HashApp")?);
        let minutes: Vec<usize> = (0..table.header.len())
            .filter(|column| table.header[*column].parse::<u32>().is_ok())
            .collect();
        if minutes.is_empty() {
            bail!("{}: no column is a minute; want 0, 1, 2, ...", table.path);
        }
        let mut functions = Vec::with_capacity(table.rows.len());
        for (number, row) in table.rows.iter().enumerate() {
            let hash = &row[function];
            let per_minute = minutes
                .iter()
                .map(|column| table.parse(number, *column))
                .collect::<Result<Vec<u32>>>()?;
            let durations_ms = *durations.get(hash).with_context(|| {
                format!("{}: function {hash} is not in durations.csv", table.place(number))
            })?;
            functions.push(TraceFunction {
                name: format!("trace-{number:04}"),
                per_minute,
                durations_ms,
                memory_mib: memory.get(&row[app]).copied(),
                calls: Vec::new(),
            });
        }
        let first_minute = minutes.first().map_or("", |column| table.header[*column].as_str());
        Ok(Self {
            origin: directory.display().to_string(),
            first_minute: first_minute.parse().unwrap_or_default(),
            functions,
        })
    }
}

fn durations(path: &Path) -> Result<HashMap<String, [f64; 7]>> {
    let table = Table::read(path)?;
    let function = table.column("HashFunction")?;
    let mut columns = [0; 7];
    for (column, percentile) in columns.iter_mut().zip(PERCENTILES) {
        *column = table.column(&format!("percentile_Average_{percentile}"))?;
    }
    let mut durations = HashMap::new();
    for (number, row) in table.rows.iter().enumerate() {
        let mut values = [0.0_f64; 7];
        let mut floor = 0.0_f64;
        for (value, column) in values.iter_mut().zip(columns) {
            // Percentiles of averages may fall by rounding; an inverse distribution must not.
            floor = floor.max(table.parse(number, column)?);
            *value = floor;
        }
        durations.insert(row[function].clone(), values);
    }
    Ok(durations)
}

/// Megabytes by application.
fn memory(path: &Path) -> Result<HashMap<String, u64>> {
    if !path.exists() {
        return Ok(HashMap::new());
    }
    let table = Table::read(path)?;
    let (app, average) = (table.column("HashApp")?, table.column("AverageAllocatedMb")?);
    let mut memory = HashMap::new();
    for (number, row) in table.rows.iter().enumerate() {
        let megabytes: f64 = table.parse(number, average)?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        memory.insert(row[app].clone(), megabytes.clamp(1.0, 1e6).ceil() as u64);
    }
    Ok(memory)
}

/// A comma-separated file whose fields hold no commas or quotes (hashes and numbers).
struct Table {
    path: String,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read {}; is it a trace directory?", path.display()))?;
        let path = path.display().to_string();
        let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned).collect());
        let header: Vec<String> = lines.next().with_context(|| format!("{path} is empty"))?;
        let rows: Vec<Vec<String>> = lines.collect();
        if let Some(short) = rows.iter().position(|row| row.len() != header.len()) {
            let want = header.len();
            bail!("{path}:{}: {} fields, want {want}", short + 2, rows[short].len());
        }
        Ok(Self { path, header, rows })
    }

    fn column(&self, name: &str) -> Result<usize> {
        self.header
            .iter()
            .position(|column| column == name)
            .with_context(|| format!("{}: no column `{name}`", self.path))
    }

    fn place(&self, row: usize) -> String {
        format!("{}:{}", self.path, row + 2)
    }

    fn parse<T: std::str::FromStr>(&self, row: usize, column: usize) -> Result<T> {
        let text = &self.rows[row][column];
        text.parse().map_err(|_not_a_number| {
            let name = &self.header[column];
            anyhow::anyhow!("{}: `{text}` in column {name} is not a number", self.place(row))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, invocations: &str) {
        fs::write(directory.join("invocations.csv"), invocations).unwrap();
        fs::write(
            directory.join("durations.csv"),
            "HashFunction,percentile_Average_0,percentile_Average_1,percentile_Average_25,\
             percentile_Average_50,percentile_Average_75,percentile_Average_99,\
             percentile_Average_100\nf,1,2,3,4,5,6,7\n",
        )
        .unwrap();
        fs::write(directory.join("memory.csv"), "HashApp,AverageAllocatedMb\na,12.3\n").unwrap();
    }

    #[test]
    fn a_trace_is_read() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), "HashApp,HashFunction,480,481\na,f,2,3\n");
        let trace = Trace::read(directory.path()).unwrap();
        assert_eq!(trace.first_minute, 480);
        assert_eq!(trace.invocations(1), 2);
        assert_eq!(trace.invocations(30), 5);
        assert_eq!(trace.functions[0].durations_ms, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(trace.functions[0].memory_mib, Some(13));
    }

    #[test]
    fn errors_name_file_and_line() {
        let directory = tempfile::tempdir().unwrap();
        for (text, expected) in [
            ("HashApp,HashFunction,480\na,f\n", "invocations.csv:2: 2 fields, want 3"),
            ("HashApp,HashFunction,480\na,f,x\n", "invocations.csv:2: `x` in column 480"),
            ("HashApp,HashFunction,480\na,g,1\n", "function g is not in durations.csv"),
            ("HashApp,480\na,1\n", "no column `HashFunction`"),
            ("HashApp,HashFunction\na,f\n", "no column is a minute"),
        ] {
            write(directory.path(), text);
            let error = format!("{:#}", Trace::read(directory.path()).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_azure_trace_has_the_counts_that_are_published() {
        let directory =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/traces/azure500");
        if !directory.exists() {
            println!("skip: the Azure trace is not beside the checkout (its licence keeps it out)");
            return;
        }
        let trace = Trace::read(&directory).unwrap();
        assert_eq!(trace.functions.len(), 500);
        assert_eq!(trace.invocations(10), 63_139);
        assert_eq!(trace.invocations(30), 171_558);
    }
}
