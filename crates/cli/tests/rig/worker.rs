//! Workers die: the daemon alone, which harms nothing, and the whole host, which costs no more than
//! what was executed there.

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use dirigent_bench::load::Failure;
use dirigent_rig::{load::kind, part::until};
use http::Method;
use rustix::process::{Signal, kill_process};

use crate::stage::{FUNCTIONS, Stage, median, rounds};

#[test]
fn a_worker_daemon_is_killed_and_its_sandboxes_are_adopted() -> Result<()> {
    let Some(mut stage) = Stage::set(2)? else { return Ok(()) };
    stage.deploy(&["brief".to_owned()], "[scaling]\nmax = 1\n")?;
    let load = stage.load()?;
    for _ in 0..rounds() {
        assert_eq!(stage.cluster.call("brief", Method::GET)?.failure, None);
        let mut before = stage.cluster.programs();
        let (worker, pid) = *before["brief"].first().context("it runs")?;
        before.remove("brief");
        stage.cluster.workers[worker].kill();
        stage.goes_on(&load, 60)?;
        // One ends while nobody looks: whoever comes back has to find out.
        kill_process(pid, Signal::KILL)?;
        stage.cluster.start_worker(worker)?;
        stage.cluster.settled()?;
        until("its end is known", || {
            let told = stage.cluster.describe("brief").unwrap_or_default();
            told["sandboxes"].as_array().is_some_and(Vec::is_empty)
        })?;
        stage.live_on(&before);
        stage.goes_on(&load, 60)?;
    }
    let outcomes = stage.end(load)?;
    assert_eq!(outcomes.failed().count(), 0, "{:?}", outcomes.kinds());
    Ok(())
}

#[test]
fn a_workers_host_dies_and_its_functions_answer_elsewhere() -> Result<()> {
    let Some(mut stage) = Stage::set(3)? else { return Ok(()) };
    let mut elsewhere = Vec::new();
    for round in 0..rounds() {
        let load = stage.load()?;
        let worker = round % stage.cluster.workers.len();
        let there = |(number, _): &(usize, _)| *number == worker;
        let programs = stage.cluster.programs();
        let on_it = programs.values().flatten().filter(|it| there(it)).count();
        let at = load.now();
        stage.cluster.kill_host(worker);
        stage.goes_on(&load, 20 * FUNCTIONS)?;
        let outcomes = stage.end(load)?;

        // Every call was answered, and what failed was sent there before anybody could know.
        let mut last = at;
        let mut failed = BTreeMap::new();
        for sample in outcomes.failed() {
            assert_ne!(sample.failure, Some(Failure::NoAnswer));
            *failed.entry(kind(sample)).or_insert(0) += 1;
            last = last.max(sample.intended);
        }
        assert!(failed.values().sum::<usize>() <= on_it, "{failed:?} of {on_it} sandboxes");
        let first = |function: usize| {
            let mine = outcomes.samples.iter().filter(|sample| sample.call % FUNCTIONS == function);
            let good = mine.filter(|sample| sample.intended > at && sample.failure.is_none());
            good.map(|sample| sample.done).min().unwrap_or_default().saturating_sub(at)
        };
        let answers = (0..FUNCTIONS).map(first).max().unwrap_or_default();
        println!(
            "failed: {failed:?}, the last called after {:?}; all answer after {answers:?}",
            last - at
        );
        elsewhere.push(answers);
        stage.cluster.net.heal();
        stage.cluster.start_worker(worker)?;
        stage.cluster.settled()?;
    }
    println!("all functions answer again: median {:?} of {elsewhere:?}", median(&elsewhere));
    Ok(())
}

#[test]
fn what_was_sent_to_a_host_that_was_cut_off_does_not_arrive_later() -> Result<()> {
    let Some(stage) = Stage::bare(1, None)? else { return Ok(()) };
    stage.deploy(&["far"], "")?;
    let cluster = &stage.cluster;
    let at = |path, method| cluster.call_at(0, "far", path, method)?.end();
    assert_eq!(at("/first", Method::POST)?.failure, None);
    let (plane, worker) = (cluster.planes[0].host, cluster.workers[0].host);
    cluster.net.cut(&[plane], &[worker]);
    let late = at("/late", Method::POST)?;
    assert!(late.failure.is_some(), "{late:?}");
    // Of it or of anything else: nobody is left who waits for an answer.
    let on_its_way = || cluster.net.inside(plane, || unacknowledged(worker.ip()));
    assert_eq!(on_its_way()?, Vec::<String>::new());
    cluster.net.heal();
    cluster.settled()?;
    assert_eq!(at("/last", Method::POST)?.failure, None);
    assert_eq!(["first", "late", "last"].map(|number| stage.executions(number)), [1, 0, 1]);
    Ok(())
}

/// This host's connections to another one on which something is not acknowledged.
fn unacknowledged(to: Ipv4Addr) -> Vec<String> {
    let to = format!("{:08X}:", u32::from_ne_bytes(to.octets()));
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let of_it = table.lines().filter(|line| {
        let mut fields = line.split_whitespace().skip(2);
        let (peer, queues) = (fields.next(), fields.nth(1));
        peer.is_some_and(|peer| peer.starts_with(&to))
            && queues.is_some_and(|queues| !queues.starts_with("00000000:"))
    });
    of_it.map(str::to_owned).collect()
}
