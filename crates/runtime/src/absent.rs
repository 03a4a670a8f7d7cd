//! A runtime that does not work here, so that whoever asks for it is told why.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use dirigent_core::{
    Cause, Digest, Fault, RuntimeKind, SandboxId, StartFailure,
    frame::{LogLine, LogQuery},
    worker::{Adopted, ArtifactFailure, CreateSandbox},
};
use tokio::sync::mpsc;

use crate::{Event, Facts, Runtime};

/// See the module.
#[derive(Debug)]
pub struct AbsentRuntime {
    kind: RuntimeKind,
    why: String,
    events: mpsc::Sender<Event>,
}

impl AbsentRuntime {
    /// A runtime of this kind that does not work, and `why`, with what to do.
    #[must_use]
    pub fn new(kind: RuntimeKind, why: String, events: mpsc::Sender<Event>) -> Arc<Self> {
        Arc::new(Self { kind, why, events })
    }

    /// A worker asks for nothing that is not offered, so that this is heard at most once in a while.
    fn report(&self, event: Event) {
        if let Err(error) = self.events.try_send(event) {
            tracing::warn!(%error, "nobody hears that a runtime is absent");
        }
    }
}

impl Runtime for AbsentRuntime {
    fn facts(&self) -> Facts {
        let missing = vec![self.why.clone()];
        Facts { kind: self.kind, best: None, usual: None, missing }
    }

    fn recover(&self) -> io::Result<Vec<Adopted>> {
        Ok(Vec::new())
    }

    fn artifacts(&self) -> Vec<Digest> {
        Vec::new()
    }

    fn unpack(&self, digest: Digest, _path: PathBuf) {
        let result = Err(ArtifactFailure::new(self.why.clone(), Fault::Worker));
        self.report(Event::Unpacked { digest, result });
    }

    fn discard(&self, _digest: Digest) {}

    fn create(&self, create: CreateSandbox) {
        let cause = Cause::CreateFailed { message: self.why.clone() };
        let failure = StartFailure { cause, fault: Fault::Worker, log_tail: Vec::new() };
        self.report(Event::Gone { sandbox: create.order.sandbox, failure });
    }

    fn destroy(&self, _sandbox: SandboxId, _grace: Duration) {}

    fn logs(&self, _query: LogQuery, _lines: mpsc::Sender<Vec<LogLine>>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_why_and_offers_nothing() {
        let (events, mut heard) = mpsc::channel(1);
        let absent = AbsentRuntime::new(RuntimeKind::Container, "not built".to_owned(), events);
        let facts = absent.facts();
        assert_eq!((facts.best, facts.missing), (None, vec!["not built".to_owned()]));
        absent.unpack(Digest([0; 32]), PathBuf::new());
        let Ok(Event::Unpacked { result: Err(failure), .. }) = heard.try_recv() else { panic!() };
        assert_eq!(failure.message, "not built");
    }
}
