//! The function that runs in these tests' sandboxes. It understands what the fake runtime's
//! sandboxes understand (`dirigent_runtime::fake`), and for real processes `/fork`: it starts a
//! process in a group of its own that stays behind.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::{Command, ExitCode},
    time::Duration,
};

pub(crate) fn main() -> ExitCode {
    println!("started");
    let env = |key: &str| std::env::var(key).ok();
    let millis = |key| env(key).and_then(|v| v.parse().ok()).map(Duration::from_millis);
    if env("FAKE_IGNORE_TERM").is_some() {
        ignore_term();
    } else {
        end_at_term();
    }
    pause(millis("FAKE_START_MS").unwrap_or_default());
    match env("FAKE_FAIL").as_deref() {
        Some("oom") => exhaust_memory(),
        Some("never_listen") => pause(Duration::from_secs(3600)),
        Some(how) => {
            let code = how.strip_prefix("exit:").and_then(|code| code.parse().ok());
            return ExitCode::from(code.unwrap_or(1));
        }
        None => {}
    }
    let port: u16 = env("PORT").and_then(|port| port.parse().ok()).expect("$PORT is a port");
    let host = env("HOST").and_then(|host| host.parse().ok()).unwrap_or(Ipv4Addr::LOCALHOST);
    let listener = TcpListener::bind((host, port)).expect("$PORT is free");
    if let Some(after) = millis("FAKE_EXIT_AFTER_MS") {
        std::thread::spawn(move || {
            pause(after);
            exit(0);
        });
    }
    for stream in listener.incoming() {
        std::thread::spawn(move || serve(stream.expect("a connection")));
    }
    ExitCode::SUCCESS
}

fn serve(mut stream: TcpStream) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let head = String::from_utf8_lossy(&head);
    let target = head.split(' ').nth(1).unwrap_or("/");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parameter =
        |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    let body = match path {
        "/env" => {
            let env: BTreeMap<String, String> = std::env::vars().collect();
            serde_json::to_string(&env).expect("text")
        }
        "/exit" => {
            let code = parameter("code").and_then(|code| code.parse().ok());
            exit(code.unwrap_or(0));
        }
        "/log" => {
            println!("{}", parameter("text").unwrap_or(""));
            "written".to_owned()
        }
        "/fork" => {
            use std::os::unix::process::CommandExt as _;
            let time = parameter("seconds").expect("how long");
            let child = Command::new("/bin/sleep").arg(time).process_group(0).spawn();
            child.expect("sleep can be started").id().to_string()
        }
        _ => target.to_owned(),
    };
    let length = body.len();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
    // A caller who left is not told.
    drop(stream.write_all(answer.as_bytes()));
}

/// As the first process of its namespace, a program is only ended by signals that it handles.
fn end_at_term() {
    on_term(true);
}

fn ignore_term() {
    on_term(false);
}

fn on_term(end: bool) {
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async move {
            let kind = tokio::signal::unix::SignalKind::terminate();
            let mut term = tokio::signal::unix::signal(kind).expect("SIGTERM can be handled");
            ready.send(()).expect("main waits");
            while term.recv().await.is_some() {
                if end {
                    exit(0);
                }
            }
        });
    });
    is_ready.recv().expect("the handler is there");
}

fn exhaust_memory() {
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        held.push(vec![1; 1 << 20]);
        std::hint::black_box(&held);
    }
}

#[expect(clippy::disallowed_methods, reason = "a function in a sandbox may sleep")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[expect(clippy::exit, reason = "that is what is asked for")]
fn exit(code: i32) -> ! {
    std::process::exit(code)
}
