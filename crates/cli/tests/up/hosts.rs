//! A cluster on several hosts. Each is a network namespace with an address and one link to a switch,
//! which can be cut.

use std::{
    process::{Command, Stdio},
    sync::Arc,
};

use crate::{
    apart::Part,
    hello,
    host::{PATIENCE, State, command, has, output, until},
    path,
};

/// Hosts and the switch between them; all goes with the value.
struct Net {
    id: String,
    hosts: u8,
}

impl Net {
    fn new(hosts: u8) -> Self {
        let net = Self { id: format!("dh{}", std::process::id()), hosts };
        let switch = net.switch();
        ip(&format!("netns add {switch}"));
        ip(&format!("-n {switch} link add bridge0 type bridge"));
        ip(&format!("-n {switch} link set bridge0 up"));
        for n in 1..=hosts {
            let host = net.host(n);
            ip(&format!("netns add {host}"));
            ip(&format!("-n {host} link set lo up"));
            ip(&format!("-n {switch} link add p{n} type veth peer name wire netns {host}"));
            ip(&format!("-n {switch} link set p{n} master bridge0 up"));
            ip(&format!("-n {host} addr add {}/24 dev wire", address(n)));
            ip(&format!("-n {host} link set wire up"));
        }
        net
    }

    fn switch(&self) -> String {
        format!("{}-sw", self.id)
    }

    fn host(&self, n: u8) -> String {
        format!("{}-{n}", self.id)
    }

    fn cut(&self, n: u8) {
        ip(&format!("-n {} link set p{n} down", self.switch()));
    }

    fn heal(&self, n: u8) {
        ip(&format!("-n {} link set p{n} up", self.switch()));
    }

    /// The same command, on a host.
    fn on(&self, n: u8, command: &Command) -> Command {
        let mut there = Command::new("nsenter");
        there
            .arg(format!("--net=/run/netns/{}", self.host(n)))
            .arg(command.get_program())
            .args(command.get_args())
            .env_clear()
            .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        there
    }

    fn start(&self, n: u8, role: &str, state: &Arc<State>, args: &[&str]) -> Part {
        Part::with(&mut self.on(n, command(role, state).args(args)), state)
    }

    /// A verb on a host; whether it succeeded, and what it printed.
    fn verb(&self, n: u8, state: &State, args: &[&str]) -> (bool, String) {
        let mut verb = Command::new(crate::host::DIRIGENT);
        verb.args(args)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("DIRIGENT_STATE", state.path());
        let output = output(&mut self.on(n, &verb), PATIENCE);
        let [out, err] = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap());
        (output.status.success(), format!("{out}{err}"))
    }

    fn ok(&self, n: u8, state: &State, args: &[&str]) -> String {
        let (done, said) = self.verb(n, state, args);
        assert!(done, "{args:?}\n{said}");
        said
    }

    /// A call from a host to the data plane of another.
    fn call(&self, from: u8, to: u8, function: &str) -> (bool, String) {
        let place = format!("{}:8080", address(to));
        let state = State::new();
        self.verb(from, &state, &["invoke", function, "--functions", &place])
    }

    fn connects(&self, from: u8, place: &str) -> bool {
        let (ip, port) = place.rsplit_once(':').unwrap();
        let mut connect = Command::new("timeout");
        connect.args(["5", "bash", "-c", &format!(": < /dev/tcp/{ip}/{port}")]);
        connect.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        output(&mut self.on(from, &connect), PATIENCE).status.success()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let all = (1..=self.hosts).map(|n| self.host(n)).chain([self.switch()]);
        for name in all {
            drop(Command::new("ip").args(["netns", "del", &name]).status());
        }
    }
}

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

fn address(n: u8) -> String {
    format!("10.77.0.{n}")
}

fn possible() -> bool {
    if !["ip", "nft", "nsenter", "bash"].into_iter().all(has) {
        return false;
    }
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("skip: only root makes hosts of network namespaces");
    }
    is_root
}

const CONTROL: u8 = 1;
const PLANE: u8 = 2;
const WORKERS: [u8; 2] = [3, 4];
const CALLER: u8 = 5;

#[test]
fn a_cluster_on_five_hosts_survives_cut_links() {
    if !possible() {
        return;
    }
    let net = Net::new(CALLER);
    let control = State::new();
    let (api, peers) = (format!("{}:9091", address(CONTROL)), format!("{}:9092", address(CONTROL)));
    net.ok(CONTROL, &control, &["cluster", "init", "--name", "c1"]);
    let _leader =
        net.start(CONTROL, "control-plane", &control, &["--api", &api, "--peers", &peers]);
    let join = |n: u8, role: &str, name: &str| {
        let state = State::new();
        let token = net.ok(CONTROL, &control, &["cluster", "token", "--role", role]);
        let token = token.lines().next().unwrap_or_default().trim().to_owned();
        net.ok(n, &state, &["join", &token, "--server", &api, "--name", name]);
        state
    };
    let plane_state = join(PLANE, "data-plane", "d1");
    let listen = format!("{}:8080", address(PLANE));
    let args = ["--control", &peers, "--listen", &listen];
    let _plane = net.start(PLANE, "data-plane", &plane_state, &args);
    let _workers = WORKERS.map(|n| {
        let state = join(n, "worker", &format!("w{n}"));
        let (here, plane) = (address(n), address(PLANE));
        let args = ["--control", &peers, "--address", &here, "--admit", &plane];
        (net.start(n, "worker", &state, &args), state)
    });
    let ready = |count: usize| {
        let listed = net.verb(CONTROL, &control, &["workers"]).1;
        listed.lines().filter(|line| line.contains("ready")).count() == count
    };
    until("both workers are ready", || ready(2));
    let manifest = hello("one", "[scaling]\nmin = 1\nmax = 4\n");
    net.ok(CONTROL, &control, &["deploy", path(&manifest)]);
    let answered = || net.call(CALLER, PLANE, "one").0;
    assert!(answered(), "{:?}", net.call(CALLER, PLANE, "one"));

    // From outside a function is reached through a data plane and nowhere else.
    let place = |text: &str| {
        let at = text.find("10.77.0.").expect(text);
        text[at..].split([' ', '\n']).next().unwrap_or_default().to_owned()
    };
    let sandbox = place(&net.ok(CONTROL, &control, &["describe", "one"]));
    assert!(net.connects(PLANE, &sandbox) && !net.connects(CALLER, &sandbox), "{sandbox}");

    // Without its control plane what is warm goes on.
    net.cut(CONTROL);
    for _ in 0..5 {
        assert!(answered(), "{:?}", net.call(CALLER, PLANE, "one"));
    }
    net.heal(CONTROL);
    until("both workers are back", || ready(2));

    // Without the host of its sandbox it answers from another.
    let worker = if sandbox.starts_with("10.77.0.3:") { WORKERS[0] } else { WORKERS[1] };
    net.cut(worker);
    until("the function answers elsewhere", answered);
    let elsewhere = place(&net.ok(CONTROL, &control, &["describe", "one"]));
    println!("sandboxes at {sandbox} and then at {elsewhere}");
    net.heal(worker);
    until("both workers are back", || ready(2));
    assert!(answered());
}
