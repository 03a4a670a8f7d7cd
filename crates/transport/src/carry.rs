//! Frames in batches, both ways.

use std::time::Duration;

use dirigent_core::frame::{FromDataPlane, FromWorker, ToDataPlane, ToWorker};
use dirigent_proto::{Batch, FrameError, Message as _, limit, unpack, v1};
use futures_util::{
    Stream, StreamExt as _,
    future::ready,
    stream::{once, unfold},
};
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming};

/// A direction of a stream.
pub(super) trait Words: Batch<Frame: Send> + Send + 'static {
    /// What is answered to a frame that is not known here; nothing on the second connections, where
    /// who asks waits for an answer and gives up.
    fn unsupported(kind: String) -> Option<Self::Frame>;
}

macro_rules! words {
    ($($batch:ident: $answer:expr,)*) => {$(
        impl Words for v1::$batch {
            fn unsupported(kind: String) -> Option<Self::Frame> {
                $answer(kind)
            }
        }
    )*};
}

words! {
    FromWorkers: |kind| Some(FromWorker::Unsupported { kind }),
    ToWorkers: |kind| Some(ToWorker::Unsupported { kind }),
    FromDataPlanes: |kind| Some(FromDataPlane::Unsupported { kind }),
    ToDataPlanes: |kind| Some(ToDataPlane::Unsupported { kind }),
    FromWorkerBulks: |_kind| None,
    ToWorkerBulks: |_kind| None,
    FromDataPlaneBulks: |_kind| None,
    ToDataPlaneBulks: |_kind| None,
}

/// Until the other side has heard everything and closes its end too.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Answers to frames that are not known here, until they are sent: more of them are not told.
const UNSUPPORTED: usize = 16;

pub(super) fn answers<Out>() -> (mpsc::Sender<Out>, mpsc::Receiver<Out>) {
    mpsc::channel(UNSUPPORTED)
}

struct Outgoing<B: Words> {
    frames: mpsc::Receiver<B::Frame>,
    answers: mpsc::Receiver<B::Frame>,
    /// It did not fit into the last batch.
    held: Option<B::Wire>,
}

impl<B: Words> Outgoing<B> {
    async fn next(mut self) -> Option<(B, Self)> {
        let first = match self.held.take() {
            Some(held) => held,
            None => tokio::select! {
                biased;
                Some(answer) = self.answers.recv() => answer.into(),
                frame = self.frames.recv() => frame?.into(),
            },
        };
        let mut bytes = first.encoded_len();
        let mut batch = vec![first];
        while let Ok(frame) = self.frames.try_recv() {
            let wire = B::Wire::from(frame);
            bytes += wire.encoded_len();
            if bytes > limit::BATCH {
                self.held = Some(wire);
                break;
            }
            batch.push(wire);
        }
        Some((B::of(batch), self))
    }
}

/// What this side says once it is known to whom, until it closes its end; nothing, if it never is.
/// Its first batch is empty: by that the other side knows that the conversation begins.
pub(super) fn outgoing<B: Words>(
    frames: oneshot::Receiver<mpsc::Receiver<B::Frame>>,
    answers: mpsc::Receiver<B::Frame>,
) -> impl Stream<Item = B> + Send + 'static
where
    B::Wire: Send,
{
    let begun = async move { frames.await.ok().map(|frames| (frames, answers)) };
    once(begun).filter_map(ready).flat_map(|(frames, answers)| {
        let greeting = once(ready(B::of(Vec::new())));
        greeting.chain(unfold(Outgoing { frames, answers, held: None }, Outgoing::next))
    })
}

/// What the other side says, until either closes its end. While this side is behind, the other one
/// has to wait. Once this side's end is closed, what is still on its way out is given time.
pub(super) async fn hear<In: Words, Out: Words>(
    first: Option<In>,
    mut batches: Streaming<In>,
    frames: mpsc::Sender<In::Frame>,
    answers: mpsc::Sender<Out::Frame>,
) -> Result<(), Status> {
    let mut first = first;
    loop {
        let batch = match first.take() {
            Some(first) => Some(first),
            None => tokio::select! {
            batch = batches.message() => batch?,
            () = frames.closed() => {
                let rest = async { while let Ok(Some(_)) = batches.message().await {} };
                if tokio::time::timeout(LAST_WORDS, rest).await.is_err() {
                    tracing::debug!("the other side does not close its end");
                }
                return Ok(());
            }
            },
        };
        let Some(batch) = batch else { return Ok(()) };
        for frame in unpack(batch) {
            match frame {
                Ok(frame) => {
                    // That this end was closed is noticed above.
                    drop(frames.send(frame).await);
                }
                Err(FrameError::Unknown { kind }) => {
                    let answer = Out::unsupported(kind);
                    if answer.is_some_and(|answer| answers.try_send(answer).is_err()) {
                        tracing::debug!("an unknown frame was not answered");
                    }
                }
                Err(malformed @ FrameError::Malformed(_)) => {
                    return Err(Status::invalid_argument(malformed.to_string()));
                }
            }
        }
    }
}
