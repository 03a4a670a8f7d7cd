//! The life of an invocation in a data plane: the retry rules of the product's shell, exactly.
//!
//! Unsent: tried again at the head of the queue until its queue time-out. Sent without a byte of
//! response: one more attempt on another sandbox if it is idempotent, else 502. A slot is free when
//! the response has ended or the sandbox closed the connection, never because somebody left.

use std::time::Duration;

use dirigent_core::{
    Auth, FunctionId, FunctionName, InvocationId, SandboxId, Time,
    frame::FromDataPlane,
    gate::{self, Attempt, Binding, Finish, Refusal, Verdict},
};

use crate::{
    agenda::{Attempted, End, Host, What},
    plane::Known,
    plant::Plant,
    world::World,
};

/// A connection that is not answered is given up after this.
const CONNECT: Duration = Duration::from_millis(500);
/// A handler whose caller is gone has this long before its slot counts as free.
pub(crate) const GRACE: Duration = Duration::from_secs(1);
/// A name that no control plane explains is answered with 503 after this.
pub(crate) const RESOLVE: Duration = Duration::from_secs(10);

/// Where an invocation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Resolving,
    Queued,
    Connecting { slot: SandboxId },
    Sent { slot: SandboxId },
}

/// An invocation that was not answered yet.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) name: FunctionName,
    pub(crate) function: Option<FunctionId>,
    pub(crate) stage: Stage,
    pub(crate) arrived: Time,
    pub(crate) queue_until: Time,
    pub(crate) runs: Duration,
    pub(crate) idempotent: bool,
    pub(crate) attempt: u32,
    /// How often it was sent, and to which sandboxes.
    pub(crate) sent: u32,
    pub(crate) binding: Option<Binding>,
}

/// How an invocation was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    Well,
    ClientLeft,
    NotFound,
    Refused,
    QueueLate,
    TimedOut,
    SandboxLost,
    NoControlPlane,
}

impl World {
    /// An invocation arrives at a data plane.
    pub(crate) fn call(&mut self, plane: usize, name: FunctionName, leaves: Option<Duration>) {
        let now = self.now;
        let runs = self.draw_run();
        let idempotent = self.random.draw().is_multiple_of(2);
        self.counts.calls += 1;
        let invocation = InvocationId(self.counts.calls);
        let Some(p) = self.planes.get_mut(plane) else { return };
        let life = p.life;
        let call = Call {
            name: name.clone(),
            function: None,
            stage: Stage::Resolving,
            arrived: now,
            queue_until: now.after(RESOLVE),
            runs,
            idempotent,
            attempt: 0,
            sent: 0,
            binding: None,
        };
        p.calls.insert(invocation, call);
        let at = Attempted { plane, life, invocation, attempt: 0 };
        if let Some(leaves) = leaves {
            self.after(leaves, What::ClientGone { at });
        }
        let known = self.planes.get(plane).and_then(|p| p.known.get(&name).copied());
        let attached = self.planes.get(plane).is_some_and(|p| p.attached);
        match known {
            Some(Known::Function(function)) => self.enter(at, function),
            Some(Known::Nothing) if attached => self.answer(at, Answered::NotFound),
            Some(Known::Nothing | Known::Asked) => self.after(RESOLVE, What::QueueLate { at }),
            None => {
                if let Some(p) = self.planes.get_mut(plane) {
                    p.known.insert(name.clone(), Known::Asked);
                }
                self.after(RESOLVE, What::QueueLate { at });
                if attached {
                    self.plane_says(plane, FromDataPlane::Resolve { name });
                }
            }
        }
    }

    /// A name was explained: those who waited for it go on.
    pub(crate) fn release_resolving(
        &mut self,
        plane: usize,
        name: &FunctionName,
        function: Option<FunctionId>,
    ) {
        let Some(p) = self.planes.get(plane) else { return };
        let life = p.life;
        let waiting: Vec<InvocationId> = p
            .calls
            .iter()
            .filter(|(_, call)| call.stage == Stage::Resolving && call.name == *name)
            .map(|(id, _)| *id)
            .collect();
        for invocation in waiting {
            let at = Attempted { plane, life, invocation, attempt: 0 };
            match function {
                Some(function) => self.enter(at, function),
                None => self.answer(at, Answered::NotFound),
            }
        }
    }

    pub(crate) fn current(&mut self, at: Attempted) -> Option<&mut Call> {
        let p = self.planes.get_mut(at.plane).filter(|p| p.up && p.life == at.life)?;
        p.calls.get_mut(&at.invocation)
    }

    fn enter(&mut self, at: Attempted, function: FunctionId) {
        let now = self.now;
        let Some(settings) = self.gate_settings(at.plane, function) else {
            return self.answer(at, Answered::NotFound);
        };
        let knows_tokens = self.planes.get(at.plane).is_some_and(|p| p.knows_tokens);
        if settings.auth == Auth::Token && !knows_tokens {
            return self.answer(at, Answered::NoControlPlane);
        }
        let queue_timeout = settings.queue_timeout;
        let Some(call) = self.current(at) else { return };
        call.function = Some(function);
        call.queue_until = now.after(queue_timeout);
        let at = Attempted { attempt: 1, ..at };
        self.after(queue_timeout, What::QueueLate { at });
        self.admit(at, function, Attempt::First);
    }

    fn admit(&mut self, at: Attempted, function: FunctionId, attempt: Attempt) {
        let now = self.now;
        let Some(call) = self.current(at) else { return };
        call.attempt += 1;
        call.stage = Stage::Queued;
        call.binding = None;
        if call.attempt > 1 {
            // What was sent before may have used up the time to wait.
            call.queue_until = call.queue_until.max(now.after(CONNECT));
            let until = call.queue_until;
            self.agenda.put(until, What::QueueLate { at: Attempted { attempt: 1, ..at } });
        }
        let gate = self.planes.get_mut(at.plane).and_then(|p| p.gates.get_mut(&function));
        let Some(f) = gate else { return self.answer(at, Answered::NotFound) };
        match f.gate.admit(now, at.invocation, attempt) {
            Verdict::Bound(binding) => self.bound(at.plane, function, at.invocation, &binding),
            Verdict::Queued => self.counts.queued += 1,
            Verdict::Refused(refusal) => self.refused(at.plane, at.invocation, &refusal),
        }
        self.obey_gate(at.plane, function);
    }

    /// A gate gave an invocation a slot: it connects.
    pub(crate) fn bound(
        &mut self,
        plane: usize,
        function: FunctionId,
        invocation: InvocationId,
        binding: &Binding,
    ) {
        let Some(p) = self.planes.get_mut(plane) else { return };
        let life = p.life;
        let slot = binding.sandbox;
        let Some(call) = p.calls.get_mut(&invocation) else {
            // It left without saying so; its slot must not.
            let how = Finish::Done;
            return self.tell_gate(plane, function, gate::Event::Finished { sandbox: slot, how });
        };
        call.stage = Stage::Connecting { slot };
        call.binding = Some(binding.clone());
        let at = Attempted { plane, life, invocation, attempt: call.attempt };
        self.bound_to(plane, binding);
        let host = self.host_at(&binding.address);
        let delay = self.delay(Host::Plane(plane), host);
        if self.net.joined(Host::Plane(plane), host) {
            self.after(delay, What::Connect { at, slot });
        } else {
            self.after(CONNECT, What::Ends { at, slot, end: End::Refused });
        }
    }

    pub(crate) fn refused(&mut self, plane: usize, invocation: InvocationId, why: &Refusal) {
        let Some(p) = self.planes.get(plane) else { return };
        let at = Attempted { plane, life: p.life, invocation, attempt: 0 };
        self.answer(
            at,
            match why {
                Refusal::Deleted => Answered::NotFound,
                Refusal::QueueFull { .. } | Refusal::CrashLoop(_) => Answered::Refused,
            },
        );
    }

    /// The connection is up: the request is sent and a handler begins, wherever the address leads.
    pub(crate) fn connect(&mut self, at: Attempted, slot: SandboxId) {
        let Some(call) = self.current(at) else { return };
        if call.attempt != at.attempt || call.stage != (Stage::Connecting { slot }) {
            return;
        }
        let (runs, binding) = (call.runs, call.binding.clone());
        let Some(binding) = binding else { return };
        let reached = self.listening_at(&binding.address).filter(|(_, sandbox)| {
            self.find_sandbox(*sandbox).is_some_and(|one| !one.bars(at.plane))
        });
        let Some((worker, sandbox)) = reached else {
            let delay = Duration::from_micros(200);
            return self.after(delay, What::Ends { at, slot, end: End::Refused });
        };
        if let Some(call) = self.current(at) {
            call.stage = Stage::Sent { slot };
            call.sent += 1;
        }
        self.executes(at, &binding, worker, sandbox);
        self.begin_handler(worker, sandbox, at, runs);
        let timeout = self
            .gate_settings(at.plane, binding.revision.function)
            .map_or(Duration::from_secs(60), |settings| settings.timeout);
        self.after(timeout, What::Late { at });
    }

    /// An attempt ends.
    pub(crate) fn ends(&mut self, at: Attempted, slot: SandboxId, end: End) {
        if let Some(until) = self.paused_until(Host::Plane(at.plane)) {
            return self.agenda.put(until, What::Ends { at, slot, end });
        }
        let now = self.now;
        let retry = |call: &Call| match end {
            End::Response => false,
            End::Refused => now < call.queue_until,
            End::Broken => call.idempotent && call.sent < 2,
        };
        let Some(call) = self.current(at) else { return };
        let there = matches!(call.stage, Stage::Connecting { slot: s } | Stage::Sent { slot: s } if s == slot);
        if !there || call.attempt != at.attempt {
            return;
        }
        let Some(function) = call.function else { return };
        let again = retry(call) || (end == End::Broken && self.plant == Some(Plant::SentTwice));
        let how = if end == End::Response { Finish::Done } else { Finish::Unreachable };
        let event = gate::Event::Finished { sandbox: slot, how };
        if again {
            self.counts.retries += 1;
            self.tell_gate(at.plane, function, event);
            return self.admit(at, function, Attempt::Retry { avoid: slot });
        }
        self.answer(
            at,
            match end {
                End::Response => Answered::Well,
                End::Refused => Answered::QueueLate,
                End::Broken => Answered::SandboxLost,
            },
        );
        self.tell_gate(at.plane, function, event);
    }

    /// Nobody let it in for so long.
    pub(crate) fn queue_late(&mut self, at: Attempted) {
        let now = self.now;
        let Some(call) = self.current(at) else { return };
        let (function, late) = (call.function, call.queue_until <= now);
        match (call.stage, at.attempt) {
            (Stage::Resolving, 0) => self.answer(at, Answered::NoControlPlane),
            (Stage::Queued, 1) if late => {
                self.counts.late_queued += 1;
                self.answer(at, Answered::QueueLate);
                self.leave_queue(at, function);
            }
            _ => {}
        }
    }

    fn leave_queue(&mut self, at: Attempted, function: Option<FunctionId>) {
        if let Some(function) = function {
            let event = gate::Event::Left { invocation: at.invocation };
            self.tell_gate(at.plane, function, event);
        }
    }

    /// Its time is over while a handler runs.
    pub(crate) fn late(&mut self, at: Attempted) {
        let Some(call) = self.current(at) else { return };
        if call.attempt == at.attempt && matches!(call.stage, Stage::Sent { .. }) {
            self.abandon(at, Answered::TimedOut);
        }
    }

    pub(crate) fn client_gone(&mut self, at: Attempted) {
        let Some(call) = self.current(at) else { return };
        let function = call.function;
        match call.stage {
            Stage::Resolving => self.answer(at, Answered::ClientLeft),
            Stage::Queued => {
                self.counts.left_queued += 1;
                self.answer(at, Answered::ClientLeft);
                self.leave_queue(at, function);
            }
            Stage::Connecting { slot } => {
                // Nothing was sent: the connection is dropped, the slot is free.
                self.answer(at, Answered::ClientLeft);
                if let Some(function) = function {
                    let how = Finish::Done;
                    let event = gate::Event::Finished { sandbox: slot, how };
                    self.tell_gate(at.plane, function, event);
                }
            }
            Stage::Sent { .. } => self.abandon(at, Answered::ClientLeft),
        }
    }

    /// The caller is answered, or gone, and a handler may still run.
    fn abandon(&mut self, at: Attempted, how: Answered) {
        let Some(call) = self.current(at) else { return };
        let (Stage::Sent { slot }, Some(function)) = (call.stage, call.function) else { return };
        let at = Attempted { attempt: call.attempt, ..at };
        match how {
            Answered::TimedOut => self.counts.late_running += 1,
            _ => self.counts.left_running += 1,
        }
        self.answer(at, how);
        let concurrency = self.find_sandbox(slot).map(|one| one.concurrency);
        let finish = if self.plant == Some(Plant::FreedAtDisconnect) {
            Finish::Done
        } else {
            Finish::Abandoned
        };
        if concurrency == Some(1) || finish == Finish::Done {
            let event = gate::Event::Finished { sandbox: slot, how: finish };
            self.tell_gate(at.plane, function, event);
        } else {
            self.after(GRACE, What::Grace { at, slot, function });
        }
    }

    pub(crate) fn grace_over(&mut self, at: Attempted, slot: SandboxId, function: FunctionId) {
        if self.life_of(Host::Plane(at.plane)) == Some(at.life) {
            self.overrun(slot, at);
            let how = Finish::Abandoned;
            self.tell_gate(at.plane, function, gate::Event::Finished { sandbox: slot, how });
        }
    }

    /// The caller gets its answer.
    pub(crate) fn answer(&mut self, at: Attempted, how: Answered) {
        let Some(p) = self.planes.get_mut(at.plane).filter(|p| p.up && p.life == at.life) else {
            return;
        };
        if self.plant == Some(Plant::AnswerForgotten) && how == Answered::QueueLate {
            return;
        }
        if p.calls.remove(&at.invocation).is_some() {
            *self.counts.answers.entry(how as usize).or_default() += 1;
        }
    }
}
