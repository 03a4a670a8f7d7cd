//! Nothing is lost while everything changes: an open-loop load of short, long and streaming calls
//! and WebSockets, while the function is redeployed again and again (once to a revision that never
//! becomes ready) and scales up and down.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use dirigent_core::{
    Bytes as Size, Cause, MilliCpu,
    manifest::{Invocation, Manifest, ManifestResources, Sandbox, Scaling},
};
use http::Method;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde::Serialize;
use tokio::{task::JoinSet, time::Instant};

use crate::{
    Checked, Cluster,
    load::{Call, Failure, Load, Progress, Sample},
    replay,
    websocket::{Message, WebSocket},
};

/// How much.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Options {
    /// Calls in all.
    pub calls: usize,
    /// Calls per second on average; it swings between half and one and a half of this.
    pub per_second: f64,
    /// Redeploys, one of them (in the middle) to a revision that never becomes ready.
    pub redeploys: usize,
    /// WebSockets held open and used once a second.
    pub websockets: usize,
    /// How long a streamed response takes.
    pub streaming: Duration,
    /// How long a long call takes.
    pub long: Duration,
    /// Of the mix of calls.
    pub seed: u64,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Zero {
    /// How much.
    pub options: Options,
    /// Calls made.
    pub calls: usize,
    /// Without an answer.
    pub lost: usize,
    /// Failed, by kind: any non-2xx, connect error, reset, truncated body.
    pub failed: Vec<(String, usize)>,
    /// Answered by an older revision although the call began after its deploy had returned.
    pub wrong_revision: usize,
    /// WebSockets that broke, other than by a close with 1001: why.
    pub websockets_broken: Vec<String>,
    /// Closes with 1001, by drains: each opened its WebSocket again.
    pub websockets_told_to_go: usize,
    /// Redeploys that did as they should.
    pub redeploys: usize,
    /// Sandboxes that answered at least one call.
    pub starts: usize,
    /// Of those, gone by redeploys or scaling when the run ended.
    pub drains: usize,
    /// Calls still running on an older revision when a redeploy returned: drains of a busy sandbox.
    pub drains_while_busy: usize,
}

impl Zero {
    /// Whether nothing was lost, failed or misrouted.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost == 0
            && self.failed.is_empty()
            && self.wrong_revision == 0
            && self.websockets_broken.is_empty()
    }
}

const NAME: &str = "zero";
const SOCKETS: &str = "zero-sockets";

/// A deploy that returned.
#[derive(Debug)]
struct Switch {
    /// When. What is called from now on must be answered by its revision.
    at: Duration,
    revision: String,
}

/// Runs it.
///
/// # Errors
/// If the function cannot be deployed at all, or a redeploy does not do as it should.
pub async fn run(cluster: &dyn Cluster, options: Options, progress: Arc<Progress>) -> Result<Zero> {
    let first = cluster.deploy_checked(manifest(NAME, "hello", 0)?).await?.live()?;
    cluster.deploy_checked(sockets_manifest(0)?).await?.live()?;
    let calls = plan(options);
    let lasts = calls.last().map(|call| call.at).unwrap_or_default();
    let begun = Instant::now();
    let load = Load::http1(cluster.functions());
    let sockets = sockets(cluster, options, lasts);
    let (samples, switches, broken) = tokio::try_join!(
        load.run_from(begun.into_std(), calls, progress),
        redeploy(cluster, options, begun, lasts),
        sockets
    )?;
    let zero = evaluate(options, &samples, &first, &switches, broken);
    cluster.remove(NAME).await?;
    cluster.remove(SOCKETS).await?;
    Ok(zero)
}

fn manifest(name: &str, example: &str, version: usize) -> Result<Manifest> {
    let command = ["dirigent", "example", example].map(str::to_owned).to_vec();
    Ok(Manifest {
        name: name.parse().context("a benchmark's name")?,
        sandbox: Sandbox { command, ..replay::sleeper() },
        resources: ManifestResources { cpu: MilliCpu(10), memory: Size::mib(16) },
        // Short, so that the swings of the load start and drain sandboxes.
        scaling: Scaling {
            max: 400,
            keep_alive: Duration::from_secs(2).into(),
            ..Scaling::default()
        },
        invocation: Invocation { max_queue: 10_000, ..Invocation::default() },
        env: BTreeMap::from([("VERSION".to_owned(), version.to_string())]),
    })
}

/// Drains soon, so that the run sees it.
fn sockets_manifest(version: usize) -> Result<Manifest> {
    let mut manifest = manifest(SOCKETS, "ws", version)?;
    manifest.invocation.timeout = Duration::from_secs(1);
    manifest.invocation.drain_timeout = Duration::from_secs(1);
    Ok(manifest)
}

/// The calls: half on fresh connections, 5 % long, 1 % streaming, half GET and half POST.
fn plan(options: Options) -> Vec<Call> {
    let mut random = StdRng::seed_from_u64(options.seed);
    let host: Arc<str> = NAME.into();
    let mut at = Duration::ZERO;
    (0..options.calls)
        .map(|_| {
            // Ten seconds of each swing: half as many calls, then half as many again.
            let busy = at.as_secs() / 10 % 2 == 1;
            let rate = options.per_second * if busy { 1.5 } else { 0.5 };
            at += Duration::from_secs_f64(-(1.0 - random.random::<f64>()).ln() / rate);
            let path = match random.random_range(0..100) {
                0 => format!("/?stream_ms={}", options.streaming.as_millis()),
                1..=5 => format!("/?sleep_ms={}", options.long.as_millis()),
                _ => "/?sleep_ms=5".to_owned(),
            };
            let method = if random.random() { Method::GET } else { Method::POST };
            let fresh = random.random();
            Call { at, host: Arc::clone(&host), path, method, body: Bytes::new(), fresh }
        })
        .collect()
}

/// Redeploys at equal distances while the load lasts.
async fn redeploy(
    cluster: &dyn Cluster,
    options: Options,
    begun: Instant,
    lasts: Duration,
) -> Result<Vec<Switch>> {
    let mut switches = Vec::new();
    let gap = lasts / u32::try_from(options.redeploys + 1)?;
    for number in 1..=options.redeploys {
        let due = gap * u32::try_from(number)?;
        tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
        let mut manifest = manifest(NAME, "hello", number)?;
        if number == options.redeploys.div_ceil(2) {
            manifest.sandbox.command = ["sleep", "600"].map(str::to_owned).to_vec();
            manifest.invocation.start_timeout = Duration::from_secs(2);
            // Any other failure is the run's: the deploy was not what it is to be.
            match cluster.deploy_checked(manifest).await? {
                Checked::Failed(Cause::NeverListened { .. }) => continue,
                other => bail!("a revision that never listens ended otherwise: {other:?}"),
            }
        }
        let revision = cluster.deploy_checked(manifest).await?.live()?;
        switches.push(Switch { at: begun.elapsed(), revision });
        // Its WebSockets are told to go and come back.
        cluster.deploy_checked(sockets_manifest(number)?).await?.live()?;
    }
    Ok(switches)
}

/// Holds WebSockets open; why some broke, and how often one was told to go.
async fn sockets(
    cluster: &dyn Cluster,
    options: Options,
    lasts: Duration,
) -> Result<(Vec<String>, usize)> {
    let target = cluster.functions();
    let mut open = JoinSet::new();
    for _ in 0..options.websockets {
        open.spawn(socket(target, lasts));
    }
    let (mut broken, mut gone) = (Vec::new(), 0);
    while let Some(outcome) = open.join_next().await {
        match outcome.context("a WebSocket's task panicked")? {
            Ok(times) => gone += times,
            Err(error) => broken.push(format!("{error:#}")),
        }
    }
    Ok((broken, gone))
}

async fn socket(target: std::net::SocketAddr, lasts: Duration) -> Result<usize> {
    let begun = Instant::now();
    let mut gone = 0;
    let mut socket = WebSocket::open(target, SOCKETS).await?;
    while begun.elapsed() < lasts {
        match socket.echo(b"still there?", Duration::from_secs(10)).await? {
            Message::Text(text) if text == b"still there?" => {}
            // Told to go: a client opens another one.
            Message::Close(Some(1001)) => {
                gone += 1;
                socket = WebSocket::open(target, SOCKETS).await?;
            }
            other => bail!("unexpected: {other:?}"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(gone)
}

fn evaluate(
    options: Options,
    samples: &[Sample],
    first: &str,
    switches: &[Switch],
    (websockets_broken, websockets_told_to_go): (Vec<String>, usize),
) -> Zero {
    let live_at = |at: Duration| {
        let past = switches.iter().take_while(|switch| switch.at <= at);
        past.last().map_or(first, |switch| switch.revision.as_str())
    };
    let answered = || samples.iter().filter(|sample| sample.failure.is_none());
    // Revisions are numbered with leading zeros: their order is that of their texts.
    let older = |sample: &&Sample, than: &str| {
        sample.revision.as_deref().is_some_and(|revision| revision < than)
    };
    let wrong = answered().filter(|sample| older(sample, live_at(sample.intended))).count();
    let busy = |switch: &Switch| {
        let running = |s: &&Sample| s.intended < switch.at && s.done > switch.at;
        answered().filter(running).filter(|sample| older(sample, &switch.revision)).count()
    };
    let sandboxes: BTreeSet<&str> = answered().filter_map(|s| s.sandbox.as_deref()).collect();
    let newest = switches.last().map_or(first, |switch| switch.revision.as_str());
    let current: BTreeSet<&str> = answered()
        .filter(|sample| !older(sample, newest))
        .filter_map(|sample| sample.sandbox.as_deref())
        .collect();
    Zero {
        options,
        calls: samples.len(),
        lost: samples.iter().filter(|s| s.failure == Some(Failure::NoAnswer)).count(),
        failed: replay::failures(samples),
        wrong_revision: wrong,
        websockets_broken,
        websockets_told_to_go,
        redeploys: switches.len(),
        starts: sandboxes.len(),
        drains: sandboxes.len() - current.len(),
        drains_while_busy: switches.iter().map(busy).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Answer, Census};

    fn options() -> Options {
        Options {
            calls: 4000,
            per_second: 100.0,
            redeploys: 10,
            websockets: 0,
            streaming: Duration::from_secs(10),
            long: Duration::from_secs(2),
            seed: 1,
        }
    }

    #[test]
    fn the_mix_is_as_stated() {
        let calls = plan(options());
        let share = |matches: fn(&Call) -> bool| {
            calls.iter().filter(|call| matches(call)).count() as f64 / calls.len() as f64
        };
        assert!((0.45..0.55).contains(&share(|call| call.fresh)));
        assert!((0.03..0.07).contains(&share(|call| call.path.contains("sleep_ms=2000"))));
        assert!((0.004..0.02).contains(&share(|call| call.path.contains("stream_ms"))));
        let seconds = calls.last().unwrap().at.as_secs_f64();
        assert!((30.0..60.0).contains(&seconds), "4000 calls at 100/s took {seconds} s");
    }

    /// Its deploys of WebSockets take long, and those that never listen fail for this cause.
    struct Scripted {
        cause: Cause,
    }

    const SLOW: Duration = Duration::from_secs(3);

    impl Cluster for Scripted {
        fn functions(&self) -> std::net::SocketAddr {
            unreachable!("nobody calls here")
        }

        fn deploy(&self, _: Manifest) -> Answer<'_, ()> {
            unreachable!("every deploy is checked")
        }

        fn deploy_checked(&self, manifest: Manifest) -> Answer<'_, Checked> {
            Box::pin(async move {
                if manifest.sandbox.command.first().is_some_and(|word| word == "sleep") {
                    return Ok(Checked::Failed(self.cause.clone()));
                }
                if manifest.name.name() == SOCKETS {
                    tokio::time::sleep(SLOW).await;
                }
                Ok(Checked::Live(format!("{}-{}", manifest.name.name(), manifest.env["VERSION"])))
            })
        }

        fn remove(&self, _: &str) -> Answer<'_, ()> {
            unreachable!("what is deployed stays")
        }

        fn census(&self) -> Answer<'_, Census> {
            unreachable!("nobody watches")
        }

        fn addresses(&self, _: &str) -> Answer<'_, Vec<std::net::SocketAddr>> {
            unreachable!("nobody asks")
        }

        fn cpu_used(&self) -> Answer<'_, Duration> {
            unreachable!("nobody asks")
        }
    }

    async fn redeploy_with(cause: Cause) -> Result<Vec<Switch>> {
        let options = Options { redeploys: 3, ..options() };
        redeploy(&Scripted { cause }, options, Instant::now(), Duration::from_secs(40)).await
    }

    #[tokio::test(start_paused = true)]
    async fn from_the_moment_at_which_a_deploy_returns_only_its_revision_may_answer() {
        let never = Cause::NeverListened { message: "port 1".to_owned() };
        let switches = redeploy_with(never).await.unwrap();
        let seen: Vec<_> = switches.iter().map(|s| (s.at.as_secs(), s.revision.as_str())).collect();
        // The second of three never becomes ready.
        assert_eq!(seen, [(10, "zero-1"), (30, "zero-3")]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_revision_that_fails_otherwise_than_by_never_listening_is_an_error() {
        let error = redeploy_with(Cause::Exited { code: 1 }).await.unwrap_err();
        assert!(error.to_string().contains("Exited"), "{error}");
    }

    #[test]
    fn an_older_revision_counts_only_for_calls_that_began_after_the_deploy() {
        let sample = |intended: u64, done: u64, revision: &str| Sample {
            call: 0,
            intended: Duration::from_secs(intended),
            begun: Duration::from_secs(intended),
            done: Duration::from_secs(done),
            head: None,
            status: Some(200),
            failure: None,
            code: None,
            message: None,
            timing: None,
            revision: Some(revision.to_owned()),
            sandbox: Some(revision.to_owned()),
            bytes: 1,
        };
        let switches = [Switch { at: Duration::from_secs(5), revision: "zero-00002".to_owned() }];
        let samples = [
            sample(1, 2, "zero-00001"),
            sample(4, 9, "zero-00001"),
            sample(6, 7, "zero-00001"),
            sample(6, 7, "zero-00002"),
        ];
        let zero = evaluate(options(), &samples, "zero-00001", &switches, (Vec::new(), 0));
        assert_eq!((zero.wrong_revision, zero.drains_while_busy), (1, 1));
        assert_eq!((zero.starts, zero.drains), (2, 1));
        assert!(!zero.is_clean());
    }
}
