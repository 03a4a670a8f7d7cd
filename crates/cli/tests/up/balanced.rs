//! Data planes behind a real HAProxy, with the configuration that the guide gives.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use crate::{
    apart::{Cluster, Part, ready},
    host::{State, call, has, until},
};

const CONFIG: &str = include_str!("../../../../docs/guides/haproxy.cfg");
const FUNCTIONS: [&str; 4] = ["one", "two", "three", "four"];
const CALLERS: usize = 8;

struct Balancer {
    child: Child,
    place: String,
    /// Where it answers questions.
    socket: PathBuf,
}

impl Balancer {
    /// The guide's, with other ports.
    fn start(state: &State, planes: [&Part; 2]) -> Self {
        // Free a moment ago: HAProxy cannot say which one it chose.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let place = format!("127.0.0.1:{port}");
        let mut config = replaced(CONFIG, "127.0.0.1:80\n", &format!("{place}\n"));
        for (plane, functions, admin) in
            [(planes[0], "127.0.0.1:8080", "port 9093"), (planes[1], "127.0.0.1:8081", "port 9094")]
        {
            let port = plane.told("admin").rsplit_once(':').unwrap().1.to_owned();
            config = replaced(&config, functions, &plane.told("functions"));
            config = replaced(&config, admin, &format!("port {port}"));
        }
        let socket = state.path().join("haproxy.sock");
        let config = format!("global\n    stats socket {}\n{config}", socket.display());
        let path = state.path().join("haproxy.cfg");
        fs::write(&path, config).unwrap();
        let child = Command::new("haproxy")
            .args(["-db", "-f"])
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, place, socket }
    }

    /// What it counts.
    fn told(&self) -> String {
        let mut text = String::new();
        if let Ok(mut stream) = UnixStream::connect(&self.socket) {
            stream.write_all(b"show stat\n").unwrap();
            stream.read_to_string(&mut text).unwrap();
        }
        text
    }

    /// Whether it sends calls to both.
    fn sees_both(&self) -> bool {
        let text = self.told();
        let servers = text.lines().filter(|line| line.starts_with("data_planes,"));
        servers.filter(|line| !line.contains("BACKEND") && line.contains(",UP,")).count() == 2
    }
}

fn replaced(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from}");
    text.replace(from, to)
}

impl Drop for Balancer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn data_planes_leave_and_die_behind_a_load_balancer() {
    if !has("haproxy") {
        return;
    }
    let cluster = Cluster::start();
    let (first, second, worker_state) = (State::new(), State::new(), State::new());
    let (one, two) = (cluster.data_plane(&first), cluster.data_plane(&second));
    let worker = cluster.peer("worker", &worker_state, &["--stop-sandboxes"]);
    until("both have met the control plane", || ready(&one) && ready(&two));
    for name in FUNCTIONS {
        cluster.deploy(name);
    }
    let balancer = Balancer::start(&worker_state, [&one, &two]);
    let place = &balancer.place;
    let (place_of_one, admin_of_one) = (one.told("functions"), one.told("admin"));
    until("calls go to both", || balancer.sees_both());

    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failed: Mutex<BTreeMap<String, usize>> = Mutex::default();
    thread::scope(|scope| {
        // Also where the test fails: the callers would go on for ever.
        let _end = End(&stop);
        for caller in 0..CALLERS {
            let (stop, answered, failed) = (&stop, &answered, &failed);
            scope.spawn(move || {
                let name = FUNCTIONS[caller % FUNCTIONS.len()];
                let head = format!("GET /?sleep_ms=30 HTTP/1.1\r\nhost: {name}\r\n");
                while !stop.load(Ordering::SeqCst) {
                    let outcome = match call(place, &head) {
                        Ok(answer) if answer.status == 200 => None,
                        Ok(answer) => Some(format!("{} {}", answer.status, answer.body)),
                        Err(error) => Some(error.to_string()),
                    };
                    match outcome {
                        None => drop(answered.fetch_add(1, Ordering::SeqCst)),
                        Some(how) => *failed.lock().unwrap().entry(how).or_default() += 1,
                    }
                }
            });
        }
        let more = |than: usize| {
            let from = answered.load(Ordering::SeqCst);
            until("calls are answered", || answered.load(Ordering::SeqCst) > from + than);
        };
        let failures = || failed.lock().unwrap().clone();
        more(40);

        // In order: nobody notices.
        assert!(one.end().success());
        more(40);
        assert_eq!(failures(), BTreeMap::new());
        let args = ["--listen", &*place_of_one, "--admin", &*admin_of_one];
        let one = cluster.peer("data-plane", &first, &args);
        until("it is back", || balancer.sees_both());
        more(40);
        assert_eq!(failures(), BTreeMap::new());

        // Killed: no more than what it had in its hands.
        two.kill();
        more(80);
        let cut = failures();
        assert!(cut.values().sum::<usize>() <= CALLERS, "{cut:?}");
        println!("cut of {}: {cut:?}", answered.load(Ordering::SeqCst));
        assert!(one.end().success());
    });
    assert!(worker.end().success());
}
