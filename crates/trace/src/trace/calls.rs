//! Traces call by call, in the format of Azure Functions 2021 (Zhang et al., SOSP 2021): a file with
//! the columns `app`, `func`, `end_timestamp` and `duration`, both times in seconds. A call begins
//! its duration before its end; the trace begins with the first of them.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{PERCENTILES, Recorded, Trace, TraceFunction};

const COLUMNS: [&str; 4] = ["app", "func", "end_timestamp", "duration"];
/// Ten years: whatever is longer is no trace, and no duration either.
const LONGEST_S: f64 = 3.2e8;

/// Reads such a file, line by line: the published one has two million.
pub(super) fn read(path: &Path) -> Result<Trace> {
    let shown = path.display().to_string();
    let file = File::open(path).with_context(|| format!("cannot read {shown}"))?;
    let mut lines = BufReader::new(file).lines();
    let header = lines.next().with_context(|| format!("{shown} is empty"))?;
    let places = columns(&header.with_context(|| format!("cannot read {shown}"))?)
        .with_context(|| format!("{shown}:1"))?;
    let mut numbers: HashMap<String, usize> = HashMap::new();
    // Begin and duration in seconds, by function.
    let mut calls: Vec<Vec<(f64, f64)>> = Vec::new();
    for (number, line) in lines.enumerate() {
        let line = line.with_context(|| format!("cannot read {shown}"))?;
        let (name, begin, duration) =
            call(&line, places).with_context(|| format!("{shown}:{}", number + 2))?;
        let index = *numbers.entry(name).or_insert(calls.len());
        if index == calls.len() {
            calls.push(Vec::new());
        }
        calls[index].push((begin, duration));
    }
    let first = calls.iter().flatten().map(|(begin, _)| *begin).fold(f64::INFINITY, f64::min);
    if first.is_infinite() {
        bail!("{shown} has no call");
    }
    let last = calls.iter().flatten().map(|(begin, _)| *begin).fold(first, f64::max);
    let minutes = minute(last - first) + 1;
    let functions = calls
        .into_iter()
        .enumerate()
        .map(|(number, calls)| function(number, calls, first, minutes))
        .collect();
    Ok(Trace { origin: shown, first_minute: 0, functions })
}

/// Where the columns are, and how many there are.
fn columns(header: &str) -> Result<([usize; 4], usize)> {
    let names: Vec<&str> = header.split(',').map(str::trim).collect();
    let mut places = [0; 4];
    for (place, wanted) in places.iter_mut().zip(COLUMNS) {
        *place = names
            .iter()
            .position(|name| *name == wanted)
            .with_context(|| format!("no column `{wanted}`; want {}", COLUMNS.join(",")))?;
    }
    Ok((places, names.len()))
}

/// Of a line: its function, when it begins, how long it takes.
fn call(line: &str, (places, count): ([usize; 4], usize)) -> Result<(String, f64, f64)> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    if fields.len() != count {
        bail!("{} fields, want {count}", fields.len());
    }
    let [app, function, end, duration] = places.map(|place| fields[place]);
    let seconds = |text: &str, column: &str| {
        let number = text.parse().ok().filter(|seconds: &f64| seconds.abs() <= LONGEST_S);
        number.with_context(|| format!("`{text}` in column {column} is not a number of seconds"))
    };
    let (end, took) = (seconds(end, COLUMNS[2])?, seconds(duration, COLUMNS[3])?);
    if took < 0.0 {
        bail!("`{duration}` in column {} is less than nothing", COLUMNS[3]);
    }
    Ok((format!("{app}/{function}"), end - took, took))
}

fn function(
    number: usize,
    mut calls: Vec<(f64, f64)>,
    first: f64,
    minutes: usize,
) -> TraceFunction {
    calls.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut per_minute = vec![0; minutes];
    for (begin, _) in &calls {
        per_minute[minute(begin - first)] += 1;
    }
    let mut durations: Vec<f64> = calls.iter().map(|(_, duration)| duration * 1000.0).collect();
    durations.sort_by(f64::total_cmp);
    let recorded = |(begin, duration): &(f64, f64)| Recorded {
        at: Duration::from_secs_f64(begin - first),
        duration: Duration::from_secs_f64(*duration),
    };
    TraceFunction {
        name: format!("trace-{number:04}"),
        per_minute,
        durations_ms: PERCENTILES.map(|percentile| crate::percentiles::at(&durations, percentile)),
        memory_mib: None,
        calls: calls.iter().map(recorded).collect(),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, short")]
fn minute(seconds: f64) -> usize {
    (seconds / 60.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Trace> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("calls.csv");
        std::fs::write(&path, text).unwrap();
        Trace::read(&path)
    }

    #[test]
    fn calls_begin_their_duration_before_their_end() {
        let trace = read(
            "app,func,end_timestamp,duration\n\
             a,f,100.5,0.5\n\
             a,g,101.25,1.25\n\
             b,f,170,0.001\n\
             a,f,160.0,2\n",
        )
        .unwrap();
        // Two functions of one name belong to two applications.
        let calls: Vec<Vec<(u128, u128)>> = trace
            .functions
            .iter()
            .map(|function| {
                let calls = function.calls.iter();
                calls.map(|call| (call.at.as_millis(), call.duration.as_millis())).collect()
            })
            .collect();
        assert_eq!(calls, [vec![(0, 500), (58_000, 2000)], vec![(0, 1250)], vec![(69_999, 1)]]);
        assert_eq!((trace.minutes(), trace.invocations(1), trace.invocations(2)), (2, 3, 4));
        assert_eq!(trace.functions[0].per_minute, [2, 0]);
        let durations = trace.functions[0].durations_ms;
        assert_eq!((durations[0], durations[3], durations[6]), (500.0, 500.0, 2000.0));
        assert!(trace.is_recorded_by_call());
    }

    #[test]
    fn errors_name_file_and_line() {
        let header = "app,func,end_timestamp,duration\n";
        for (text, expected) in [
            (format!("{header}a,f,1,1\na,f,2\n"), "calls.csv:3: 3 fields, want 4"),
            (format!("{header}a,f,x,1\n"), "calls.csv:2: `x` in column end_timestamp is not"),
            (format!("{header}a,f,1,NaN\n"), "calls.csv:2: `NaN` in column duration is not"),
            (format!("{header}a,f,1,1e300\n"), "calls.csv:2: `1e300` in column duration is not"),
            (format!("{header}a,f,1,-1\n"), "calls.csv:2: `-1` in column duration is less"),
            ("app,func,duration\na,f,1\n".to_owned(), "calls.csv:1: no column `end_timestamp`"),
            (header.to_owned(), "has no call"),
            (String::new(), "is empty"),
        ] {
            let error = format!("{:#}", read(&text).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn columns_stand_in_any_order_and_others_are_passed_over() {
        let trace = read("func,duration,region,end_timestamp,app\nf,1,north,61,a\n").unwrap();
        assert_eq!(trace.functions[0].calls[0].duration, Duration::from_secs(1));
    }
}
