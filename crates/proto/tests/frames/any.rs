//! A value of any type that a frame can hold: from a seed, or the same example for ever.

use std::{
    collections::BTreeMap,
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::Arc,
    time::Duration,
};

use dirigent_core::{
    Access, Address, Auth, Bytes, Cause, ClusterId, DataPlaneId, Destination, Digest, Duty, Epoch,
    Fault, FunctionId, FunctionName, FunctionView, Isolation, KeepAlive, Listen, MilliCpu,
    Outbound, Protocol, Pull, Resources, RevisionId, RevisionView, RuntimeKind, SandboxId,
    SandboxSpec, Serial, Settings, Spec, StartFailure, StartPhases, TokenView, WorkerId,
    frame::{
        Capacity, DataPlaneHello, Demand, FromDataPlane, FromDataPlaneBulk, FromWorker,
        FromWorkerBulk, Grant, Hello, Holding, Incarnation, InvocationRecord, Load, LogLine,
        LogQuery, Returned, SandboxReport, Share, StartSandbox, Status, ToDataPlane,
        ToDataPlaneBulk, ToWorker, ToWorkerBulk, Welcome, WhyReturned, WorkerHello,
    },
};

/// Where values come from.
pub(crate) struct Source {
    state: u64,
    /// Not at random: 1, 2, 3, so that two fields that are exchanged are seen.
    example: bool,
}

impl Source {
    pub(crate) fn seeded(seed: u64) -> Self {
        Self { state: seed, example: false }
    }

    pub(crate) fn example() -> Self {
        Self { state: 0, example: true }
    }

    pub(crate) fn number(&mut self) -> u64 {
        if self.example {
            self.state += 1;
            return self.state;
        }
        // SplitMix64.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of the numbers below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.number() % u64::try_from(n).unwrap()).unwrap()
    }

    /// Of any length in bits, as often short as long.
    fn bits(&mut self, bits: usize) -> u64 {
        if self.example {
            return self.number();
        }
        let bits = self.below(bits + 1);
        if bits == 0 { 0 } else { self.number() >> (64 - bits) }
    }
}

pub(crate) trait Any: Sized {
    fn any(from: &mut Source) -> Self;
}

/// An enum: which variants there are, and one of a given variant.
pub(crate) trait Variants: Any {
    const NAMES: &[&str];

    fn of_variant(index: usize, from: &mut Source) -> Self;
    fn variant(&self) -> &'static str;
}

macro_rules! numbers {
    ($($name:ty: $bits:literal;)*) => {$(
        impl Any for $name {
            fn any(from: &mut Source) -> Self {
                from.bits($bits).try_into().unwrap()
            }
        }
    )*};
}

numbers! { u8: 8; u16: 16; u32: 32; u64: 64; }

impl Any for i32 {
    fn any(from: &mut Source) -> Self {
        let size: Self = from.bits(31).try_into().unwrap();
        if from.example || bool::any(from) { size } else { -size }
    }
}

impl Any for bool {
    fn any(from: &mut Source) -> Self {
        from.example || from.below(2) == 1
    }
}

impl Any for Duration {
    fn any(from: &mut Source) -> Self {
        Self::from_nanos(u64::any(from))
    }
}

impl Any for KeepAlive {
    fn any(from: &mut Source) -> Self {
        if !from.example && from.below(4) == 0 { Self::Auto } else { Duration::any(from).into() }
    }
}

impl Any for String {
    fn any(from: &mut Source) -> Self {
        if from.example {
            return format!("text {}", from.number());
        }
        let length = from.below(12);
        (0..length)
            .map(|_| ['a', 'Z', '0', ' ', '\0', '\n', 'é', '字', '🦀'][from.below(9)])
            .collect()
    }
}

impl Any for Arc<str> {
    fn any(from: &mut Source) -> Self {
        String::any(from).into()
    }
}

impl Any for FunctionName {
    fn any(from: &mut Source) -> Self {
        let namespace = ["default", "media", "a", "0-0"][from.below(4)];
        Self::new(namespace, &format!("f-{}", u64::any(from))).unwrap()
    }
}

impl Any for Digest {
    fn any(from: &mut Source) -> Self {
        Self(std::array::from_fn(|_| u8::any(from)))
    }
}

impl Any for ClusterId {
    fn any(from: &mut Source) -> Self {
        Self(u128::from(u64::any(from)) << 64 | u128::from(u64::any(from)))
    }
}

impl Any for ipnet::Ipv4Net {
    fn any(from: &mut Source) -> Self {
        let address = u32::any(from);
        Self::new(address.into(), u8::any(from) % 33).unwrap()
    }
}

impl Any for SocketAddr {
    fn any(from: &mut Source) -> Self {
        let ip: [u8; 4] = std::array::from_fn(|_| u8::any(from));
        if from.example || bool::any(from) {
            return (ip, u16::any(from)).into();
        }
        let ip = Ipv6Addr::from(std::array::from_fn::<u16, 8, _>(|_| u16::any(from)));
        SocketAddrV6::new(ip, u16::any(from), u32::any(from), u32::any(from)).into()
    }
}

impl<T: Any> Any for Option<T> {
    fn any(from: &mut Source) -> Self {
        bool::any(from).then(|| T::any(from))
    }
}

impl<T: Any> Any for Vec<T> {
    fn any(from: &mut Source) -> Self {
        let length = if from.example { 2 } else { from.below(4) };
        (0..length).map(|_| T::any(from)).collect()
    }
}

impl Any for BTreeMap<String, String> {
    fn any(from: &mut Source) -> Self {
        Vec::<(String, String)>::any(from).into_iter().collect()
    }
}

impl<A: Any, B: Any> Any for (A, B) {
    fn any(from: &mut Source) -> Self {
        (A::any(from), B::any(from))
    }
}

impl<T: Any> Any for Box<T> {
    fn any(from: &mut Source) -> Self {
        Self::new(T::any(from))
    }
}

impl<T: Any> Any for Arc<T> {
    fn any(from: &mut Source) -> Self {
        Self::new(T::any(from))
    }
}

macro_rules! newtypes {
    ($($name:ident)*) => {$(
        impl Any for $name {
            fn any(from: &mut Source) -> Self {
                Self(Any::any(from))
            }
        }
    )*};
}

newtypes! { Bytes DataPlaneId Epoch MilliCpu Serial WorkerId }

/// Fields after the `;` came later: the bytes of version 1 have them at their defaults.
macro_rules! structs {
    ($($name:ident { $($field:ident),* $(; $($later:ident),*)? })*) => {$(
        impl Any for $name {
            fn any(from: &mut Source) -> Self {
                Self {
                    $($field: Any::any(from),)*
                    $($($later: if from.example { Default::default() } else { Any::any(from) },)*)?
                }
            }
        }
    )*};
}

structs! {
    FunctionId { epoch, counter }
    SandboxId { epoch, counter }
    RevisionId { function, number }
    SandboxSpec { runtime, command, image, component, port, protocol, isolation, listen; network, pull, read_only, handler }
    Destination { hosts, port }
    Resources { cpu, memory }
    Spec { sandbox, resources, env, concurrency, artifact }
    Settings {
        min, max, keep_alive, timeout, queue_timeout, start_timeout, idle_timeout, drain_timeout,
        grace, max_queue, retry; auth
    }
    RevisionView { id, weight, concurrency, protocol }
    FunctionView { id, name, settings, targets }
    TokenView { hash, access, expires_ms }
    StartFailure { cause, fault, log_tail }
    StartPhases { decide, place, fetch, create, init, wire }
    Incarnation { boot, start; life }
    Hello { cluster, protocol, features, incarnation, highest_epoch }
    Welcome { cluster, epoch }
    DataPlaneHello { hello, holdings, names, demands }
    Holding { sandbox, revision, share, busy, draining, pinned }
    Demand {
        function, queued, oldest_wait, held, idle, busy, busy_integral, elapsed, arrivals_total,
        finished_total; expected
    }
    Returned { sandbox, share, serial, why }
    Grant { sandbox, revision, address, protocol, share, serial, pinned, start }
    WorkerHello { hello, capacity, sandboxes, artifacts }
    Capacity { memory, cpu, cpu_overcommit, sandboxes, starts, runtimes, missing }
    SandboxReport { sandbox, revision, memory, cpu, address, stopping }
    Load { sandboxes, memory_used, cpu_used }
    StartSandbox { sandbox, revision, name, spec, start_timeout }
    LogQuery { id, function, sandbox, since_ms, until_ms, tail, follow }
    LogLine { at_ms, sandbox, stderr, text }
    InvocationRecord {
        request_id, function, function_id, sandbox, revision, arrived_ms, total, status, code,
        attempts, cold, phases
    }
}

/// The match without `_` sees to it that no variant is left out.
macro_rules! enums {
    ($($name:ident { $($variant:ident $(($value:ident))? $({ $($field:ident),* })?,)* })*) => {$(
        impl Any for $name {
            fn any(from: &mut Source) -> Self {
                // The first one stays the first when others are added.
                let index = if from.example { 0 } else { from.below(Self::NAMES.len()) };
                Self::of_variant(index, from)
            }
        }

        impl Variants for $name {
            const NAMES: &[&str] = &[$(stringify!($variant)),*];

            fn of_variant(index: usize, from: &mut Source) -> Self {
                let make: &[fn(&mut Source) -> Self] = &[$(|_from| {
                    Self::$variant $(({ let $value = Any::any(_from); $value }))?
                        $({ $($field: Any::any(_from)),* })?
                }),*];
                make[index](from)
            }

            fn variant(&self) -> &'static str {
                match self { $(Self::$variant { .. } => stringify!($variant),)* }
            }
        }
    )*};
}

enums! {
    RuntimeKind { Process, Container, Wasm, Microvm, Fake, }
    Protocol { Http1, H2c, }
    Isolation { Plain, Basic, Strict, }
    Listen { Port, Fd, }
    Outbound { None, Internet, Only(list), }
    Pull { Missing, Always, Never, }
    Fault { Function, Worker, }
    Auth { None, Token, }
    Access { View, Invoke, Deploy, Admin, }
    Duty { InUse, Cordoned, Draining, }
    WhyReturned { Idle, Drained, Unreachable, Closing, }
    Share { Slots(n), Open, }
    Address { Tcp(address), Unix(path), Ingress { at, worker, sandbox }, }
    Cause {
        Stopped, Exited { code }, Signalled { signal }, OutOfMemory { limit },
        NeverListened { message }, CreateFailed { message }, ArtifactFailed { message }, WorkerLost,
    }
    Status { Flowing, AtMax, NoCapacity, NotReady, StartFailed(failure), CrashLoop(failure), }
    FromWorker {
        Hello(hello), Beat(load), SandboxReady { sandbox, address, phases },
        SandboxGone { sandbox, failure }, Refused { sandbox, message }, Artifact { digest, held },
        Fetching { digest, fetched, all }, ImageResolved { sandbox, digest },
        Settled { sandbox, data_plane }, Unsupported { kind },
    }
    ToWorker {
        Welcome { welcome, you }, StartSandbox(order), StopSandbox { sandbox, grace },
        ReleaseAddress { sandbox }, DiscardArtifacts { digests }, Settle { sandbox, data_plane },
        Unsupported { kind }, Taken,
    }
    FromDataPlane {
        Hello(hello), Resolve { name }, Forget { name }, Applied { function, version },
        Demand(demand), Returned(returned), Kept { function, n }, Unsupported { kind },
    }
    ToDataPlane {
        Welcome { welcome, you }, Resolved { name, version, function }, Grant(grant),
        Recall { function, n, idle_only }, RecallSandbox { sandbox, gone },
        Status { function, status }, Tokens { tokens }, Unsupported { kind }, Duty { duty },
        Taken,
    }
    ToWorkerBulk {
        Chunk { digest, data, end }, NoArtifact { digest, message }, ReadLogs(query),
        StopLogs { id },
    }
    FromWorkerBulk { Fetch { digest, offset }, LogLines { id, lines, end, missing }, }
    ToDataPlaneBulk { FindInvocation { id, request_id }, }
    FromDataPlaneBulk { Invocation { id, record }, }
}
