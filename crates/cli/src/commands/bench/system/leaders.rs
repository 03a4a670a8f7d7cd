//! Several control planes of a system, and the leader's death.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context as _;
use dirigent_bench::{
    Answer,
    etcd::Etcd,
    recover::{Followed, Led},
};
use dirigent_core::{SandboxId, control};
use http::Method;
use serde_json::Value;

use super::{
    ATTACHED_WITHIN, CONTROLS, COUNT_EVERY, LOOK_EVERY, Launched, READY_WITHIN, Shape, Start,
    System, attached,
};
use crate::{
    client::Client,
    commands::path,
    fail::{Fail, Result},
    printer::Printer,
};

/// What control planes have in common, so that users and peers are let in at each.
const TOKENS: [&str; 2] = ["token", "peer-token"];

/// A control plane that was killed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Killed {
    part: &'static str,
    at: Instant,
}

impl Start {
    /// Of a control plane that is reached there.
    pub(super) fn control_plane(
        state: PathBuf,
        part: &str,
        etcd: Option<&Etcd>,
        peers: SocketAddr,
    ) -> Self {
        let at = peers.to_string();
        let mut args =
            ["control-plane", "--api", "127.0.0.1:0", "--peers", &at].map(str::to_owned).to_vec();
        if let Some(etcd) = etcd {
            args.extend(["--name".to_owned(), part.replace(' ', "-")]);
            args.extend(["--etcd".to_owned(), etcd.addresses().join(",")]);
        }
        Self { args, state }
    }

    /// What a control plane says that it is, once it says anything, and a client of it.
    async fn role(&self) -> Option<(String, Client)> {
        let client = Client::find(None, &self.state, None).ok()?;
        let status: Value = client.call(Method::GET, "/v1/status", None::<&()>).await.ok()?;
        Some((status["role"].as_str()?.to_owned(), client))
    }
}

impl Launched {
    /// Starts the control planes beside the first, which has its state in `state`, and waits until
    /// they stand by.
    pub(super) async fn add_controls(
        &mut self,
        state: &Path,
        etcd: Option<&Etcd>,
        peers: &[SocketAddr],
        printer: Printer,
    ) -> Result {
        for (part, at) in CONTROLS.iter().zip(peers).skip(1) {
            let own = state.with_extension(part.replace(' ', "-"));
            dirigent_service::state::private_dir(&own)?;
            for file in TOKENS {
                std::fs::copy(state.join(file), own.join(file))?;
            }
            let start = Start::control_plane(own, part, etcd, *at);
            let (child, _) = start.spawn(printer)?;
            self.processes.0.push((part, child));
            self.commands.insert(part, start);
        }
        if peers.len() > 1 { self.all_stand_by().await } else { Ok(()) }
    }

    /// The control planes, each with how it is started.
    fn controls(&self) -> impl Iterator<Item = (&'static str, &Start)> {
        CONTROLS.iter().filter_map(|part| Some((*part, self.commands.get(part)?)))
    }

    /// Waits until one control plane leads and the others stand by.
    async fn all_stand_by(&self) -> Result {
        let begun = Instant::now();
        loop {
            let (mut leading, mut ready, mut all) = (0, 0, 0);
            for (_, control) in self.controls() {
                let role = control.role().await.map(|(role, _)| role);
                leading += u32::from(role.as_deref() == Some("leader"));
                ready += u32::from(role.is_some());
                all += 1;
            }
            if leading == 1 && ready == all {
                return Ok(());
            }
            if begun.elapsed() > READY_WITHIN {
                let text =
                    format!("{ready} control planes of {all} are ready after {READY_WITHIN:?}");
                return Err(Fail::unavailable(text));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The control plane that leads, and a client of it.
    async fn leader(&self) -> Option<(&'static str, Client)> {
        for (part, control) in self.controls() {
            if let Some((role, client)) = control.role().await
                && role == "leader"
            {
                return Some((part, client));
            }
        }
        None
    }

    async fn kill_leader(&mut self, printer: Printer) -> anyhow::Result<()> {
        let (part, _) = self.leader().await.context("no control plane leads")?;
        let at = Instant::now();
        self.processes.kill(part).map_err(Fail::into_error)?;
        self.killed = Some(Killed { part, at });
        if self.controls().count() > 1 {
            return Ok(());
        }
        // Nobody stands by: as whoever looks after its process would.
        self.spawn_again(part, printer).map_err(Fail::into_error)
    }

    /// Waits for the next leader, whom this talks to from then on, and for so many workers.
    async fn followed(&mut self, workers: u32) -> anyhow::Result<Followed> {
        let Killed { at, .. } = self.killed.context("no leader was killed")?;
        let in_time = |what: &str| {
            let is_late = at.elapsed() > ATTACHED_WITHIN;
            anyhow::ensure!(!is_late, "{what} after {ATTACHED_WITHIN:?}");
            Ok(())
        };
        let led = loop {
            if self.leader().await.is_some() {
                break at.elapsed();
            }
            in_time("nobody has taken over")?;
            tokio::time::sleep(LOOK_EVERY).await;
        };
        // Whoever leads: on a busy machine the first one may lose its office again.
        loop {
            if let Some((_, client)) = self.leader().await
                && attached(&client).await.map_err(Fail::into_error)? >= u64::from(workers)
            {
                self.client = client;
                return Ok(Followed { led, back: at.elapsed() });
            }
            in_time("not all workers are attached again")?;
            tokio::time::sleep(COUNT_EVERY).await;
        }
    }

    async fn make_whole(&mut self, printer: Printer) -> Result {
        if let Some(Killed { part, .. }) = self.killed.take()
            && self.controls().count() > 1
        {
            self.spawn_again(part, printer)?;
        }
        self.all_stand_by().await
    }
}

impl Led for System {
    fn kill_leader(&mut self) -> Answer<'_, ()> {
        let printer = self.printer;
        Box::pin(async move { self.launched_mut().kill_leader(printer).await })
    }

    fn followed(&mut self) -> Answer<'_, Followed> {
        let workers = match self.shape {
            Shape::Apart { workers, .. } => workers,
            Shape::Up | Shape::OnEtcd(_) | Shape::Whole => 0,
        };
        Box::pin(async move { self.launched_mut().followed(workers).await })
    }

    fn make_whole(&mut self) -> Answer<'_, ()> {
        let printer = self.printer;
        Box::pin(
            async move { self.launched_mut().make_whole(printer).await.map_err(Fail::into_error) },
        )
    }

    fn sandboxes<'a>(&'a self, name: &'a str) -> Answer<'a, BTreeSet<SandboxId>> {
        Box::pin(async move {
            let name = name.parse().context("a benchmark's name")?;
            let control::Answer::Function(function) = self.ask(Method::GET, &path(&name)).await?
            else {
                anyhow::bail!("not a description of `{name}`");
            };
            let ready = function.sandboxes.into_iter().filter(|one| one.state == "ready");
            Ok(ready.map(|one| one.id).collect())
        })
    }
}
