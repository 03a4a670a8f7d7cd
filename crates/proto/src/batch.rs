//! Frames travel in batches: one message of a stream holds those that were ready together.

use dirigent_core::frame;
use prost::Message;

use crate::{FrameError, v1};

/// A message of one of the streams.
pub trait Batch: Message + Default {
    /// A frame on the wire.
    type Wire: Message + From<Self::Frame>;
    /// The same frame in the core.
    type Frame: TryFrom<Self::Wire, Error = FrameError>;

    /// A batch of these.
    fn of(frames: Vec<Self::Wire>) -> Self;

    /// What is in it.
    fn into_frames(self) -> Vec<Self::Wire>;
}

macro_rules! batches {
    ($($batch:ident of $frame:ident,)*) => {$(
        impl Batch for v1::$batch {
            type Wire = v1::$frame;
            type Frame = frame::$frame;

            fn of(frames: Vec<Self::Wire>) -> Self {
                Self { frames }
            }

            fn into_frames(self) -> Vec<Self::Wire> {
                self.frames
            }
        }
    )*};
}

batches! {
    FromWorkers of FromWorker,
    ToWorkers of ToWorker,
    FromWorkerBulks of FromWorkerBulk,
    ToWorkerBulks of ToWorkerBulk,
    FromDataPlanes of FromDataPlane,
    ToDataPlanes of ToDataPlane,
    FromDataPlaneBulks of FromDataPlaneBulk,
    ToDataPlaneBulks of ToDataPlaneBulk,
}

/// These frames as one batch. Those who send stop before [`limit::BATCH`](crate::limit::BATCH).
pub fn pack<B: Batch>(frames: impl IntoIterator<Item = B::Frame>) -> B {
    B::of(frames.into_iter().map(B::Wire::from).collect())
}

/// The frames of a batch, in order. One that is not understood does not spoil those around it.
pub fn unpack<B: Batch>(batch: B) -> impl Iterator<Item = Result<B::Frame, FrameError>> {
    batch.into_frames().into_iter().map(B::Frame::try_from)
}
