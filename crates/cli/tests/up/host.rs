//! Runs the real binary on a temporary state directory and free ports, and makes sure that nothing
//! of it is left.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead as _, BufReader, Read, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use dirigent_bench::traces::processes_of;
use rustix::process::{Pid, Signal, kill_process};

pub(crate) const DIRIGENT: &str = env!("CARGO_BIN_EXE_dirigent");
/// No condition takes that long on a working system; it only ends a test that hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A deploy may wait for what its test makes late.
const VERB_PATIENCE: Duration = Duration::from_secs(120);

/// How long one that a test leaves running may take to end well.
const GENTLE: Duration = Duration::from_secs(5);

/// A running `dirigent up`.
#[derive(Debug)]
pub(crate) struct Up {
    child: Option<Child>,
    pub(crate) state: Arc<State>,
    /// Where functions are called, as `HOST:PORT`.
    pub(crate) functions: String,
    pub(crate) api: String,
    pub(crate) stderr: Arc<Mutex<String>>,
}

/// A state directory with a name of its own, by which all that belongs to it is found.
#[derive(Debug)]
pub(crate) struct State {
    dir: tempfile::TempDir,
}

impl State {
    pub(crate) fn new() -> Arc<Self> {
        let dir = tempfile::Builder::new().prefix("dirigent-e2e-").tempdir().unwrap();
        Arc::new(Self { dir })
    }

    /// As [`Self::new`], on a file system that the test chose.
    pub(crate) fn within(parent: &Path) -> Arc<Self> {
        let dir = tempfile::Builder::new().prefix("dirigent-e2e-").tempdir_in(parent).unwrap();
        Arc::new(Self { dir })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// All that belongs to it.
    pub(crate) fn processes(&self) -> BTreeSet<i32> {
        processes_of(self.path())
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // Only what this test started has the directory's random name.
        for pid in self.processes() {
            kill(pid, Signal::KILL);
        }
    }
}

pub(crate) fn kill(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may be gone already, which is as well.
        let gone = Err(rustix::io::Errno::SRCH);
        let sent = kill_process(pid, signal);
        assert!(sent.is_ok() || sent == gone, "{sent:?}");
    }
}

/// Ports for the sandboxes of one `up`.
const PORTS: u16 = 100;

/// Tests run at once: each gets ports of its own, as far as they go, beginning somewhere else in
/// each run. Below are those of `demo` and `bench`, whose burst alone can hold a hundred in a row.
fn first_port() -> u16 {
    const RANGES: u16 = 60;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let mine = NEXT.fetch_add(1, Ordering::Relaxed);
    let begin = u16::try_from(std::process::id() % u32::from(RANGES)).unwrap();
    24_000 + (begin + mine) % RANGES * PORTS
}

/// A role, with ports that are free for its sandboxes and nothing of the caller's environment.
pub(crate) fn command(role: &str, state: &State) -> Command {
    let first = first_port();
    let mut command = Command::new(DIRIGENT);
    command
        .args([role, "--json", "--state"])
        .arg(state.path())
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .env("DIRIGENT_FIRST_PORT", first.to_string())
        .env("DIRIGENT_LAST_PORT", (first + PORTS - 1).to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

impl Up {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::on(State::new(), args)
    }

    /// Starts on a directory and waits for its ready line.
    pub(crate) fn on(state: Arc<State>, args: &[&str]) -> Self {
        let mut child = Self::command(&state, args).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let stderr = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&stderr);
        thread::spawn(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|count| count > 0) {
                kept.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let (ready, line) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            out.read_line(&mut line).unwrap();
            // Nobody waits for it where the test has given up.
            drop(ready.send(line));
        });
        // No line after that long is as good as a wrong one.
        let line = line.recv_timeout(PATIENCE).unwrap_or_default();
        let mut this = Self {
            child: Some(child),
            state,
            functions: String::new(),
            api: String::new(),
            stderr,
        };
        let Ok(ready) = serde_json::from_str::<serde_json::Value>(&line) else {
            let status = this.wait();
            panic!("not ready: {status}\n{}", this.said());
        };
        let place = |key: &str| ready[key].as_str().unwrap().replace("http://", "");
        this.functions = place("functions");
        this.api = place("api");
        this
    }

    /// See `command`; it listens at ports that nobody else has.
    pub(crate) fn command(state: &State, args: &[&str]) -> Command {
        let mut command = command("up", state);
        command.args(["--listen", "127.0.0.1:0", "--api", "127.0.0.1:0"]).args(args);
        command
    }

    pub(crate) fn said(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().unwrap().id()).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        wait(&mut child, PATIENCE)
            .unwrap_or_else(|| panic!("it does not end, and was killed:\n{}", self.said()))
    }

    /// A verb against this one.
    pub(crate) fn cli(&self, args: &[&str]) -> (i32, String, String) {
        verb(self.state.path(), args)
    }

    /// A verb that must succeed; what it printed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let (code, out, err) = self.cli(args);
        assert_eq!(code, 0, "{args:?}\n{out}\n{err}\n{}", self.said());
        out
    }

    /// A verb that must succeed and prints one JSON value.
    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        serde_json::from_str(&self.ok(&args)).unwrap()
    }

    /// Processes of the built-in function `hello`, whichever function it is deployed as.
    pub(crate) fn programs(&self) -> BTreeSet<i32> {
        let is_hello = |pid: &i32| {
            let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).contains("example\0hello")
        };
        self.state.processes().into_iter().filter(is_hello).collect()
    }

    pub(crate) fn get(&self, host: &str, path: &str) -> Response {
        call(&self.functions, &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n")).unwrap()
    }

    /// The page for Prometheus.
    pub(crate) fn metrics(&self) -> String {
        let token = fs::read_to_string(self.state.path().join("token")).unwrap();
        let (api, token) = (&self.api, token.trim());
        let head =
            format!("GET /metrics HTTP/1.1\r\nhost: {api}\r\nauthorization: Bearer {token}\r\n");
        let response = call(api, &head).unwrap();
        assert_eq!(response.status, 200, "{response:?}");
        response.body
    }

    /// A GET whose 200 is the point; the body.
    pub(crate) fn body(&self, host: &str, path: &str) -> String {
        let response = self.get(host, path);
        assert_eq!(response.status, 200, "{response:?}\n{}", self.said());
        response.body
    }

    /// Waits until `condition` holds.
    pub(crate) fn until(&self, what: &str, condition: impl FnMut() -> bool) {
        until(&format!("{what}\n{}", self.state.path().display()), condition);
    }

    /// Numbers of a function's sandboxes: ready and all.
    pub(crate) fn sandboxes(&self, name: &str) -> (u64, usize) {
        let description = self.json(&["describe", name]);
        let ready = description["summary"]["ready"].as_u64().unwrap();
        (ready, description["sandboxes"].as_array().unwrap().len())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // Told twice it ends at once, and takes its control groups and firewall rules along.
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let begin = Instant::now();
        let mut told = 0;
        while begin.elapsed() < GENTLE && matches!(child.try_wait(), Ok(None)) {
            if told < 2 && pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok()) {
                told += 1;
            }
            thread::park_timeout(Duration::from_millis(20));
        }
        drop(child.kill());
        drop(child.wait());
    }
}

/// A verb against the one that runs on a state directory.
pub(crate) fn verb(state: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(DIRIGENT);
    command
        .args(args)
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .env("DIRIGENT_STATE", state);
    let output = output(&mut command, VERB_PATIENCE);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Waits until a child has ended, at most `patience`: then it is killed, and there is no status.
fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let begin = Instant::now();
    while begin.elapsed() < patience {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::park_timeout(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

/// How a child ended, which it must within `patience`. Its output must be read meanwhile, or go to
/// where nobody has to.
pub(crate) fn ended(child: &mut Child, patience: Duration) -> ExitStatus {
    wait(child, patience).unwrap_or_else(|| panic!("it did not end within {patience:?}"))
}

/// What a command printed and how it ended. One that hangs is killed and fails the test, which
/// would wait for ever otherwise.
pub(crate) fn output(command: &mut Command, patience: Duration) -> Output {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let out = read(child.stdout.take().unwrap());
    let err = read(child.stderr.take().unwrap());
    let status = wait(&mut child, patience);
    // Of one that hangs something may live on and hold the pipes: they are not waited for.
    let Some(status) = status else { panic!("it did not end within {patience:?}") };
    Output { status, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

/// Reads to the end beside the test.
pub(crate) fn read(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Waits until `condition` holds, looking often.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::park_timeout(Duration::from_millis(20));
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value.as_str())
    }
}

/// One request on a connection of its own: `head` ends with its last header's line end.
pub(crate) fn call(place: &str, head: &str) -> std::io::Result<Response> {
    send(place, format!("{head}connection: close\r\n\r\n").as_bytes())
}

/// Bytes after which the other side closes.
pub(crate) fn send(place: &str, request: &[u8]) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect(place)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    parse(&text).ok_or_else(|| std::io::Error::other(format!("cut answer: {text:?}")))
}

fn parse(text: &str) -> Option<Response> {
    let (head, rest) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut response = Response { status, headers, body: rest.to_owned() };
    if response.header("transfer-encoding") == "chunked" {
        response.body = unchunk(rest)?;
    } else if let Ok(length) = response.header("content-length").parse::<usize>() {
        (rest.len() == length).then_some(())?;
    }
    Some(response)
}

fn unchunk(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, data) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(data.get(..size)?);
        rest = data.get(size + 2..)?;
    }
}

/// The repository's examples.
pub(crate) fn example(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name);
    path.canonicalize().unwrap().to_str().unwrap().to_owned()
}

/// Whether a program is there; says so if it is not.
pub(crate) fn has(program: &str) -> bool {
    let found = env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if !found {
        println!("skip: {program} is not installed");
    }
    found
}

/// A function's folder with these files.
pub(crate) fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}
