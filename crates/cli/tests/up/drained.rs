//! Workers and data planes that are cordoned, drained and removed under load: no call fails.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    apart::{Cluster, Part, ready},
    host::{State, call, until},
};

const FUNCTIONS: [&str; 3] = ["one", "two", "three"];
const CALLERS: usize = 6;

/// Calls through data planes that say that they are ready, as a load balancer makes them.
struct Load {
    /// Where functions are called and readiness is told, and whether it was.
    planes: Vec<(String, String, AtomicBool)>,
    stop: AtomicBool,
    answered: AtomicUsize,
    failed: Mutex<BTreeMap<String, usize>>,
}

impl Load {
    fn new(planes: &[&Part]) -> Self {
        let place =
            |part: &&Part| (part.told("functions"), part.told("admin"), AtomicBool::new(true));
        Self {
            planes: planes.iter().map(place).collect(),
            stop: AtomicBool::new(false),
            answered: AtomicUsize::new(0),
            failed: Mutex::default(),
        }
    }

    /// Looks who is ready, again and again.
    fn check(&self) {
        while !self.stop.load(Ordering::SeqCst) {
            for (_, admin, is_ready) in &self.planes {
                let told = call(admin, "GET /ready HTTP/1.1\r\nhost: x\r\n");
                is_ready.store(told.is_ok_and(|told| told.status == 200), Ordering::SeqCst);
            }
            thread::park_timeout(Duration::from_millis(50));
        }
    }

    fn call(&self, caller: usize) {
        let head = format!(
            "GET /?sleep_ms=25 HTTP/1.1\r\nhost: {}\r\n",
            FUNCTIONS[caller % FUNCTIONS.len()]
        );
        for n in caller.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let ready =
                |(_, _, is_ready): &&(String, String, AtomicBool)| is_ready.load(Ordering::SeqCst);
            let all: Vec<_> = self.planes.iter().filter(ready).collect();
            let Some((place, ..)) = all.get(n % all.len().max(1)) else { continue };
            let how = match call(place, &head) {
                Ok(answer) if answer.status == 200 => {
                    self.answered.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                Ok(answer) => format!("{} {}", answer.status, answer.body),
                Err(error) => error.to_string(),
            };
            *self.failed.lock().unwrap().entry(how).or_default() += 1;
        }
    }

    /// So many more are answered, and none has failed so far.
    fn more(&self, many: usize) {
        let from = self.answered.load(Ordering::SeqCst);
        until("calls are answered", || self.answered.load(Ordering::SeqCst) >= from + many);
        assert_eq!(*self.failed.lock().unwrap(), BTreeMap::new());
    }
}

struct End<'a>(&'a Load);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

fn ok(cluster: &Cluster, args: &[&str]) -> (String, String) {
    let (code, out, err) = cluster.cli(args);
    assert_eq!(code, 0, "{args:?}\n{out}\n{err}");
    (out, err)
}

/// State and sandboxes of each, by name.
fn listed(cluster: &Cluster, what: &str, count: &str) -> BTreeMap<String, (String, u64)> {
    let (out, _) = ok(cluster, &[what, "--json"]);
    let lines = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let entry = |one: Value| {
        let text = |key: &str| one[key].as_str().unwrap().to_owned();
        (text("name"), (text("state"), one[count].as_u64().unwrap()))
    };
    lines.map(entry).collect()
}

fn workers(cluster: &Cluster) -> BTreeMap<String, (String, u64)> {
    listed(cluster, "workers", "sandboxes")
}

fn data_plane(cluster: &Cluster, state: &Arc<State>, name: &str) -> Part {
    let args =
        ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--leave", "1s", "--name", name];
    cluster.peer("data-plane", state, &args)
}

#[test]
fn workers_and_data_planes_are_drained_and_removed_under_load_and_no_call_fails() {
    let mut cluster = Cluster::start();
    let states: Vec<_> = (0..4).map(|_| State::new()).collect();
    let planes = [data_plane(&cluster, &states[0], "d1"), data_plane(&cluster, &states[1], "d2")];
    let worker = |cluster: &Cluster, n: usize| {
        cluster.peer("worker", &states[n + 1], &["--name", &format!("w{n}")])
    };
    let first = worker(&cluster, 1);
    until("both have met the control plane", || planes.iter().all(ready));
    for name in FUNCTIONS {
        cluster.deploy(name);
    }
    let load = Load::new(&[&planes[0], &planes[1]]);
    thread::scope(|scope| {
        let load = &load;
        // Also where the test fails: the callers would go on for ever.
        let _end = End(load);
        scope.spawn(|| load.check());
        for caller in 0..CALLERS {
            scope.spawn(move || load.call(caller));
        }
        load.more(50);

        // A cordoned worker gets nothing new and serves on, also under the next leader.
        ok(&cluster, &["cordon", "w1"]);
        let (_, said) = ok(&cluster, &["cordon", "w1"]);
        assert!(said.contains("worker w1 is cordoned already"), "{said}");
        cluster.behead();
        cluster.crown();
        let second = worker(&cluster, 2);
        until("the next leader knows both", || {
            let all = workers(&cluster);
            let state = |name: &str| all.get(name).map(|(state, _)| state.as_str());
            state("w1") == Some("cordoned") && state("w2") == Some("ready")
        });
        load.more(50);
        let (code, _, said) = cluster.cli(&["remove", "w1"]);
        assert!(code == 1 && said.contains("`dirigent drain w1` first"), "{code} {said}");
        let (code, _, said) = cluster.cli(&["drain", "w3"]);
        assert!(code == 1 && said.contains("did you mean worker w1"), "{code} {said}");

        // Drained it is empty, and nobody noticed.
        ok(&cluster, &["drain", "w1", "--timeout", "60s"]);
        let all = workers(&cluster);
        assert_eq!(all["w1"], ("drained".to_owned(), 0));
        assert!(all["w2"].1 >= 3, "{all:?}");
        load.more(50);
        ok(&cluster, &["remove", "w1"]);
        assert!(first.end().success());
        ok(&cluster, &["uncordon", "w2"]);

        // A data plane that is told to leave does so in order, and ends.
        let [one, two] = planes;
        ok(&cluster, &["drain", "d1", "--timeout", "60s"]);
        until("it ends by itself", || one.has_ended());
        assert!(one.end().success());
        let all = listed(&cluster, "data-planes", "slots");
        assert_eq!(all["d1"], ("gone".to_owned(), 0));
        load.more(50);
        ok(&cluster, &["remove", "d1"]);
        assert!(!listed(&cluster, "data-planes", "slots").contains_key("d1"));

        // Cordoned it serves whoever comes all the same.
        ok(&cluster, &["cordon", "d2"]);
        until("it says that it is not ready", || !ready(&two));
        let place = two.told("functions");
        let answer = call(&place, "GET / HTTP/1.1\r\nhost: one\r\n").unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        ok(&cluster, &["uncordon", "d2"]);
        until("it is ready again", || ready(&two));
        load.more(50);
        load.stop.store(true, Ordering::SeqCst);
        assert!(two.end().success());
        assert!(second.end().success());
    });
    assert_eq!(*load.failed.lock().unwrap(), BTreeMap::new());
}
