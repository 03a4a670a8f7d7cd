//! The cases, each a sentence that holds of every runtime that it applies to.

use std::{collections::BTreeMap, future::Future, pin::Pin, time::Duration};

use dirigent_core::{Address, Bytes, Cause, Fault, worker::CreateSandbox};
use dirigent_runtime::Event;

use crate::subject::{DEADLINE, Harness, Subject, free_port, get, until};

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) applies: fn(Subject) -> bool,
    body: fn(Harness) -> Pin<Box<dyn Future<Output = ()>>>,
}

impl Case {
    pub(crate) fn run(&self, subject: Subject) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { (self.body)(Harness::new(subject).await).await });
        // A follower of logs looks up in a moment; nothing waits for it.
        runtime.shutdown_background();
    }
}

fn everywhere(_: Subject) -> bool {
    true
}

fn where_processes_are(subject: Subject) -> bool {
    subject != Subject::Fake
}

fn where_files_are_sent(subject: Subject) -> bool {
    matches!(subject, Subject::Process(_))
}

macro_rules! cases {
    ($($name:ident: $applies:ident,)*) => {
        pub(crate) const ALL: &[Case] = &[$(Case {
            name: stringify!($name),
            applies: $applies,
            body: |harness| Box::pin($name(harness)),
        }),*];
    };
}

cases! {
    a_sandbox_starts_answers_and_stops: everywhere,
    the_environment_is_the_contracts_and_the_users: everywhere,
    the_environment_has_nothing_of_ours: where_processes_are,
    what_it_writes_can_be_read_and_followed: everywhere,
    an_exit_before_listening_is_told_with_its_last_lines: everywhere,
    an_exit_while_serving_is_told_with_its_status: everywhere,
    a_signal_from_elsewhere_is_told_apart: everywhere,
    too_much_memory_is_told_as_such: everywhere,
    one_that_never_listens_is_given_up: everywhere,
    a_polite_one_needs_no_grace: everywhere,
    one_that_ignores_sigterm_is_killed_after_its_grace: everywhere,
    a_second_order_can_shorten_the_grace: everywhere,
    one_that_is_still_starting_can_be_stopped: everywhere,
    stopping_what_is_not_there_harms_nobody: everywhere,
    the_whole_tree_goes: where_processes_are,
    an_address_is_free_when_its_sandbox_is_gone: everywhere,
    a_port_that_somebody_holds_is_not_used: everywhere,
    no_such_command_is_the_functions_fault: where_processes_are,
    sandboxes_outlive_the_worker: everywhere,
    an_end_while_no_worker_was_there_is_told_with_its_cause: everywhere,
    artifacts_are_unpacked_kept_and_discarded: everywhere,
    a_damaged_artifact_is_refused: where_processes_are,
    an_artifact_is_the_working_directory: where_files_are_sent,
    many_at_once_do_not_mix: everywhere,
}

async fn a_sandbox_starts_answers_and_stops(mut harness: Harness) {
    let (sandbox, address) = harness.ready(harness.order(&[])).await;
    assert!(get(address, "/hello").await.unwrap().contains("/hello"));
    let failure = harness.stop(sandbox).await;
    assert_eq!(failure.cause, Cause::Stopped);
    harness.restart(async {}).await;
    assert_eq!(harness.runtime.recover().unwrap(), [], "nothing is left");
}

async fn the_environment_is_the_contracts_and_the_users(mut harness: Harness) {
    let create = harness.order(&[("MODE", "fast"), ("EMPTY", "")]);
    let port = create.port.to_string();
    let (_, address) = harness.ready(create).await;
    let env = environment(address).await;
    for (key, value) in [
        ("PORT", port.as_str()),
        ("K_SERVICE", "conform"),
        ("K_CONFIGURATION", "conform"),
        ("K_REVISION", "conform-00001"),
        ("MODE", "fast"),
        ("EMPTY", ""),
    ] {
        assert_eq!(env.get(key).map(String::as_str), Some(value), "{key} in {env:?}");
    }
    assert!(env.contains_key("HOST"), "{env:?}");
}

async fn the_environment_has_nothing_of_ours(mut harness: Harness) {
    let (_, address) = harness.ready(harness.order(&[])).await;
    let env = environment(address).await;
    // Cargo sets this one for the worker, which is this process.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    assert!(!env.contains_key("CARGO_MANIFEST_DIR"), "{env:?}");
    // Save the random mark by which what is left of a sandbox is found.
    let ours = env.keys().filter(|key| key.starts_with("DIRIGENT_"));
    assert!(ours.clone().all(|key| key == "DIRIGENT_SANDBOX"), "{env:?}");
}

async fn environment(address: std::net::SocketAddr) -> BTreeMap<String, String> {
    serde_json::from_str(&get(address, "/env").await.unwrap()).unwrap()
}

async fn what_it_writes_can_be_read_and_followed(mut harness: Harness) {
    let (sandbox, address) = harness.ready(harness.order(&[])).await;
    let (_, other) = harness.ready(harness.order(&[])).await;
    get(address, "/log?text=one").await.unwrap();
    get(other, "/log?text=of-another").await.unwrap();
    get(address, "/log?text=two").await.unwrap();
    // A line is there soon after it was written, not before the call returns.
    loop {
        let lines = harness.logged(Some(sandbox), 10).await;
        assert!(lines.len() <= 3, "{lines:?}");
        if lines == ["started", "one", "two"] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(harness.logged(Some(sandbox), 1).await, ["two"]);
    let mut follower = harness.log(Some(sandbox), 1, true);
    let mut texts = Vec::new();
    get(address, "/log?text=three").await.unwrap();
    while !texts.contains(&"three".to_owned()) {
        let batch = tokio::time::timeout(DEADLINE, follower.recv()).await.unwrap().unwrap();
        texts.extend(batch.into_iter().map(|line| line.text));
    }
    assert!(!texts.contains(&"one".to_owned()), "{texts:?}");
}

async fn an_exit_before_listening_is_told_with_its_last_lines(mut harness: Harness) {
    let failure = harness.failure(harness.order(&[("FAKE_FAIL", "exit:3")])).await;
    assert_eq!((failure.cause, failure.fault), (Cause::Exited { code: 3 }, Fault::Function));
    assert_eq!(failure.log_tail, ["started"]);
}

async fn an_exit_while_serving_is_told_with_its_status(mut harness: Harness) {
    let (sandbox, address) = harness.ready(harness.order(&[])).await;
    assert_eq!(get(address, "/exit?code=7").await, None, "the call is cut");
    assert_eq!(harness.gone(sandbox).await.cause, Cause::Exited { code: 7 });
    let (sandbox, _) = harness.ready(harness.order(&[("FAKE_EXIT_AFTER_MS", "20")])).await;
    assert_eq!(harness.gone(sandbox).await.cause, Cause::Exited { code: 0 });
}

async fn a_signal_from_elsewhere_is_told_apart(mut harness: Harness) {
    let (sandbox, address) = harness.ready(harness.order(&[])).await;
    harness.kill(address).await;
    assert_eq!(harness.gone(sandbox).await.cause, Cause::Signalled { signal: 9 });
}

async fn too_much_memory_is_told_as_such(mut harness: Harness) {
    if harness.lacks("memory: not limited") {
        return;
    }
    let failure = harness.failure(harness.order(&[("FAKE_FAIL", "oom")])).await;
    assert_eq!(failure.cause, Cause::OutOfMemory { limit: Bytes::mib(64) });
    assert_eq!(failure.fault, Fault::Function);
}

async fn one_that_never_listens_is_given_up(mut harness: Harness) {
    let mut create = harness.order(&[("FAKE_FAIL", "never_listen")]);
    create.order.start_timeout = Duration::from_millis(300);
    let port = create.port.to_string();
    let failure = harness.failure(create).await;
    let Cause::NeverListened { message } = &failure.cause else { panic!("{failure:?}") };
    assert!(message.contains(&port), "{message}");
    assert_eq!(failure.fault, Fault::Function);
}

async fn a_polite_one_needs_no_grace(mut harness: Harness) {
    let (sandbox, _) = harness.ready(harness.order(&[])).await;
    harness.runtime.destroy(sandbox, DEADLINE * 10);
    assert_eq!(harness.gone(sandbox).await.cause, Cause::Stopped);
}

async fn one_that_ignores_sigterm_is_killed_after_its_grace(mut harness: Harness) {
    let (sandbox, address) = harness.ready(harness.order(&[("FAKE_IGNORE_TERM", "1")])).await;
    let from = std::time::Instant::now();
    let grace = Duration::from_millis(300);
    harness.runtime.destroy(sandbox, grace);
    assert_eq!(harness.gone(sandbox).await.cause, Cause::Stopped);
    assert!(from.elapsed() >= grace, "it had its grace");
    assert_eq!(get(address, "/").await, None);
}

async fn a_second_order_can_shorten_the_grace(mut harness: Harness) {
    let (sandbox, _) = harness.ready(harness.order(&[("FAKE_IGNORE_TERM", "1")])).await;
    harness.runtime.destroy(sandbox, DEADLINE * 10);
    harness.runtime.destroy(sandbox, Duration::ZERO);
    assert_eq!(harness.gone(sandbox).await.cause, Cause::Stopped);
}

async fn one_that_is_still_starting_can_be_stopped(mut harness: Harness) {
    for wait in [false, true] {
        let create = harness.order(&[("FAKE_FAIL", "never_listen")]);
        let sandbox = create.order.sandbox;
        harness.runtime.create(create);
        if wait {
            assert_eq!(harness.next().await, Event::Created { sandbox });
        }
        harness.runtime.destroy(sandbox, Duration::from_secs(10));
        assert_eq!(harness.gone(sandbox).await.cause, Cause::Stopped);
    }
}

async fn stopping_what_is_not_there_harms_nobody(mut harness: Harness) {
    let never = harness.order(&[]).order.sandbox;
    harness.runtime.destroy(never, Duration::ZERO);
    let (sandbox, address) = harness.ready(harness.order(&[])).await;
    harness.stop(sandbox).await;
    harness.runtime.destroy(sandbox, Duration::ZERO);
    assert_eq!(get(address, "/").await, None);
    harness.ready(harness.order(&[])).await;
}

async fn the_whole_tree_goes(mut harness: Harness) {
    let mark = format!("9{:06}.{}", std::process::id(), free_port());
    for ignore in [None, Some(("FAKE_IGNORE_TERM", "1"))] {
        let env: Vec<_> = ignore.into_iter().collect();
        let (sandbox, address) = harness.ready(harness.order(&env)).await;
        get(address, &format!("/fork?seconds={mark}")).await.unwrap();
        until("the child runs", || runs(&mark)).await;
        harness.runtime.destroy(sandbox, Duration::from_millis(100));
        harness.gone(sandbox).await;
        assert!(!runs(&mark), "the child is gone before its sandbox is told to be");
    }
    // Also when nobody ordered the end.
    let (sandbox, address) = harness.ready(harness.order(&[])).await;
    get(address, &format!("/fork?seconds={mark}")).await.unwrap();
    until("the child runs", || runs(&mark)).await;
    get(address, "/exit?code=1").await;
    assert_eq!(harness.gone(sandbox).await.cause, Cause::Exited { code: 1 });
    assert!(!runs(&mark), "the child is gone before its sandbox is told to be");
}

/// Whether a process has `mark` among its arguments.
fn runs(mark: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
        .any(|line| line.split(|byte| *byte == 0).any(|arg| arg == mark.as_bytes()))
}

async fn an_address_is_free_when_its_sandbox_is_gone(mut harness: Harness) {
    let create = harness.order(&[]);
    let port = create.port;
    let (sandbox, address) = harness.ready(create).await;
    let in_use = || match address.ip().is_loopback() {
        true => std::net::TcpListener::bind(("127.0.0.1", port)).is_err(),
        // In a network of its own.
        false => std::net::TcpStream::connect(address).is_ok(),
    };
    assert!(in_use());
    harness.stop(sandbox).await;
    assert!(!in_use());
}

async fn a_port_that_somebody_holds_is_not_used(mut harness: Harness) {
    for holder in ["127.0.0.1", "0.0.0.0"] {
        let create = harness.order(&[]);
        let (sandbox, port) = (create.order.sandbox, create.port);
        let held = std::net::TcpListener::bind((holder, port)).unwrap();
        harness.runtime.create(create.clone());
        assert_eq!(harness.next().await, Event::PortTaken { sandbox, port });
        // The same order on another port is another attempt.
        harness.ready(CreateSandbox { port: free_port(), ..create }).await;
        drop(held);
    }
}

async fn no_such_command_is_the_functions_fault(mut harness: Harness) {
    let mut create = harness.order(&[]);
    let mut spec = (*create.order.spec).clone();
    spec.sandbox.command = vec!["no-such-command".to_owned()];
    create.order.spec = spec.into();
    let failure = harness.failure(create).await;
    assert_eq!(failure.fault, Fault::Function, "{failure:?}");
    assert!(failure.cause.to_string().contains("no-such-command"), "{failure:?}");
}

async fn sandboxes_outlive_the_worker(mut harness: Harness) {
    let create = harness.order(&[]);
    let (order, port) = (create.order.clone(), create.port);
    let (sandbox, address) = harness.ready(create).await;
    get(address, "/log?text=before").await.unwrap();
    let meanwhile = async {
        assert!(get(address, "/").await.is_some(), "it serves without a worker");
        get(address, "/log?text=meanwhile").await.unwrap();
    };
    harness.restart(meanwhile).await;
    let adopted = harness.runtime.recover().unwrap();
    let [one] = &adopted[..] else { panic!("{adopted:?}") };
    assert_eq!((one.report.sandbox, one.report.revision), (sandbox, order.revision));
    assert_eq!(one.report.memory, order.spec.resources.memory);
    assert_eq!(one.report.cpu, order.spec.resources.cpu);
    assert_eq!(one.report.address, Some(Address::Tcp(address)));
    assert_eq!((one.report.stopping, one.port), (false, Some(port)));
    assert!(get(address, "/").await.is_some(), "it still serves");
    get(address, "/log?text=after").await.unwrap();
    let over = tokio::time::Instant::now() + DEADLINE;
    while harness.logged(Some(sandbox), 10).await != ["started", "before", "meanwhile", "after"] {
        assert!(tokio::time::Instant::now() < over, "every line is there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(harness.stop(sandbox).await.cause, Cause::Stopped);
    harness.ready(harness.order(&[])).await;
}

async fn an_end_while_no_worker_was_there_is_told_with_its_cause(mut harness: Harness) {
    let (ended, address) = harness.ready(harness.order(&[])).await;
    let (lives, _) = harness.ready(harness.order(&[])).await;
    let meanwhile = async {
        get(address, "/exit?code=7").await;
        let over = tokio::time::Instant::now() + DEADLINE;
        while get(address, "/").await.is_some() {
            assert!(tokio::time::Instant::now() < over, "{ended} ends");
        }
    };
    harness.restart(meanwhile).await;
    let adopted = harness.runtime.recover().unwrap();
    let adopted: Vec<_> = adopted.iter().map(|one| one.report.sandbox).collect();
    assert!(adopted.contains(&ended) && adopted.contains(&lives), "{adopted:?}");
    assert_eq!(harness.gone(ended).await.cause, Cause::Exited { code: 7 });
    // Once heard of, it is not told again.
    harness.restart(async {}).await;
    let adopted = harness.runtime.recover().unwrap();
    let adopted: Vec<_> = adopted.iter().map(|one| one.report.sandbox).collect();
    assert_eq!(adopted, [lives]);
}

async fn artifacts_are_unpacked_kept_and_discarded(mut harness: Harness) {
    // Where functions are images, theirs is there.
    let before = harness.runtime.artifacts();
    let (digest, archive) = harness.archive();
    harness.runtime.unpack(digest, archive.clone());
    assert_eq!(harness.next().await, Event::Unpacked { digest, result: Ok(()) });
    assert!(!archive.exists(), "the archive is removed");
    let held = harness.runtime.artifacts();
    assert!(held.len() == before.len() + 1 && held.contains(&digest), "{held:?}");
    harness.restart(async {}).await;
    harness.runtime.recover().unwrap();
    assert_eq!(harness.runtime.artifacts(), held);
    harness.runtime.discard(digest);
    let runtime = std::sync::Arc::clone(&harness.runtime);
    until("it is discarded", || runtime.artifacts() == before).await;
}

async fn a_damaged_artifact_is_refused(mut harness: Harness) {
    let before = harness.runtime.artifacts();
    let (digest, archive) = harness.archive();
    let mut bytes = std::fs::read(&archive).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&archive, bytes).unwrap();
    harness.runtime.unpack(digest, archive.clone());
    let Event::Unpacked { result: Err(failure), .. } = harness.next().await else { panic!() };
    assert!(failure.message.contains("damaged"), "{failure:?}");
    assert_eq!(harness.runtime.artifacts(), before);
    assert!(!archive.exists(), "the archive is removed");
}

async fn an_artifact_is_the_working_directory(mut harness: Harness) {
    let (digest, archive) = harness.archive();
    harness.runtime.unpack(digest, archive);
    assert_eq!(harness.next().await, Event::Unpacked { digest, result: Ok(()) });
    let mut create = harness.order(&[]);
    let mut spec = (*create.order.spec).clone();
    spec.artifact = Some(digest);
    spec.sandbox.command = ["/bin/cat", "data.txt"].map(str::to_owned).to_vec();
    create.order.spec = spec.into();
    let failure = harness.failure(create).await;
    assert_eq!(failure.cause, Cause::Exited { code: 0 });
    assert_eq!(failure.log_tail, ["from the artifact"]);
}

async fn many_at_once_do_not_mix(mut harness: Harness) {
    const MANY: usize = 12;
    let mut ports = BTreeMap::new();
    for _ in 0..MANY {
        let create = harness.order(&[("ME", "")]);
        let mut spec = (*create.order.spec).clone();
        spec.env.insert("ME".to_owned(), create.order.sandbox.to_string());
        let mut create = create;
        create.order.spec = spec.into();
        ports.insert(create.order.sandbox, create.port);
        harness.runtime.create(create);
    }
    let mut addresses = BTreeMap::new();
    while addresses.len() < MANY {
        match harness.next().await {
            Event::Listening { sandbox, address: Address::Tcp(address), .. } => {
                addresses.insert(sandbox, address);
            }
            Event::Created { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    for (sandbox, address) in &addresses {
        assert_eq!(address.port(), ports[sandbox]);
        assert_eq!(environment(*address).await["ME"], sandbox.to_string());
        harness.runtime.destroy(*sandbox, Duration::from_secs(10));
    }
    while !addresses.is_empty() {
        if let Event::Gone { sandbox, failure } = harness.next().await {
            assert_eq!(failure.cause, Cause::Stopped);
            addresses.remove(&sandbox);
        }
    }
    harness.restart(async {}).await;
    assert_eq!(harness.runtime.recover().unwrap(), []);
}
