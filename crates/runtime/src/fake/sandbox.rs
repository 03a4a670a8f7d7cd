//! The life of one fake sandbox.
//!
//! ```text
//! (create) -> Created -> (init) -> Listening -> ... -> Gone
//! ```

use std::{sync::Arc, time::Duration};

use dirigent_core::{Address, Cause, Fault, Protocol, StartFailure, worker::CreateSandbox};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{World, answer::Inside, lock};
use crate::Event;

/// What a sandbox is told, by the runtime or from inside.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    Stop { grace: Duration },
    Exit { code: i32 },
    Kill { signal: i32 },
}

/// What was drawn for a start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) create: Duration,
    pub(super) init: Duration,
    pub(super) fails: bool,
}

struct Sandbox {
    inside: Arc<Inside>,
    plan: Plan,
    orders: mpsc::Receiver<Order>,
}

pub(super) async fn live(
    world: Arc<World>,
    create: CreateSandbox,
    plan: Plan,
    sender: mpsc::Sender<Order>,
    orders: mpsc::Receiver<Order>,
) {
    let sandbox = create.order.sandbox;
    let inside =
        Arc::new(Inside { world: Arc::clone(&world), create, running: 0.into(), orders: sender });
    let (cause, fault) = Sandbox { inside, plan, orders }.run().await;
    lock(&world.state).forget(sandbox);
    let failure = StartFailure { cause, fault, log_tail: world.log.tail(sandbox) };
    world.report(Event::Gone { sandbox, failure }).await;
}

impl Sandbox {
    async fn run(mut self) -> (Cause, Fault) {
        let inside = Arc::clone(&self.inside);
        let order = &inside.create.order;
        let sandbox = order.sandbox;
        let env = |key: &str| order.spec.env.get(key).map(String::as_str);
        let millis = |key| env(key).and_then(|v| v.parse().ok()).map(Duration::from_millis);
        if let Some(end) = self.pass(self.plan.create).await {
            return end;
        }
        if self.plan.fails || env("FAKE_FAIL") == Some("create") {
            let message = "the fake runtime was told to fail".to_owned();
            return (Cause::CreateFailed { message }, Fault::Worker);
        }
        inside.world.report(Event::Created { sandbox }).await;
        inside.world.log.write(order.revision.function, sandbox, "started".to_owned());
        let created = Instant::now();
        let init = millis("FAKE_START_MS").unwrap_or(self.plan.init);
        if let Some(end) = self.pass(init.min(order.start_timeout)).await {
            return end;
        }
        match env("FAKE_FAIL") {
            Some("oom") => {
                let limit = order.spec.resources.memory;
                return (Cause::OutOfMemory { limit }, Fault::Function);
            }
            Some(how) if let Some(code) = how.strip_prefix("exit:") => {
                return (Cause::Exited { code: code.parse().unwrap_or(1) }, Fault::Function);
            }
            Some("never_listen") => return self.never_listens(created).await,
            _ if init >= order.start_timeout => return self.never_listens(created).await,
            _ => {}
        }
        let listener =
            match TcpListener::bind((inside.world.config.address, inside.create.port)).await {
                Ok(listener) => listener,
                Err(error) => return (bind_failed(inside.create.port, &error), Fault::Worker),
            };
        let address = match listener.local_addr() {
            Ok(address) => Address::Tcp(address),
            Err(error) => return (bind_failed(inside.create.port, &error), Fault::Worker),
        };
        if let Some(entry) = lock(&inside.world.state).sandboxes.get_mut(&sandbox) {
            entry.address = Some(address.clone());
        }
        let init = created.elapsed();
        inside.world.report(Event::Listening { sandbox, address, init }).await;
        self.serve(listener, millis("FAKE_EXIT_AFTER_MS")).await
    }

    /// Let time pass; what ended the sandbox meanwhile, if anything did.
    async fn pass(&mut self, time: Duration) -> Option<(Cause, Fault)> {
        tokio::select! {
            biased;
            order = self.orders.recv() => Some(ended_by(order)),
            () = sleep(time) => None,
        }
    }

    async fn never_listens(&mut self, created: Instant) -> (Cause, Fault) {
        let timeout = self.inside.create.order.start_timeout;
        if let Some(end) = self.pass(timeout.saturating_sub(created.elapsed())).await {
            return end;
        }
        let port = self.inside.create.port;
        let message = format!("did not listen on port {port} within {timeout:?}");
        (Cause::NeverListened { message }, Fault::Function)
    }

    async fn serve(
        mut self,
        listener: TcpListener,
        exit_after: Option<Duration>,
    ) -> (Cause, Fault) {
        let drain = CancellationToken::new();
        let mut connections = JoinSet::new();
        let exit_at = exit_after.map(|after| Instant::now() + after);
        let order = loop {
            tokio::select! {
                biased;
                order = self.orders.recv() => break order,
                () = sleep_until(exit_at.unwrap_or_else(Instant::now)), if exit_at.is_some() => {
                    break Some(Order::Exit { code: 0 });
                }
                Some(_closed) = connections.join_next() => {}
                accepted = listener.accept() => {
                    // Out of descriptors, or the client left: the next one may do better.
                    let Ok((stream, _)) = accepted else {
                        sleep(Duration::from_millis(10)).await;
                        continue;
                    };
                    let inside = Arc::clone(&self.inside);
                    connections.spawn(connection(inside, stream, drain.clone()));
                }
            }
        };
        if let Some(Order::Stop { grace }) = order {
            drop(listener);
            drain.cancel();
            self.end(connections, grace).await;
        }
        // The set was dropped: what is still open is cut, as by a killed process.
        ended_by(order)
    }

    /// From SIGTERM to the end: when the last call is answered, or at the latest when the grace is
    /// over, which a later order can bring forward.
    async fn end(&mut self, mut connections: JoinSet<()>, grace: Duration) {
        let env = &self.inside.create.order.spec.env;
        let ignores = env.get("FAKE_IGNORE_TERM").is_some_and(|value| value == "1");
        let mut kill_at = after(grace);
        loop {
            if connections.is_empty() && !ignores {
                return;
            }
            tokio::select! {
                biased;
                () = sleep_until(kill_at) => return,
                order = self.orders.recv() => match order {
                    Some(Order::Stop { grace }) => kill_at = kill_at.min(after(grace)),
                    Some(Order::Exit { .. } | Order::Kill { .. }) | None => return,
                },
                Some(_closed) = connections.join_next() => {}
            }
        }
    }
}

/// A grace may be longer than an instant can tell.
fn after(grace: Duration) -> Instant {
    Instant::now() + grace.min(Duration::from_secs(86_400))
}

async fn connection(inside: Arc<Inside>, stream: TcpStream, drain: CancellationToken) {
    let protocol = inside.create.order.spec.sandbox.protocol;
    if let Err(error) = stream.set_nodelay(true) {
        tracing::trace!(%error, "nodelay");
    }
    let io = TokioIo::new(stream);
    let service = service_fn(move |request| Arc::clone(&inside).answer(request));
    let result = match protocol {
        Protocol::Http1 => {
            let builder = hyper::server::conn::http1::Builder::new();
            let mut connection = std::pin::pin!(builder.serve_connection(io, service));
            tokio::select! {
                result = connection.as_mut() => result,
                () = drain.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
        Protocol::H2c => {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let mut connection = std::pin::pin!(builder.serve_connection(io, service));
            tokio::select! {
                result = connection.as_mut() => result,
                () = drain.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Err(error) = result {
        tracing::trace!(%error, "a connection to a fake sandbox broke");
    }
}

fn ended_by(order: Option<Order>) -> (Cause, Fault) {
    let cause = match order {
        Some(Order::Exit { code }) => Cause::Exited { code },
        Some(Order::Kill { signal }) => Cause::Signalled { signal },
        Some(Order::Stop { .. }) | None => Cause::Stopped,
    };
    (cause, Fault::Function)
}

fn bind_failed(port: u16, error: &std::io::Error) -> Cause {
    Cause::CreateFailed { message: format!("port {port}: {error}") }
}
