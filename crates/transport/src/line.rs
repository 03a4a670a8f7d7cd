//! A standby's line to the leader: whether it lives, by what is heard of it.

use std::{error::Error, io, net::SocketAddr, time::Duration};

use dirigent_core::office::Event;
use dirigent_proto::v1::{Beat, LineRequest};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tonic::{Code, Status, Streaming};

use crate::Reach;

/// Until the leader's host answers, and from one beat to the next: three are missed.
const HEARD_WITHIN: Duration = Duration::from_millis(600);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

impl Reach {
    /// Tells what is heard of the leader at `at`, for as long as somebody wants to know.
    pub async fn line(&self, at: SocketAddr, told: mpsc::Sender<Event>) {
        loop {
            let dialled = self.dial_line(at).await;
            let event = dialled.as_ref().map_or_else(|event| *event, |_beats| Event::Connected);
            if told.send(event).await.is_err() {
                return;
            }
            match dialled {
                Ok(mut beats) => loop {
                    match timeout(HEARD_WITHIN, beats.message()).await {
                        Ok(Ok(Some(_beat))) => {}
                        // Whether it is gone the next try shows.
                        Ok(Ok(None) | Err(_)) => break,
                        // Counted from here, not from the end of the next try.
                        Err(_elapsed) if told.send(Event::Silent).await.is_err() => return,
                        Err(_elapsed) => break,
                    }
                },
                Err(_event) => sleep(PAUSE).await,
            }
        }
    }

    async fn dial_line(&self, at: SocketAddr) -> Result<Streaming<Beat>, Event> {
        let dialling = async {
            let (mut client, _) = self.connect(at).await?;
            client.line(self.request(LineRequest {})).await
        };
        match timeout(HEARD_WITHIN, dialling).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) if refuses(&status) => Err(Event::Refused),
            Ok(Err(status)) => {
                tracing::debug!(%at, %status, "the leader is not heard");
                Err(Event::Silent)
            }
            Err(_elapsed) => Err(Event::Silent),
        }
    }
}

/// Whether somebody on that host says that no leader is there.
fn refuses(status: &Status) -> bool {
    if status.code() == Code::FailedPrecondition {
        return true;
    }
    let mut cause: Option<&dyn Error> = status.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::UnexpectedEof
            );
        }
        cause = error.source();
    }
    false
}
