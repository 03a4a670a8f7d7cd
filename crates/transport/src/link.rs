//! A role's link to the control planes: a call to each of them, of which the leader's is answered.
//!
//! ```text
//! calling ──answered──▶ open ──a role dials──▶ carried ──over──▶ calling
//! ```
//!
//! When another leads with a higher epoch than the one that is talked to, that conversation is cut:
//! the role dials again, and the new leader's call is open already. One with a lower epoch is not
//! listened to as long as a better one is there; alone it is, since it is the cluster's to judge.
//!
//! The second connection of a role goes after the first one, to whoever that one talks to, and to
//! nobody else: nothing waits for it that has to be there when a leader is lost, and a thousand
//! workers that come at once have their first connections first.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use dirigent_core::Epoch;
use dirigent_service::{Acceptor, End};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    client::{Heard, Method, Open, Reach, Said},
    connect::Grievance,
};

/// Pauses between two calls to an address where nobody answers: doubling from the first to the
/// last, each between half of it and the whole.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// A role that dialled is told after so long that nobody leads. Longer than the longest step of its
/// own pauses, which by that begin anew.
const HOLD: Duration = Duration::from_millis(2500);

/// One address.
struct Place<M: Method> {
    at: SocketAddr,
    pause: Duration,
    is_calling: bool,
    open: Option<Open<M>>,
}

/// Who is talked to.
struct Active {
    talk: u64,
    place: usize,
    epoch: Epoch,
    cut: CancellationToken,
}

/// Which of a role's two connections it is, and to which of the control planes the first one talks or
/// talked last.
pub(crate) enum Order {
    First(watch::Sender<Option<usize>>),
    Second(watch::Receiver<Option<usize>>),
}

/// The two connections of a role.
pub(crate) fn orders() -> (Order, Order) {
    let (leads, follows) = watch::channel(None);
    (Order::First(leads), Order::Second(follows))
}

impl Order {
    /// Whether this address is to be called.
    fn calls(&self, place: usize) -> bool {
        match self {
            Self::First(_) => true,
            Self::Second(first) => *first.borrow() == Some(place),
        }
    }

    /// It talks to this one.
    fn talks(&self, place: usize) {
        if let Self::First(told) = self {
            told.send_if_modified(|last| last.replace(place) != Some(place));
        }
    }

    /// Returns when the first connection talks to another one; never in the first itself.
    async fn changed(&mut self) {
        if let Self::Second(first) = self
            && first.changed().await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}

/// What a role dialled and waits for.
struct Waiting<M: Method> {
    end: End<Heard<M>, Said<M>>,
    until: Instant,
}

/// Keeps a link until the role dials no more.
pub(crate) async fn keep<M: Method>(
    reach: Reach,
    order: Order,
    dialled: Acceptor<Heard<M>, Said<M>>,
) {
    let places = reach
        .addresses()
        .iter()
        .map(|at| Place::<M> { at: *at, pause: FIRST_PAUSE, is_calling: false, open: None })
        .collect();
    let link = Link {
        reach,
        order,
        places,
        calls: JoinSet::new(),
        carried: JoinSet::new(),
        active: None,
        talks: 0,
        waiting: None,
        hurry: Arc::new(Notify::new()),
        grievance: Grievance::default(),
    };
    link.run(dialled).await;
}

struct Link<M: Method> {
    reach: Reach,
    order: Order,
    places: Vec<Place<M>>,
    calls: JoinSet<(usize, Result<Open<M>, Status>)>,
    carried: JoinSet<(u64, Result<(), Status>)>,
    active: Option<Active>,
    /// Conversations so far.
    talks: u64,
    waiting: Option<Waiting<M>>,
    /// Ends the pauses of all calls.
    hurry: Arc<Notify>,
    grievance: Grievance,
}

impl<M: Method> Link<M> {
    async fn run(mut self, mut dialled: Acceptor<Heard<M>, Said<M>>) {
        let mut may_dial = true;
        // What a role that is gone has said still arrives.
        while may_dial || self.waiting.is_some() || !self.carried.is_empty() {
            let until = self.waiting.as_ref().map(|waiting| waiting.until);
            let late = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(Ok((place, called))) = self.calls.join_next() => self.answered(place, called),
                Some(Ok((talk, how))) = self.carried.join_next() => self.over(talk, &how),
                end = dialled.accept(), if may_dial => match end {
                    Some((_, end)) => self.dialled(end),
                    None => may_dial = false,
                },
                () = late => self.waiting = None,
                () = self.order.changed() => self.follow(),
            }
            self.join();
        }
    }

    /// The first connection talks to another one: so is this one to.
    fn follow(&mut self) {
        for (number, place) in self.places.iter_mut().enumerate() {
            if !self.order.calls(number) {
                place.open = None;
            }
        }
        if let Some(active) = &self.active
            && !self.order.calls(active.place)
        {
            active.cut.cancel();
        }
        self.call_all();
    }

    /// Calls wherever nobody is called, open or talked to.
    fn call_all(&mut self) {
        for place in 0..self.places.len() {
            self.call(place, Duration::ZERO);
        }
    }

    fn call(&mut self, number: usize, pause: Duration) {
        let is_active = self.active.as_ref().is_some_and(|active| active.place == number);
        if is_active || !self.order.calls(number) {
            return;
        }
        let Some(place) = self.places.get_mut(number) else { return };
        if place.is_calling || place.open.is_some() {
            return;
        }
        place.is_calling = true;
        let (reach, at, hurry) = (self.reach.clone(), place.at, Arc::clone(&self.hurry));
        self.calls.spawn(async move {
            if !pause.is_zero() {
                tokio::select! {
                    () = sleep(pause) => {}
                    () = hurry.notified() => {}
                }
            }
            (number, reach.call::<M>(at).await)
        });
    }

    fn answered(&mut self, number: usize, called: Result<Open<M>, Status>) {
        let lowest = self.active.as_ref().map_or(Epoch(0), |active| active.epoch);
        let Some(place) = self.places.get_mut(number) else { return };
        place.is_calling = false;
        let at = place.at;
        match called {
            Ok(open) if open.epoch < lowest => {
                tracing::info!(%at, epoch = %open.epoch, %lowest, "an old leader is not listened to");
                self.call(number, jittered(LAST_PAUSE));
            }
            Ok(open) => {
                place.pause = FIRST_PAUSE;
                place.open = self.order.calls(number).then_some(open);
            }
            Err(status) => {
                self.grievance.tell(at, &status);
                let pause = jittered(place.pause);
                place.pause = (place.pause * 2).min(LAST_PAUSE);
                self.call(number, pause);
            }
        }
    }

    /// A conversation is over. The role dials again, by a pause of its own.
    fn over(&mut self, talk: u64, how: &Result<(), Status>) {
        if let Err(status) = how {
            tracing::info!(%status, "the control plane is lost");
        }
        if self.active.as_ref().is_some_and(|active| active.talk == talk) {
            self.active = None;
            self.hasten();
        }
    }

    fn dialled(&mut self, end: End<Heard<M>, Said<M>>) {
        // The last words of the conversation before do not keep this one waiting.
        self.active = None;
        self.waiting = Some(Waiting { end, until: Instant::now() + HOLD });
        self.hasten();
    }

    fn hasten(&mut self) {
        self.hurry.notify_waiters();
        for place in &mut self.places {
            place.pause = FIRST_PAUSE;
        }
        self.call_all();
    }

    /// Brings the role together with the newest leader that is there.
    fn join(&mut self) {
        let open = |(number, place): (usize, &Place<M>)| Some((place.open.as_ref()?.epoch, number));
        let Some((epoch, number)) = self.places.iter().enumerate().filter_map(open).max() else {
            return;
        };
        if let Some(active) = &self.active {
            if active.epoch < epoch {
                tracing::info!(%epoch, "another control plane leads");
                active.cut.cancel();
            }
            return;
        }
        let Some(Waiting { end, .. }) = self.waiting.take() else { return };
        let Some(open) = self.places.get_mut(number).and_then(|place| place.open.take()) else {
            return;
        };
        let cut = CancellationToken::new();
        self.talks += 1;
        let talk = self.talks;
        self.active = Some(Active { talk, place: number, epoch, cut: cut.clone() });
        self.order.talks(number);
        self.carried.spawn(async move {
            let carried = cut.run_until_cancelled_owned(open.carry(end)).await;
            (talk, carried.unwrap_or(Ok(())))
        });
    }
}

/// So that those who lost the same peer do not come back at the same instant.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..=1.0))
}
