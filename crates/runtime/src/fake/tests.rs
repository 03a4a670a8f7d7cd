//! What only the fake does; what every runtime does is in `tests/conformance.rs`.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use dirigent_core::{
    Bytes, Cause, Epoch, Fault, FunctionId, FunctionName, Resources, RevisionId, SandboxSpec, Spec,
    StartFailure,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;

fn create(n: u64, concurrency: u32, env: &[(&str, &str)]) -> CreateSandbox {
    let spec = Spec {
        sandbox: SandboxSpec::new(RuntimeKind::Fake, vec!["fake".into()]),
        resources: Resources::default(),
        env: env
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect::<BTreeMap<_, _>>(),
        concurrency,
        artifact: None,
    };
    CreateSandbox {
        order: StartSandbox {
            sandbox: SandboxId::new(Epoch(1), n),
            revision: RevisionId { function: FunctionId::new(Epoch(1), 1), number: 1 },
            name: FunctionName::new("default", "f").unwrap(),
            spec: Arc::new(spec),
            start_timeout: Duration::from_millis(200),
        },
        port: 0,
    }
}

struct Fixture {
    runtime: Arc<FakeRuntime>,
    events: mpsc::Receiver<Event>,
}

impl Fixture {
    fn new(config: FakeConfig) -> Self {
        let (tx, events) = mpsc::channel(64);
        Self { runtime: FakeRuntime::start(config, tx), events }
    }

    async fn next(&mut self) -> Event {
        tokio::time::timeout(Duration::from_secs(10), self.events.recv()).await.unwrap().unwrap()
    }

    async fn ready(&mut self, create: CreateSandbox) -> SocketAddr {
        self.runtime.create(create);
        assert!(matches!(self.next().await, Event::Created { .. }));
        match self.next().await {
            Event::Listening { address: Address::Tcp(address), .. } => address,
            other => panic!("{other:?}"),
        }
    }

    async fn failure(&mut self, env: &[(&str, &str)]) -> StartFailure {
        let n = self.runtime.witness().created + 1;
        self.runtime.create(create(n, 1, env));
        loop {
            if let Event::Gone { failure, .. } = self.next().await {
                return failure;
            }
        }
    }
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: f\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn more_invocations_than_allowed_are_witnessed() {
    let mut fixture = Fixture::new(FakeConfig::default());
    let address = fixture.ready(create(1, 1, &[])).await;
    get(address, "/").await;
    assert_eq!(fixture.runtime.witness().violations, 0);
    let two = tokio::join!(get(address, "/?sleep_ms=50"), get(address, "/?sleep_ms=50"));
    assert!(two.0.starts_with("HTTP/1.1 200") && two.1.starts_with("HTTP/1.1 200"));
    let witness = fixture.runtime.witness();
    assert_eq!((witness.invocations, witness.answered, witness.violations), (3, 3, 1));
}

#[tokio::test]
async fn failures_come_as_asked() {
    let mut fixture = Fixture::new(FakeConfig::default());
    for (how, cause, fault) in [
        ("exit:3", Cause::Exited { code: 3 }, Fault::Function),
        ("oom", Cause::OutOfMemory { limit: Bytes::mib(128) }, Fault::Function),
    ] {
        let failure = fixture.failure(&[("FAKE_FAIL", how)]).await;
        assert_eq!((failure.cause, failure.fault), (cause, fault));
        assert_eq!(failure.log_tail, ["started"]);
    }
    let failure = fixture.failure(&[("FAKE_FAIL", "create")]).await;
    assert!(matches!(failure.cause, Cause::CreateFailed { .. }));
    assert_eq!(failure.fault, Fault::Worker);
    for env in [("FAKE_FAIL", "never_listen"), ("FAKE_START_MS", "1000")] {
        let failure = fixture.failure(&[env]).await;
        assert!(matches!(failure.cause, Cause::NeverListened { .. }), "{failure:?}");
    }
    let failure = fixture.failure(&[("FAKE_EXIT_AFTER_MS", "5")]).await;
    assert_eq!(failure.cause, Cause::Exited { code: 0 });
    assert_eq!(fixture.runtime.sandboxes(), []);
}

#[tokio::test]
async fn every_nth_creation_fails_when_told_to() {
    let mut fixture = Fixture::new(FakeConfig { fail_every: 2, ..FakeConfig::default() });
    fixture.ready(create(1, 1, &[])).await;
    fixture.runtime.create(create(2, 1, &[]));
    assert!(matches!(fixture.next().await, Event::Gone { .. }));
    fixture.ready(create(3, 1, &[])).await;
}

#[test]
fn the_same_seed_draws_the_same_times() {
    let draw = |distribution: Distribution| {
        let mut random = Random(7);
        (0..1000).map(|_| distribution.draw(&mut random)).collect::<Vec<_>>()
    };
    let ms = Duration::from_millis;
    let uniform = draw(Distribution::Uniform(ms(10), ms(20)));
    assert!(uniform.iter().all(|t| (ms(10)..=ms(20)).contains(t)));
    let normal = Distribution::LogNormal { median: ms(100), sigma: 0.5 };
    assert_eq!(draw(normal), draw(normal));
    let shorter = draw(normal).into_iter().filter(|t| *t < ms(100)).count();
    assert!((400..600).contains(&shorter), "{shorter}");
}
