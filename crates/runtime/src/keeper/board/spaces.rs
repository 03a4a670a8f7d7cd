//! Networks of sandboxes: lent to our own and to those of other runtimes, made ahead by a child.
//!
//! Making one takes about a millisecond of waiting for the kernel, in which no sandbox would be
//! started: so a fork of the keeper does it, and sends the descriptors.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _, IntoRawFd as _, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use dirigent_core::{Address, Outbound, SandboxId};
use rustix::{
    event::epoll,
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};

use super::{Alarm, Board, FIRST_OF_OURS, Source};
use crate::{
    keeper::protocol::{FromKeeper, Lent},
    network::{Order, Pool, Renewal, Settings, Space},
    sys::process::{Forked, close_from, exit_now, fork, own, place},
};

/// How many one child makes: it holds copies of the keeper's memory while it does.
const AT_ONCE: usize = 32;

/// How long after a loan more are made: the sandbox that starts comes first.
const FILL_AFTER: Duration = Duration::from_millis(20);

/// How long to wait after one could not be made.
const FILL_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// How soon one that was given back is looked at: it has sockets until others have said goodbye.
const REST: Duration = Duration::from_millis(5);

/// More than a loan takes, unless something holds the kernel up.
const LONG_LOAN: Duration = Duration::from_secs(1);

/// How often, where that takes longer.
const LONG_REST: Duration = Duration::from_millis(200);

/// A child that makes namespaces.
#[derive(Debug)]
pub(super) struct Maker {
    socket: OwnedFd,
    /// What it has not sent yet.
    orders: Vec<Order>,
}

/// What another runtime has borrowed.
#[derive(Debug)]
pub(super) struct Loan {
    space: Space,
    inside: u16,
    pub(super) lent: Lent,
}

/// The pool, where there is one, and what goes on around it.
#[derive(Debug)]
pub(super) struct Networks {
    pub(super) pool: Option<Pool>,
    /// Whether the rules are to be written anew.
    outdated: bool,
    /// Whether the last attempt to write them failed, or may have: the next look writes them, not
    /// an attempt at once, which fails as well, perhaps.
    doubted: bool,
    maker: Option<Maker>,
    /// What sandboxes of other runtimes have of it.
    pub(super) loans: BTreeMap<SandboxId, Loan>,
}

impl Networks {
    pub(super) const fn new(pool: Option<Pool>) -> Self {
        Self { pool, outdated: false, doubted: false, maker: None, loans: BTreeMap::new() }
    }

    /// The worker's configuration may be newer than this keeper.
    pub(super) fn configure(&mut self, settings: Settings) {
        self.outdated |= self.pool.as_mut().is_some_and(|pool| pool.configure(settings));
    }

    /// The rules to be written, if those that are there are not what they should be.
    pub(super) fn renewal(&mut self) -> Option<Renewal> {
        let pool = self.pool.as_mut()?;
        let outdated = pool.is_outdated() || self.outdated || self.doubted;
        (self.outdated, self.doubted) = (false, false);
        outdated.then(|| pool.renewal())
    }

    /// Nobody knows that they were written.
    pub(super) const fn doubt(&mut self) {
        self.doubted = true;
    }

    /// Somebody has tried to write them; whether they are outdated again.
    pub(super) fn renewed(&mut self) -> bool {
        if let Some(pool) = &mut self.pool {
            pool.renewed();
        }
        self.outdated
    }
}

impl Board {
    /// A network for a sandbox of another runtime.
    pub(super) fn lend(
        &mut self,
        sandbox: SandboxId,
        outbound: &Outbound,
        (port, inside): (u16, u16),
    ) {
        let lent = match self.networks.loans.get(&sandbox) {
            // Asked twice: the first answer was lost with the worker that asked.
            Some(loan) => Ok(loan.lent.clone()),
            None => {
                let begun = Instant::now();
                let lent = self.borrow(sandbox, outbound, (port, inside));
                let took = begun.elapsed();
                if took > LONG_LOAN {
                    tracing::warn!(%sandbox, ?took, "the kernel was slow to give a network");
                }
                lent.map_err(|error| error.to_string())
            }
        };
        self.tell(&FromKeeper::Lent { sandbox, lent });
    }

    fn borrow(
        &mut self,
        sandbox: SandboxId,
        outbound: &Outbound,
        (port, inside): (u16, u16),
    ) -> io::Result<Lent> {
        let network = self.options.network.address;
        let space = self.take_space(outbound, port, inside)?;
        let namespace =
            format!("/proc/{}/fd/{}", std::process::id(), space.namespace().as_raw_fd());
        let lent = Lent {
            sandbox,
            address: space.address(),
            namespace: PathBuf::from(namespace),
            reached_at: reached_at(network, space.address(), port),
        };
        self.networks.loans.insert(sandbox, Loan { space, inside, lent: lent.clone() });
        Ok(lent)
    }

    /// The network of a sandbox of another runtime is to be reached.
    pub(super) fn expose(&mut self, sandbox: SandboxId, port: u16) {
        let lent = self.exposed(sandbox, port).map_err(|error| error.to_string());
        self.tell(&FromKeeper::Lent { sandbox, lent });
    }

    fn exposed(&mut self, sandbox: SandboxId, port: u16) -> io::Result<Lent> {
        let Networks { pool: Some(pool), loans, .. } = &mut self.networks else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let loan = loans.get_mut(&sandbox).ok_or(io::ErrorKind::NotFound)?;
        if let Some(exposed) = pool.way_to(port, loan.inside) {
            pool.expose(&loan.space, exposed)?;
        }
        let network = self.options.network.address;
        loan.lent.reached_at = reached_at(network, loan.space.address(), port);
        Ok(loan.lent.clone())
    }

    /// A sandbox of another runtime is gone.
    pub(super) fn give_back(&mut self, sandbox: SandboxId) {
        if let Some(loan) = self.networks.loans.remove(&sandbox) {
            self.return_space(loan.space);
        }
    }

    /// A network for a sandbox.
    pub(super) fn take_space(
        &mut self,
        outbound: &Outbound,
        port: u16,
        inside: u16,
    ) -> io::Result<Space> {
        let Some(pool) = &mut self.networks.pool else {
            let why = self.abilities.no_strict.clone().unwrap_or_default();
            return Err(io::Error::other(format!(
                "no sandbox has a network of its own here: {why}"
            )));
        };
        let exposed = pool.way_to(port, inside);
        let taken = pool.lend(outbound, exposed);
        self.schedule_once(FILL_AFTER, Alarm::Fill);
        if taken.is_err() {
            // The rules are missing, perhaps: they are not waited for until the next look, nor is
            // the answer kept waiting for them.
            self.schedule_once(Duration::ZERO, Alarm::Missing);
        }
        taken
    }

    pub(super) fn return_space(&mut self, space: Space) {
        if let Some(pool) = &mut self.networks.pool {
            pool.give_back(space);
            self.schedule_once(REST, Alarm::Rest);
        }
    }

    /// Have more made, if more are wanted.
    pub(super) fn fill_spaces(&mut self) {
        let Some(pool) = &mut self.networks.pool else { return };
        if self.networks.maker.is_some() || self.exiting {
            return;
        }
        let mut orders = Vec::new();
        while orders.len() < AT_ONCE
            && let Some(order) = pool.wanted()
        {
            orders.push(order);
        }
        if orders.is_empty() {
            return;
        }
        match start_maker(pool, &orders) {
            Ok(socket) => {
                let data = epoll::EventData::new_u64(Source::Maker.token());
                if let Err(error) = epoll::add(&self.poll, &socket, data, epoll::EventFlags::IN) {
                    tracing::warn!(%error, "networks cannot be waited for");
                    return give_up(pool, orders);
                }
                self.networks.maker = Some(Maker { socket, orders });
            }
            Err(error) => {
                tracing::warn!(%error, "no networks can be made ahead");
                give_up(pool, orders);
                self.schedule_once(FILL_AFTER_FAILURE, Alarm::Fill);
            }
        }
    }

    /// The child has sent one, or has ended.
    pub(super) fn hear_maker(&mut self) {
        let Networks { pool: Some(pool), maker: Some(maker), .. } = &mut self.networks else {
            return;
        };
        loop {
            match receive(&maker.socket) {
                Ok(Some((address, namespace))) => {
                    maker.orders.retain(|order| order.address() != address);
                    let space = namespace.map(|namespace| Space::new(address, namespace));
                    if let Err(error) = pool.made(address, space) {
                        tracing::debug!(%address, %error, "a network could not be made");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => break,
            }
        }
        if let Err(error) = epoll::delete(&self.poll, &maker.socket) {
            tracing::trace!(%error, "not heard any more already");
        }
        let lacking = !maker.orders.is_empty();
        give_up(pool, std::mem::take(&mut maker.orders));
        self.networks.maker = None;
        let after = if lacking { FILL_AFTER_FAILURE } else { FILL_AFTER };
        self.schedule_once(after, Alarm::Fill);
    }

    /// Look at those that were given back.
    pub(super) fn look_at_resting(&mut self, now: Instant) {
        if self.networks.pool.as_mut().is_some_and(|pool| pool.rest_over(now)) {
            self.schedule_once(LONG_REST, Alarm::Rest);
        }
        self.schedule_once(FILL_AFTER, Alarm::Fill);
    }
}

/// Where data planes connect to.
fn reached_at(network: Ipv4Addr, own: Ipv4Addr, port: u16) -> Address {
    let host = if network.is_loopback() { own } else { network };
    Address::Tcp((host, port).into())
}

/// These are not made any more.
fn give_up(pool: &mut Pool, orders: Vec<Order>) {
    for order in orders {
        let outcome = Err(io::ErrorKind::Interrupted.into());
        if let Err(error) = pool.made(order.address(), outcome) {
            tracing::trace!(%error, "it was not made");
        }
    }
}

fn start_maker(pool: &Pool, orders: &[Order]) -> io::Result<OwnedFd> {
    let kind = SocketType::SEQPACKET;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    let home = pool.home().try_clone_to_owned()?;
    match fork(0)? {
        Forked::Child => {
            let (socket, origin) = (FIRST_OF_OURS, FIRST_OF_OURS + 1);
            // Neither number is in the way of the other: both are far above, once copied there.
            let copied = (|| {
                let far = rustix::io::fcntl_dupfd_cloexec(&theirs, origin + 1)?.into_raw_fd();
                let home = rustix::io::fcntl_dupfd_cloexec(&home, origin + 1)?.into_raw_fd();
                place(far, socket)?;
                place(home, origin)
            })();
            if copied.is_err() {
                exit_now(1);
            }
            close_from(origin + 1);
            let (socket, origin) = (own(socket), own(origin));
            let sent = orders.iter().try_for_each(|order| {
                answer(&socket, order.address(), &order.make(origin.as_fd()))
            });
            exit_now(i32::from(sent.is_err()))
        }
        Forked::Parent { .. } => Ok(ours),
    }
}

/// The address, and the namespace or the number of an error.
fn answer(socket: &OwnedFd, address: Ipv4Addr, made: &io::Result<Space>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let error = match made {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    };
    let descriptors: Vec<_> = made.iter().map(Space::namespace).collect();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let bytes = [address.octets(), error.to_ne_bytes()].concat();
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// What the child has to say; `None` once it has ended.
fn receive(socket: &OwnedFd) -> io::Result<Option<(Ipv4Addr, io::Result<OwnedFd>)>> {
    let mut bytes = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let [a, b, c, d, error @ ..] = bytes;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    let error = match i32::from_ne_bytes(error) {
        0 => libc::EIO,
        error => error,
    };
    let made = descriptor.ok_or_else(|| io::Error::from_raw_os_error(error));
    Ok(Some((Ipv4Addr::new(a, b, c, d), made)))
}
