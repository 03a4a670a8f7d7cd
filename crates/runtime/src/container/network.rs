//! The network of a sandbox: one of its own, which the machine's keeper lends from the pool that
//! `strict` processes have theirs from, or the machine's.
//!
//! What is lent outlives this process and is given back when the sandbox's task is deleted: nothing
//! is in it any more then. A keeper that died has lent nothing: with it went the rules that keep a
//! sandbox from others, so that those end that had a network of it.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
};

use dirigent_core::{
    Address, Cause, Fault, Isolation, RuntimeKind, SandboxId, SandboxSpec, StartFailure,
    worker::CreateSandbox,
};

use super::life::failure;
use crate::{
    Facts,
    network::resolvers,
    process::{Lent, Spaces},
};

/// Where one listens that is made before its port is known, unless it wishes for another: what most
/// images are made for.
const USUAL_PORT: u16 = 8080;

/// What networks sandboxes can have here.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    pub(super) spaces: Option<Spaces>,
    /// Sandboxes with less are refused.
    pub(super) least: Isolation,
    /// Where those are that have the machine's.
    pub(super) address: Ipv4Addr,
}

impl Offer {
    /// Why no sandbox has a network of its own here.
    fn lacks(&self) -> Option<String> {
        match &self.spaces {
            Some(spaces) => spaces.works().err(),
            None => Some("switched off by configuration".to_owned()),
        }
    }

    /// Why nothing is offered, if all that there is would be refused.
    pub(super) fn falls_short(&self) -> Option<String> {
        let why = self.lacks().filter(|_| self.least > Isolation::Plain)?;
        let (given, demanded) = (Isolation::Plain, self.least);
        Some(format!(
            "container: isolation `{given}` is less than the `{demanded}` that this worker demands: \
             lower `min_isolation`, or deploy what need not be an image; a network of its own: {why}"
        ))
    }

    pub(super) fn facts(&self) -> Facts {
        let (best, usual, missing) = match self.lacks() {
            None => (Isolation::Strict, Isolation::Strict, Vec::new()),
            Some(why) => {
                let missing = format!(
                    "container: network: it is the host's, and no rules keep a sandbox from other \
                     ports: {why}"
                );
                (Isolation::Plain, Isolation::Basic, vec![missing])
            }
        };
        let (best, usual) = (Some(best), Some(usual));
        Facts { kind: RuntimeKind::Container, best, usual, missing }
    }

    /// Whether a sandbox gets a network of its own: if it can, unless less is demanded.
    fn gives_own(&self, spec: &SandboxSpec) -> Result<bool, StartFailure> {
        let refused = |message: String, fault| failure(Cause::CreateFailed { message }, fault);
        // A policy is kept to in a network of its own only.
        let wanted = spec.network.as_ref().map(|_| Isolation::Strict).or(spec.isolation);
        if wanted != Some(Isolation::Plain) {
            match (self.lacks(), wanted) {
                (None, _) => return Ok(true),
                (Some(_), None) => {}
                (Some(why), Some(level)) => {
                    let message =
                        format!("isolation `{level}` does not work here for containers: {why}");
                    return Err(refused(message, Fault::Worker));
                }
            }
        }
        if self.least > Isolation::Plain {
            let message = format!(
                "a container that has the host's network is less than the `{}` that this worker \
                 demands",
                self.least
            );
            let fault = if wanted.is_some() { Fault::Function } else { Fault::Worker };
            return Err(refused(message, fault));
        }
        Ok(false)
    }

    /// Whether who has this name has a network that it was given.
    pub(super) fn is_lent(&self, name: SandboxId) -> bool {
        self.spaces.as_ref().is_some_and(|spaces| spaces.is_lent(name))
    }

    /// Nothing of it is left.
    pub(super) fn take_back(&self, name: SandboxId) {
        if let Some(spaces) = self.spaces.as_ref().filter(|spaces| spaces.is_lent(name)) {
            spaces.give_back(name);
        }
    }

    /// Those of an earlier life are known: what others have was lent in vain.
    pub(super) fn keep(&self, names: &[SandboxId]) {
        let Some(spaces) = &self.spaces else { return };
        for lent in spaces.lent().into_iter().filter(|lent| !names.contains(&lent.sandbox)) {
            spaces.give_back(lent.sandbox);
        }
    }

    /// The network that a sandbox is to be started in.
    pub(super) async fn give(&self, create: &CreateSandbox) -> Result<Network, StartFailure> {
        let spec = &create.order.spec.sandbox;
        if !self.gives_own(spec)? {
            return Ok(Network::of_machine(self.address, create.port));
        }
        // Where every port is its own it may have the one that it wishes for.
        let ports = (create.port, spec.port.unwrap_or(create.port));
        self.lend(create, create.order.sandbox, ports).await
    }

    /// Whether sandboxes of an order may be made before there is one: if the port at which they are
    /// reached need not be known.
    pub(super) fn can_be_ahead(&self, create: &CreateSandbox) -> bool {
        matches!(self.gives_own(&create.order.spec.sandbox), Ok(true))
    }

    /// A network for one that has no port yet.
    pub(super) async fn give_ahead(
        &self,
        create: &CreateSandbox,
        name: SandboxId,
    ) -> Result<Network, StartFailure> {
        let inside = create.order.spec.sandbox.port.unwrap_or(USUAL_PORT);
        self.lend(create, name, (0, inside)).await
    }

    /// From now on it is reached at this port.
    pub(super) async fn expose(&self, network: &mut Network, port: u16) -> io::Result<()> {
        let (Some(lent), Some(spaces)) = (&network.lent, &self.spaces) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let lent = spaces.expose(lent.sandbox, port).await?;
        network.reached_at = lent.reached_at.clone();
        network.lent = Some(lent);
        Ok(())
    }

    async fn lend(
        &self,
        create: &CreateSandbox,
        name: SandboxId,
        (port, inside): (u16, u16),
    ) -> Result<Network, StartFailure> {
        let missing = |error: io::Error| {
            let message = format!("a network of its own: {error}");
            failure(Cause::CreateFailed { message }, Fault::Worker)
        };
        let spaces = self.spaces.as_ref().ok_or_else(|| missing(io::ErrorKind::NotFound.into()))?;
        let outbound = create.order.spec.sandbox.network.clone().unwrap_or_default();
        let lent = spaces.lend(name, &outbound, (port, inside)).await.map_err(missing)?;
        Ok(Network {
            listens_at: SocketAddrV4::new(lent.address, inside),
            reached_at: lent.reached_at.clone(),
            lent: Some(lent),
        })
    }
}

/// Where a sandbox is.
#[derive(Clone, Debug)]
pub(super) struct Network {
    /// Its own, unless it has the machine's.
    pub(super) lent: Option<Lent>,
    /// Where it is ready when somebody listens.
    pub(super) listens_at: SocketAddrV4,
    /// Where data planes connect to.
    pub(super) reached_at: Address,
}

impl Network {
    pub(super) fn of_machine(address: Ipv4Addr, port: u16) -> Self {
        let listens_at = SocketAddrV4::new(address, port);
        Self { lent: None, listens_at, reached_at: Address::Tcp(listens_at.into()) }
    }

    /// What it is told to listen at.
    pub(super) fn told(&self) -> SocketAddrV4 {
        match self.lent {
            // In a network of its own every address is its own.
            Some(_) => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, self.listens_at.port()),
            None => self.listens_at,
        }
    }

    /// The files that say how names are resolved, by what they are called in a sandbox. `directory`
    /// is the sandbox's.
    pub(super) fn names(
        &self,
        directory: &Path,
        hostname: &str,
    ) -> io::Result<Vec<(&'static str, PathBuf)>> {
        let mut files = Vec::new();
        for name in ["/etc/resolv.conf", "/etc/hosts"] {
            let of_machine = PathBuf::from(name);
            let own = match (&self.lent, name) {
                (Some(_), "/etc/resolv.conf") => resolvers::instead(),
                (Some(lent), "/etc/hosts") => {
                    let text = fs::read_to_string(&of_machine).unwrap_or_default();
                    Some(format!("{}\n{}\t{hostname}\n", text.trim_end(), lent.address))
                }
                _ => None,
            };
            match own {
                Some(text) => {
                    let path = directory.join(name.trim_start_matches("/etc/"));
                    fs::write(&path, text)?;
                    files.push((name, path));
                }
                None if of_machine.is_file() => files.push((name, of_machine)),
                None => {}
            }
        }
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use dirigent_core::Outbound;

    use super::*;

    fn gives(least: Isolation, change: impl FnOnce(&mut SandboxSpec)) -> Result<bool, Fault> {
        let offer = Offer { spaces: None, least, address: Ipv4Addr::LOCALHOST };
        let mut spec = SandboxSpec {
            image: Some("docker-archive:x.tar".to_owned()),
            ..SandboxSpec::new(RuntimeKind::Container, Vec::new())
        };
        change(&mut spec);
        offer.gives_own(&spec).map_err(|failure| failure.fault)
    }

    #[test]
    fn without_networks_to_lend_demands_are_refused_and_nothing_else() {
        let plain = Isolation::Plain;
        assert_eq!(gives(plain, |_| {}), Ok(false));
        assert_eq!(gives(plain, |spec| spec.isolation = Some(Isolation::Plain)), Ok(false));
        let basic = gives(plain, |spec| spec.isolation = Some(Isolation::Basic));
        assert_eq!(basic, Err(Fault::Worker));
        let none = gives(plain, |spec| spec.network = Some(Outbound::None));
        assert_eq!(none, Err(Fault::Worker));
    }

    #[test]
    fn a_worker_that_demands_more_than_the_hosts_network_gives_nothing_less() {
        assert_eq!(gives(Isolation::Basic, |_| {}), Err(Fault::Worker));
        let demanded = gives(Isolation::Basic, |spec| spec.isolation = Some(Isolation::Plain));
        assert_eq!(demanded, Err(Fault::Function));
    }
}
