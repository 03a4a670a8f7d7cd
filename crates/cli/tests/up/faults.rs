//! What callers get while parts die, machines are full and everything changes.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    hello,
    host::{self, PATIENCE, Up, call, kill, until},
    path,
};

fn busy(up: &Up) -> u64 {
    up.json(&["describe", "hello"])["summary"]["busy"].as_u64().unwrap()
}

/// Kills the program of the sandbox in which a call runs, once one does.
fn kill_the_busy_one(up: &Up) {
    up.until("a call runs", || busy(up) == 1);
    let running = up.programs();
    assert_eq!(running.len(), 1, "{running:?}");
    running.into_iter().for_each(|pid| kill(pid, Signal::KILL));
}

#[test]
fn a_post_whose_sandbox_is_killed_is_told_and_not_repeated() {
    let up = Up::start(&[]);
    let place = up.functions.clone();
    let caller = thread::spawn(move || {
        call(&place, "POST /?sleep_ms=60000 HTTP/1.1\r\nhost: hello\r\ncontent-length: 0\r\n")
    });
    kill_the_busy_one(&up);
    let response = caller.join().unwrap().unwrap();
    assert_eq!((response.status, response.header("x-dirigent-error")), (502, "sandbox_lost"));
    let id = response.header("x-dirigent-request-id").to_owned();
    assert!(!id.is_empty() && response.body.contains(&id), "{response:?}");
    assert!(up.body("hello", "/").starts_with("Hello"), "the next call is served");
}

#[test]
fn a_get_whose_sandbox_is_killed_is_repeated_once_elsewhere() {
    let up = Up::start(&[]);
    let place = up.functions.clone();
    let caller = thread::spawn(move || {
        call(&place, "GET /?sleep_ms=4000 HTTP/1.1\r\nhost: hello\r\nx-request-id: a/b?c=twice\r\n")
    });
    kill_the_busy_one(&up);
    let response = caller.join().unwrap().unwrap();
    assert_eq!(response.status, 200, "{response:?}");
    let record = up.json(&["logs", "--request-id", "a/b?c=twice"]);
    assert_eq!(record["record"]["attempts"], 2, "{record}");
}

#[test]
fn an_answer_that_had_begun_is_cut_visibly() {
    let up = Up::start(&[]);
    let mut stream = TcpStream::connect(&up.functions).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /?stream_ms=60000 HTTP/1.1\r\nhost: hello\r\n\r\n").unwrap();
    let mut text = String::new();
    let mut piece = [0; 1024];
    while !text.contains("line 1\n") {
        let read = stream.read(&mut piece).unwrap();
        assert!(read > 0, "{text}");
        text += &String::from_utf8_lossy(&piece[..read]);
    }
    kill_the_busy_one(&up);
    let mut rest = Vec::new();
    // A reset and an end without the last chunk both tell the client.
    if stream.read_to_end(&mut rest).is_ok() {
        assert!(!String::from_utf8_lossy(&rest).contains("\r\n0\r\n"), "ended as if it were whole");
    }
}

#[test]
fn a_flood_on_a_full_machine_does_not_keep_another_function_waiting() {
    const FLOOD: usize = 80;
    let up = Up::start(&["--sandboxes", "4"]);
    let (flood, single) = (hello("flood", ""), hello("single", ""));
    up.ok(&["deploy", "--no-check", path(&flood)]);
    up.ok(&["deploy", "--no-check", path(&single)]);
    let done = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..FLOOD)
        .map(|_| {
            let (place, done) = (up.functions.clone(), Arc::clone(&done));
            thread::spawn(move || {
                let head = "GET /?sleep_ms=300 HTTP/1.1\r\nhost: flood\r\n";
                let status = call(&place, head).unwrap().status;
                done.fetch_add(1, Ordering::SeqCst);
                status
            })
        })
        .collect();
    until("the flood has taken the machine", || done.load(Ordering::SeqCst) >= 8);
    let before = done.load(Ordering::SeqCst);
    assert!(up.body("single", "/").starts_with("Hello"));
    let meanwhile = done.load(Ordering::SeqCst) - before;
    // One execution ends, its sandbox makes room, one starts: two rounds of four, and some more for
    // a machine that runs other tests beside.
    assert!(meanwhile <= 24, "{meanwhile} calls of the flood came before");
    assert!(callers.into_iter().all(|caller| caller.join().unwrap() == 200));
}

/// It takes 25 seconds by itself.
const BENCH: Duration = Duration::from_secs(240);

#[test]
fn nothing_is_lost_while_everything_changes() {
    let mut bench = Command::new(host::DIRIGENT);
    bench
        .args(["bench", "zero", "--calls", "1200", "--rate", "60", "--redeploys", "4"])
        .args(["--websockets", "3"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        // For an `up` of the caller's own: the one that is measured must not hear of it.
        .env("DIRIGENT_DRAIN", "no duration");
    let output = host::output(&mut bench, BENCH);
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    // "N starts, N drains, N of them with a call running, N redeploys; WebSockets were told to go N
    // times"
    let counts: Vec<usize> = out
        .lines()
        .next()
        .unwrap_or_default()
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect();
    let [starts, drains, busy, redeploys, told_to_go] = counts[..] else { panic!("{out}") };
    assert!(starts >= 20 && drains >= 20 && busy >= 3, "{out}");
    assert_eq!(redeploys, 3, "one of the four never becomes ready\n{out}");
    assert!(told_to_go >= 1, "{out}");
}

/// Reads a body only when it has slept for longer than a host may be silent.
const LATE: &str = r#"
import os, time
from http.server import BaseHTTPRequestHandler, HTTPServer

class Late(BaseHTTPRequestHandler):
    def do_POST(self):
        time.sleep(8)
        left = int(self.headers["Content-Length"])
        while left > 0:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"all of it")

HTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Late).serve_forever()
"#;

#[test]
fn a_function_that_reads_late_gets_all_of_a_large_body() {
    if !host::has("python3") {
        return;
    }
    // As root with a network of its own, which is reached as another host's is.
    let up = Up::start(&[]);
    let manifest = "name = \"late\"\n[sandbox]\ncommand = [\"python3\", \"app.py\"]\n";
    let late = host::folder(&[("dirigent.toml", manifest), ("app.py", LATE)]);
    up.ok(&["deploy", path(&late)]);
    // More than two kernels keep for each other: the sandbox's has no room left, all the while.
    let body = vec![b'x'; 16 << 20];
    let head = format!(
        "POST / HTTP/1.1\r\nhost: late\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let response = host::send(&up.functions, &[head.as_bytes(), &body].concat()).unwrap();
    assert_eq!((response.status, &*response.body), (200, "all of it"), "{response:?}");
}

/// Memory of its own that a process has, in bytes.
fn own_memory(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// A call on a connection of its own, which stays open.
fn held(place: &str, filler: usize) -> TcpStream {
    let mut stream = TcpStream::connect(place).unwrap();
    let filler = "x".repeat(filler);
    let head = format!(
        "GET / HTTP/1.1\r\nhost: hello\r\nx-request-id: one-of-many\r\nx-filler: {filler}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    while !answer.windows(7).any(|part| part == b"process") {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..count]);
    }
    stream
}

#[test]
fn of_a_long_head_nothing_is_kept_with_what_is() {
    const FILLER: usize = 48 << 10;
    const CALLS: usize = 300;
    let up = Up::start(&[]);
    let place = up.functions.clone();
    // All that is made once: the function, buffers of as many calls as there are at once.
    drop((0..20).map(|_| held(&place, FILLER)).collect::<Vec<_>>());
    let before = own_memory(up.pid());
    let mut open: Vec<TcpStream> = Vec::new();
    while open.len() < CALLS {
        open.extend((0..20).map(|_| held(&place, FILLER)));
        // What these took while they were served the next ones take again.
        let rest = format!("dirigent_proxy_connections_resting {}\n", open.len());
        up.until("they rest", || up.metrics().contains(&rest));
    }
    // The request ids are remembered, and so is what each connection asked for; a third of what came
    // with them is far more than connections take.
    let most = (CALLS * FILLER / 3) as u64;
    let more = own_memory(up.pid()).saturating_sub(before);
    assert!(more < most, "{more} bytes more, at most {most}");
}
