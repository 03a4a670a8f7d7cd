//! Hosts and the network between them. A host is a network namespace with an address of its own and
//! one device, whose other end is the rig's switch: each link can be cut, one way too, and made
//! late, lossy or slow.
//!
//! Devices end with this process, however it ends. Namespaces have names that begin with its id:
//! they go with the value, and those of a run that was killed at the start of the next.

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    process::{Pid, Signal, kill_process, test_kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::{
    switch::{Switch, Wires},
    wire::Link,
};

/// What the names of everything that the rig makes begin with.
pub(crate) const PREFIX: &str = "dirigent-rig-";
/// Where `ip netns` keeps namespaces.
const NAMESPACES: &str = "/run/netns";
/// More would need addresses of another form.
const HOSTS_MAX: u8 = 250;

/// A host, by its number from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host(pub(crate) u8);

impl Host {
    /// Its address.
    #[must_use]
    pub const fn ip(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.0)
    }

    /// A port of it, as `HOST:PORT`.
    #[must_use]
    pub fn at(self, port: u16) -> String {
        format!("{}:{port}", self.ip())
    }

    fn place(self) -> usize {
        usize::from(self.0) - 1
    }
}

/// Hosts and what is between them; all goes with the value.
#[derive(Debug)]
pub struct Net {
    id: String,
    hosts: Vec<Host>,
    wires: Wires,
    /// Before the namespaces go: it has devices in them.
    switch: Option<Switch>,
}

impl Net {
    /// Why there can be none here, if so.
    pub(crate) fn obstacle() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("only root makes hosts of network namespaces".to_owned());
        }
        let missing = ["ip", "nsenter", "nft"].into_iter().find(|program| !is_installed(program));
        missing.map(|program| format!("{program} is not installed"))
    }

    /// So many hosts, with links that are well.
    ///
    /// # Errors
    /// If the system does not let us, or lacks a program.
    pub(crate) fn new(hosts: u8, seed: u64) -> Result<Self> {
        static NETS: AtomicU32 = AtomicU32::new(0);
        if hosts > HOSTS_MAX {
            bail!("{hosts} hosts, more than {HOSTS_MAX}");
        }
        sweep();
        let serial = NETS.fetch_add(1, Ordering::Relaxed);
        let id = format!("{PREFIX}{}-{serial}", std::process::id());
        let hosts: Vec<Host> = (1..=hosts).map(Host).collect();
        let wires = Wires::new(hosts.len(), seed);
        // From here on what was made goes also where the rest cannot be made.
        let mut this = Self { id, hosts, wires, switch: None };
        let mut devices = Vec::new();
        for host in &this.hosts {
            ip(&["netns", "add", &this.name(*host)])?;
            ip(&["-n", &this.name(*host), "link", "set", "lo", "up"])?;
            devices.push(this.inside(*host, || device(*host))??);
        }
        this.switch = Some(Switch::start(devices, this.wires.clone())?);
        Ok(this)
    }

    /// All hosts.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    fn name(&self, host: Host) -> String {
        format!("{}-{}", self.id, host.0)
    }

    fn path(&self, host: Host) -> PathBuf {
        Path::new(NAMESPACES).join(self.name(host))
    }

    /// A program on a host, with nothing of our environment but where programs are.
    pub(crate) fn command(&self, host: Host, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path(host).display()))
            .arg(program)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null());
        command
    }

    /// Does something on a thread whose sockets are those of a host.
    ///
    /// # Errors
    /// If the thread cannot get there.
    pub fn inside<T: Send>(&self, host: Host, work: impl FnOnce() -> T + Send) -> Result<T> {
        let door = self.door(host)?;
        thread::scope(|scope| {
            let inside = scope.spawn(move || door.enter().map(|()| work()));
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The way to a host for a thread that is started elsewhere.
    pub(crate) fn door(&self, host: Host) -> Result<Door> {
        let path = self.path(host);
        Ok(Door(File::open(&path).with_context(|| format!("cannot open {}", path.display()))?))
    }

    /// Makes the link from one host to another like this; the way back stays as it is.
    pub(crate) fn set(&self, from: Host, to: Host, link: Link) {
        self.wires.set(from.place(), to.place(), link);
    }

    /// Cuts every link between the two groups, both ways.
    pub fn cut(&self, some: &[Host], others: &[Host]) {
        self.between(some, others, Link::cut());
    }

    /// Makes every link between the two groups like this, both ways.
    pub fn between(&self, some: &[Host], others: &[Host], link: Link) {
        for (one, other) in some.iter().flat_map(|one| others.iter().map(move |other| (one, other)))
        {
            self.set(*one, *other, link);
            self.set(*other, *one, link);
        }
    }

    /// Cuts a host off from all others.
    pub fn isolate(&self, host: Host) {
        self.cut(&[host], &self.hosts);
    }

    /// Every link is well again.
    pub fn heal(&self) {
        self.between(&self.hosts, &self.hosts, Link::default());
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.switch = None;
        for host in &self.hosts {
            remove(&self.name(*host));
        }
    }
}

/// A host's network, to be entered by one thread.
#[derive(Debug)]
pub(crate) struct Door(File);

impl Door {
    /// From now on this thread's sockets are the host's.
    pub(crate) fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .context("cannot enter the namespace of a host")
    }
}

/// Whether a program is there.
pub(crate) fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// A host's device, made on a thread that is there.
fn device(host: Host) -> io::Result<SyncDevice> {
    let device = DeviceBuilder::new()
        .name("wire")
        .layer(Layer::L2)
        // The switch knows hosts by the last byte.
        .mac_addr([2, 0, 0, 0, 0, host.0])
        .ipv4(host.ip(), 24, None)
        .build_sync()?;
    device.set_nonblocking(true)?;
    Ok(device)
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().context("cannot start ip (iproute2)")?;
    if !output.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Removes what runs that were killed have left behind.
fn sweep() {
    for place in [Path::new(NAMESPACES), &std::env::temp_dir()] {
        for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(owner) = owner(&name) else { continue };
            if test_kill_process(owner).is_ok() {
                continue;
            }
            if place == Path::new(NAMESPACES) {
                remove(&name);
            } else {
                drop(std::fs::remove_dir_all(entry.path()));
            }
        }
    }
}

/// Whose something of this name is, if it is a rig's.
fn owner(name: &str) -> Option<Pid> {
    let id = name.strip_prefix(PREFIX)?.split('-').next()?;
    Pid::from_raw(id.parse().ok()?)
}

/// A namespace with the processes in it: those are the rig's, by its name.
fn remove(namespace: &str) {
    let listed = Command::new("ip").args(["netns", "pids", namespace]).output();
    let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let pids = listed.unwrap_or_default();
    for pid in pids.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?)) {
        // It may have ended meanwhile.
        kill_process(pid, Signal::KILL).unwrap_or_default();
    }
    // One that was never made, or is gone, needs no removal.
    drop(Command::new("ip").args(["netns", "del", namespace]).stderr(Stdio::null()).status());
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        sync::Mutex,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn names_tell_whose_they_are() {
        assert_eq!(owner("dirigent-rig-12-0-3"), Pid::from_raw(12));
        assert_eq!(owner("dirigent-rig-12-AbCd"), Pid::from_raw(12));
        assert_eq!(owner("dirigent-rig-x"), None);
        assert_eq!(owner("blue"), None);
    }

    /// Connects from one host to another within a second.
    fn connects(net: &Net, from: Host, to: Host) -> bool {
        let place = to.at(7).parse().unwrap();
        net.inside(from, || TcpStream::connect_timeout(&place, Duration::from_secs(1)).is_ok())
            .unwrap()
    }

    /// One makes what the other would remove.
    static ALONE: Mutex<()> = Mutex::new(());

    #[test]
    fn links_are_cut_one_way_and_both_and_late_and_nothing_is_left() {
        if let Some(why) = Net::obstacle() {
            return println!("skip: {why}");
        }
        let _alone = ALONE.lock();
        let net = Net::new(3, 1).unwrap();
        let [one, two, three] = *net.hosts() else { panic!() };
        let listeners =
            [two, three].map(|h| net.inside(h, || TcpListener::bind(h.at(7)).unwrap()).unwrap());
        assert!(connects(&net, one, two) && connects(&net, one, three));
        net.cut(&[one], &[two]);
        assert!(!connects(&net, one, two) && connects(&net, one, three));
        assert!(connects(&net, three, two));
        net.heal();
        assert!(connects(&net, one, two));
        // Only answers are lost: it does not connect either.
        net.set(two, one, Link::cut());
        assert!(!connects(&net, one, two));
        net.heal();
        net.set(one, three, Link { delay: Duration::from_millis(80), ..Link::default() });
        let begun = Instant::now();
        assert!(connects(&net, one, three));
        assert!(begun.elapsed() >= Duration::from_millis(80));
        // With one frame of five lost everything arrives all the same.
        net.heal();
        net.between(&[one], &[two], Link { loss: 0.2, ..Link::default() });
        let sent = vec![7; 100_000];
        let got = thread::scope(|scope| {
            let server = scope.spawn(|| {
                let mut got = Vec::new();
                loop {
                    let (mut stream, _) = listeners[0].accept().unwrap();
                    stream.read_to_end(&mut got).unwrap();
                    if !got.is_empty() {
                        return got;
                    }
                }
            });
            let place = two.at(7).parse().unwrap();
            net.inside(one, || {
                let mut stream =
                    TcpStream::connect_timeout(&place, Duration::from_secs(60)).unwrap();
                stream.write_all(&sent).unwrap();
            })
            .unwrap();
            server.join().unwrap()
        });
        assert_eq!(got, sent);
        let names: Vec<PathBuf> = net.hosts().iter().map(|host| net.path(*host)).collect();
        assert!(names.iter().all(|name| name.exists()));
        drop(net);
        assert!(!names.iter().any(|name| name.exists()));
    }

    #[test]
    fn what_a_killed_run_left_is_removed_by_the_next() {
        if let Some(why) = Net::obstacle() {
            return println!("skip: {why}");
        }
        let _alone = ALONE.lock();
        // Of a process that has ended.
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let left = format!("{PREFIX}{}-0-1", child.id());
        ip(&["netns", "add", &left]).unwrap();
        let path = Path::new(NAMESPACES).join(&left);
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", path.display())).args(["sleep", "1000"]);
        let mut lives = command.spawn().unwrap();
        let begun = Instant::now();
        let inside = || {
            let pids = Command::new("ip").args(["netns", "pids", &left]).output().unwrap();
            pids.stdout.starts_with(lives.id().to_string().as_bytes())
        };
        while !inside() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not get there");
        }
        let _net = Net::new(1, 1).unwrap();
        assert!(!path.exists());
        assert!(!lives.wait().unwrap().success());
    }
}
