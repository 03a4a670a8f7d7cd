//! What the tests of the process runtime start: a keeper, and a function that does what it is told.
//!
//! The function takes one line per connection and answers with text: `run COMMAND` gives the output
//! of a shell, `print TEXT` and `complain TEXT` write to its log, `exit N` ends it, `eat MIB` takes
//! memory, `connect ADDRESS` tries to reach somebody (`@NAME`: a Unix
//! socket with an abstract name), `listen @NAME` is one, `raw` tries for sockets that see others' packets,
//! `squat PORTS` listens there. Before it listens it does what `MODE` says.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    mem,
    net::{TcpListener, TcpStream},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    process::{Command, ExitCode},
    time::Duration,
};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("keeper") => dirigent_runtime::keeper::main(args),
        Some("serve") => serve(),
        _ => ExitCode::from(2),
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn serve() -> ExitCode {
    let passed = dirigent_runtime::passed_listener();
    for word in variable("MODE").split(' ') {
        match word.split_once('=').unwrap_or((word, "")) {
            ("print", text) => write(&mut io::stdout(), text),
            ("exit", code) => return ExitCode::from(code.parse().unwrap_or(1)),
            ("never", "") => loop {
                std::thread::park();
            },
            ("delay_ms", ms) => {
                let until = Duration::from_millis(ms.parse().unwrap_or(0));
                let start = std::time::Instant::now();
                while start.elapsed() < until {
                    std::thread::park_timeout(until);
                }
            }
            ("eat", mib) => eat(mib),
            ("hold", mib) => hold(mib),
            _ => {}
        }
    }
    let port =
        if variable("MODE").contains("wrong_port") { "0".to_owned() } else { variable("PORT") };
    let host =
        if variable("MODE") == "loopback" { "127.0.0.1".to_owned() } else { variable("HOST") };
    let listener = passed.map_or_else(|| TcpListener::bind(format!("{host}:{port}")), Ok);
    let Ok(listener) = listener else { return ExitCode::from(3) };
    for connection in listener.incoming().flatten() {
        std::thread::spawn(move || answer(connection));
    }
    ExitCode::SUCCESS
}

fn write(to: &mut impl io::Write, text: &str) {
    if writeln!(to, "{text}").and_then(|()| to.flush()).is_err() {
        std::process::abort();
    }
}

fn eat(mib: &str) {
    let mib: usize = mib.parse().unwrap_or(0);
    let mut food = vec![1_u8; mib << 20];
    for page in food.chunks_mut(4096) {
        page[0] = 2;
    }
    std::hint::black_box(&food);
}

#[expect(clippy::exit, reason = "told to by the test")]
fn end(code: &str) -> ! {
    std::process::exit(code.parse().unwrap_or(1))
}

fn hold(mib: &str) -> ! {
    let mib: usize = mib.parse().unwrap_or(0);
    let mut food = vec![1_u8; mib << 20];
    loop {
        for page in food.chunks_mut(4096) {
            page[0] = 2;
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

fn raw() -> String {
    use rustix::net::{AddressFamily, SocketType, ipproto, socket};
    let attempts = [
        ("ping", AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)),
        ("raw", AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW)),
        ("raw6", AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6)),
        ("packets", AddressFamily::PACKET, SocketType::RAW, None),
    ];
    let got = attempts
        .into_iter()
        .filter(|(_, family, kind, protocol)| socket(*family, *kind, *protocol).is_ok());
    got.map(|(name, ..)| name).collect::<Vec<_>>().join(" ")
}

fn abstract_name(text: &str) -> Option<io::Result<SocketAddr>> {
    text.strip_prefix('@').map(SocketAddr::from_abstract_name)
}

fn connect(to: &str) -> io::Result<()> {
    match abstract_name(to) {
        Some(name) => UnixStream::connect_addr(&name?).map(drop),
        None => TcpStream::connect(to).map(drop),
    }
}

/// Until the process ends.
fn listen(at: &str) -> io::Result<()> {
    let name = abstract_name(at).ok_or(io::ErrorKind::InvalidInput)??;
    UnixListener::bind_addr(&name).map(mem::forget)
}

fn answer(mut connection: TcpStream) {
    let mut line = String::new();
    if BufReader::new(&connection).read_line(&mut line).is_err() {
        return;
    }
    let line = line.trim_end();
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let text = match word {
        "run" => match Command::new("/bin/sh").args(["-c", rest]).output() {
            Ok(output) => {
                let both = [output.stdout, output.stderr].concat();
                format!("{}:{}", output.status.code().unwrap_or(-1), String::from_utf8_lossy(&both))
            }
            Err(error) => format!("-1:{error}"),
        },
        // Listen for ever on these ports.
        "squat" => {
            let ports = rest.split(' ').filter_map(|port| port.parse::<u16>().ok());
            let held = ports.filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
            held.map(mem::forget).count().to_string()
        }
        "print" => {
            write(&mut io::stdout(), rest);
            "ok".to_owned()
        }
        "complain" => {
            write(&mut io::stderr(), rest);
            "ok".to_owned()
        }
        "flood" => {
            let line = "x".repeat(99) + "\n";
            let block = line.repeat(10_000);
            for _ in 0..rest.parse().unwrap_or(0) {
                if io::stdout().write_all(block.as_bytes()).is_err() {
                    std::process::abort();
                }
            }
            "ok".to_owned()
        }
        "exit" => end(rest),
        "eat" => {
            eat(rest);
            "ok".to_owned()
        }
        // From now on, beside what comes next.
        "hold" => {
            let mib = rest.to_owned();
            std::thread::spawn(move || hold(&mib));
            "ok".to_owned()
        }
        "connect" => match connect(rest) {
            Ok(()) => "connected".to_owned(),
            Err(error) => format!("refused: {error}"),
        },
        "listen" => match listen(rest) {
            Ok(()) => "listening".to_owned(),
            Err(error) => format!("refused: {error}"),
        },
        // Sockets that see or make what is not a connection of one's own.
        "raw" => raw(),
        "env" => {
            let mut all: Vec<_> = std::env::vars().map(|(k, v)| format!("{k}={v}")).collect();
            all.sort();
            all.join("\n")
        }
        _ => "?".to_owned(),
    };
    // The test may have what it wanted already.
    if let Err(error) = connection.write_all(text.as_bytes()) {
        write(&mut io::stderr(), &error.to_string());
    }
}
