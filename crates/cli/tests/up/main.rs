//! The binary end to end: `dirigent up` on a temporary state directory, called as users call it.

#![cfg(test)]

mod apart;
mod balanced;
mod benches;
mod callers;
mod certificates;
mod cluster;
mod compat;
#[path = "../../../runtime/tests/oci/daemon.rs"]
mod daemon;
mod demo;
mod drained;
mod encrypted;
mod export;
mod faults;
mod host;
mod lasting;
mod metrics;
mod moving;
mod recording;
mod relayed;
mod units;
mod wrong;

use std::{
    net::TcpListener,
    os::unix::process::ExitStatusExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use host::{PATIENCE, State, Up, call, example, folder, has, until};
use rustix::process::Signal;

/// A manifest of the built-in `hello` under another name.
fn hello(name: &str, rest: &str) -> tempfile::TempDir {
    let text = format!(
        "name = \"{name}\"\n[sandbox]\ncommand = [\"dirigent\", \"example\", \"hello\"]\n{rest}"
    );
    folder(&[("dirigent.toml", &text)])
}

fn path(dir: &tempfile::TempDir) -> &str {
    dir.path().to_str().unwrap()
}

#[test]
fn hello_answers_without_any_deploy_and_a_signal_leaves_nothing() {
    let mut up = Up::start(&[]);
    let port = up.functions.rsplit_once(':').unwrap().1.to_owned();
    assert!(up.body("hello", "/").starts_with("Hello from Dirigent!"));
    assert!(up.body(&format!("hello.localhost:{port}"), "/").starts_with("Hello"));
    assert!(up.body(&up.functions.clone(), "/fn/hello/x").starts_with("Hello"));
    assert!(up.ok(&["invoke", "hello"]).starts_with("Hello"));
    let running = up.state.processes();
    assert!(running.len() > 1, "the function runs in a process of its own: {running:?}");
    up.signal(Signal::TERM);
    let status = up.wait();
    assert!(status.success(), "{status}\n{}", up.said());
    until("nothing is left", || {
        let left = up.state.processes();
        let alive = |pid: &&i32| std::path::Path::new(&format!("/proc/{pid}")).exists();
        left.is_empty() && !running.iter().any(|pid| alive(&pid))
    });
}

#[test]
fn a_call_that_runs_is_finished_before_the_end() {
    let mut up = Up::start(&["--drain", "30s"]);
    up.body("hello", "/");
    let place = up.functions.clone();
    let begun = Arc::new(AtomicBool::new(false));
    let caller = {
        let begun = Arc::clone(&begun);
        thread::spawn(move || {
            begun.store(true, Ordering::SeqCst);
            call(&place, "GET /?sleep_ms=1500 HTTP/1.1\r\nhost: hello\r\n")
        })
    };
    until("it is running", || {
        begun.load(Ordering::SeqCst)
            && up.json(&["describe", "hello"])["summary"]["busy"].as_u64() == Some(1)
    });
    up.signal(Signal::INT);
    let status = up.wait();
    assert!(status.success(), "{status}\n{}", up.said());
    assert_eq!(caller.join().unwrap().unwrap().status, 200);
    assert!(!up.said().contains("were cut"), "{}", up.said());
}

#[test]
fn calls_that_outlast_the_drain_are_cut_and_that_is_said() {
    let mut up = Up::start(&["--drain", "1s"]);
    up.body("hello", "/");
    let place = up.functions.clone();
    let caller =
        thread::spawn(move || call(&place, "GET /?sleep_ms=600000 HTTP/1.1\r\nhost: hello\r\n"));
    up.until("it is running", || {
        up.json(&["describe", "hello"])["summary"]["busy"].as_u64() == Some(1)
    });
    up.signal(Signal::TERM);
    assert!(up.wait().success(), "{}", up.said());
    assert!(!caller.join().unwrap().is_ok_and(|response| response.status == 200));
    until("it is said", || up.said().contains("warning: calls went on after 1s and were cut"));
}

#[test]
fn a_second_interrupt_does_not_wait_for_calls() {
    let mut up = Up::start(&["--drain", "10m"]);
    up.body("hello", "/");
    let place = up.functions.clone();
    let caller = thread::spawn(move || {
        call(&place, "GET /?sleep_ms=600000 HTTP/1.1\r\nhost: hello\r\n").is_ok()
    });
    up.until("it is running", || {
        up.json(&["describe", "hello"])["summary"]["busy"].as_u64() == Some(1)
    });
    up.signal(Signal::INT);
    until("it drains", || up.said().contains("Ctrl-C again"));
    up.signal(Signal::INT);
    assert_eq!(up.wait().code(), Some(130), "{}", up.said());
    caller.join().unwrap();
    until("nothing is left", || up.state.processes().is_empty());
}

#[test]
fn a_python_function_is_deployed_called_and_its_log_is_read() {
    if !has("python3") {
        return;
    }
    let up = Up::start(&[]);
    let url = up.ok(&["deploy", &example("hello-python")]);
    assert!(url.starts_with("http://hello-python.localhost:"), "{url}");
    let response = up.get("hello-python", "/");
    assert_eq!(response.status, 200, "{response:?}");
    assert!(response.body.starts_with("Hello from Python"), "{response:?}");
    let again = up.cli(&["deploy", &example("hello-python")]);
    assert!(again.0 == 0 && again.2.contains("unchanged"), "{again:?}");
    let id = response.header("x-dirigent-request-id").to_owned();
    up.until("its line is in the log", || up.ok(&["logs", "hello-python"]).contains(&id));
    let record = up.json(&["logs", "--request-id", &id]);
    assert_eq!(record["record"]["status"].as_u64(), Some(200), "{record}");
    assert!(up.ok(&["describe", "hello-python"]).contains("python3 app.py"));
    assert!(up.ok(&["list"]).contains("hello-python"));
    up.ok(&["rm", "hello-python"]);
    assert_eq!(up.get("hello-python", "/").status, 404);
}

#[test]
fn a_redeploy_under_load_loses_no_call() {
    let up = Up::start(&[]);
    let first = hello("steady", "[scaling]\nmax = 4\n[env]\nVERSION = \"1\"\n");
    up.ok(&["deploy", path(&first)]);
    let stop = AtomicBool::new(false);
    let answered = AtomicUsize::new(0);
    let load = |count: u32| {
        for _ in 0..count {
            let response = up.get("steady", "/?sleep_ms=5");
            assert_eq!(response.status, 200, "{response:?}");
            answered.fetch_add(1, Ordering::SeqCst);
        }
    };
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    load(1);
                }
            });
        }
        for version in 2..5 {
            let before = answered.load(Ordering::SeqCst);
            let next =
                hello("steady", &format!("[scaling]\nmax = 4\n[env]\nVERSION = \"{version}\"\n"));
            let (code, _, err) = up.cli(&["deploy", path(&next)]);
            if code != 0 {
                stop.store(true, Ordering::SeqCst);
                panic!("{err}");
            }
            // What is answered after the deploy has returned comes from the new revision.
            let body = up.body("steady", "/");
            if !body.contains(&format!("0000{version}")) {
                stop.store(true, Ordering::SeqCst);
                panic!("the old revision answered: {body}");
            }
            until("calls went on", || answered.load(Ordering::SeqCst) > before + 20);
        }
        stop.store(true, Ordering::SeqCst);
    });
    let revisions = up.ok(&["revisions", "steady"]);
    assert!(revisions.lines().count() >= 5, "{revisions}");
    up.ok(&["rollback", "steady", "--to", "1"]);
    assert!(up.body("steady", "/").contains("00001"));
}

#[test]
fn an_idle_function_goes_to_zero_and_comes_back() {
    let up = Up::start(&[]);
    let brief = hello("brief", "[scaling]\nkeep_alive = \"1s\"\n");
    up.ok(&["deploy", path(&brief)]);
    let sandbox = || up.get("brief", "/").header("x-sandbox").to_owned();
    let first = sandbox();
    assert!(!first.is_empty());
    up.until("it is at zero", || up.sandboxes("brief") == (0, 0));
    assert_ne!(sandbox(), first);
}

#[test]
fn after_kill_9_the_next_one_knows_the_functions_and_adopts_the_sandboxes() {
    let state = State::new();
    let mut up = Up::on(Arc::clone(&state), &[]);
    let kept = hello("kept", "[scaling]\nmin = 1\n");
    up.ok(&["deploy", path(&kept)]);
    let sandbox = up.get("kept", "/").header("x-sandbox").to_owned();
    up.signal(Signal::KILL);
    assert_eq!(up.wait().signal(), Some(9));
    let mut up = Up::on(Arc::clone(&state), &[]);
    let response = up.get("kept", "/");
    assert_eq!((response.status, response.header("x-sandbox")), (200, sandbox.as_str()));
    assert!(up.ok(&["list"]).contains("kept"));
    // Adopted, it is the one that `min` asks for.
    up.until("one sandbox of it is ready", || up.sandboxes("kept") == (1, 1));
    up.signal(Signal::TERM);
    assert!(up.wait().success(), "{}", up.said());
    until("nothing is left", || state.processes().is_empty());
}

#[test]
fn a_second_one_on_the_same_directory_is_refused() {
    let up = Up::start(&[]);
    let output = host::output(&mut Up::command(&up.state, &[]), PATIENCE);
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{err}");
    assert!(err.contains(&format!("(pid {})", up.pid())) && err.contains("--state"), "{err}");
    assert!(up.body("hello", "/").starts_with("Hello"), "the first is unharmed");
}

#[test]
fn a_port_that_is_taken_names_its_holder_and_the_flag() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap().to_string();
    for flag in ["--listen", "--api"] {
        let state = State::new();
        let mut command = std::process::Command::new(host::DIRIGENT);
        // clap takes the last of a flag given twice only if told to: this one is told.
        command
            .args(["up", "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0"])
            .arg("--state")
            .arg(state.path())
            .args([flag, &taken])
            .env_clear();
        let output = host::output(&mut command, PATIENCE);
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{err}");
        let pid = format!("(pid {})", std::process::id());
        assert!(err.contains(&pid) && err.contains(flag), "{err}");
        assert_eq!(state.processes().len(), 0, "nothing was started");
    }
}

#[test]
fn an_unknown_function_is_a_404() {
    let up = Up::start(&[]);
    let response = up.get("nobody", "/");
    assert_eq!((response.status, response.header("x-dirigent-error")), (404, "not_found"));
    assert!(response.body.contains("\"request_id\""), "{response:?}");
    let (code, _, err) = up.cli(&["describe", "nobody"]);
    assert!(code == 1 && err.contains("dirigent list"), "{err}");
    let (code, _, err) = up.cli(&["invoke", "nobody"]);
    assert!(code == 1 && err.contains("no function `nobody`"), "{err}");
}

#[test]
fn a_deploy_that_crashes_fails_with_its_last_lines_and_the_old_revision_stays() {
    let up = Up::start(&[]);
    let good = hello("fragile", "");
    up.ok(&["deploy", path(&good)]);
    let bad = folder(&[(
        "dirigent.toml",
        "name = \"fragile\"\n[sandbox]\ncommand = [\"sh\", \"-c\", \"echo broken on purpose; exit 7\"]\n",
    )]);
    for n in 2..=6 {
        let (code, _, err) = up.cli(&["deploy", path(&bad)]);
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("exited with status 7") && err.contains("broken on purpose"), "{err}");
        // However fast it fails, a deploy is one revision.
        assert!(err.contains(&format!("revision {n} failed")), "{err}");
    }
    assert!(up.body("fragile", "/").starts_with("Hello"));
}

#[test]
fn a_crash_loop_is_answered_at_once_with_the_last_lines() {
    let up = Up::start(&[]);
    let command = "sh -c 'echo broken on purpose; exit 7'";
    up.ok(&["deploy", "--name", "loop", "--command", command, "--no-check"]);
    up.until("it is found out", || {
        let response = up.get("loop", "/");
        assert_eq!(response.status, 502, "{response:?}");
        response.header("x-dirigent-error") == "crash_loop"
            && response.body.contains("broken on purpose")
    });
    let text = up.ok(&["describe", "loop"]);
    assert!(text.contains("exited with status 7"), "{text}");
}

#[test]
fn no_such_command_is_said_to_be_so() {
    let up = Up::start(&[]);
    let (code, _, err) = up.cli(&["deploy", "--name", "ghost", "--command", "/no/such/program"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("/no/such/program"), "{err}");
}

#[test]
fn a_function_that_never_listens_fails_its_deploy() {
    let up = Up::start(&[]);
    let args = ["deploy", "--name", "deaf", "--command", "sleep 1000", "--start-timeout", "1s"];
    let (code, _, err) = up.cli(&args);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("listen"), "{err}");
    up.until("its sandbox is gone", || up.sandboxes("deaf") == (0, 0));
}

#[test]
fn twenty_calls_at_once_are_all_answered() {
    let up = Up::start(&[]);
    let answers: Vec<u16> = thread::scope(|scope| {
        let calls: Vec<_> =
            (0..20).map(|_| scope.spawn(|| up.get("hello", "/?sleep_ms=50").status)).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(answers, [200; 20], "{}", up.said());
}

#[test]
fn environment_values_are_never_shown() {
    let up = Up::start(&[]);
    let secret = hello("secret", "[env]\nKEY = \"hunter2\"\n");
    up.ok(&["deploy", path(&secret)]);
    let text = up.ok(&["describe", "secret"]);
    assert!(text.contains("KEY") && !text.contains("hunter2"), "{text}");
    assert!(!up.ok(&["describe", "secret", "--json"]).contains("hunter2"));
}

#[test]
fn a_description_shows_the_isolation_that_is_had_and_what_is_missing() {
    let up = Up::start(&[]);
    let described = up.json(&["describe", "hello"]);
    let [on] = described["isolation"].as_array().unwrap().as_slice() else { panic!("{described}") };
    let level = on["level"].as_str().unwrap();
    let text = up.ok(&["describe", "hello"]);
    assert!(text.contains(&format!("{level}, the best there is")), "{text}");
    let missing = on["missing"].as_array().unwrap();
    assert!(level == "strict" || !missing.is_empty(), "`strict` at least: {described}");
    for line in missing {
        assert!(text.contains(line.as_str().unwrap()), "{line} in {text}");
    }
    // `doctor` finds out the same before anything runs.
    let (_, findings, err) = up.cli(&["doctor", "--json"]);
    let findings: Vec<serde_json::Value> =
        findings.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found = findings.iter().find(|finding| finding["what"] == "isolation").expect(&err);
    assert!(found["found"].as_str().unwrap().starts_with(level), "{found}");
    // It looks at what `up` would be told.
    let api = up.api.as_str();
    let (code, out, _) = up.cli(&["doctor", "--api", api, "--min-isolation", "strict"]);
    let port = api.rsplit(':').next().unwrap();
    assert!(out.contains(&format!("{port} is taken")), "{out}");
    let lacks = level != "strict";
    assert_eq!(code, i32::from(lacks), "{out}");
    assert_eq!(out.contains("`strict` is demanded by `min_isolation`"), lacks, "{out}");
    up.ok(&[
        "deploy",
        "--name",
        "bare",
        "--isolation",
        "plain",
        "--command",
        "dirigent example hello",
    ]);
    assert!(up.ok(&["describe", "bare"]).contains("plain, demanded"));
}

#[test]
fn the_log_is_followed_while_calls_are_made() {
    let up = Up::start(&[]);
    up.body("hello", "/one");
    let mut reader = std::process::Command::new(host::DIRIGENT)
        .args(["logs", "hello", "-f", "--json"])
        .env("DIRIGENT_STATE", up.state.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(reader.stdout.take().unwrap());
    let mut next = |wanted: &str| {
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            let count = std::io::BufRead::read_line(&mut lines, &mut line).unwrap();
            assert!(count > 0, "the log ended before {wanted}");
        }
    };
    next("/one");
    up.body("hello", "/two");
    next("/two");
    reader.kill().unwrap();
    reader.wait().unwrap();
}

#[test]
fn many_who_follow_logs_keep_nobody_from_deploying_or_ending() {
    let mut up = Up::start(&[]);
    up.body("hello", "/one");
    let follow = |_| {
        std::process::Command::new(host::DIRIGENT)
            .args(["logs", "hello", "-f"])
            .env("DIRIGENT_STATE", up.state.path())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut followers: Vec<_> = (0..24).map(follow).collect();
    for follower in &mut followers {
        let mut lines = std::io::BufReader::new(follower.stdout.as_mut().unwrap());
        let mut line = String::new();
        assert!(std::io::BufRead::read_line(&mut lines, &mut line).unwrap() > 0);
    }
    // With files: they are written, sent, fetched and unpacked.
    let files = folder(&[
        (
            "dirigent.toml",
            "name = \"files\"\n[sandbox]\ncommand = [\"dirigent\", \"example\", \"hello\"]\n",
        ),
        ("data", "of a function"),
    ]);
    up.ok(&["deploy", path(&files)]);
    up.signal(Signal::TERM);
    assert!(up.wait().success(), "{}", up.said());
    for mut follower in followers {
        host::ended(&mut follower, PATIENCE);
    }
}

#[test]
fn a_websocket_passes_through() {
    let up = Up::start(&[]);
    up.ok(&["deploy", "--name", "echo", "--command", "dirigent example ws"]);
    let mut stream = std::net::TcpStream::connect(&up.functions).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let head = "GET / HTTP/1.1\r\nhost: echo\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
                sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        std::io::Read::read_exact(&mut stream, &mut byte).unwrap();
        answer.extend(byte);
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101") && answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    let frame = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    std::io::Write::write_all(&mut stream, &frame).unwrap();
    let mut echoed = [0; 7];
    std::io::Read::read_exact(&mut stream, &mut echoed).unwrap();
    assert_eq!(&echoed, b"\x81\x05Hello");
}

#[test]
fn a_grpc_call_passes_through_with_its_trailers() {
    let up = Up::start(&[]);
    up.ok(&["deploy", &example("grpc")]);
    let message = b"\0\0\0\0\x04\x0a\x02hi";
    let request = http::Request::post("http://grpc/dirigent.example.Echo/Say")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let (status, body, trailers) = over_h2c(&up.functions, request, message);
    assert_eq!((status, &body[..]), (200, &message[..]), "{}", up.said());
    assert_eq!(trailers["grpc-status"], "0");
}

#[test]
fn what_cannot_be_run_is_refused_with_a_reason() {
    let up = Up::start(&[]);
    let base = ["deploy", "--name", "wish", "--command", "dirigent example hello"];
    let mut wishes = vec![("--memory", "100TiB")];
    if !up.ok(&["describe", "hello"]).contains("strict, the best there is") {
        wishes.push(("--isolation", "strict"));
    }
    for (flag, value) in wishes {
        let args: Vec<&str> = base.iter().copied().chain([flag, value]).collect();
        let (code, _, err) = up.cli(&args);
        assert_eq!(code, 1, "{err}");
        assert!(err.contains(flag.trim_start_matches("--")), "{err}");
    }
    assert_eq!(up.get("wish", "/").status, 404);
}

/// One call over h2c with prior knowledge: status, body and trailers.
fn over_h2c(
    place: &str,
    request: http::request::Builder,
    body: &'static [u8],
) -> (u16, bytes::Bytes, http::HeaderMap) {
    use http_body_util::{BodyExt as _, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let request = request.body(Full::new(bytes::Bytes::from_static(body))).unwrap();
    let call = async {
        let stream = tokio::net::TcpStream::connect(place).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        let call = async {
            let response = sender.send_request(request).await.unwrap();
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.unwrap();
            let trailers = body.trailers().cloned().unwrap_or_default();
            (status, body.to_bytes(), trailers)
        };
        tokio::select! {
            answer = call => answer,
            ended = connection => panic!("the connection ended first: {ended:?}"),
            () = tokio::time::sleep(PATIENCE) => panic!("no answer within {PATIENCE:?}"),
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(call)
}
