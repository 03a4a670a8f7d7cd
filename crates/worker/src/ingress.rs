//! Sandboxes behind a relay: data planes are told where it is, and only it knows where they listen.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

use dirigent_core::{Address, SandboxId};

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ingress {
    at: SocketAddr,
    worker: Arc<str>,
    behind: Arc<RwLock<HashMap<SandboxId, Address>>>,
}

impl Ingress {
    /// Of the worker with this name in its certificate, at this address.
    #[must_use]
    pub fn new(at: SocketAddr, worker: &str) -> Self {
        Self { at, worker: worker.into(), behind: Arc::default() }
    }

    /// Where a sandbox listens, until it is gone.
    #[must_use]
    pub fn behind(&self, sandbox: SandboxId) -> Option<Address> {
        self.behind.read().unwrap_or_else(PoisonError::into_inner).get(&sandbox).cloned()
    }

    /// The address that data planes are told instead of a sandbox's own.
    pub(crate) fn put(&self, sandbox: SandboxId, address: Address) -> Address {
        let mut behind = self.behind.write().unwrap_or_else(PoisonError::into_inner);
        behind.insert(sandbox, address);
        Address::Ingress { at: self.at, worker: self.worker.to_string(), sandbox }
    }

    pub(crate) fn gone(&self, sandbox: SandboxId) {
        self.behind.write().unwrap_or_else(PoisonError::into_inner).remove(&sandbox);
    }
}

#[cfg(test)]
mod tests {
    use dirigent_core::Epoch;

    use super::*;

    #[test]
    fn data_planes_are_told_the_relay_and_the_relay_the_sandbox() {
        let ingress = Ingress::new("10.0.0.7:9094".parse().unwrap(), "w7");
        let (sandbox, own) = (SandboxId::new(Epoch(1), 2), Address::Unix("s".to_owned()));
        assert_eq!(ingress.behind(sandbox), None);
        let told = ingress.put(sandbox, own.clone());
        let Address::Ingress { at, worker, sandbox: named } = told else { panic!("{told}") };
        assert_eq!((at, &*worker, named), ("10.0.0.7:9094".parse().unwrap(), "w7", sandbox));
        assert_eq!(ingress.behind(sandbox), Some(own));
        ingress.gone(sandbox);
        assert_eq!(ingress.behind(sandbox), None);
    }
}
