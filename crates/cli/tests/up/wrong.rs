//! Functions and clients that do what they should not: each gets a clear answer, and the rest is
//! unharmed.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use rustix::process::getuid;

use crate::{
    hello,
    host::{PATIENCE, State, Up, example, folder, has, send, until},
    path,
};

/// A function in Python: `before` runs first, then a server that answers every call.
fn python(name: &str, before: &str, rest: &str) -> tempfile::TempDir {
    let app = format!(
        "import os, signal, sys, threading, time\n\
         from http.server import BaseHTTPRequestHandler, HTTPServer\n\
         class Answer(BaseHTTPRequestHandler):\n    \
             def do_GET(self):\n        \
                 self.send_response(200)\n        \
                 self.send_header('Content-Length', '3')\n        \
                 self.end_headers()\n        \
                 self.wfile.write(b'yes')\n    \
             def log_message(self, *args):\n        \
                 pass\n\
         HTTPServer.server_bind = HTTPServer.__mro__[1].server_bind\n\
         port = int(os.environ['PORT'])\n\
         {before}\n\
         HTTPServer((os.environ['HOST'], port), Answer).serve_forever()\n"
    );
    let manifest =
        format!("name = \"{name}\"\n[sandbox]\ncommand = [\"python3\", \"app.py\"]\n{rest}");
    folder(&[("dirigent.toml", &manifest), ("app.py", &app)])
}

fn unharmed(up: &Up) {
    assert!(up.body("hello", "/").starts_with("Hello"), "the rest is unharmed");
}

#[test]
fn a_function_on_the_wrong_port_is_told_which() {
    if !has("python3") {
        return;
    }
    let up = Up::start(&[]);
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let rest = "[invocation]\nstart_timeout = \"6s\"\n";
    let dir = python("astray", &format!("port = {free}"), rest);
    let (code, _, err) = up.cli(&["deploy", path(&dir)]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains(&free.to_string()) && err.contains("PORT"), "{err}");
    unharmed(&up);
}

#[test]
fn a_function_that_ignores_sigterm_is_killed_with_all_that_it_started() {
    if !has("python3") {
        return;
    }
    let up = Up::start(&[]);
    let before = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
                  if os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)\n    sys.exit()";
    let dir = python("stubborn", before, "[invocation]\ngrace = \"1s\"\n");
    up.ok(&["deploy", path(&dir)]);
    assert_eq!(up.body("stubborn", "/"), "yes");
    let running = || {
        let is_its = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains("app.py")
        };
        up.state.processes().iter().filter(|pid| is_its(pid)).count()
    };
    assert!(running() >= 2, "it and its child");
    up.ok(&["rm", "stubborn"]);
    up.until("both are gone", || running() == 0);
    unharmed(&up);
}

#[test]
fn a_function_that_forks_away_has_ended() {
    if !has("python3") {
        return;
    }
    let up = Up::start(&[]);
    let before = "if os.fork() > 0:\n    os._exit(0)\nos.setsid()\ntime.sleep(1)";
    let dir = python("daemon", before, "[invocation]\nstart_timeout = \"5s\"\n");
    let (code, _, err) = up.cli(&["deploy", path(&dir)]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("exited with status 0"), "{err}");
    let away = || {
        up.state.processes().iter().any(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains("app.py")
        })
    };
    up.until("what forked away is gone too", || !away());
    unharmed(&up);
}

#[test]
fn a_flooded_log_stays_small_and_calls_are_answered() {
    if !has("python3") {
        return;
    }
    let up = Up::start(&[]);
    let before = "line = ('flood ' * 100 + '\\n') * 1000\n\
                  def flood():\n    \
                      while True:\n        \
                          sys.stdout.write(line)\n\
                  threading.Thread(target=flood, daemon=True).start()";
    let dir = python("flood", before, "");
    up.ok(&["deploy", path(&dir)]);
    let logs = up.state.path().join("worker/logs");
    let mut largest = 0;
    up.until("it has written a lot", || {
        assert_eq!(up.body("flood", "/"), "yes");
        largest = largest.max(size(&logs));
        largest > 8 << 20
    });
    // Two more rounds: it does not go on for ever.
    up.ok(&["rm", "flood"]);
    assert!(size(&logs) < 300 << 20, "{} bytes of log", size(&logs));
    unharmed(&up);
}

fn size(at: &Path) -> u64 {
    let entries = fs::read_dir(at).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => size(&entry.path()),
            _ => entry.metadata().map_or(0, |metadata| metadata.len()),
        })
        .sum()
}

#[test]
fn an_artifact_that_is_too_large_is_refused_before_it_is_sent() {
    let up = Up::start(&[]);
    let dir = folder(&[("dirigent.toml", "name = \"huge\"\n[sandbox]\ncommand = [\"./run\"]\n")]);
    // Sparse: it takes no room.
    fs::File::create(dir.path().join("data")).unwrap().set_len(3 << 30).unwrap();
    let (code, _, err) = up.cli(&["deploy", path(&dir)]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("2GiB"), "{err}");
    unharmed(&up);
}

#[test]
fn an_artifact_that_is_no_archive_is_its_functions_fault_alone() {
    let up = Up::start(&[]);
    let token = fs::read_to_string(up.state.path().join("token")).unwrap();
    let put = |what: &str, body: &str| {
        let head = format!(
            "PUT {what} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n",
            up.api,
            token.trim(),
            body.len()
        );
        send(&up.api, format!("{head}connection: close\r\n\r\n{body}").as_bytes()).unwrap()
    };
    // The SHA-256 of the five letters.
    let digest = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let sent = put(&format!("/v1/artifacts/{digest}"), "hello");
    assert!((200..300).contains(&sent.status), "{sent:?}");
    for n in 1..=4 {
        let body = format!(
            "{{\"manifest\": {{\"name\": \"bad-{n}\", \"sandbox\": {{\"command\": [\"./run\"]}}}}, \
             \"artifact\": \"{digest}\"}}"
        );
        let answer = put(&format!("/v1/functions/default/bad-{n}?wait=true"), &body);
        assert!(answer.body.contains("not a tar archive"), "{answer:?}");
    }
    let workers = up.json(&["workers"]).to_string();
    assert!(!workers.contains("quarantined"), "{workers}");
    unharmed(&up);
}

#[test]
fn a_header_of_50_mb_is_refused_or_cut_and_costs_no_memory() {
    let up = Up::start(&[]);
    unharmed(&up);
    let mut stream = TcpStream::connect(&up.functions).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = stream.try_clone().unwrap();
    let answer = thread::spawn(move || {
        let mut bytes = Vec::new();
        // It may end in a reset: what came before is kept.
        let ended = reader.read_to_end(&mut bytes);
        assert!(ended.is_ok() || ended.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let sent = (|| {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: hello\r\nx-large: ")?;
        let piece = vec![b'x'; 1 << 20];
        (0..50).try_for_each(|_| stream.write_all(&piece))
    })();
    let text = answer.join().unwrap();
    assert!(sent.is_err() || text.contains(" 431 "), "{text}");
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 431"), "{text}");
    let status = fs::read_to_string(format!("/proc/{}/status", up.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 150 << 10, "{peak} KiB at its peak");
    unharmed(&up);
}

#[test]
fn clients_that_go_at_any_stage_leave_nothing_running() {
    let up = Up::start(&[]);
    let one = hello("one", "[scaling]\nmax = 1\n");
    up.ok(&["deploy", path(&one)]);
    let counts = || {
        let summary = up.json(&["describe", "one"])["summary"].clone();
        (summary["busy"].as_u64().unwrap(), summary["queued"].as_u64().unwrap())
    };
    let open = |text: &str| {
        let mut stream = TcpStream::connect(&up.functions).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let head = "GET /?sleep_ms=60000 HTTP/1.1\r\nhost: one\r\n\r\n";
    // Before the request, in its head, in its body.
    for text in [
        "",
        "GET / HTTP/1.1\r\nho",
        "POST /?echo=1 HTTP/1.1\r\nhost: one\r\ncontent-length: 100\r\n\r\nabc",
    ] {
        drop(open(text));
    }
    up.until("none of these counts", || counts() == (0, 0));
    // While it runs, and another one while it is queued behind it.
    let running = open(head);
    up.until("it runs", || counts().0 == 1);
    let queued = open(head);
    up.until("it is queued", || counts().1 == 1);
    queued.shutdown(Shutdown::Both).unwrap();
    up.until("nobody is queued", || counts().1 == 0);
    running.shutdown(Shutdown::Both).unwrap();
    up.until("nobody runs", || counts() == (0, 0));
    // In the answer.
    let mut stream = open("GET /?stream_ms=60000 HTTP/1.1\r\nhost: one\r\n\r\n");
    assert!(stream.read(&mut [0; 512]).unwrap() > 0);
    drop(stream);
    up.until("nobody runs", || counts() == (0, 0));
    assert!(up.body("one", "/").starts_with("Hello"), "its slot is free");
}

/// A small file system, away with the test.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(at: tempfile::TempDir) -> Option<Self> {
        if !getuid().is_root() {
            println!("skip: only root can mount a file system that is soon full");
            return None;
        }
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=24m,mode=755", "tmpfs"]).arg(at.path());
        if mount.status().is_ok_and(|status| status.success()) {
            return Some(Self(at));
        }
        println!("skip: this root may not mount a file system that is soon full");
        None
    }

    /// Takes all the room that there is; removing the file gives it back.
    fn fill(&self) -> PathBuf {
        let filler = self.0.path().join("filler");
        let mut file = fs::File::create(&filler).unwrap();
        let piece = vec![0_u8; 4096];
        while file.write_all(&piece).is_ok() {}
        filler
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: what a failed test left may still be in it.
        drop(Command::new("umount").arg("--lazy").arg(self.0.path()).status());
    }
}

#[test]
fn a_full_disk_is_told_and_what_runs_goes_on() {
    let Some(small) = Small::mount(tempfile::tempdir().unwrap()) else { return };
    let state = State::within(small.0.path());
    let mut up = Up::on(state, &[]);
    let kept = hello("kept", "");
    up.ok(&["deploy", path(&kept)]);
    let filler = small.fill();
    // Neither the store nor the logs can be written now.
    let (code, _, err) = up.cli(&["deploy", &example("hello-python")]);
    assert_ne!(code, 0, "{err}");
    assert!(err.to_lowercase().contains("space") || err.contains("full"), "{err}");
    let value = format!("FILLER={}", "x".repeat(60_000));
    let mut refused = None;
    for number in 0..200 {
        let name = format!("more-{number}");
        let command = "dirigent example hello";
        let args = ["deploy", "--no-check", "--name", &name, "--command", command, "-e", &value];
        let (code, _, err) = up.cli(&args);
        assert!(up.body("kept", "/").starts_with("Hello"), "calls go on");
        if code != 0 {
            refused = Some(err);
            break;
        }
    }
    let refused = refused.expect("the store cannot grow");
    assert!(refused.contains("store"), "{refused}");
    fs::remove_file(&filler).unwrap();
    let more = hello("more", "");
    up.until("deploys work again", || up.cli(&["deploy", path(&more)]).0 == 0);
    assert!(up.body("more", "/").starts_with("Hello"));
    up.signal(rustix::process::Signal::TERM);
    assert!(up.wait().success(), "{}", up.said());
    until("nothing is left", || up.state.processes().is_empty());
}

#[test]
fn a_full_disk_costs_lines_of_the_log_and_the_log_says_so() {
    const CALLS: usize = 50;
    let Some(small) = Small::mount(tempfile::tempdir().unwrap()) else { return };
    let up = Up::on(State::within(small.0.path()), &[]);
    let log = || up.ok(&["logs", "hello"]);
    up.body("hello", "/before");
    up.until("a line is kept", || log().contains("/before"));
    let long = "x".repeat(200);
    let mut rounds = 0;
    // Lines on their way while room is made again may be kept after all: then once more.
    up.until("lines are lost, and kept again", || {
        rounds += 1;
        let filler = small.fill();
        // More than what the file's last page still takes.
        for _ in 0..CALLS {
            assert!(up.body("hello", &format!("/full-{long}")).starts_with("Hello"));
        }
        fs::remove_file(&filler).unwrap();
        let after = format!("/after-{rounds} ");
        up.body("hello", after.trim());
        up.until("a line is kept", || log().contains(&after));
        log().contains("lines lost")
    });
    let log = log();
    // What is missing is said before the next line: each was kept whole or is counted.
    let lost: usize = log
        .lines()
        .filter_map(|line| line.split_once(" lines lost: the log could not be written: No space"))
        .map(|(before, _)| before.rsplit('[').next().unwrap().parse::<usize>().unwrap())
        .sum();
    let kept =
        log.lines().filter(|line| line.contains(&format!("GET /full-{long} request"))).count();
    assert_eq!(kept + lost, rounds * CALLS, "{log}");
    assert!(log.lines().all(|line| line.matches("GET /").count() <= 1), "{log}");
}

#[test]
fn limits_and_gateways_are_configured() {
    let file = folder(&[(
        "dirigent-up.toml",
        "gateways = [\"functions.example\"]\n[limits]\nbody = \"1KiB\"\nhead = \"2KiB\"\n",
    )]);
    let path = file.path().join("dirigent-up.toml");
    let up = Up::start(&["--config", path.to_str().unwrap()]);
    assert!(up.body("functions.example", "/fn/hello/").starts_with("Hello"));
    let post = |length: usize| {
        let body = "x".repeat(length);
        let head = format!("POST / HTTP/1.1\r\nhost: hello\r\ncontent-length: {length}\r\n");
        send(&up.functions, format!("{head}connection: close\r\n\r\n{body}").as_bytes()).unwrap()
    };
    assert_eq!((post(1024).status, post(1025).status), (200, 413));
    let long = "x".repeat(3000);
    assert_eq!(up.get("hello", &format!("/{long}")).status, 431);
}
