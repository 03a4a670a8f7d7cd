use std::net::{Ipv4Addr, SocketAddr};

use super::*;
use crate::{
    Address, Cause, Epoch, Fault, FunctionId, Protocol, RevisionId, RevisionView, Serial, Settings,
    StartFailure, StartPhases,
};

const FUNCTION: FunctionId = FunctionId::new(Epoch(1), 1);

fn sandbox(n: u64) -> SandboxId {
    SandboxId::new(Epoch(1), n)
}

fn invocation(n: u64) -> InvocationId {
    InvocationId(n)
}

fn ms(n: u64) -> Time {
    Time(n * 1_000_000)
}

fn revision(number: u32) -> RevisionId {
    RevisionId { function: FUNCTION, number }
}

fn view(concurrency: u32, targets: &[(u32, u32)]) -> Arc<FunctionView> {
    Arc::new(FunctionView {
        id: FUNCTION,
        name: "f".parse().unwrap(),
        settings: Arc::new(Settings { max_queue: 3, ..Settings::default() }),
        targets: targets
            .iter()
            .map(|&(number, weight)| RevisionView {
                id: revision(number),
                weight,
                concurrency,
                protocol: Protocol::Http1,
            })
            .collect(),
    })
}

fn gate(concurrency: u32) -> Gate {
    let mut gate = Gate::new(Time::ZERO, 1, view(concurrency, &[(1, 100)]));
    assert_eq!(said(&mut gate), ["applied 1"]);
    gate
}

fn grant(n: u64, share: Share) -> Grant {
    Grant {
        sandbox: sandbox(n),
        revision: revision(1),
        address: Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 20000))),
        protocol: Protocol::Http1,
        share,
        serial: Serial(n),
        pinned: false,
        start: None,
    }
}

fn granted(gate: &mut Gate, now: Time, n: u64, slots: u32) {
    gate.handle(now, Event::Granted(Box::new(grant(n, Share::Slots(slots)))));
}

fn finish(gate: &mut Gate, now: Time, n: u64, how: Finish) {
    gate.handle(now, Event::Finished { sandbox: sandbox(n), how });
}

/// The sandbox's number, or how it was refused.
fn admit(gate: &mut Gate, now: Time, n: u64) -> String {
    verdict(gate.admit(now, invocation(n), Attempt::First))
}

fn retry(gate: &mut Gate, now: Time, n: u64, avoid: u64) -> String {
    verdict(gate.admit(now, invocation(n), Attempt::Retry { avoid: sandbox(avoid) }))
}

fn verdict(verdict: Verdict) -> String {
    match verdict {
        Verdict::Bound(binding) => format!("{}", binding.sandbox.counter),
        Verdict::Queued => "queued".to_owned(),
        Verdict::Refused(Refusal::QueueFull { max_queue }) => format!("full at {max_queue}"),
        Verdict::Refused(Refusal::CrashLoop(failure)) => format!("crash loop: {}", failure.cause),
        Verdict::Refused(Refusal::Deleted) => "deleted".to_owned(),
    }
}

/// All effects, a short line each.
fn said(gate: &mut Gate) -> Vec<String> {
    std::iter::from_fn(|| gate.poll_effect()).map(|effect| line(&effect)).collect()
}

fn line(effect: &Effect) -> String {
    match effect {
        Effect::Bind { invocation, binding } => {
            format!("bind {} to {}", invocation.0, binding.sandbox.counter)
        }
        Effect::Refuse { invocation, refusal } => {
            let why = verdict(Verdict::Refused(refusal.clone()));
            format!("refuse {}: {why}", invocation.0)
        }
        Effect::Close { sandbox } => format!("close {}", sandbox.counter),
        Effect::Send(FromDataPlane::Demand(d)) => {
            format!("demand queued {} held {} busy {}", d.queued, d.held, d.busy)
        }
        Effect::Send(FromDataPlane::Returned(r)) => {
            let share = match r.share {
                Share::Slots(slots) => slots.to_string(),
                Share::Open => "all".to_owned(),
            };
            let (sandbox, serial) = (r.sandbox.counter, r.serial.0);
            format!("return {share} of {sandbox} after {serial}: {:?}", r.why).to_lowercase()
        }
        Effect::Send(FromDataPlane::Kept { n, .. }) => format!("kept {n}"),
        Effect::Send(FromDataPlane::Applied { version, .. }) => format!("applied {version}"),
        Effect::Send(other) => format!("{other:?}"),
    }
}

/// Only what is not a demand.
fn done(gate: &mut Gate) -> Vec<String> {
    said(gate).into_iter().filter(|line| !line.starts_with("demand")).collect()
}

fn crash_loop() -> Status {
    Status::CrashLoop(StartFailure {
        cause: Cause::Exited { code: 3 },
        fault: Fault::Function,
        log_tail: Vec::new(),
    })
}

#[test]
fn a_gate_that_is_never_called_has_no_deadline_and_is_empty() {
    let gate = gate(1);
    assert_eq!(gate.deadline(), None);
    assert!(gate.is_empty());
}

#[test]
fn an_invocation_waits_for_a_grant_and_is_bound_to_it_at_once() {
    let mut gate = gate(1);
    assert_eq!(admit(&mut gate, ms(1), 1), "queued");
    assert_eq!(said(&mut gate), ["demand queued 1 held 0 busy 0"]);
    granted(&mut gate, ms(2), 7, 1);
    assert_eq!(said(&mut gate), ["bind 1 to 7", "demand queued 0 held 1 busy 1"]);
    assert!(!gate.is_empty());
}

#[test]
fn a_queue_is_told_of_when_it_begins_doubles_or_a_millisecond_has_passed() {
    let mut gate = gate(1);
    let at = |us: u64| Time(1_000_000 + us * 1000);
    let mut told = Vec::new();
    for n in 1..=3 {
        assert_eq!(admit(&mut gate, at(n), n), "queued");
        told.push(said(&mut gate));
    }
    let demand = |n: u32| vec![format!("demand queued {n} held 0 busy 0")];
    assert_eq!(told, [demand(1), demand(2), Vec::new()]);
    assert_eq!(gate.deadline(), Some(at(1002)));
    gate.expire(at(1002));
    assert_eq!(said(&mut gate), demand(3));
    assert_eq!(gate.deadline(), None);
    // It empties and begins again within the millisecond: told once, as it is then.
    granted(&mut gate, at(1003), 7, 3);
    assert_eq!(said(&mut gate).len(), 3, "all are bound, nothing is told");
    assert_eq!(admit(&mut gate, at(1004), 4), "queued");
    assert_eq!(said(&mut gate), [""; 0]);
    gate.expire(at(2002));
    assert_eq!(said(&mut gate), ["demand queued 1 held 3 busy 3"]);
}

#[test]
fn the_queue_is_served_in_order_as_slots_become_free() {
    let mut gate = gate(1);
    granted(&mut gate, ms(1), 1, 1);
    assert_eq!(admit(&mut gate, ms(1), 1), "1");
    assert_eq!(admit(&mut gate, ms(2), 2), "queued");
    assert_eq!(admit(&mut gate, ms(2), 3), "queued");
    assert_eq!(done(&mut gate), [""; 0]);
    finish(&mut gate, ms(3), 1, Finish::Done);
    assert_eq!(done(&mut gate), ["bind 2 to 1"]);
    finish(&mut gate, ms(4), 1, Finish::Done);
    assert_eq!(done(&mut gate), ["bind 3 to 1"]);
}

#[test]
fn a_full_queue_refuses_first_attempts_but_no_retry() {
    let mut gate = gate(1);
    for n in 1..=3 {
        assert_eq!(admit(&mut gate, ms(1), n), "queued");
    }
    assert_eq!(admit(&mut gate, ms(1), 4), "full at 3");
    assert_eq!(retry(&mut gate, ms(1), 5, 9), "queued");
    granted(&mut gate, ms(2), 1, 2);
    assert_eq!(done(&mut gate), ["bind 5 to 1", "bind 1 to 1"]);
}

#[test]
fn the_most_recently_used_sandbox_serves_first() {
    let mut gate = gate(2);
    for n in 1..=3 {
        granted(&mut gate, ms(n), n, 2);
    }
    assert_eq!(admit(&mut gate, ms(4), 1), "1");
    assert_eq!(admit(&mut gate, ms(4), 2), "1");
    assert_eq!(admit(&mut gate, ms(4), 3), "2");
    finish(&mut gate, ms(5), 1, Finish::Done);
    assert_eq!(admit(&mut gate, ms(6), 4), "1");
    assert_eq!(admit(&mut gate, ms(6), 5), "2");
    assert_eq!(admit(&mut gate, ms(6), 6), "3");
}

#[test]
fn without_a_limit_the_least_busy_sandbox_serves() {
    let mut gate = gate(0);
    for n in 1..=2 {
        gate.handle(ms(1), Event::Granted(Box::new(grant(n, Share::Open))));
    }
    let order: Vec<String> = (1..=5).map(|n| admit(&mut gate, ms(2), n)).collect();
    assert_eq!(order, ["1", "2", "2", "1", "1"]);
    assert_eq!(gate.demand(ms(2)).held, 2);
}

#[test]
fn targets_share_invocations_by_weight_where_both_have_slots() {
    let mut gate = Gate::new(Time::ZERO, 1, view(10, &[(1, 3), (2, 1)]));
    granted(&mut gate, ms(1), 1, 10);
    let other = Grant { revision: revision(2), ..grant(2, Share::Slots(2)) };
    gate.handle(ms(1), Event::Granted(Box::new(other)));
    let order: Vec<String> = (1..=12).map(|n| admit(&mut gate, ms(2), n)).collect();
    assert_eq!(order.concat(), "112111211111");
}

#[test]
fn only_targets_are_bound_and_a_new_target_takes_over() {
    let mut gate = gate(1);
    granted(&mut gate, ms(1), 1, 1);
    gate.handle(ms(2), Event::Configured { version: 2, view: view(1, &[(2, 100)]) });
    assert_eq!(done(&mut gate), ["applied 2"]);
    assert_eq!(admit(&mut gate, ms(3), 1), "queued");
    let other = Grant { revision: revision(2), ..grant(2, Share::Slots(1)) };
    gate.handle(ms(4), Event::Granted(Box::new(other)));
    assert_eq!(done(&mut gate), ["bind 1 to 2"]);
    gate.handle(ms(5), Event::Configured { version: 1, view: view(1, &[(1, 100)]) });
    assert_eq!(done(&mut gate), [""; 0], "an older version changes nothing");
    gate.handle(ms(6), Event::SandboxRecalled { sandbox: sandbox(1), gone: false });
    assert_eq!(done(&mut gate), ["return 1 of 1 after 1: drained", "close 1"]);
}

#[test]
fn keep_alive_is_exact_and_pinned_sandboxes_are_exempt() {
    let mut gate = gate(1);
    granted(&mut gate, ms(0), 1, 1);
    gate.handle(
        ms(0),
        Event::Granted(Box::new(Grant { pinned: true, ..grant(2, Share::Slots(1)) })),
    );
    assert_eq!(admit(&mut gate, ms(10), 1), "1");
    finish(&mut gate, ms(500), 1, Finish::Done);
    gate.expire(ms(2000));
    said(&mut gate);
    assert_eq!(gate.deadline(), Some(ms(60_500)));
    gate.expire(ms(60_499));
    assert_eq!(said(&mut gate), [""; 0]);
    gate.expire(ms(60_500));
    assert_eq!(done(&mut gate), ["return 1 of 1 after 1: idle", "close 1"]);
    gate.expire(ms(70_000));
    assert_eq!(gate.deadline(), None);
    assert!(!gate.is_empty());
}

#[test]
fn an_invocation_just_under_keep_alive_keeps_the_sandbox() {
    let mut gate = gate(1);
    granted(&mut gate, ms(0), 1, 1);
    assert_eq!(admit(&mut gate, ms(59_999), 1), "1");
    gate.expire(ms(60_000));
    assert_eq!(done(&mut gate), [""; 0]);
    finish(&mut gate, ms(60_001), 1, Finish::Done);
    gate.expire(ms(120_000));
    assert_eq!(done(&mut gate), [""; 0]);
    gate.expire(ms(120_001));
    assert_eq!(done(&mut gate), ["return 1 of 1 after 1: idle", "close 1"]);
}

#[test]
fn a_retry_avoids_its_sandbox_and_others_do_not_wait_for_that() {
    let mut gate = gate(1);
    granted(&mut gate, ms(1), 1, 1);
    granted(&mut gate, ms(1), 2, 1);
    assert_eq!(retry(&mut gate, ms(2), 1, 1), "2");
    assert_eq!(retry(&mut gate, ms(2), 2, 2), "1");
    assert_eq!(retry(&mut gate, ms(2), 3, 1), "queued");
    assert_eq!(admit(&mut gate, ms(2), 4), "queued");
    finish(&mut gate, ms(3), 1, Finish::Done);
    assert_eq!(done(&mut gate), ["bind 4 to 1"]);
    finish(&mut gate, ms(4), 1, Finish::Done);
    assert_eq!(done(&mut gate), [""; 0], "it waits for the other one");
    gate.handle(ms(5), Event::SandboxRecalled { sandbox: sandbox(2), gone: false });
    assert_eq!(done(&mut gate), ["bind 3 to 1"], "nothing else could serve it any more");
}

#[test]
fn a_recall_by_number_takes_whole_idle_sandboxes_first_longest_idle_first() {
    let mut gate = gate(2);
    for n in 1..=4 {
        granted(&mut gate, ms(n), n, 2);
    }
    assert_eq!(admit(&mut gate, ms(9), 1), "1");
    gate.handle(ms(10), Event::Recalled { n: 5, idle_only: true });
    assert_eq!(
        done(&mut gate),
        [
            "return 2 of 2 after 2: idle",
            "close 2",
            "return 2 of 3 after 3: idle",
            "close 3",
            "return 1 of 4 after 4: idle"
        ]
    );
    gate.handle(ms(11), Event::Recalled { n: 9, idle_only: true });
    assert_eq!(
        done(&mut gate),
        ["return 1 of 4 after 4: idle", "close 4", "return 1 of 1 after 1: idle", "kept 7"]
    );
}

#[test]
fn who_kept_a_slot_tells_at_once_when_one_is_idle() {
    let mut gate = gate(1);
    granted(&mut gate, ms(1), 1, 1);
    assert_eq!(admit(&mut gate, ms(2), 1), "1");
    gate.handle(ms(10), Event::Recalled { n: 1, idle_only: true });
    assert_eq!(done(&mut gate), ["kept 1"]);
    assert_eq!(admit(&mut gate, ms(11), 2), "queued");
    said(&mut gate);
    finish(&mut gate, ms(20), 1, Finish::Done);
    assert_eq!(done(&mut gate), ["bind 2 to 1"], "its own queue comes first");
    finish(&mut gate, ms(30), 1, Finish::Done);
    assert_eq!(said(&mut gate), ["demand queued 0 held 1 busy 0"]);
    // Nobody has asked since.
    assert_eq!(admit(&mut gate, ms(40), 3), "1");
    finish(&mut gate, ms(50), 1, Finish::Done);
    assert_eq!(said(&mut gate), [""; 0]);
}

#[test]
fn a_recall_of_busy_slots_takes_them_before_the_queue_gets_them() {
    let mut gate = gate(1);
    granted(&mut gate, ms(1), 1, 1);
    assert_eq!(admit(&mut gate, ms(2), 1), "1");
    assert_eq!(admit(&mut gate, ms(2), 2), "queued");
    gate.handle(ms(3), Event::Recalled { n: 2, idle_only: false });
    assert_eq!(done(&mut gate), ["kept 1"]);
    finish(&mut gate, ms(4), 1, Finish::Done);
    assert_eq!(done(&mut gate), ["return 1 of 1 after 1: idle", "close 1"]);
    assert_eq!(gate.demand(ms(4)).queued, 1);
}

#[test]
fn a_sandbox_recalled_is_returned_once_when_its_last_slot_is_free() {
    let mut gate = gate(3);
    granted(&mut gate, ms(1), 1, 3);
    assert_eq!(admit(&mut gate, ms(2), 1), "1");
    assert_eq!(admit(&mut gate, ms(2), 2), "1");
    gate.handle(ms(3), Event::SandboxRecalled { sandbox: sandbox(1), gone: false });
    assert_eq!(admit(&mut gate, ms(3), 3), "queued");
    finish(&mut gate, ms(4), 1, Finish::Done);
    assert_eq!(done(&mut gate), [""; 0]);
    assert!(gate.holdings().iter().all(|held| held.draining && held.busy == 1));
    finish(&mut gate, ms(5), 1, Finish::Done);
    assert_eq!(done(&mut gate), ["return 3 of 1 after 1: drained", "close 1"]);
}

#[test]
fn an_abandoned_invocation_recycles_a_sandbox_of_one_slot_only() {
    let mut gate = gate(1);
    granted(&mut gate, ms(1), 1, 1);
    assert_eq!(admit(&mut gate, ms(2), 1), "1");
    assert_eq!(admit(&mut gate, ms(2), 2), "queued");
    finish(&mut gate, ms(3), 1, Finish::Abandoned);
    assert_eq!(done(&mut gate), ["return 1 of 1 after 1: closing", "close 1"]);

    let mut gate = self::gate(2);
    granted(&mut gate, ms(1), 1, 1);
    assert_eq!(admit(&mut gate, ms(2), 1), "1");
    assert_eq!(admit(&mut gate, ms(2), 2), "queued");
    finish(&mut gate, ms(3), 1, Finish::Abandoned);
    assert_eq!(done(&mut gate), ["bind 2 to 1"]);
}

#[test]
fn a_sandbox_given_back_as_closing_is_told_again_to_the_next_leader() {
    let mut gate = gate(1);
    granted(&mut gate, ms(1), 1, 1);
    assert_eq!(admit(&mut gate, ms(2), 1), "1");
    finish(&mut gate, ms(3), 1, Finish::Abandoned);
    assert_eq!(done(&mut gate), ["return 1 of 1 after 1: closing", "close 1"]);
    // The stream breaks, and perhaps the frame was lost with it.
    gate.handle(ms(4), Event::Detached);
    let holding = Holding {
        pinned: false,
        sandbox: sandbox(1),
        revision: revision(1),
        share: Share::Slots(1),
        busy: 0,
        draining: true,
    };
    assert_eq!(gate.claims(), [holding]);
    assert!(gate.is_empty());
    gate.handle(ms(5), Event::Attached);
    assert_eq!(done(&mut gate), ["return 1 of 1 after 0: closing"]);
    // Long after, another one of its kind is given back: the first has arrived.
    granted(&mut gate, ms(40_000), 2, 1);
    assert_eq!(admit(&mut gate, ms(40_000), 2), "2");
    finish(&mut gate, ms(40_001), 2, Finish::Abandoned);
    let held: Vec<SandboxId> = gate.claims().iter().map(|held| held.sandbox).collect();
    assert_eq!(held, [sandbox(2)]);
}

#[test]
fn an_unreachable_sandbox_gets_nothing_more_and_goes_back_when_empty() {
    let mut gate = gate(2);
    granted(&mut gate, ms(1), 1, 2);
    assert_eq!(admit(&mut gate, ms(2), 1), "1");
    assert_eq!(admit(&mut gate, ms(2), 2), "1");
    finish(&mut gate, ms(3), 1, Finish::Unreachable);
    assert_eq!(retry(&mut gate, ms(3), 1, 1), "queued");
    finish(&mut gate, ms(4), 1, Finish::Done);
    assert_eq!(done(&mut gate), ["return 2 of 1 after 1: unreachable", "close 1"]);
}

#[test]
fn a_crash_loop_refuses_those_who_would_wait_for_a_start() {
    let mut gate = gate(1);
    assert_eq!(admit(&mut gate, ms(1), 1), "queued");
    gate.handle(ms(2), Event::StatusChanged(crash_loop()));
    assert_eq!(done(&mut gate), ["refuse 1: crash loop: exited with status 3"]);
    assert_eq!(admit(&mut gate, ms(3), 2), "crash loop: exited with status 3");
    assert_eq!(gate.demand(ms(3)).arrivals_total, 2, "the control plane sees that it is wanted");
    granted(&mut gate, ms(4), 1, 1);
    assert_eq!(admit(&mut gate, ms(5), 3), "1");
    assert_eq!(admit(&mut gate, ms(5), 4), "queued", "a sandbox that serves is waited for");
    finish(&mut gate, ms(6), 1, Finish::Unreachable);
    assert_eq!(
        done(&mut gate),
        [
            "return 1 of 1 after 1: unreachable",
            "close 1",
            "refuse 4: crash loop: exited with status 3"
        ]
    );
    gate.handle(ms(7), Event::StatusChanged(Status::Flowing));
    assert_eq!(admit(&mut gate, ms(8), 5), "queued");
}

#[test]
fn a_deleted_function_refuses_everybody_and_gives_everything_back() {
    let mut gate = gate(1);
    granted(&mut gate, ms(1), 1, 1);
    assert_eq!(admit(&mut gate, ms(2), 1), "1");
    assert_eq!(admit(&mut gate, ms(2), 2), "queued");
    gate.handle(ms(3), Event::Deleted);
    assert_eq!(done(&mut gate), ["refuse 2: deleted"]);
    assert_eq!(admit(&mut gate, ms(3), 3), "deleted");
    granted(&mut gate, ms(4), 2, 1);
    assert_eq!(done(&mut gate), ["return 1 of 2 after 2: drained", "close 2"]);
    finish(&mut gate, ms(5), 1, Finish::Done);
    assert_eq!(done(&mut gate), ["return 1 of 1 after 1: drained", "close 1"]);
    assert!(gate.is_empty());
}

#[test]
fn a_deleted_function_that_a_restored_store_knows_again_is_served_and_gives_back_what_it_should() {
    let mut gate = gate(1);
    granted(&mut gate, ms(1), 1, 1);
    assert_eq!(admit(&mut gate, ms(2), 1), "1");
    gate.handle(ms(3), Event::Deleted);
    gate.handle(ms(3), Event::Configured { version: 1, view: view(1, &[(1, 100)]) });
    assert_eq!(admit(&mut gate, ms(3), 2), "deleted", "nothing new was said");
    gate.handle(ms(4), Event::Configured { version: 9, view: view(1, &[(1, 100)]) });
    assert_eq!(admit(&mut gate, ms(4), 3), "queued");
    done(&mut gate);
    finish(&mut gate, ms(5), 1, Finish::Done);
    assert_eq!(done(&mut gate), ["return 1 of 1 after 1: drained", "close 1"]);
    granted(&mut gate, ms(6), 2, 1);
    assert!(done(&mut gate).contains(&"bind 3 to 2".to_owned()));
}

#[test]
fn one_who_leaves_the_queue_withdraws_the_demand_at_once() {
    let mut gate = gate(1);
    assert_eq!(admit(&mut gate, ms(1), 1), "queued");
    assert_eq!(admit(&mut gate, ms(1), 2), "queued");
    assert_eq!(said(&mut gate), ["demand queued 2 held 0 busy 0"], "only the newest is told");
    gate.handle(ms(2), Event::Left { invocation: invocation(1) });
    assert_eq!(said(&mut gate), ["demand queued 1 held 0 busy 0"]);
    gate.handle(ms(3), Event::Left { invocation: invocation(1) });
    assert_eq!(said(&mut gate), [""; 0]);
    granted(&mut gate, ms(4), 1, 1);
    assert_eq!(done(&mut gate), ["bind 2 to 1"]);
}

#[test]
fn the_demand_is_told_every_second_while_busy_and_once_more_when_idle() {
    let mut gate = gate(1);
    granted(&mut gate, ms(0), 1, 1);
    assert_eq!(said(&mut gate), ["demand queued 0 held 1 busy 0"]);
    assert_eq!(admit(&mut gate, ms(10), 1), "1");
    assert_eq!(said(&mut gate), [""; 0]);
    assert_eq!(gate.deadline(), Some(ms(1000)));
    gate.expire(ms(1000));
    assert_eq!(said(&mut gate), ["demand queued 0 held 1 busy 1"]);
    finish(&mut gate, ms(1500), 1, Finish::Done);
    assert_eq!(said(&mut gate), [""; 0]);
    gate.expire(ms(2000));
    assert_eq!(said(&mut gate), ["demand queued 0 held 1 busy 0"]);
    assert_eq!(gate.deadline(), Some(ms(61_500)), "only keep-alive is left");
}

#[test]
fn the_busy_integral_is_exact() {
    let mut gate = gate(0);
    gate.handle(ms(0), Event::Granted(Box::new(grant(1, Share::Open))));
    assert_eq!(admit(&mut gate, Time(1_000_000), 1), "1");
    assert_eq!(admit(&mut gate, Time(1_000_007), 2), "1");
    finish(&mut gate, Time(1_000_010), 1, Finish::Done);
    let demand = gate.demand(Time(1_000_020));
    assert_eq!((demand.busy_integral, demand.elapsed), (10 + 3 + 10, 1_000_020));
    assert_eq!((demand.arrivals_total, demand.finished_total), (2, 1));
}

#[test]
fn without_a_control_plane_nothing_is_given_back_until_the_next_attachment() {
    let mut gate = gate(1);
    for n in 1..=2 {
        granted(&mut gate, ms(0), n, 1);
    }
    assert_eq!(admit(&mut gate, ms(1), 1), "1");
    gate.handle(ms(2), Event::Recalled { n: 2, idle_only: false });
    assert_eq!(done(&mut gate), ["return 1 of 2 after 2: idle", "close 2"]);
    gate.handle(ms(3), Event::Detached);
    finish(&mut gate, ms(4), 1, Finish::Abandoned);
    assert_eq!(said(&mut gate), [""; 0]);
    assert_eq!(gate.deadline(), None);
    assert_eq!(admit(&mut gate, ms(5), 2), "queued");
    assert_eq!(said(&mut gate), [""; 0]);
    assert_eq!(gate.holdings().len(), 1);
    gate.handle(ms(6), Event::Attached);
    assert_eq!(
        said(&mut gate),
        ["return 1 of 1 after 0: closing", "close 1", "demand queued 1 held 0 busy 0"]
    );
}

#[test]
fn the_first_binding_brings_the_phases_of_the_start() {
    let mut gate = gate(1);
    let start = Some(StartPhases { init: Duration::from_millis(3), ..StartPhases::default() });
    gate.handle(ms(1), Event::Granted(Box::new(Grant { start, ..grant(1, Share::Slots(1)) })));
    let Verdict::Bound(first) = gate.admit(ms(2), invocation(1), Attempt::First) else {
        panic!("a slot is free");
    };
    assert_eq!(first.start, start);
    finish(&mut gate, ms(3), 1, Finish::Done);
    let Verdict::Bound(second) = gate.admit(ms(4), invocation(2), Attempt::First) else {
        panic!("a slot is free");
    };
    assert_eq!(second.start, None);
}
