//! Flags as values of the configuration.

use std::path::Path;

#[cfg(test)]
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

#[cfg(test)]
use dirigent_core::Bytes;
use dirigent_core::Isolation;
use dirigent_service::config::Flag;

#[cfg(test)]
use crate::args::IsolationArg;
use crate::args::{
    ControlPlaneArgs, ControlPlaneFlags, DataPlaneArgs, DataPlaneFlags, EtcdFiles, PeerFlags,
    ProcessFlags, RuntimeArg, SharedFlags, UpArgs, WorkerArgs, WorkerFlags,
};

/// A command's flags that are values of the configuration.
pub(crate) trait Flagged {
    /// The configuration file named.
    fn file(&self) -> Option<&Path>;

    /// Those that were given.
    fn flags(&self, flags: &mut Flags);
}

impl Flagged for UpArgs {
    fn file(&self) -> Option<&Path> {
        self.process.config.as_deref()
    }

    fn flags(&self, flags: &mut Flags) {
        let Self { process, control_plane, data_plane, worker } = self;
        flags.data_plane(data_plane);
        flags.control_plane(control_plane);
        flags.worker(worker);
        flags.process(process);
    }
}

impl Flagged for ControlPlaneArgs {
    fn file(&self) -> Option<&Path> {
        self.process.config.as_deref()
    }

    fn flags(&self, flags: &mut Flags) {
        let Self { process, role, peers, shared } = self;
        flags.control_plane(role);
        flags.add("peers", "peers", *peers);
        flags.shared(shared);
        flags.process(process);
    }
}

impl Flagged for DataPlaneArgs {
    fn file(&self) -> Option<&Path> {
        self.process.config.as_deref()
    }

    fn flags(&self, flags: &mut Flags) {
        let Self { process, role, peer, admin, leave } = self;
        flags.data_plane(role);
        flags.add("admin", "admin", *admin);
        flags.add("leave", "leave", leave.as_ref());
        flags.peer(peer);
        flags.process(process);
    }
}

impl Flagged for WorkerArgs {
    fn file(&self) -> Option<&Path> {
        self.process.config.as_deref()
    }

    fn flags(&self, flags: &mut Flags) {
        let Self {
            process,
            role,
            peer,
            emulate,
            stop_sandboxes,
            address,
            admit,
            encrypt,
            relay_port,
        } = self;
        flags.worker(role);
        flags.add("emulate", "emulate", *emulate);
        flags.add("stop-sandboxes", "stop_sandboxes", stop_sandboxes.then_some(true));
        flags.add("address", "address", *address);
        flags.add("admit", "admit", (!admit.is_empty()).then(|| admit.join(",")));
        flags.add("encrypt", "encrypt", encrypt.then_some(true));
        flags.add("relay-port", "relay_port", *relay_port);
        flags.peer(peer);
        flags.process(process);
    }
}

/// Flags as values with an origin.
#[derive(Debug, Default)]
pub(crate) struct Flags(Vec<Flag>);

impl Flags {
    /// Those that were given to a command.
    pub(super) fn of(args: &dyn Flagged) -> Vec<Flag> {
        let mut flags = Self::default();
        args.flags(&mut flags);
        flags.0
    }

    fn add(&mut self, flag: &str, key: &str, value: Option<impl ToString>) {
        self.0.extend(value.map(|value| Flag {
            flag: format!("--{flag}"),
            key: key.to_owned(),
            value: value.to_string(),
        }));
    }

    fn process(&mut self, ProcessFlags { state, config: _, log }: &ProcessFlags) {
        self.add("state", "state", state.as_ref().map(|path| path.display()));
        self.add("log", "log", log.as_ref());
    }

    fn control_plane(&mut self, ControlPlaneFlags { api, compat, record }: &ControlPlaneFlags) {
        self.add("api", "api", *api);
        self.add("compat", "compat.enabled", compat.then_some(true));
        self.add("record", "record", record.as_ref().map(|path| path.display()));
    }

    fn shared(&mut self, flags: &SharedFlags) {
        let SharedFlags { etcd, etcd_files, etcd_prefix, advertise, name, peer_token } = flags;
        self.add("etcd", "etcd", (!etcd.is_empty()).then(|| etcd.join(",")));
        let EtcdFiles { etcd_ca, etcd_cert, etcd_key } = etcd_files;
        let files = [
            ("etcd-ca", "etcd_ca", etcd_ca),
            ("etcd-cert", "etcd_cert", etcd_cert),
            ("etcd-key", "etcd_key", etcd_key),
        ];
        for (flag, key, path) in files {
            self.add(flag, key, path.as_ref().map(|path| path.display()));
        }
        self.add("etcd-prefix", "etcd_prefix", etcd_prefix.as_ref());
        self.add("advertise", "advertise", *advertise);
        self.add("name", "name", name.as_ref());
        self.add("peer-token", "peer_token", peer_token.as_ref().map(|path| path.display()));
    }

    fn data_plane(&mut self, DataPlaneFlags { listen, drain, domain }: &DataPlaneFlags) {
        self.add("listen", "listen", *listen);
        self.add("drain", "drain", drain.as_ref());
        // A domain given does not take away the one that makes the printed URLs work.
        let domains = domain.iter().map(String::as_str).chain(["localhost"]);
        let domains = domains.collect::<Vec<_>>().join(",");
        self.add("domain", "domains", (!domain.is_empty()).then_some(domains));
    }

    fn worker(&mut self, flags: &WorkerFlags) {
        let WorkerFlags { min_isolation, runtime, memory, sandboxes } = flags;
        self.add("min-isolation", "min_isolation", min_isolation.map(Isolation::from));
        let runtime = runtime.map(|runtime| match runtime {
            RuntimeArg::Process => "process",
            RuntimeArg::Fake => "fake",
        });
        self.add("runtime", "runtime", runtime);
        self.add("memory", "memory", *memory);
        self.add("sandboxes", "sandboxes", *sandboxes);
    }

    fn peer(&mut self, PeerFlags { control, peer_token, name }: &PeerFlags) {
        let addresses = control.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        self.add("control", "control", (!control.is_empty()).then_some(addresses));
        self.add("peer-token", "peer_token", peer_token.as_ref().map(|path| path.display()));
        self.add("name", "name", name.as_ref());
    }
}

/// Every flag with the key that it sets. All are named here, so that a new one cannot be forgotten.
#[cfg(test)]
pub(crate) fn every_flag() -> Vec<Flag> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let process = || ProcessFlags {
        state: Some(PathBuf::from("x")),
        config: None,
        log: Some("x".to_owned()),
    };
    let peer = || PeerFlags {
        control: vec![address],
        peer_token: Some(PathBuf::from("x")),
        name: Some("x".to_owned()),
    };
    let control_plane =
        || ControlPlaneFlags { api: Some(address), compat: true, record: Some(PathBuf::from("x")) };
    let data_plane = || DataPlaneFlags {
        listen: Some(address),
        drain: Some("1s".to_owned()),
        domain: vec!["x".to_owned()],
    };
    let worker = || WorkerFlags {
        min_isolation: Some(IsolationArg::Plain),
        runtime: Some(RuntimeArg::Process),
        memory: Some(Bytes::mib(1)),
        sandboxes: Some(1),
    };
    let all: [&dyn Flagged; 3] = [
        &ControlPlaneArgs {
            role: control_plane(),
            peers: Some(address),
            shared: SharedFlags {
                etcd: vec!["http://x:1".to_owned()],
                etcd_files: EtcdFiles {
                    etcd_ca: Some(PathBuf::from("x")),
                    etcd_cert: Some(PathBuf::from("x")),
                    etcd_key: Some(PathBuf::from("x")),
                },
                etcd_prefix: Some("/x".to_owned()),
                advertise: Some(address),
                name: Some("x".to_owned()),
                peer_token: Some(PathBuf::from("x")),
            },
            process: process(),
        },
        &DataPlaneArgs {
            role: data_plane(),
            admin: Some(address),
            leave: Some("1s".to_owned()),
            peer: peer(),
            process: process(),
        },
        &WorkerArgs {
            role: worker(),
            emulate: Some(1),
            stop_sandboxes: true,
            address: Some(Ipv4Addr::LOCALHOST),
            admit: vec!["10.1.0.0/16".to_owned()],
            encrypt: true,
            relay_port: Some(1),
            peer: peer(),
            process: process(),
        },
    ];
    all.into_iter().flat_map(Flags::of).collect()
}
