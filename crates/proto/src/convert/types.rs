//! `types.proto`: the nouns.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use dirigent_core::{
    Access, Address, Auth, Cause, Destination, Fault, FunctionId, FunctionView, Isolation, Listen,
    Outbound, Protocol, Pull, Resources, RevisionId, RevisionView, RuntimeKind, SandboxId,
    SandboxSpec, Settings, Spec, StartFailure, StartPhases, TokenView, frame::Share,
};

use ipnet::Ipv4Net;

use super::{
    choice,
    codec::{
        Choice, Codec, Enumeration, Environment, Exactly, Kept, List, Maybe, MaybeChoice, Message,
        Name, Nanos, Needed, Number, Plain, Shared, Short, Text, Told,
    },
    field, kinds, message, variants,
};
use crate::{Malformed, Why, limit, v1};

message! {
    FunctionId { epoch: Number, counter: Plain, }
}

message! {
    SandboxId { epoch: Number, counter: Plain, }
}

message! {
    RevisionId { function: Needed, number: Plain, }
}

variants! {
    Share in share {
        Slots(Plain)
        Open()
    }
}

impl From<SocketAddr> for v1::SocketAddress {
    fn from(it: SocketAddr) -> Self {
        let (flow_info, scope) = match it {
            SocketAddr::V4(_) => (0, 0),
            SocketAddr::V6(it) => (it.flowinfo(), it.scope_id()),
        };
        let ip = match it.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        Self { ip, port: it.port().into(), flow_info, scope }
    }
}

impl TryFrom<v1::SocketAddress> for SocketAddr {
    type Error = Malformed;

    fn try_from(it: v1::SocketAddress) -> Result<Self, Malformed> {
        let v1::SocketAddress { ip, port, flow_info, scope } = it;
        let port = field::<Short, _, _>("port", port)?;
        if let Ok(ip) = <[u8; 4]>::try_from(&*ip) {
            return Ok((Ipv4Addr::from(ip), port).into());
        }
        let Ok(ip) = <[u8; 16]>::try_from(&*ip) else {
            return Err(Malformed::new(Why::WrongLength(ip.len())).within("ip"));
        };
        Ok(SocketAddrV6::new(Ipv6Addr::from(ip), port, flow_info, scope).into())
    }
}

variants! {
    Address in address {
        Tcp(Message)
        Unix(Text)
        Ingress { at: Needed, worker: Text, sandbox: Needed, }
    }
}

choice! { RuntimeKind { Process, Container, Wasm, Microvm, Fake } }

choice! { Protocol { Http1, H2c } }

choice! { Isolation { Plain, Basic, Strict } }

choice! { Listen { Port, Fd } }

choice! { Pull { Missing by default, Always, Never } }

message! {
    SandboxSpec {
        runtime: Choice,
        command: List<{ limit::ARGUMENTS }, Text>,
        image: Maybe<Text>,
        component: Maybe<Text>,
        port: Maybe<Short>,
        protocol: Choice,
        isolation: MaybeChoice,
        listen: Choice,
        network: Maybe,
        pull: Choice,
        read_only: Plain,
        handler: Maybe<Text>,
    }
}

variants! {
    Outbound in outbound {
        None()
        Internet()
        Only(Message)
    }
}

impl From<Vec<Destination>> for v1::Destinations {
    fn from(it: Vec<Destination>) -> Self {
        Self { destinations: <List<{ limit::DESTINATIONS }> as Codec<_, _>>::put(it) }
    }
}

impl TryFrom<v1::Destinations> for Vec<Destination> {
    type Error = Malformed;

    fn try_from(it: v1::Destinations) -> Result<Self, Malformed> {
        field::<List<{ limit::DESTINATIONS }>, _, _>("destinations", it.destinations)
    }
}

impl From<Destination> for v1::Destination {
    fn from(it: Destination) -> Self {
        let Destination { hosts, port } = it;
        Self {
            address: hosts.addr().octets().to_vec(),
            prefix: hosts.prefix_len().into(),
            port: <Maybe<Short> as Codec<_, _>>::put(port),
        }
    }
}

impl TryFrom<v1::Destination> for Destination {
    type Error = Malformed;

    fn try_from(it: v1::Destination) -> Result<Self, Malformed> {
        let v1::Destination { address, prefix, port } = it;
        let Ok(address) = <[u8; 4]>::try_from(&*address) else {
            return Err(Malformed::new(Why::WrongLength(address.len())).within("address"));
        };
        let hosts =
            u8::try_from(prefix).ok().and_then(|prefix| Ipv4Net::new(address.into(), prefix).ok());
        let hosts = hosts.ok_or_else(|| Malformed::new(Why::TooLarge(32)).within("prefix"))?;
        Ok(Self { hosts, port: field::<Maybe<Short>, _, _>("port", port)? })
    }
}

message! {
    Resources { cpu: Number, memory: Number, }
}

message! {
    Spec {
        sandbox: Needed,
        resources: Needed,
        env: Environment,
        concurrency: Plain,
        artifact: Maybe<Exactly>,
    }
}

message! {
    Settings {
        min: Plain,
        max: Plain,
        keep_alive: Kept,
        timeout: Nanos,
        queue_timeout: Nanos,
        start_timeout: Nanos,
        idle_timeout: Nanos,
        drain_timeout: Nanos,
        grace: Nanos,
        max_queue: Plain,
        retry: Plain,
        auth: Choice,
    }
}

choice! { Auth { None by default, Token } }

choice! { Access { View, Invoke, Deploy, Admin } }

message! {
    TokenView { hash: Exactly, access: Choice, expires_ms: Maybe<Plain>, }
}

message! {
    RevisionView { id: Needed, weight: Plain, concurrency: Plain, protocol: Choice, }
}

message! {
    FunctionView {
        id: Needed,
        name: Name,
        settings: Shared<Needed>,
        targets: List<{ limit::TARGETS }>,
    }
}

choice! { Fault { Function, Worker } }

variants! {
    Cause in cause {
        Stopped()
        Exited { code: Plain, }
        Signalled { signal: Plain, }
        OutOfMemory { limit: Number, }
        NeverListened { message: Told, }
        CreateFailed { message: Told, }
        ArtifactFailed { message: Told, }
        WorkerLost()
    }
}

message! {
    StartFailure { cause: Needed, fault: Choice, log_tail: List<{ limit::LOG_TAIL }, Told>, }
}

message! {
    StartPhases {
        decide: Nanos,
        place: Nanos,
        fetch: Nanos,
        create: Nanos,
        init: Nanos,
        wire: Nanos,
    }
}
