//! A worker and a data plane as the control plane sees them.

use std::time::Duration;

use dirigent_control::Running;
use dirigent_core::{
    Address, Bytes, Cause, Epoch, Fault, Isolation, MilliCpu, RuntimeKind, StartFailure,
    StartPhases,
    frame::{
        Capacity, DataPlaneHello, FromDataPlane, FromWorker, Hello, Incarnation, Load, PROTOCOL,
        StartSandbox, ToDataPlane, ToWorker, WorkerHello,
    },
};
use dirigent_service::{End, OnCancel, Tasks};

/// How long anything in these tests may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

fn hello() -> Hello {
    Hello {
        cluster: None,
        protocol: (PROTOCOL, PROTOCOL),
        features: Vec::new(),
        incarnation: Incarnation { boot: "boot".into(), start: 1, life: 1 },
        highest_epoch: Epoch(0),
    }
}

pub(crate) fn worker_hello() -> FromWorker {
    FromWorker::Hello(Box::new(hello_after(Epoch(0))))
}

/// Of a worker that has obeyed this epoch.
pub(crate) fn hello_after(highest_epoch: Epoch) -> WorkerHello {
    let capacity = Capacity {
        memory: Bytes::mib(1024),
        cpu: MilliCpu(2000),
        cpu_overcommit: 10,
        sandboxes: 100,
        starts: 8,
        runtimes: vec![(RuntimeKind::Process, Isolation::Basic)],
        missing: Vec::new(),
    };
    let artifacts = Vec::new();
    WorkerHello {
        hello: Hello { highest_epoch, ..hello() },
        capacity,
        sandboxes: Vec::new(),
        artifacts,
    }
}

/// A worker whose sandboxes are ready at once; those with `FAIL` in their environment never are.
pub(crate) async fn worker(running: &Running, tasks: &Tasks) {
    let mut end = running.workers.dial().await.unwrap();
    end.tx.send(worker_hello()).await.unwrap();
    tasks.run("played worker", OnCancel::Abort, async move {
        let mut beat = tokio::time::interval(Duration::from_millis(300));
        loop {
            let answer = tokio::select! {
                _tick = beat.tick() => Some(FromWorker::Beat(Load::default())),
                frame = end.rx.recv() => match frame {
                    Some(frame) => answer(frame),
                    None => return,
                },
            };
            if let Some(answer) = answer
                && end.tx.send(answer).await.is_err()
            {
                return;
            }
        }
    });
}

fn answer(frame: ToWorker) -> Option<FromWorker> {
    match frame {
        ToWorker::StartSandbox(start) => Some(started(&start)),
        ToWorker::StopSandbox { sandbox, .. } => {
            let failure = StartFailure {
                cause: Cause::Stopped,
                fault: Fault::Function,
                log_tail: Vec::new(),
            };
            Some(FromWorker::SandboxGone { sandbox, failure })
        }
        ToWorker::Settle { sandbox, data_plane } => {
            Some(FromWorker::Settled { sandbox, data_plane })
        }
        ToWorker::Welcome { .. }
        | ToWorker::ReleaseAddress { .. }
        | ToWorker::DiscardArtifacts { .. }
        | ToWorker::Taken
        | ToWorker::Unsupported { .. } => None,
    }
}

fn started(start: &StartSandbox) -> FromWorker {
    let sandbox = start.sandbox;
    if start.spec.env.contains_key("FAIL") {
        let failure = StartFailure {
            cause: Cause::Exited { code: 3 },
            fault: Fault::Function,
            log_tail: vec!["no such module".to_owned()],
        };
        return FromWorker::SandboxGone { sandbox, failure };
    }
    let address = Address::Tcp(([127, 0, 0, 1], 20_000).into());
    FromWorker::SandboxReady { sandbox, address, phases: StartPhases::default() }
}

/// A data plane that says what the test says.
pub(crate) struct DataPlane {
    pub(crate) end: End<FromDataPlane, ToDataPlane>,
}

impl DataPlane {
    pub(crate) async fn attach(running: &Running) -> Self {
        let end = running.data_planes.dial().await.unwrap();
        let hello = DataPlaneHello {
            hello: hello(),
            holdings: Vec::new(),
            names: Vec::new(),
            demands: Vec::new(),
        };
        end.tx.send(FromDataPlane::Hello(Box::new(hello))).await.unwrap();
        let mut this = Self { end };
        this.until(|frame| matches!(frame, ToDataPlane::Welcome { .. }).then_some(())).await;
        this
    }

    pub(crate) async fn say(&self, frame: FromDataPlane) {
        self.end.tx.send(frame).await.unwrap();
    }

    /// What `wanted` makes of the first frame that it wants.
    pub(crate) async fn until<T>(&mut self, wanted: impl Fn(&ToDataPlane) -> Option<T>) -> T {
        let search = async {
            loop {
                let frame = self.end.rx.recv().await.expect("the stream is open");
                if let Some(found) = wanted(&frame) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, search).await.expect("the frame comes")
    }
}
