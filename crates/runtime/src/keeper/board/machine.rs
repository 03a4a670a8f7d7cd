//! What the keeper finds at its start, and what it leaves at its end.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::Ipv4Addr,
};

use dirigent_core::Isolation;
use rustix::process::{WaitOptions, getegid, geteuid, waitpid};

use crate::{
    claim::Claim,
    keeper::{
        Options,
        cgroup::Groups,
        init::map_user,
        leftover::{self, Records},
        orphans::{self, Name},
        protocol::{Abilities, Network},
        root::Template,
        rules, scope, socket_path,
    },
    network::{Pool, resolvers},
    sys::{
        process::{Forked, exit_now, fork, unshare},
        user::made_by,
    },
};

/// Why there is no `strict`.
pub(super) const WITHOUT_BASIC: &str = "`basic` does not work here, which is a part of it";

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    /// Shows others that this keeper lives.
    pub(super) claim: Option<Claim>,
    pub(super) name: Name,
    pub(super) groups: Groups,
    pub(super) records: Records,
    pub(super) template: Option<Template>,
    pub(super) abilities: Abilities,
    /// Whether the network rules were made.
    pub(super) has_rules: bool,
    /// Networks of their own.
    pub(super) pool: Option<Pool>,
}

/// End what earlier keepers left and find out what works.
pub(super) fn look(options: &Options) -> io::Result<Found> {
    let name = Name::of(&options.directory)?;
    // Claimed before anything is made that has this name: see `orphans`.
    let claim = name.claim();
    let as_root = geteuid().is_root();
    let mut abilities = Abilities::default();
    let (groups, no_group) = Groups::find(&name.group(), options.processes);
    let records = leftover::sweep(&options.directory)?;
    groups.sweep();
    orphans::sweep(&name, groups.roots());
    // What root is promised; others are promised limits only where a group is delegated to them.
    let promised = if as_root { &mut abilities.basic_lacks } else { &mut abilities.missing };
    promised.extend(no_group);
    if !groups.limit_memory() {
        promised.push(
            "memory: not limited by the kernel here; looked at every second instead".to_owned(),
        );
    }
    let template = if options.max_isolation >= Isolation::Basic {
        match template(options, as_root) {
            Ok(template) => Some(template),
            Err(error) => {
                abilities.no_basic = Some(explain(&error.to_string(), as_root));
                None
            }
        }
    } else {
        abilities.no_basic = Some("switched off by configuration".to_owned());
        None
    };
    abilities.missing.extend(template.as_ref().and_then(|_| open_names()));
    let made = as_root.then(|| rules::make(options, &name.table()));
    let has_rules = matches!(made, Some(Ok(())));
    if let Some(Err(reason)) = made {
        abilities.basic_lacks.push(format!(
            "network rules: {reason}; sandboxes can connect to each other's ports and to the API \
             (which asks for a token)"
        ));
    }
    let Network { address, admitted, .. } = &options.network;
    if !address.is_loopback() && !has_rules {
        abilities.missing.push(format!(
            "admission: without network rules, which root makes, any host that reaches {address} \
             can connect to sandboxes"
        ));
    } else if !address.is_loopback() && admitted.is_empty() {
        abilities.missing.push(format!(
            "admission: sandboxes listen at {address} and no other host may connect: name the data \
             planes' with --admit"
        ));
    }
    if !as_root {
        abilities.missing.push(
            "uids: sandboxes share yours; start as root to give each its own, and rules for \
             their network"
                .to_owned(),
        );
    }
    let pool = if abilities.no_basic.is_some() {
        abilities.no_strict = Some(WITHOUT_BASIC.to_owned());
        None
    } else {
        match pool(options, &name, as_root) {
            Ok(pool) => Some(pool),
            Err(reason) => {
                abilities.no_strict = Some(reason);
                None
            }
        }
    };
    if pool.is_some() && !resolvers::are_reachable() {
        abilities.missing.push(
            "names: all resolvers in /etc/resolv.conf are on this machine's loopback, where \
             sandboxes with a network of their own do not reach them: name another one there"
                .to_owned(),
        );
    }
    Ok(Found { claim, name, groups, records, template, abilities, has_rules, pool })
}

/// What it means that this kernel does not keep abstract names apart, if so.
fn open_names() -> Option<String> {
    let error = scope::look().err()?;
    tracing::debug!(%error, "no scopes of Landlock");
    let text = "abstract names: sandboxes without a network of their own can connect to Unix sockets of \
                this machine that have one (X11, D-Bus, containerd's shims); Linux 6.12 with Landlock \
                keeps them apart";
    Some(text.to_owned())
}

/// Networks of their own for sandboxes, or why there are none.
fn pool(options: &Options, name: &Name, as_root: bool) -> Result<Pool, String> {
    if options.max_isolation < Isolation::Strict {
        return Err("switched off by configuration".to_owned());
    }
    if !as_root {
        // In a user namespace one may make networks, but not link them to the machine's.
        return Err(
            "only root can link a sandbox's network to this machine's: start as root".into()
        );
    }
    Pool::open(&name.table(), options.pool())
}

/// Say what to do about a refusal.
pub(super) fn explain(reason: &str, as_root: bool) -> String {
    if as_root {
        return format!("{reason} (is this a container without CAP_SYS_ADMIN?)");
    }
    let mut hint = String::new();
    for (file, wanted) in [
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "1"),
    ] {
        if fs::read_to_string(file).is_ok_and(|now| now.trim() != wanted) {
            hint =
                format!("; `sysctl {}={wanted}` allows it", file.rsplit('/').next().unwrap_or(""));
        }
    }
    format!("{reason} (user namespaces are restricted here{hint}; or start as root)")
}

/// A mount namespace of our own with the template in it; as an ordinary user also a user namespace.
fn template(options: &Options, as_root: bool) -> io::Result<Template> {
    if !as_root {
        // Halfway into a user namespace one is nobody: it is tried by somebody else first.
        rehearse(options)?;
    }
    enter_namespaces(as_root)?;
    Template::make(options.directory.join("root"))
}

fn enter_namespaces(as_root: bool) -> io::Result<()> {
    if as_root {
        return unshare(libc::CLONE_NEWNS)
            .map_err(|error| io::Error::new(error.kind(), format!("mount namespace: {error}")));
    }
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)
        .map_err(|error| io::Error::new(error.kind(), format!("user namespace: {error}")))?;
    map_user(uid, gid)
}

/// Do it in a child that ends: its error, if it has one.
fn rehearse(options: &Options) -> io::Result<()> {
    let (mut ours, theirs) = io::pipe()?;
    match fork(0)? {
        Forked::Child => {
            let mut theirs = theirs;
            let outcome = enter_namespaces(false)
                .and_then(|()| Template::make(options.directory.join("root")).map(drop));
            let code = match outcome {
                Ok(()) => 0,
                Err(error) => match theirs.write_all(error.to_string().as_bytes()) {
                    Ok(()) | Err(_) => 1,
                },
            };
            exit_now(code)
        }
        Forked::Parent { pid, .. } => {
            drop(theirs);
            let mut reason = String::new();
            ours.read_to_string(&mut reason)?;
            let pid = rustix::process::Pid::from_raw(pid);
            let status = waitpid(pid, WaitOptions::empty())?;
            match status.and_then(|(_, status)| status.exit_status()) {
                Some(0) => Ok(()),
                _ => Err(io::Error::other(reason)),
            }
        }
    }
}

/// Remove what does not vanish with the process.
pub(super) fn leave(options: &Options, name: &Name) {
    orphans::remove_tables(name);
    for path in [socket_path(&options.directory), options.directory.join("keeper.lock")] {
        if let Err(error) = fs::remove_file(&path) {
            tracing::debug!(path = %path.display(), %error, "stays");
        }
    }
}

/// A listener, made as servers make theirs. It is the sandbox's own, so that
/// its network rules hold for whatever the sandbox makes of it: a listener can be disconnected and
/// used to connect.
pub(super) fn listen(
    address: Ipv4Addr,
    port: u16,
    uid: Option<u32>,
) -> io::Result<std::os::fd::OwnedFd> {
    use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
    let make = || {
        net::socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            Some(net::ipproto::TCP),
        )
    };
    let socket = match uid {
        Some(uid) => made_by(uid, make),
        None => make(),
    }?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    net::bind(&socket, &std::net::SocketAddrV4::new(address, port))?;
    net::listen(&socket, 4096)?;
    Ok(socket)
}

/// Whether the kernel counts a user's processes in each user namespace (since 5.14), so that a bound
/// for one sandbox is not reached by what the user does elsewhere.
pub(super) fn counts_per_namespace() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    let (major, minor): (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    (major, minor) >= (5, 14)
}
