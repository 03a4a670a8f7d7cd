//! Users: callers in an open loop behind a load balancer, and operators who deploy.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use dirigent_core::{
    Auth, Bytes, Duty, Epoch, FunctionName, Isolation, KeepAlive, MilliCpu, RequestId, Resources,
    RevisionId, RuntimeKind, SandboxSpec, Settings, Spec,
    control::{Answer, Call, Event, Refusal},
};

use crate::{agenda::What, world::World};

/// Functions that exist from time to time; one name more is never deployed.
const FUNCTIONS: usize = 5;
/// Names that anybody asks for.
pub(crate) const NAMES: usize = FUNCTIONS + 1;
const CALLERS_PAUSE: Duration = Duration::from_millis(40);

/// What a sandbox of a function may need in the end: there is room for `min` of all of them.
pub(crate) const LARGEST_KEPT: Resources =
    Resources { cpu: MilliCpu(100), memory: Bytes::mib(128) };

/// What an operator waits for.
#[derive(Clone, Debug)]
struct Request {
    control: usize,
    name: FunctionName,
    what: Asked,
}

/// What is asked of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Deploy,
    Rollback,
    Delete,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Users {
    /// By function, else at random.
    pub(crate) affinity: bool,
    requests: BTreeMap<RequestId, Request>,
    next: u64,
    /// The last order for each name.
    newest: BTreeMap<FunctionName, RequestId>,
    /// The newest deploy of each name that was acknowledged and that no later order touched.
    pub(crate) acknowledged: BTreeMap<FunctionName, RevisionId>,
    /// Leaders under whom the store was restored from an older copy: until they notice, they take for
    /// durable what it has forgotten.
    deceived: BTreeSet<Epoch>,
    pub(crate) calm: bool,
    /// Nothing is deployed any more after the healing.
    stays: bool,
}

impl Users {
    pub(crate) fn new(affinity: bool, stays: bool) -> Self {
        Self { affinity, stays, ..Self::default() }
    }

    /// Operators who wait for an answer.
    pub(crate) fn waiting(&self) -> usize {
        self.requests.len()
    }

    pub(crate) fn is_deceived(&self, epoch: Epoch) -> bool {
        self.deceived.contains(&epoch)
    }
}

fn name(n: usize) -> FunctionName {
    #[expect(clippy::expect_used, reason = "a letter and a digit are a name")]
    format!("f{n}").parse().expect("a name")
}

impl World {
    /// The next callers.
    pub(crate) fn arrive(&mut self) {
        if self.users.calm {
            return;
        }
        let gap = CALLERS_PAUSE * (self.random.draw() % 1000) / 1000;
        self.after(gap, What::Arrive);
        let burst = self.random.draw().is_multiple_of(120);
        let many = if burst { 10 + self.random.below(40) } else { 1 };
        // Some functions are called far more often than others.
        let n = self.random.below(FUNCTIONS + 1).min(self.random.below(FUNCTIONS + 1));
        for _ in 0..many {
            let plane = self.balance(n);
            let leaves = self.random.draw().is_multiple_of(25);
            let leaves =
                leaves.then(|| Duration::from_millis(u64::from(self.random.draw() % 2000)));
            if let Some(plane) = plane {
                self.call(plane, name(n), leaves);
            }
        }
    }

    /// A data plane that lives, and says that it is ready; one that lives, if none is.
    fn balance(&mut self, function: usize) -> Option<usize> {
        let all = self.planes.len();
        let first = if self.users.affinity { function } else { self.random.below(all) };
        let now = self.now;
        let lives = |&plane: &usize| self.planes.get(plane).filter(|p| p.up && p.paused <= now);
        let mut order = (0..all).map(|n| (first + n) % all).filter(|plane| lives(plane).is_some());
        let ready = |plane: &usize| lives(plane).is_some_and(|p| p.duty == Duty::InUse);
        order.clone().find(ready).or_else(|| order.next())
    }

    /// How long an invocation runs.
    pub(crate) fn draw_run(&mut self) -> Duration {
        let ms = match self.random.draw() % 40 {
            0 => 1000 + self.random.draw() % 4000,
            1..8 => 50 + self.random.draw() % 250,
            _ => 1 + self.random.draw() % 30,
        };
        Duration::from_millis(u64::from(ms))
    }

    fn spec(&mut self) -> Arc<Spec> {
        let mut env = BTreeMap::new();
        if self.faulty() && self.random.draw().is_multiple_of(8) {
            env.insert("SPOILT".to_owned(), "yes".to_owned());
        }
        env.insert("N".to_owned(), format!("{}", self.random.draw() % 4));
        let concurrency = [1, 1, 1, 3, 10, 0].get(self.random.below(6)).copied().unwrap_or(1);
        Arc::new(Spec {
            sandbox: SandboxSpec {
                isolation: Some(Isolation::Basic),
                ..SandboxSpec::new(RuntimeKind::Process, vec!["x".to_owned()])
            },
            resources: self.resources(),
            env,
            concurrency,
            artifact: None,
        })
    }

    /// Of a few sizes; in the end there is to be room for `min` of every function.
    fn resources(&mut self) -> Resources {
        let memory = [64, 128, 128, 192, 384].get(self.random.below(5)).copied().unwrap_or(128);
        let cpu = [50, 100, 100, 350, 1000].get(self.random.below(5)).copied().unwrap_or(100);
        let (memory, cpu) = (Bytes::mib(memory), MilliCpu(cpu));
        if self.faulty() && !self.users.stays {
            Resources { cpu, memory }
        } else {
            Resources { cpu: cpu.min(LARGEST_KEPT.cpu), memory: memory.min(LARGEST_KEPT.memory) }
        }
    }

    fn settings(&mut self) -> Arc<Settings> {
        let min = u32::from(self.random.draw().is_multiple_of(3));
        let max = 3 + self.random.draw() % 6;
        let drawn = self.random.draw();
        // A learned one may be hours: in the end every function has one that is over soon.
        let learned = self.faulty() && !self.users.stays && (drawn >> 8).is_multiple_of(4);
        let keep_alive = Duration::from_secs(2 + u64::from(drawn % 4));
        Arc::new(Settings {
            min,
            max,
            keep_alive: if learned { KeepAlive::Auto } else { keep_alive.into() },
            timeout: Duration::from_secs(6),
            queue_timeout: Duration::from_secs(8),
            start_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(3),
            grace: Duration::from_secs(1),
            max_queue: 60,
            retry: true,
            auth: if (drawn >> 16).is_multiple_of(4) { Auth::Token } else { Auth::None },
        })
    }

    /// An operator does something.
    pub(crate) fn operate(&mut self) {
        if !self.faulty() {
            if self.settled_since_healing(Duration::from_secs(7)) && !self.users.stays {
                self.deploy_all();
            }
            return;
        }
        let pause = 300 + u64::from(self.random.draw() % 2500);
        self.after(Duration::from_millis(pause), What::User);
        let name = name(self.random.below(FUNCTIONS));
        match self.random.draw() % 18 {
            0 | 1 => self.order(name.clone(), Call::Delete { name }),
            2 | 3 => self.order(name.clone(), Call::Rollback { name, to: None }),
            _ => {
                let check = self.random.draw().is_multiple_of(2);
                self.deploy(name, check);
            }
        }
    }

    fn deploy(&mut self, name: FunctionName, check: bool) {
        let (spec, settings) = (self.spec(), self.settings());
        self.order(name.clone(), Call::Deploy { name, spec, settings, check });
    }

    /// After healing every function is deployed once more, in most clusters.
    pub(crate) fn deploy_all(&mut self) {
        for n in 0..FUNCTIONS {
            self.deploy(name(n), false);
        }
    }

    fn order(&mut self, name: FunctionName, call: Call) {
        let Some(control) = self
            .leader()
            .filter(|&c| self.controls.get(c).is_some_and(|host| host.paused <= self.now))
        else {
            return;
        };
        let request = self.next_request();
        let what = match call {
            Call::Delete { .. } => Asked::Delete,
            Call::Rollback { .. } => Asked::Rollback,
            _ => Asked::Deploy,
        };
        self.users.acknowledged.remove(&name);
        self.users.newest.insert(name.clone(), request);
        self.users.requests.insert(request, Request { control, name, what });
        self.counts.orders += 1;
        self.tell_control(control, Event::Asked { request, call, wall_ms: 1 });
    }

    pub(crate) const fn next_request(&mut self) -> RequestId {
        self.users.next += 1;
        RequestId(self.users.next)
    }

    /// The control plane answers an operator.
    pub(crate) fn replied(&mut self, to: RequestId, result: Result<Answer, Refusal>) {
        if self.operator_heard(to, &result) {
            return;
        }
        let Some(request) = self.users.requests.remove(&to) else { return };
        // What a leader did long ago may be told after what the next one has done since.
        let later = self.users.newest.get(&request.name) != Some(&to)
            || self.users.requests.values().any(|other| other.name == request.name);
        let deceived =
            self.epoch_of(request.control).is_none_or(|epoch| self.users.deceived.contains(&epoch));
        if result.is_ok() && request.what == Asked::Rollback {
            self.counts.rollbacks += 1;
        }
        if let (Ok(Answer::Deployed { revision, .. }), false, Asked::Deploy) =
            (result, later || deceived, request.what)
        {
            self.users.acknowledged.insert(request.name, revision);
        }
    }

    /// The store has forgotten what it took since it was copied: that is lost, and known to be.
    pub(crate) fn forget_orders(&mut self) {
        self.forget_postings();
        self.users.newest.clear();
        let leaders = (0..self.controls.len()).filter_map(|control| self.epoch_of(control));
        let leaders: Vec<Epoch> = leaders.collect();
        self.users.deceived.extend(leaders);
        let store = &self.store.state;
        self.users.acknowledged.retain(|_, revision| store.has(*revision));
    }

    /// A control plane died: its askers hear nothing.
    pub(crate) fn forget_requests(&mut self, control: usize) {
        self.forget_operators(control);
        // What was asked may still be applied: a later acknowledgement of the name tells.
        self.users.requests.retain(|_, request| request.control != control);
    }
}
