//! `doctor`: what this machine can do for functions, what it cannot, and what to do about it. What
//! isolation can be had is tried, by a keeper of its own that has no sandboxes and ends at once.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    ops::RangeInclusive,
    path::Path,
};

use dirigent_core::Isolation;
use dirigent_runtime::{
    Facts, Runtime as _,
    process::{ProcessConfig, ProcessRuntime},
};
use rustix::process::{Resource, getrlimit};

use crate::{
    args::DoctorArgs,
    config::{self, Config},
    fail::{Fail, Result},
    printer::Printer,
};

/// A connection and a sandbox cost a few each.
const WANTED_FILES: u64 = 65_536;

/// What is looked at of the runtime of OCI images.
const OCI_IMAGES: &str = "OCI images";

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// It works.
    Ok,
    /// Something is weaker or slower without it.
    Warn,
    /// `up` cannot work.
    Fail,
}

/// One thing looked at.
#[derive(Debug, serde::Serialize)]
struct Finding {
    what: &'static str,
    level: Level,
    found: String,
    /// What to do.
    advice: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, level: Level::Ok, found: found.into(), advice: None }
    }

    fn warn(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, level: Level::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    fn fail(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, level: Level::Fail, found: found.into(), advice: Some(advice.into()) }
    }
}

pub(super) fn doctor(args: &DoctorArgs, printer: Printer) -> Result {
    let is_root = rustix::process::geteuid().is_root();
    let config = config::read(&*args.up)?.value;
    let processes = tried();
    let findings = [
        kernel(),
        user(is_root),
        cgroups(is_root, Path::new("/sys/fs/cgroup")),
        user_namespaces(is_root),
        seccomp(),
        isolation(&processes, config.min_isolation),
        oci_images(&config, &processes),
        nft(is_root),
        overlapping_ports(config.first_port..=config.last_port),
        port("functions' port", config.listen, "--listen"),
        port("API's port", config.api, "--api"),
        open_files(),
        state(&config.state_dir()),
    ];
    for finding in &findings {
        if printer.is_json() {
            printer.json(finding)?;
            continue;
        }
        let mark = match finding.level {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        printer.line(&format_args!("{mark}  {:<17} {}", finding.what, finding.found))?;
        if let Some(advice) = &finding.advice {
            printer.line(&format_args!("      {:<17} {advice}", ""))?;
        }
    }
    let failed = findings.iter().filter(|finding| finding.level == Level::Fail).count();
    if failed > 0 {
        return Err(Fail::user(format!("{failed} of these must be mended before `up` can work")));
    }
    Ok(())
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn kernel() -> Finding {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned());
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    if version >= (5, 12) {
        Finding::ok("kernel", release)
    } else {
        let advice = "Linux 5.12 or newer is needed (mount_setattr, pidfds, clone3)";
        Finding::fail("kernel", release, advice)
    }
}

fn user(is_root: bool) -> Finding {
    if is_root {
        Finding::ok("user", "root: each sandbox gets a user of its own")
    } else {
        let advice = "as root sandboxes also get users of their own and firewall rules";
        Finding::warn("user", "an ordinary user: all sandboxes share it", advice)
    }
}

fn cgroups(is_root: bool, root: &Path) -> Finding {
    const WHAT: &str = "cgroups";
    if let Ok(controllers) = fs::read_to_string(root.join("cgroup.controllers")) {
        let missing: Vec<_> = ["cpu", "memory", "pids"]
            .into_iter()
            .filter(|wanted| !controllers.split_whitespace().any(|have| have == *wanted))
            .collect();
        if !missing.is_empty() {
            let found = format!("version 2, without {}", missing.join(", "));
            return Finding::warn(WHAT, found, "limits of these kinds are not enforced");
        }
        if is_root {
            return Finding::ok(WHAT, "version 2 with cpu, memory and pids");
        }
        let own = read("/proc/self/cgroup")
            .and_then(|text| text.strip_prefix("0::/").map(str::to_owned))
            .unwrap_or_default();
        let writable = rustix::fs::access(
            root.join(own).join("cgroup.subtree_control"),
            rustix::fs::Access::WRITE_OK,
        );
        return if writable.is_ok() {
            Finding::ok(WHAT, "version 2, delegated to this user")
        } else {
            let advice = "run under `systemd-run --user --scope -p Delegate=yes`; else memory is \
                          only watched";
            Finding::warn(WHAT, "version 2, not delegated to this user", advice)
        };
    }
    let missing: Vec<_> = ["memory", "cpu", "pids"]
        .into_iter()
        .filter(|controller| !root.join(controller).is_dir())
        .collect();
    match (missing.is_empty(), is_root) {
        (true, true) => Finding::ok(WHAT, "version 1 with cpu, memory and pids"),
        (true, false) => Finding::warn(
            WHAT,
            "version 1, which cannot be delegated to this user",
            "run as root for limits; else memory is only watched",
        ),
        (false, _) => Finding::warn(
            WHAT,
            format!("no {} controller at {}", missing.join(", "), root.display()),
            "limits of these kinds are not enforced",
        ),
    }
}

fn user_namespaces(is_root: bool) -> Finding {
    const WHAT: &str = "user namespaces";
    if is_root {
        return Finding::ok(WHAT, "not needed as root");
    }
    let is_zero = |path: &str| read(path).is_some_and(|text| text == "0");
    if is_zero("/proc/sys/user/max_user_namespaces") {
        let advice = "sysctl user.max_user_namespaces=10000, or run as root; else isolation is \
                      `plain`";
        return Finding::warn(WHAT, "switched off", advice);
    }
    if is_zero("/proc/sys/kernel/unprivileged_userns_clone") {
        let advice = "sysctl kernel.unprivileged_userns_clone=1, or run as root; else isolation \
                      is `plain`";
        return Finding::warn(WHAT, "not for ordinary users", advice);
    }
    if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").is_some_and(|t| t == "1") {
        let advice = "allow it in an AppArmor profile, or run as root; else isolation is `plain`";
        return Finding::warn(WHAT, "restricted by AppArmor", advice);
    }
    Finding::ok(WHAT, "allowed for ordinary users")
}

fn seccomp() -> Finding {
    match read("/proc/sys/kernel/seccomp/actions_avail") {
        Some(actions) if actions.contains("errno") => Finding::ok("seccomp", "filters work"),
        _ => Finding::fail(
            "seccomp",
            "no filters in this kernel",
            "a kernel with CONFIG_SECCOMP_FILTER is needed",
        ),
    }
}

fn isolation(processes: &io::Result<Facts>, demanded: Option<Isolation>) -> Finding {
    const WHAT: &str = "isolation";
    let facts = match processes {
        Ok(facts) => facts,
        Err(error) => {
            let advice = "`dirigent up` will fail the same way; mend what is named here";
            return Finding::fail(WHAT, format!("cannot be tried: {error}"), advice);
        }
    };
    if let Some(demanded) = demanded.filter(|demanded| facts.best < Some(*demanded)) {
        let found = format!("`{demanded}` is demanded by `min_isolation` and cannot be had");
        return Finding::fail(WHAT, found, facts.missing.join("; "));
    }
    match facts.best {
        Some(Isolation::Strict) => Finding::ok(WHAT, Isolation::Strict.to_string()),
        Some(Isolation::Basic) => {
            let why = facts.missing.iter().find(|line| line.starts_with("strict"));
            let why = why.map(|why| format!("; {why}")).unwrap_or_default();
            Finding::ok(WHAT, format!("{}{why}", Isolation::Basic))
        }
        Some(best) if Some(best) < facts.usual => {
            let found = format!("{best} can be demanded, more is given as far as it goes");
            Finding::warn(WHAT, found, facts.missing.first().cloned().unwrap_or_default())
        }
        best => {
            let level = best.unwrap_or(Isolation::Plain);
            let why = facts.missing.iter().find(|line| line.starts_with("basic"));
            let found = format!("{level}: functions run as programs of this user");
            Finding::warn(WHAT, found, why.cloned().unwrap_or_default())
        }
    }
}

/// Whether functions may be OCI images; only those who want that need it.
fn oci_images(config: &Config, processes: &io::Result<Facts>) -> Finding {
    if !config.containerd.enabled {
        return Finding::ok(OCI_IMAGES, "switched off by `containerd.enabled`");
    }
    match crate::roles::oci::tried(config) {
        Ok(facts) if facts.best.is_some() => {
            let best = processes.as_ref().ok().and_then(|facts| facts.best);
            match config.min_isolation.filter(|demanded| *demanded > Isolation::Plain) {
                // Both have their networks from one pool.
                Some(demanded) if best < Some(Isolation::Strict) => {
                    let found = format!("less than the `{demanded}` of `min_isolation`: none run");
                    let advice = "without `strict` sandboxes from images have the host's network";
                    Finding::warn(OCI_IMAGES, found, advice)
                }
                _ => images_run(&facts, &config.containerd.socket),
            }
        }
        Ok(facts) => images_run(&facts, &config.containerd.socket),
        Err(error) => Finding::warn(OCI_IMAGES, "cannot be tried", error.to_string()),
    }
}

/// What the container runtime says of itself. Something is always missing of it: it may work all the
/// same.
fn images_run(facts: &Facts, socket: &Path) -> Finding {
    if facts.best.is_some() {
        return Finding::ok(OCI_IMAGES, format!("containerd answers at {}", socket.display()));
    }
    let (why, runtime) = (facts.missing.join("; "), format!("{}: ", facts.kind));
    // The rest of the line says what to do.
    let why = why.strip_prefix(&runtime).unwrap_or(&why);
    Finding::warn(OCI_IMAGES, "functions cannot be OCI images", why)
}

/// What a keeper finds out that is started here for nothing else.
fn tried() -> io::Result<Facts> {
    let directory = tempfile::tempdir()?;
    let program = std::env::current_exe()?.display().to_string();
    let mut config = ProcessConfig::new(directory.path(), vec![program, "keeper".to_owned()]);
    (config.parked, config.spaces) = (0, 0);
    let (events, _nothing_comes) = tokio::sync::mpsc::channel(1);
    let runtime = ProcessRuntime::start(config, events)?;
    let facts = runtime.facts();
    runtime.close();
    Ok(facts)
}

fn nft(is_root: bool) -> Finding {
    const WHAT: &str = "nft";
    let found = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    match found {
        _ if !is_root => Finding::ok(WHAT, "not used without root"),
        Some(path) => Finding::ok(WHAT, path),
        None => Finding::warn(
            WHAT,
            "not installed",
            "install nftables; else sandboxes reach the API's port and each other's",
        ),
    }
}

fn overlapping_ports(sandboxes: RangeInclusive<u16>) -> Finding {
    const WHAT: &str = "sandbox ports";
    let range = read("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = range.split_whitespace().filter_map(|text| text.parse::<u16>().ok());
    let (first, last) = (ends.next().unwrap_or(32_768), ends.next().unwrap_or(60_999));
    let (low, high) = sandboxes.into_inner();
    if first > high || last < low {
        Finding::ok(WHAT, format!("{low}-{high}"))
    } else {
        let advice = "sysctl net.ipv4.ip_local_port_range=\"32768 60999\": other programs' \
                      connections may take a sandbox's port";
        Finding::warn(WHAT, format!("{low}-{high}, but ephemeral are {first}-{last}"), advice)
    }
}

fn port(what: &'static str, address: SocketAddr, flag: &str) -> Finding {
    let port = address.port();
    match TcpListener::bind(address) {
        Ok(_free) => Finding::ok(what, format!("{port} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let holder = dirigent_service::listen::holder(port)
                .map_or_else(String::new, |holder| format!(" by {holder}"));
            let advice = format!("fine if that is Dirigent; else choose another with {flag}");
            Finding::warn(what, format!("{port} is taken{holder}"), advice)
        }
        Err(error) => {
            let advice = format!("choose another with {flag}");
            Finding::warn(what, format!("{address}: {error}"), advice)
        }
    }
}

fn open_files() -> Finding {
    let limit = getrlimit(Resource::Nofile);
    match limit.maximum {
        Some(maximum) if maximum < WANTED_FILES => Finding::warn(
            "open files",
            format!("{maximum} at most"),
            format!("`ulimit -n {WANTED_FILES}` before `up`, for many connections"),
        ),
        Some(maximum) => Finding::ok("open files", format!("{maximum} at most")),
        None => Finding::ok("open files", "unlimited"),
    }
}

fn state(dir: &Path) -> Finding {
    const WHAT: &str = "state directory";
    let existing = dir.ancestors().find(|parent| parent.exists()).unwrap_or_else(|| Path::new("/"));
    let shown = dir.display();
    if rustix::fs::access(existing, rustix::fs::Access::WRITE_OK).is_err() {
        let advice = "name one that you may write with --state";
        return Finding::fail(WHAT, format!("{shown} cannot be written"), advice);
    }
    let free = rustix::fs::statvfs(existing)
        .map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
        .unwrap_or_default();
    let found = format!("{shown}, {} free", crate::format::bytes(free));
    if free < 1 << 30 {
        Finding::warn(
            WHAT,
            found,
            "less than 1GiB for artifacts and logs: name another with --state",
        )
    } else {
        Finding::ok(WHAT, found)
    }
}

#[cfg(test)]
mod tests {
    use dirigent_core::RuntimeKind;

    use super::*;

    #[test]
    fn version_2_without_a_controller_is_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text: &str| fs::write(dir.path().join("cgroup.controllers"), text).unwrap();
        write("cpu memory pids io\n");
        assert_eq!(cgroups(true, dir.path()).level, Level::Ok);
        write("cpu io\n");
        let finding = cgroups(true, dir.path());
        assert_eq!(finding.level, Level::Warn);
        assert_eq!(finding.found, "version 2, without memory, pids");
    }

    #[test]
    fn version_1_is_found_by_its_directories() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(cgroups(true, dir.path()).level, Level::Warn);
        for controller in ["cpu", "memory", "pids"] {
            fs::create_dir(dir.path().join(controller)).unwrap();
        }
        assert_eq!(cgroups(true, dir.path()).level, Level::Ok);
        assert_eq!(cgroups(false, dir.path()).level, Level::Warn);
    }

    #[test]
    fn a_taken_port_is_named() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let finding = port("port", held.local_addr().unwrap(), "--listen");
        assert_eq!(finding.level, Level::Warn);
        assert!(finding.advice.unwrap().contains("--listen"));
    }

    #[test]
    fn images_that_run_are_no_warning_though_something_is_missing() {
        let facts = |best| Facts {
            kind: RuntimeKind::Container,
            best,
            usual: best,
            missing: vec![format!("{}: network: it is the host's", RuntimeKind::Container)],
        };
        let socket = Path::new("/run/containerd.sock");
        let finding = images_run(&facts(Some(Isolation::Plain)), socket);
        assert_eq!((finding.level, finding.advice), (Level::Ok, None));
        let finding = images_run(&facts(None), socket);
        assert_eq!(finding.level, Level::Warn);
        assert_eq!(finding.advice.as_deref(), Some("network: it is the host's"));
    }
}
