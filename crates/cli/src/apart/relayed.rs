//! Calls to sandboxes on other machines, encrypted: `worker --encrypt`, and data planes that meet it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::AtomicBool},
};

use dirigent_control::membership;
use dirigent_core::{Role, SandboxId};
use dirigent_service::{Tasks, listen, tls::Files};
use dirigent_transport::Reach;
use dirigent_worker::Ingress;
use tokio::net::TcpListener;

use super::Host;
use crate::{
    config::Config,
    fail::{Fail, Kind, OrFail as _, Result},
};

/// What a worker takes encrypted calls with.
pub(super) struct Relay {
    pub(super) at: SocketAddr,
    pub(super) ingress: Ingress,
    listener: TcpListener,
    files: Files,
}

impl Relay {
    /// The relay of the worker of this name, if it is to encrypt.
    pub(super) async fn of(host: &Host, name: &str) -> Result<Option<Self>> {
        let Host { config, dir, .. } = host;
        if !config.encrypt {
            return Ok(None);
        }
        if !config.admit.is_empty() {
            return Err(Fail::config(
                "--admit: with --encrypt no other host connects to sandboxes",
            )
            .hint("leave --admit out: data planes are known by their certificates"));
        }
        let files = membership::files(dir, Role::Worker)
            .or_fail(Kind::Config, || "the certificate cannot be used")?;
        let files = files.ok_or_else(|| {
            Fail::config("--encrypt: this machine has no certificate").hint(
                "let it join: `dirigent cluster token --role worker` there, `dirigent join` here",
            )
        })?;
        if !files.certificate().serves {
            return Err(Fail::config(
                "--encrypt: this worker's certificate is of a time when workers took no connections",
            )
            .hint("`dirigent join` again, or wait until it is renewed"));
        }
        let at = SocketAddr::from((config.address, config.relay_port));
        let listener = listen::bind(at, "--relay-port")
            .await
            .or_fail(Kind::Unavailable, || "data planes cannot connect")?;
        let at = listener.local_addr()?;
        Ok(Some(Self { at, ingress: Ingress::new(at, name), listener, files }))
    }

    /// Takes calls until `tasks` end; of whom, control planes have the last word.
    pub(super) fn start(self, reach: Reach, tasks: &Tasks) {
        let behind = Arc::new(move |sandbox| self.ingress.behind(sandbox));
        dirigent_transport::relay(self.listener, self.files, behind, reach, tasks);
    }
}

/// The same, as sandboxes see it behind a relay: only this machine connects to them.
pub(super) fn inside(config: &Config) -> Config {
    Config { address: Ipv4Addr::LOCALHOST, admit: Vec::new(), ..config.clone() }
}

#[derive(Debug)]
struct Tunnels(dirigent_transport::Tunnels);

impl dirigent_proxy::Tunnels for Tunnels {
    fn open<'a>(
        &'a self,
        at: SocketAddr,
        worker: &'a str,
        sandbox: SandboxId,
        broken: Arc<AtomicBool>,
    ) -> dirigent_proxy::Opening<'a> {
        Box::pin(self.0.open(at, worker, sandbox, broken))
    }
}

/// How a data plane meets workers that encrypt, if it has a certificate.
pub(super) fn tunnels(host: &Host) -> Result<Option<Arc<dyn dirigent_proxy::Tunnels>>> {
    let files = membership::files(&host.dir, Role::DataPlane)
        .or_fail(Kind::Config, || "the certificate cannot be used")?;
    let tunnels = |files| Tunnels(dirigent_transport::Tunnels::new(files, &host.tasks));
    Ok(files.map(|files| Arc::new(tunnels(files)) as Arc<dyn dirigent_proxy::Tunnels>))
}
