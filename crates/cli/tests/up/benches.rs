//! The measurements run and tell what they are for, each in a form that takes seconds. Whether
//! their bars about time hold is not asked: programs for development say nothing about that.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use dirigent_bench::etcd::Etcd;
use serde_json::Value;

use crate::{
    daemon::{self, Daemon},
    host,
};

/// Seconds each, on a machine that does other things meanwhile.
const BENCH: Duration = Duration::from_secs(120);

/// What `bench ARGS --json` printed, and whether all bars hold. Its last value counts the bars.
fn bench(args: &[&str], bars: u64) -> (Vec<Value>, bool) {
    bench_with(None, args, bars)
}

fn output_of(containerd: Option<&Path>, args: &[&str]) -> Output {
    let mut command = Command::new(host::DIRIGENT);
    command
        .args(["bench", "--json"])
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    if let Some(socket) = containerd {
        command.env("DIRIGENT_CONTAINERD_SOCKET", socket);
    }
    host::output(&mut command, BENCH)
}

/// With a containerd that listens elsewhere than where it usually does.
fn bench_with(containerd: Option<&Daemon>, args: &[&str], bars: u64) -> (Vec<Value>, bool) {
    let socket = containerd.map(Daemon::socket);
    let output = output_of(socket.as_deref(), args);
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    let values: Vec<Value> =
        out.lines().map(|line| serde_json::from_str(line).expect(&out)).collect();
    let last = values.last().unwrap_or_else(|| panic!("{}: {err}", output.status));
    assert_eq!(last["bars"], bars, "{out}\n{err}");
    // Why calls failed, if any did.
    print!("{err}");
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

/// Of what a report has of a target, its steps.
fn steps<'a>(report: &'a Value, target: &str) -> &'a Vec<Value> {
    let targets = report["targets"].as_array().expect("targets");
    let named = targets.iter().find(|seen| seen["name"] == target);
    named.unwrap_or_else(|| panic!("no {target}: {report}"))["steps"].as_array().unwrap()
}

/// A directory for a report, and the arguments of a sweep of two rates that takes no longer.
fn short_sweep(out: &Path, from: &str, to: &str) -> Vec<String> {
    let out = out.to_str().expect("a path in text");
    let args = ["--sweep", "--from", from, "--to", to, "--step", "0.5", "--out", out];
    args.map(str::to_owned).to_vec()
}

fn swept(what: &str, more: &[&str], sweep: &[String], bars: u64) -> Value {
    let args: Vec<&str> = [what]
        .into_iter()
        .chain(more.iter().copied())
        .chain(sweep.iter().map(String::as_str))
        .collect();
    let (values, _) = bench(&args, bars);
    values.into_iter().find(|value| value["targets"].is_array()).expect("the report")
}

#[test]
fn cold_raises_the_rate_beside_bare_starts() {
    let out = tempfile::tempdir().unwrap();
    let report = swept("cold", &[], &short_sweep(out.path(), "50", "100"), 2);
    for target in ["dirigent", "bare"] {
        let first = &steps(&report, target)[0];
        let failed = first["failed"].as_object().unwrap();
        let failures: u64 = failed.values().filter_map(Value::as_u64).sum();
        assert_eq!((&first["rate"], &first["calls"]), (&50.0.into(), &100.into()), "{report}");
        assert_eq!(failures, 0, "{report}");
    }
    // Each of them was a cold start, which tells where its time went.
    let phases = steps(&report, "dirigent")[0]["phases_ms"].as_array().unwrap();
    assert!(phases.iter().any(|phase| phase[0] == "create"), "{report}");
    let page = std::fs::read_to_string(out.path().join("report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("p99 against rate"));
    assert!(out.path().join("report.json").exists());
}

#[test]
fn warm_raises_the_rate_beside_the_rivals() {
    if !is_installed("haproxy") {
        return println!("skip: haproxy is not installed");
    }
    let out = tempfile::tempdir().unwrap();
    let sweep = short_sweep(out.path(), "20", "40");
    let report = swept("warm", &["--blocks", "1"], &sweep, 3);
    let mut targets = vec!["dirigent", "direct", "haproxy"];
    if is_installed("nginx") {
        targets.push("nginx");
    } else {
        println!("skipped in part: nginx is not installed");
    }
    for target in targets {
        let first = &steps(&report, target)[0];
        let seen = (&first["rate"], &first["calls"], first["failed"].as_object().unwrap().len());
        assert_eq!(seen, (&20.0.into(), &10.into(), 0), "{report}");
    }
    assert!(out.path().join("report.html").exists());
}

/// Three calls to two functions.
fn recording(directory: &Path) -> PathBuf {
    let file = directory.join("calls.csv");
    let lines =
        ["app,func,end_timestamp,duration", "a,f,10.05,0.05", "a,g,10.3,0.01", "a,f,11,0.2"];
    std::fs::write(&file, lines.join("\n")).unwrap();
    file
}

/// The report of them.
fn replayed(containerd: Option<&Daemon>, more: &[&str]) -> Value {
    let directory = tempfile::tempdir().unwrap();
    let file = recording(directory.path());
    let out = directory.path().join("report");
    let [file, out] = [&file, &out].map(|path| path.to_str().unwrap());
    let args = [&["trace", file, "--out", out], more].concat();
    let (values, hold) = bench_with(containerd, &args, 1);
    assert!(hold, "{values:?}");
    values.into_iter().find(|value| value["calls"].is_u64()).expect("the report")
}

#[test]
fn trace_replays_a_recording_from_an_image() {
    if let Some(why) = daemon::missing() {
        return println!("skip: images: {why}");
    }
    let containerd = Daemon::start();
    let report = replayed(Some(&containerd), &["--image"]);
    assert_eq!((&report["calls"], &report["lost"]), (&3.into(), &0.into()), "{report}");
    assert!(report["cold"].as_u64().unwrap() >= 2, "{report}");
    // Of them and of their image nothing is left.
    for what in ["c", "snapshots", "content", "leases"] {
        let (is_well, left) = containerd.ctr(&[what, "list"]);
        // But for the heads of the columns.
        assert!(is_well && left.lines().count() <= 1, "{what}: {left}");
    }
}

#[test]
fn trace_says_why_no_image_can_be_run() {
    let directory = tempfile::tempdir().unwrap();
    let file = recording(directory.path());
    let nobody = directory.path().join("nobody");
    let output = output_of(Some(&nobody), &["trace", file.to_str().unwrap(), "--image"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("images cannot be run here"), "{said}");
    assert!(said.contains("containerd") || said.contains("only root"), "{said}");
}

#[test]
fn trace_replays_a_recording_call_by_call() {
    let report = replayed(None, &[]);
    assert_eq!((&report["calls"], &report["functions"]), (&3.into(), &2.into()), "{report}");
    assert_eq!(report["options"]["arrivals"], "recorded");
    // Two functions without a sandbox, called 0.25 s and 0.8 s apart.
    assert!(report["cold"].as_u64().unwrap() >= 2, "{report}");
}

fn is_installed(proxy: &str) -> bool {
    ["/usr/sbin", "/usr/bin"].iter().any(|place| Path::new(place).join(proxy).exists())
}

/// A second of load before the kill and more than one after; 60 warm calls a second.
fn killed(part: &str) -> Value {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().to_str().unwrap();
    let load = ["--rate", "60", "--cold", "2", "--seconds", "4", "--at", "1"];
    let more = ["--restart-after", "300", "--out", path];
    let (values, hold) = bench(&[&["fail", part], &load[..], &more].concat(), 3);
    assert!(hold, "nothing here depends on speed: {values:?}");
    let report = values.into_iter().find(|value| value["series"].is_array()).expect("the report");
    assert_eq!((&report["calls"], &report["lost"]), (&248.into(), &0.into()), "{report}");
    let page = std::fs::read_to_string(out.path().join("report.html")).unwrap();
    assert!(page.contains("<svg") && out.path().join("report.json").exists());
    report
}

#[test]
fn a_killed_control_plane_and_a_killed_worker_cost_no_call() {
    for part in ["control-plane", "worker"] {
        let report = killed(part);
        assert_eq!(report["failed"], serde_json::json!([]), "{report}");
        assert!(report["back_after_ms"].as_f64().unwrap() >= 300.0, "{report}");
    }
}

#[test]
fn a_killed_data_plane_costs_what_is_called_until_it_is_back() {
    let report = killed("data-plane");
    // A third of a second of calls finds nobody.
    assert!(report["explained"].as_u64().unwrap() >= 10, "{report}");
}

#[test]
fn a_killed_sandbox_costs_one_call_at_most() {
    let report = killed("sandbox");
    assert!(report["explained"].as_u64().unwrap() <= 1, "{report}");
}

#[test]
fn recover_kills_a_leader_that_has_no_other_beside_it() {
    let args = ["recover", "--etcd", "0", "--workers", "20", "--sandboxes", "20", "--rounds", "1"];
    recovered(&bench(&args, 6).0);
}

#[test]
fn recover_kills_leaders_of_several_control_planes() {
    if !Etcd::is_installed() {
        return println!("{}", Etcd::MISSING);
    }
    let args = ["recover", "--etcd", "1", "--workers", "20", "--sandboxes", "20"];
    recovered(&bench(&[&args[..], &["--rounds", "2", "--functions", "100"]].concat(), 7).0);
}

/// What holds however slow the machine is.
fn recovered(values: &[Value]) {
    let report = values.iter().find(|value| value["warm"].is_u64()).expect("the report");
    for none in ["stopped", "warm_failed", "cold_failed"] {
        assert_eq!(report[none], 0, "{values:?}");
    }
    assert!(report["warm"].as_u64().unwrap() >= 500, "{values:?}");
    let [led, back] = ["led_ms", "back_ms"].map(|time| report[time]["p50"].as_f64().unwrap());
    assert!(0.0 < led && led <= back, "{values:?}");
    assert!(report["attached_after_ms"].as_f64().unwrap() > 0.0, "{values:?}");
}

#[test]
fn bulk_moves_large_bodies_and_keeps_connections_beside_haproxy() {
    if !is_installed("haproxy") {
        return println!("skip: haproxy is not installed");
    }
    let args = ["bulk", "--size", "8MiB", "--blocks", "2", "--idle", "100"];
    let (values, _) = bench(&args, 3);
    let report = &values[0];
    let all = |who| ["down", "up"].map(|way| (way, who));
    for (way, who) in ["dirigent", "haproxy", "direct"].map(all).concat() {
        let rates = report[way][who].as_array().unwrap();
        assert!(rates.len() == 2 && rates.iter().all(|rate| rate.as_f64() > Some(0.0)), "{report}");
    }
    assert_eq!((&report["bytes"], &report["idle"]), (&(8 << 20).into(), &100.into()), "{report}");
    assert!(report["idle_mib"].as_f64() > Some(0.0), "{report}");
}

#[test]
fn warm_compares_with_haproxy() {
    if !is_installed("haproxy") {
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

#[test]
fn what_would_measure_nothing_is_refused() {
    for (args, why) in [
        (&["fail", "worker", "--seconds", "3", "--at", "10"][..], "the load is over after 3 s"),
        (&["cold", "--sweep", "--from", "100", "--to", "10"], "is below the first"),
        (&["fail", "worker", "--rate", "0"], "not above 0"),
    ] {
        let output = Command::new(host::DIRIGENT).arg("bench").args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(why), "{args:?}: {said}");
    }
}
