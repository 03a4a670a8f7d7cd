//! What a data plane is started with.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZero,
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

use dirigent_core::name::HostRules;
use dirigent_service::Clock;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::upstream::Tunnels;

/// Everything that [`crate::start`] needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where functions are called.
    pub listen: SocketAddr,
    /// The flag that a user would change that with, for the error if it is taken.
    pub flag: &'static str,
    /// Which Hosts name functions.
    pub hosts: HostRules,
    /// Who may say in `Forwarded` and `X-Forwarded-*` what it saw; what others say of it is dropped.
    pub trusted_proxies: Vec<IpNet>,
    /// A directory of its own for the cluster and epoch obeyed; `None` remembers nothing over a
    /// restart.
    pub state: Option<PathBuf>,
    /// How sandboxes are reached whose workers encrypt; not at all without.
    pub tunnels: Option<Arc<dyn Tunnels>>,
    /// Threads that serve connections, each with its own.
    pub cores: NonZero<usize>,
    /// Whether it obeys orders to say that it is not ready, and to leave: whoever started it sees to
    /// it that it ends then.
    pub takes_orders: bool,
    /// The process's clock.
    pub clock: Clock,
    /// Every bound of the data plane.
    pub limits: Limits,
}

impl Config {
    /// The defaults, listening at `listen`, with a thread per core of the machine.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            flag: "--listen",
            hosts: HostRules::default(),
            trusted_proxies: loopback(),
            state: None,
            tunnels: None,
            cores: thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN),
            takes_orders: false,
            clock: Clock::new(),
            limits: Limits::default(),
        }
    }
}

/// The addresses of this machine only, where a proxy before the data plane usually runs.
#[must_use]
pub fn loopback() -> Vec<IpNet> {
    let v4 = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
    let v6 = Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128);
    vec![v4.into(), v6.into()]
}

/// The bounds. Each has a stated answer when it is reached.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Client connections at once; the next is answered 503 and closed.
    pub connections: usize,
    /// Invocations at once, queued ones included; the next is answered 503.
    pub in_flight: usize,
    /// Bytes of a request's head; more is answered 431.
    pub head_bytes: usize,
    /// From the first byte of a head to its last; longer is answered 408.
    pub head_timeout: Duration,
    /// Silence allowed between two requests of a connection, then it is closed.
    pub idle_connection: Duration,
    /// After so long without a call, a connection of HTTP/1 gives its buffers back until the next one.
    pub rest_after: Duration,
    /// Once the drain has begun, for a call that is on its way: so long a connection of HTTP/1 without
    /// one stays open.
    pub last_call: Duration,
    /// How long a client may refuse to take bytes of a response, then it is cut.
    pub client_stall: Duration,
    /// Bytes of a request's body; more is answered 413.
    pub body_bytes: Option<u64>,
    /// Bytes of one body kept for another attempt.
    pub replay_bytes: usize,
    /// Bytes of all bodies kept for other attempts; above it nothing more is kept.
    pub replay_bytes_total: usize,
    /// Bytes that all HTTP/2 clients together may send ahead of what is read of their bodies, beyond
    /// the 64 KiB of each that the protocol grants; above it a connection gets these only.
    pub ahead_bytes_total: usize,
    /// How long an invocation of a name not heard of waits for the control plane.
    pub resolve_timeout: Duration,
    /// Names without a function that are remembered.
    pub unknown_names: usize,
    /// A name unused for so long is forgotten.
    pub forget_after: Duration,
    /// To a sandbox; longer means that it is unreachable.
    pub connect_timeout: Duration,
    /// A kept connection to a sandbox that was idle for longer is not used again.
    pub kept_idle: Duration,
    /// Invocations remembered for `logs --request-id`, and as many each of those that failed and that
    /// were refused.
    pub records: usize,
    /// Functions with a metrics series of their own; the others share one.
    pub series: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            in_flight: 65_536,
            head_bytes: 64 << 10,
            head_timeout: Duration::from_secs(10),
            idle_connection: Duration::from_secs(300),
            rest_after: Duration::from_millis(200),
            last_call: Duration::from_millis(500),
            client_stall: Duration::from_secs(300),
            body_bytes: None,
            replay_bytes: 64 << 10,
            replay_bytes_total: 64 << 20,
            ahead_bytes_total: 256 << 20,
            resolve_timeout: Duration::from_secs(30),
            unknown_names: 10_000,
            forget_after: Duration::from_secs(3600),
            connect_timeout: Duration::from_millis(500),
            kept_idle: Duration::from_secs(1),
            records: 10_000,
            series: 1000,
        }
    }
}
