//! The stream to the control plane: dialled, fed from an outbox, and dialled again when it breaks.

use dirigent_core::frame::{FromWorker, ToWorker};
use dirigent_service::{Dialer, End, Limits, outbox};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{backoff::Backoff, driver::Input};

/// Keep a stream to the control plane until `leave`, telling the machine of each.
pub(crate) async fn keep(
    dialer: Dialer<FromWorker, ToWorker>,
    inputs: mpsc::Sender<Input>,
    leave: CancellationToken,
) {
    let mut backoff = Backoff::new();
    loop {
        let dialled = tokio::select! {
            biased;
            () = leave.cancelled() => return,
            dialled = dialer.dial() => dialled,
        };
        match dialled {
            Ok(end) => {
                let since = Instant::now();
                if stream(end, &inputs, &leave).await.is_none() {
                    return;
                }
                backoff.over(since);
            }
            Err(error) => tracing::debug!(%error, "the control plane cannot be reached"),
        }
        tokio::select! {
            biased;
            () = leave.cancelled() => return,
            () = tokio::time::sleep(backoff.delay()) => {}
        }
    }
}

/// One stream from its beginning to its end; `None` if the machine is gone.
async fn stream(
    end: End<FromWorker, ToWorker>,
    inputs: &mpsc::Sender<Input>,
    leave: &CancellationToken,
) -> Option<()> {
    let End { tx, mut rx } = end;
    let (outbox, feed) = outbox(Limits::default());
    inputs.send(Input::Up(outbox)).await.ok()?;
    let said = async {
        while let Some(frame) = rx.recv().await {
            if inputs.send(Input::Said(frame)).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = leave.cancelled() => {}
        () = said => tracing::info!("the control plane closed the stream"),
        fed = feed.forward(&tx) => match fed {
            Ok(()) => tracing::info!("the stream to the control plane is given up"),
            Err(error) => tracing::warn!(%error, "the stream to the control plane is given up"),
        },
    }
    inputs.send(Input::Down).await.ok()
}
