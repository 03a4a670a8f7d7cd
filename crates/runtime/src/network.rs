//! Networks for sandboxes: a pool of network namespaces, made ahead, lent, taken back.
//!
//! Each has one link to the machine, an address of its own, and a way out ([`link`]); what may pass
//! is said by one table of network rules ([`rules`]). To lend one is to take it from the pool and, if
//! its sandbox may not connect everywhere or is to be reached at the machine's address, to put a few
//! elements into the sets of that table: no program is launched, and nothing is made or deleted. One
//! that is given back waits until no socket is left in it, and is lent again.
//!
//! ```text
//!               lend                     give_back             no socket is left
//!   made ──▶ ready ──▶ lent, by address ──▶ resting ──▶ ready, at the end of the line
//!   (Order::make, elsewhere)                   └──▶ closed, if there are enough
//! ```
//!
//! A namespace has no name: it is held by a descriptor, and by the processes in it. So whoever dies,
//! however that happens, leaves none behind; its link and routes go with it. Blocks of addresses are
//! claimed ([`range`]), the table has its keeper's name and is removed by the next keeper that finds
//! nobody living behind it (`keeper/orphans.rs`).
//!
//! The pool belongs to the keeper, which outlives the worker. Runtimes whose sandboxes are not the
//! keeper's processes borrow from it: `process::Spaces`.

mod elements;
pub(crate) mod forwarding;
mod link;
mod netlink;
mod range;
pub(crate) mod resolvers;
mod rules;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::Ipv4Addr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use dirigent_core::Outbound;
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use self::{
    elements::{Change, Element},
    netlink::Netlink,
    range::Block,
    rules::{Content, Lease},
};

/// How a pool works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Where sandboxes get their addresses; chosen where none is given.
    pub(crate) range: Option<Ipv4Net>,
    /// Where data planes connect to this machine. If that is a loopback address, they are on this
    /// machine, and connect to the sandbox's own; else its ports are led on to sandboxes.
    pub(crate) address: Ipv4Addr,
    /// Other hosts that may connect.
    pub(crate) admitted: Vec<IpNet>,
    /// Hosts that no sandbox reaches, such as those of control planes.
    pub(crate) forbidden: Vec<Ipv4Addr>,
    /// Namespaces kept ready.
    pub(crate) ready: usize,
}

/// At most so many are kept when sandboxes have given them back: each costs the kernel some 200 KiB.
const MOST_READY: usize = 512;

/// How long one may rest before it is closed instead: whoever it still talks to does not answer.
const LONGEST_REST: Duration = Duration::from_secs(120);

/// Whose port is led on to the one where a sandbox listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// The machine's, for data planes of other hosts.
    Machine,
    /// One of the sandbox's own address, for those of this machine.
    Sandbox,
}

/// A port that data planes connect to, and the sandbox's port that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exposed {
    /// Where the port is.
    pub(crate) via: Via,
    /// Nobody else's, and not given to another one while data planes may know it.
    pub(crate) port: u16,
    /// In the sandbox.
    pub(crate) inside: u16,
}

/// A namespace and the address in it. Dropped, it goes once nobody is in it.
#[derive(Debug)]
pub(crate) struct Space {
    address: Ipv4Addr,
    namespace: OwnedFd,
}

impl Space {
    /// One that was made by [`Order::make`] elsewhere, whose descriptor has come.
    pub(crate) const fn new(address: Ipv4Addr, namespace: OwnedFd) -> Self {
        Self { address, namespace }
    }

    /// The sandbox's address.
    pub(crate) const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// To be entered by `setns`, or sent to who does.
    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// A namespace that is to be made. Making takes about a millisecond, and holds up whoever does it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    address: Ipv4Addr,
    mtu: u32,
}

impl Order {
    /// Where it will be.
    pub(crate) const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Make it, from `home`, where the calling thread is. Blocking.
    ///
    /// # Errors
    /// `AlreadyExists` while what was there before is not gone yet: the next one may work.
    pub(crate) fn make(&self, home: BorrowedFd<'_>) -> io::Result<Space> {
        let namespace = link::make(self.address, self.mtu, home)?;
        Ok(Space { address: self.address, namespace })
    }
}

/// The rules to be written, by a program that takes its time.
#[derive(Debug)]
pub(crate) struct Renewal {
    text: String,
}

impl Renewal {
    /// Write them. Blocking.
    pub(crate) fn run(&self) -> Result<(), String> {
        crate::keeper::rules::nft(&self.text)
    }
}

/// Does something in the network namespace at a path, and comes back.
pub(crate) fn within<T>(path: &str, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let (namespace, home) = (std::fs::File::open(path)?, link::own_namespace()?);
    link::within(namespace.as_fd(), home.as_fd(), act)
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pool {
    settings: Settings,
    table: String,
    range: Ipv4Net,
    mtu: u32,
    home: OwnedFd,
    blocks: Vec<Block>,
    /// Addresses that nobody has, the one that was used longest ago first.
    free: VecDeque<Ipv4Addr>,
    /// Orders that are out.
    ordered: usize,
    /// Whether more are made until there are enough.
    filling: bool,
    ready: VecDeque<Space>,
    /// Given back, since then.
    resting: VecDeque<(Space, Instant)>,
    lent: BTreeMap<Ipv4Addr, Lease>,
    rules: Netlink,
    resolvers: Vec<Ipv4Addr>,
    guard: bool,
    /// What has changed since a renewal was begun, which does not know of it.
    changed: Option<Vec<(Change, Vec<Element>)>>,
}

impl Pool {
    /// Look what this machine can, claim addresses, write the rules. `name` is claimed by the caller.
    ///
    /// # Errors
    /// Why no sandbox can have a network of its own here, and what to do.
    pub(crate) fn open(name: &str, settings: Settings) -> Result<Self, String> {
        let home = link::own_namespace().map_err(|error| format!("network namespace: {error}"))?;
        let found = range::look(settings.range)?;
        // Others may begin at the same moment.
        let start = name.bytes().fold(0, |sum: usize, byte| sum * 31 % 65_521 + usize::from(byte));
        let block = Block::claim(found.range, start)?;
        let rules = Netlink::netfilter().map_err(|error| format!("nftables: {error}"))?;
        let (table, guard) = forwarding::table(name)?;
        let mut pool = Self {
            resolvers: resolvers::of_this_machine(),
            settings,
            table,
            range: found.range,
            mtu: found.mtu,
            home,
            free: block.addresses().collect(),
            blocks: vec![block],
            ordered: 0,
            filling: true,
            ready: VecDeque::new(),
            resting: VecDeque::new(),
            lent: BTreeMap::new(),
            rules,
            guard,
            changed: None,
        };
        pool.renewal().run()?;
        pool.changed = None;
        forwarding::switch_on()?;
        // Whether it works is known when the first one is made.
        pool.make_one().map_err(|error| format!("a network of its own: {error}"))?;
        Ok(pool)
    }

    /// The machine's own network.
    pub(crate) fn home(&self) -> BorrowedFd<'_> {
        self.home.as_fd()
    }

    /// What leads data planes that connect to `port` to a sandbox that listens at `inside`: nothing
    /// if they are on this machine, and both are the same.
    pub(crate) const fn way_to(&self, port: u16, inside: u16) -> Option<Exposed> {
        match self.settings.address.is_loopback() {
            // Not yet.
            _ if port == 0 => None,
            true if port == inside => None,
            true => Some(Exposed { via: Via::Sandbox, port, inside }),
            false => Some(Exposed { via: Via::Machine, port, inside }),
        }
    }

    /// Does something in the network of a sandbox.
    pub(crate) fn within<T>(
        &self,
        space: &Space,
        act: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        link::within(space.namespace(), self.home(), act)
    }

    fn make_one(&mut self) -> io::Result<()> {
        let order = self.order().ok_or_else(|| io::Error::other("no address is free"))?;
        let made = order.make(self.home.as_fd());
        self.made(order.address(), made)
    }

    /// The next one to be made, if more are wanted: once half of them are used, until all are there
    /// again. So a sandbox now and then has none made, which would be one too many when it is gone.
    pub(crate) fn wanted(&mut self) -> Option<Order> {
        let (have, want) =
            (self.ready.len() + self.resting.len() + self.ordered, self.settings.ready);
        if have >= want {
            self.filling = false;
        } else if have <= want / 2 {
            self.filling = true;
        }
        self.filling.then(|| self.order()).flatten()
    }

    fn order(&mut self) -> Option<Order> {
        if self.free.is_empty() {
            self.claim_more();
        }
        let address = self.free.pop_front()?;
        self.ordered += 1;
        Some(Order { address, mtu: self.mtu })
    }

    fn claim_more(&mut self) {
        let claimed = Block::claim(self.range, self.blocks.len());
        let block = match claimed {
            Ok(block) => block,
            Err(reason) => return tracing::warn!(%reason, "no more sandboxes get a network"),
        };
        self.free.extend(block.addresses());
        let element = Element::Block(block.net.addr());
        self.blocks.push(block);
        if let Err(error) = self.change(Change::Add, vec![element]) {
            tracing::warn!(%error, "a block of addresses is not in the rules");
        }
    }

    /// What became of an order.
    pub(crate) fn made(&mut self, address: Ipv4Addr, made: io::Result<Space>) -> io::Result<()> {
        self.ordered = self.ordered.saturating_sub(1);
        match made {
            Ok(space) => self.ready.push_back(space),
            Err(error) => {
                self.free.push_back(address);
                return Err(error);
            }
        }
        Ok(())
    }

    /// A namespace for a sandbox, with what it may.
    ///
    /// # Errors
    /// If there is none and none can be made, or the rules are not there: then the sandbox would be
    /// more open than it may be, or not be reached.
    pub(crate) fn lend(
        &mut self,
        outbound: &Outbound,
        exposed: Option<Exposed>,
    ) -> io::Result<Space> {
        if self.ready.is_empty() {
            self.rest_over(Instant::now());
        }
        let mut tries = 0;
        while self.ready.is_empty() {
            match self.make_one() {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries < 8 => {
                    tries += 1;
                }
                made => made?,
            }
        }
        let space = self.ready.pop_front().ok_or(io::ErrorKind::NotFound)?;
        let lease = Lease { outbound: outbound.clone(), exposed };
        let elements = lease.elements(space.address);
        if let Err(error) = self.change(Change::Add, elements) {
            self.ready.push_front(space);
            return Err(io::Error::new(error.kind(), format!("network rules: {error}")));
        }
        self.lent.insert(space.address, lease);
        Ok(space)
    }

    /// What was lent is to be reached from now on.
    ///
    /// # Errors
    /// If the rules are not there.
    pub(crate) fn expose(&mut self, space: &Space, exposed: Exposed) -> io::Result<()> {
        let known = self.lent.get(&space.address).ok_or(io::ErrorKind::NotFound)?;
        if known.exposed == Some(exposed) {
            return Ok(());
        }
        self.change(Change::Add, vec![exposed.element(space.address)])?;
        if let Some(lease) = self.lent.get_mut(&space.address) {
            lease.exposed = Some(exposed);
        }
        Ok(())
    }

    /// Its sandbox is gone, whole.
    pub(crate) fn give_back(&mut self, space: Space) {
        if let Some(lease) = self.lent.remove(&space.address)
            && let Err(error) = self.change(Change::Remove, lease.elements(space.address))
        {
            // They were flushed: nothing of it is there.
            tracing::debug!(%error, "rules of a sandbox that is gone");
        }
        self.resting.push_back((space, Instant::now()));
    }

    /// Lend those again that have rested enough. Whether to come back for others.
    pub(crate) fn rest_over(&mut self, now: Instant) -> bool {
        for _ in 0..self.resting.len() {
            let Some((space, since)) = self.resting.pop_front() else { break };
            let look = || link::sockets(space.address);
            match link::within(space.namespace(), self.home.as_fd(), look) {
                Ok(0) if self.ready.len() < MOST_READY => self.ready.push_back(space),
                Ok(1..) if now.duration_since(since) < LONGEST_REST => {
                    self.resting.push_back((space, since));
                }
                Ok(_) => self.free.push_back(space.address),
                Err(error) => {
                    tracing::warn!(%error, "a network namespace cannot be looked into");
                    self.free.push_back(space.address);
                }
            }
        }
        !self.resting.is_empty()
    }

    /// A change of the rules that a renewal under way must not undo.
    fn change(&mut self, what: Change, elements: Vec<Element>) -> io::Result<()> {
        elements::change(&mut self.rules, &self.table, what, &elements)?;
        if let Some(changed) = &mut self.changed
            && !elements.is_empty()
        {
            changed.push((what, elements));
        }
        Ok(())
    }

    /// Other settings than those it was opened with; whether the rules must be renewed for that.
    pub(crate) fn configure(&mut self, settings: Settings) -> bool {
        // Addresses are claimed and in use: a new range counts from the next keeper on.
        let settings = Settings { range: self.settings.range, ..settings };
        let differs = settings != self.settings;
        self.settings = settings;
        differs
    }

    /// Whether the rules must be written anew: they were flushed, or the machine has other resolvers.
    pub(crate) fn is_outdated(&mut self) -> bool {
        let resolvers = resolvers::of_this_machine();
        let differs = resolvers != self.resolvers;
        self.resolvers = resolvers;
        differs || !elements::is_there(&mut self.rules, &self.table).unwrap_or(true)
    }

    /// The rules as they are to be. What changes until [`Self::renewed`] is kept.
    pub(crate) fn renewal(&mut self) -> Renewal {
        self.changed = Some(Vec::new());
        let content = Content {
            table: &self.table,
            settings: &self.settings,
            blocks: self.blocks.iter().map(|block| block.net).collect(),
            leases: &self.lent,
            resolvers: &self.resolvers,
            guard: self.guard,
        };
        Renewal { text: content.text() }
    }

    /// A renewal has ended: what has changed since it was begun is done once more.
    pub(crate) fn renewed(&mut self) {
        for (what, elements) in self.changed.take().unwrap_or_default() {
            let changed = elements::change(&mut self.rules, &self.table, what, &elements);
            if let Err(error) = changed {
                // Removed twice: it was not there when the renewal was begun.
                tracing::debug!(%error, "a change of the rules is not repeated");
            }
        }
    }

    /// Remove the rules, and let the machine forward as before. Namespaces go with their holders.
    pub(crate) fn close(self) {
        if let Err(reason) = forwarding::remove(&self.table) {
            tracing::warn!(%reason, "network rules of sandboxes stay");
        }
    }
}

#[cfg(test)]
mod tests;
