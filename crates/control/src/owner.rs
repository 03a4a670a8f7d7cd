//! The one task that owns the control machine. Everybody else sends it facts over one bounded
//! channel and it never waits for anybody: frames go into outboxes, writes to the store's thread,
//! file removals to tasks of their own.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dirigent_core::{
    ApiTokens, Epoch, FunctionId, FunctionName, Office, RequestId, StreamId, Time,
    control::{Answer, Call, Control, Effect, Event, Refusal},
    frame::{FromDataPlane, ToDataPlane, ToWorker},
    recording::Entry,
};
use dirigent_service::{Clock, OnCancel, Outbox, Tasks};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    copies::Artifacts,
    metrics::Metrics,
    recorder::Recorder,
    store::{Answers, Writer},
};

/// What the owner is told.
#[derive(Debug)]
pub(crate) enum Input {
    /// A user asks.
    Ask { id: RequestId, call: Call, reply: oneshot::Sender<Result<Answer, Refusal>> },
    /// A user left before the answer.
    Left(RequestId),
    /// A peer's stream is open.
    Attached { stream: StreamId, name: Arc<str>, speaker: Speaker },
    /// A data plane spoke, and was heard then.
    DataPlane { stream: StreamId, frame: FromDataPlane, heard: Instant },
    /// A worker spoke, or a peer's stream broke.
    Event(Event),
}

/// How a peer is told something.
#[derive(Debug)]
pub(crate) enum Speaker {
    Worker(Outbox<Topic, ToWorker>),
    DataPlane(Outbox<Topic, ToDataPlane>),
}

/// What a frame is about, where a newer one makes an older one pointless.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Topic {
    Resolved(FunctionName),
    Status(FunctionId),
    Tokens,
    Duty,
}

/// Facts that wait for the owner at most; peers wait when it is full.
const WAITING: usize = 4096;

/// Users who wait for an answer at most; more are told that it is busy.
const ASKING: u32 = 1000;

/// A term of office at work: where its owner hears. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Sitting {
    pub(crate) office: Office,
    inputs: mpsc::Sender<Input>,
}

impl Sitting {
    pub(crate) fn new(office: Office) -> (Self, mpsc::Receiver<Input>) {
        let (inputs, rx) = mpsc::channel(WAITING);
        (Self { office, inputs }, rx)
    }

    /// Tell the owner; waits while it is behind. Whether it is still there.
    pub(crate) async fn tell(&self, input: Input) -> bool {
        self.inputs.send(input).await.is_ok()
    }
}

/// How the rest of the role reaches the owner, while this control plane leads. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    sitting: watch::Receiver<Option<Sitting>>,
    asking: Arc<Semaphore>,
    next: Arc<AtomicU64>,
}

impl Handle {
    pub(crate) fn new(sitting: watch::Receiver<Option<Sitting>>) -> Self {
        let asking = Arc::new(Semaphore::new(ASKING as usize));
        Self { sitting, asking, next: Arc::new(AtomicU64::new(1)) }
    }

    /// The term, while this control plane leads.
    pub(crate) fn sitting(&self) -> Option<Sitting> {
        self.sitting.borrow().clone()
    }

    /// Ask the machine. Dropping the future tells it that the answer is no longer wanted.
    pub(crate) async fn ask(&self, call: Call) -> Result<Answer, Refusal> {
        let Ok(_permit) = self.asking.try_acquire() else {
            return Err(Refusal::Busy { limit: ASKING });
        };
        let Some(Sitting { inputs, .. }) = self.sitting() else { return Err(Refusal::NotLeader) };
        let id = RequestId(self.next.fetch_add(1, Ordering::Relaxed));
        let (reply, answer) = oneshot::channel();
        let mut left = Leaving { inputs: &inputs, id: Some(id) };
        if inputs.send(Input::Ask { id, call, reply }).await.is_err() {
            return Err(Refusal::NotLeader);
        }
        let result = answer.await;
        left.id = None;
        result.unwrap_or(Err(Refusal::NotLeader))
    }

    /// A stream's number, never used before.
    pub(crate) fn stream(&self) -> StreamId {
        StreamId(self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// Tells the machine that the one who asked is gone, unless the answer came.
struct Leaving<'a> {
    inputs: &'a mpsc::Sender<Input>,
    id: Option<RequestId>,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id
            && self.inputs.try_send(Input::Left(id)).is_err()
        {
            // The machine then answers somebody who is not there, which is harmless.
            tracing::debug!(%id, "the owner was too busy to hear that a user left");
        }
    }
}

/// Why the owner stopped by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnerError {
    #[error("another control plane has taken office")]
    Deposed,
    #[error("a peer has obeyed epoch {shown}: the next term is above it")]
    Resigned { shown: Epoch },
    #[error("the store's thread is gone")]
    StoreGone,
}

/// See the module.
pub(crate) struct Owner {
    pub(crate) machine: Control,
    pub(crate) recorder: Option<Recorder>,
    pub(crate) clock: Clock,
    pub(crate) inputs: mpsc::Receiver<Input>,
    pub(crate) writer: Writer,
    pub(crate) answers: mpsc::Receiver<Answers>,
    pub(crate) artifacts: Artifacts,
    pub(crate) metrics: Arc<Metrics>,
    /// The tokens of the API that count.
    pub(crate) tokens: watch::Sender<Option<Arc<ApiTokens>>>,
    pub(crate) tasks: Tasks,
    /// Cancelled when the store says that another leads.
    pub(crate) deposed: CancellationToken,
    pub(crate) asked: HashMap<RequestId, oneshot::Sender<Result<Answer, Refusal>>>,
    pub(crate) speakers: HashMap<StreamId, Speaker>,
}

/// Facts taken at once, so that writes and deadlines are looked at in between.
const AT_ONCE: usize = 64;

impl Owner {
    pub(crate) async fn run(mut self) -> Result<(), OwnerError> {
        let shutdown = self.tasks.shutdown().clone();
        let mut facts = Vec::with_capacity(AT_ONCE);
        self.obey()?;
        loop {
            let deadline = self.machine.deadline().map(|at| self.clock.instant(at.0));
            let due = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // In this order: an answer of the store releases those who wait for it, and a
                // deadline that has passed is older than the facts that wait.
                biased;
                () = shutdown.cancelled() => return Ok(()),
                () = self.deposed.cancelled() => return Err(OwnerError::Deposed),
                answers = self.answers.recv() => {
                    let answers = answers.ok_or(OwnerError::StoreGone)?;
                    for (token, outcome) in answers.map_err(|_deposed| OwnerError::Deposed)? {
                        self.learn(Event::Persisted { token, outcome })?;
                    }
                }
                () = due => {
                    let at = self.now();
                    self.record(|| Entry::Expired { at });
                    self.machine.expire(at);
                    self.obey()?;
                }
                count = self.inputs.recv_many(&mut facts, AT_ONCE) => {
                    if count == 0 {
                        // Nobody is left who could say anything.
                        return Ok(());
                    }
                    for fact in facts.drain(..) {
                        self.hear(fact)?;
                    }
                }
            }
        }
    }

    fn now(&self) -> Time {
        Time(self.clock.nanos())
    }

    fn hear(&mut self, input: Input) -> Result<(), OwnerError> {
        match input {
            Input::Ask { id, call, reply } => {
                self.asked.insert(id, reply);
                self.learn(Event::Asked { request: id, call, wall_ms: Clock::wall_ms() })
            }
            Input::Left(request) => {
                self.asked.remove(&request);
                self.learn(Event::AskerLeft { request })
            }
            Input::Attached { stream, name, speaker } => {
                let event = match &speaker {
                    Speaker::Worker(_) => Event::WorkerAttached { stream, name },
                    Speaker::DataPlane(_) => Event::DataPlaneAttached { stream, name },
                };
                self.speakers.insert(stream, speaker);
                self.learn(event)
            }
            Input::DataPlane { stream, frame, heard } => {
                let waited = heard.elapsed();
                self.learn(Event::DataPlaneSaid { stream, frame, waited })
            }
            Input::Event(event) => {
                if let Event::Detached { stream } = &event {
                    self.speakers.remove(stream);
                }
                self.learn(event)
            }
        }
    }

    fn learn(&mut self, event: Event) -> Result<(), OwnerError> {
        self.tell(event);
        self.obey()
    }

    fn tell(&mut self, event: Event) {
        let at = self.now();
        self.record(|| Entry::Told { at, event: Box::new(event.clone()) });
        self.machine.handle(at, event);
    }

    fn record(&mut self, entry: impl FnOnce() -> Entry) {
        if let Some(recorder) = &mut self.recorder {
            recorder.note(entry);
        }
    }

    fn obey(&mut self) -> Result<(), OwnerError> {
        while let Some(effect) = self.machine.poll_effect() {
            self.record(|| Entry::Did(Box::new(effect.clone())));
            self.carry_out(effect)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, effect: Effect) -> Result<(), OwnerError> {
        match effect {
            Effect::Persist { token, write } => {
                if let Err(outcome) = self.writer.write(token, write) {
                    self.tell(Event::Persisted { token, outcome });
                }
            }
            Effect::Reply { to, result } => {
                if let Some(reply) = self.asked.remove(&to)
                    && reply.send(result).is_err()
                {
                    tracing::debug!(request = %to, "answered somebody who left");
                }
            }
            Effect::ToWorker { stream, frame } => self.say_to_worker(stream, frame),
            Effect::ToDataPlane { stream, frame } => self.say_to_data_plane(stream, frame),
            Effect::Close { stream, reason } => {
                tracing::info!(%stream, reason, "stream closed");
                self.speakers.remove(&stream);
            }
            Effect::DiscardArtifacts { digests } => {
                let artifacts = self.artifacts.clone();
                self.tasks.run("discard artifacts", OnCancel::Wait, async move {
                    let done =
                        tokio::task::spawn_blocking(move || artifacts.discard(&digests)).await;
                    if let Err(error) = done {
                        tracing::warn!(%error, "artifacts were not discarded");
                    }
                });
            }
            Effect::Admit { tokens } => {
                self.tokens.send_replace(Some(tokens));
            }
            Effect::Resign { shown } => return Err(OwnerError::Resigned { shown }),
            Effect::Measure(measure) => self.metrics.measure(measure),
        }
        Ok(())
    }

    fn say_to_worker(&mut self, stream: StreamId, frame: ToWorker) {
        // Orders are never replaced: each is answered.
        let Some(Speaker::Worker(outbox)) = self.speakers.get(&stream) else { return };
        if let Err(why) = outbox.push(None, FRAME_BYTES, frame) {
            self.give_up(stream, why);
        }
    }

    fn say_to_data_plane(&mut self, stream: StreamId, frame: ToDataPlane) {
        let Some(Speaker::DataPlane(outbox)) = self.speakers.get(&stream) else { return };
        let topic = match &frame {
            ToDataPlane::Resolved { name, .. } => Some(Topic::Resolved(name.clone())),
            ToDataPlane::Status { function, .. } => Some(Topic::Status(*function)),
            ToDataPlane::Tokens { .. } => Some(Topic::Tokens),
            ToDataPlane::Duty { .. } => Some(Topic::Duty),
            ToDataPlane::Welcome { .. }
            | ToDataPlane::Grant(_)
            | ToDataPlane::Recall { .. }
            | ToDataPlane::RecallSandbox { .. }
            | ToDataPlane::Unsupported { .. }
            | ToDataPlane::Taken => None,
        };
        if let Err(why) = outbox.push(topic, FRAME_BYTES, frame) {
            self.give_up(stream, why);
        }
    }

    /// The peer is not told anything more; its stream's task notices and reports it as detached.
    fn give_up(&mut self, stream: StreamId, why: dirigent_service::OutboxClosed) {
        tracing::warn!(%stream, %why, "stream given up");
        self.speakers.remove(&stream);
    }
}

/// What a frame takes in memory, roughly: specs and settings in it are shared.
const FRAME_BYTES: usize = 512;

/// The longest time a user waits for an answer that should come at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
