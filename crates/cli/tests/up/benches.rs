//! The measurements run and tell what they are for, each in a form that takes seconds. Whether
//! their bars about time hold is not asked: programs for development say nothing about that.

use std::{path::Path, process::Command, time::Duration};

use dirigent_bench::etcd::Etcd;
use serde_json::Value;

use crate::host;

/// Seconds each, on a machine that does other things meanwhile.
const BENCH: Duration = Duration::from_secs(120);

/// What `bench ARGS --json` printed, and whether all bars hold. Its last value counts the bars.
fn bench(args: &[&str], bars: u64) -> (Vec<Value>, bool) {
    let mut command = Command::new(host::DIRIGENT);
    command
        .args(["bench", "--json"])
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let output = host::output(&mut command, BENCH);
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    let values: Vec<Value> =
        out.lines().map(|line| serde_json::from_str(line).expect(&out)).collect();
    let last = values.last().unwrap_or_else(|| panic!("{}: {err}", output.status));
    assert_eq!(last["bars"], bars, "{out}\n{err}");
    let hold = last["missed"] == 0;
    assert_eq!(output.status.code(), Some(i32::from(!hold)), "{out}\n{err}");
    (values, hold)
}

#[test]
fn churn_counts_what_sandboxes_leave() {
    let (values, hold) = bench(&["churn", "--sandboxes", "10", "--at-once", "5"], 4);
    assert!(hold, "nothing here depends on speed: {values:?}");
    let churn = &values[0]["churn"];
    assert!(churn["made"].as_u64().unwrap() >= 10 && churn["failed"] == 0, "{churn}");
    assert!(churn["before"]["processes"].as_u64().unwrap() >= 2, "{churn}");
    assert_eq!(values[0]["end"]["processes"], 0);
}

#[test]
fn register_makes_functions_and_starts_again_with_them() {
    let (values, _) = bench(&["register", "--functions", "2000"], 6);
    assert_eq!(values[0]["functions"], 2000);
    assert!(values[0]["transactions"].as_u64().unwrap() < 2000, "{values:?}");
    let [first, last] =
        ["first_thousand_ms", "last_thousand_ms"].map(|part| values[0][part].as_f64().unwrap());
    assert!(first > 0.0 && last > 0.0, "{values:?}");
}

#[test]
fn register_measures_an_etcd_of_its_own() {
    if !Etcd::is_installed() {
        return println!("{}", Etcd::MISSING);
    }
    let args = ["register", "--functions", "2000", "--clients", "16", "--etcd", "1"];
    let (values, _) = bench(&args, 5);
    assert_eq!(values[0]["functions"], 2000);
    let transactions = values[0]["transactions"].as_u64().unwrap();
    assert!(transactions > 0 && transactions < 2000, "{values:?}");
}

#[test]
fn scale_counts_what_each_part_takes() {
    let args = ["scale", "--workers", "20", "--calls", "100", "--rate", "100"];
    let (values, _) = bench(&args, 5);
    let report = values.iter().find(|value| value["created"].is_u64()).expect("the report");
    assert_eq!((&report["created"], &report["failed"]), (&100.into(), &0.into()), "{values:?}");
    let parts: Vec<_> = report["parts"].as_array().unwrap().iter().collect();
    let names: Vec<_> = parts.iter().map(|part| part["part"].as_str().unwrap()).collect();
    assert_eq!(names, ["control plane", "data plane", "workers"]);
    assert!(parts.iter().all(|part| part["resident_mib"].as_u64().unwrap() > 0), "{values:?}");
    assert!(report["attached_after_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn warm_compares_with_haproxy() {
    if !["/usr/sbin/haproxy", "/usr/bin/haproxy"].iter().any(|path| Path::new(path).exists()) {
        return println!("skip: haproxy is not installed");
    }
    let args = ["warm", "--blocks", "1", "--seconds", "1", "--connections", "8"];
    let (values, _) = bench(&args, 3);
    for proxy in ["dirigent", "haproxy"] {
        let block = &values[0][proxy][0];
        assert!(block["per_second"].as_f64().unwrap() > 0.0, "{values:?}");
        assert_eq!(block["failed"], 0, "{values:?}");
    }
}
