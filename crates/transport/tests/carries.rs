//! A control plane's doors on one side of a real connection, a role's dialers on the other.

#![cfg(test)]

mod shelf;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use dirigent_core::{
    Cause, Digest, Epoch, Fault, SandboxId, StartFailure,
    frame::{FromWorker, FromWorkerBulk, ToDataPlane, ToWorker, ToWorkerBulk},
    office::Event,
};
use dirigent_service::{Acceptor, End, OnCancel, Tasks};
use dirigent_transport::{Entrance, Reach, serve};
use futures_util::TryStreamExt as _;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

use shelf::HELD;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const DEADLINE: Duration = Duration::from_secs(20);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("the test's deadline")
}

// The second is the later one, though its mark is lower.
const FIRST: Epoch = Epoch(0).next(u64::MAX);
const SECOND: Epoch = FIRST.next(0);

struct Rig {
    tasks: Tasks,
    address: SocketAddr,
    workers: Acceptor<ToWorker, FromWorker>,
    workers_bulk: Acceptor<ToWorkerBulk, FromWorkerBulk>,
    leads: watch::Sender<Option<Epoch>>,
}

impl Rig {
    async fn new() -> Self {
        Self::leading(Some(FIRST)).await
    }

    async fn leading(epoch: Option<Epoch>) -> Self {
        let tasks = Tasks::new();
        let (listener, doors, (workers, workers_bulk)) = shelf::doors().await;
        let address = listener.local_addr().unwrap();
        let (leads, led) = watch::channel(epoch);
        serve(listener, doors, led, Entrance::Token(Arc::new(|token| token == TOKEN)), &tasks);
        Self { tasks, address, workers, workers_bulk, leads }
    }

    fn lead(&self, epoch: Option<Epoch>) {
        self.leads.send_replace(epoch);
    }

    /// The other end of a role's conversation, which says something first.
    async fn hears(&mut self, ours: &End<FromWorker, ToWorker>) -> End<ToWorker, FromWorker> {
        ours.tx.send(gone(1)).await.unwrap();
        let (_, mut theirs) = within(self.workers.accept()).await.unwrap();
        assert_eq!(within(theirs.rx.recv()).await, Some(gone(1)));
        theirs
    }

    fn reach(&self, addresses: &[SocketAddr], token: &str) -> Reach {
        Reach::new(addresses.to_vec(), "w1", token).unwrap()
    }

    /// A worker's end, and the control plane's.
    async fn meet(&mut self) -> (End<FromWorker, ToWorker>, End<ToWorker, FromWorker>) {
        let dialer = self.reach(&[self.address], TOKEN).worker(&self.tasks).0;
        let ours = within(dialer.dial()).await.unwrap();
        let (name, theirs) = within(self.workers.accept()).await.unwrap();
        assert_eq!(&*name, "w1");
        (ours, theirs)
    }
}

fn gone(number: u64) -> FromWorker {
    let failure = StartFailure {
        cause: Cause::Exited { code: 1 },
        fault: Fault::Function,
        log_tail: vec!["x".repeat(400); 20],
    };
    FromWorker::SandboxGone { sandbox: SandboxId::new(Epoch(1), number), failure }
}

#[tokio::test]
async fn frames_arrive_once_and_in_order_whatever_fits_into_a_batch() {
    let mut rig = Rig::new().await;
    let (ours, mut theirs) = rig.meet().await;
    // Some batches full.
    const MANY: u64 = 1000;
    rig.tasks.run("speaker", OnCancel::Abort, async move {
        for number in 0..MANY {
            ours.tx.send(gone(number)).await.unwrap();
        }
        // Closing this end is told only after all of it was said.
        drop(ours);
    });
    for number in 0..MANY {
        assert_eq!(within(theirs.rx.recv()).await, Some(gone(number)));
    }
    assert_eq!(within(theirs.rx.recv()).await, None);
}

#[tokio::test]
async fn either_side_sees_the_others_end_close() {
    let mut rig = Rig::new().await;
    let (mut ours, theirs) = rig.meet().await;
    let unsupported = ToWorker::Unsupported { kind: "x".to_owned() };
    theirs.tx.send(unsupported.clone()).await.unwrap();
    assert_eq!(within(ours.rx.recv()).await, Some(unsupported));
    drop(theirs);
    assert_eq!(within(ours.rx.recv()).await, None);

    let (ours, mut theirs) = rig.meet().await;
    drop(ours);
    assert_eq!(within(theirs.rx.recv()).await, None);
    // And it is asked again on another connection.
    let (ours, mut theirs) = rig.meet().await;
    ours.tx.send(gone(7)).await.unwrap();
    assert_eq!(within(theirs.rx.recv()).await, Some(gone(7)));
}

#[tokio::test]
async fn a_reader_that_is_behind_slows_the_speaker_down() {
    let mut rig = Rig::new().await;
    let (ours, mut theirs) = rig.meet().await;
    let (said, mut heard) = watch::channel(0_u64);
    rig.tasks.run("speaker", OnCancel::Abort, async move {
        for number in 0..100_000 {
            ours.tx.send(gone(number)).await.unwrap();
            said.send_replace(number);
        }
    });
    // It comes to rest at what channels and windows hold.
    while tokio::time::timeout(Duration::from_millis(300), heard.changed()).await.is_ok() {}
    assert!(*heard.borrow() < 20_000, "{} frames of 8 KiB lie about", *heard.borrow());
    for number in 0..50 {
        assert_eq!(within(theirs.rx.recv()).await, Some(gone(number)));
    }
}

#[tokio::test]
async fn every_address_is_tried_and_no_token_is_no_connection() {
    let mut rig = Rig::new().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let dialer = rig.reach(&[nobody, rig.address], TOKEN).worker(&rig.tasks).0;
    let ours = within(dialer.dial()).await.unwrap();
    rig.hears(&ours).await;

    let wrong = rig.reach(&[rig.address], "wrong").data_plane(&rig.tasks).0;
    let mut refused: End<_, ToDataPlane> = within(wrong.dial()).await.unwrap();
    assert_eq!(within(refused.rx.recv()).await, None);
    assert!(Reach::new(Vec::new(), "w1", TOKEN).is_err());
    assert!(Reach::new(vec![rig.address], "w\n1", TOKEN).is_err());
    assert!(Reach::new(vec![rig.address], "w1", "").is_err());
}

#[tokio::test]
async fn who_stands_by_is_called_already_when_it_leads() {
    let (mut first, mut second) = (Rig::new().await, Rig::leading(None).await);
    let tasks = Tasks::new();
    let dialer = first.reach(&[second.address, first.address], TOKEN).worker(&tasks).0;
    let mut ours = within(dialer.dial()).await.unwrap();
    let theirs = first.hears(&ours).await;
    first.tasks.stop();
    drop(theirs);
    assert_eq!(within(ours.rx.recv()).await, None);

    // What is said while nobody leads is heard by the next one.
    let ours = within(dialer.dial()).await.unwrap();
    ours.tx.send(gone(7)).await.unwrap();
    second.lead(Some(SECOND));
    let (_, mut theirs) = within(second.workers.accept()).await.unwrap();
    assert_eq!(within(theirs.rx.recv()).await, Some(gone(7)));
}

#[tokio::test]
async fn the_highest_epoch_is_listened_to_and_a_lower_one_only_where_it_is_alone() {
    let (mut old, mut new) = (Rig::new().await, Rig::leading(None).await);
    let tasks = Tasks::new();
    let dialer = old.reach(&[old.address, new.address], TOKEN).worker(&tasks).0;
    let mut ours = within(dialer.dial()).await.unwrap();
    let _theirs = old.hears(&ours).await;
    // The old one does not know yet that it is deposed.
    new.lead(Some(SECOND));
    assert_eq!(within(ours.rx.recv()).await, None, "it is left for the new one");
    let mut ours = within(dialer.dial()).await.unwrap();
    let theirs = new.hears(&ours).await;

    // The new one's store is of yesterday: it has to hear so.
    new.lead(None);
    drop(theirs);
    assert_eq!(within(ours.rx.recv()).await, None);
    let ours = within(dialer.dial()).await.unwrap();
    old.hears(&ours).await;
}

#[tokio::test]
async fn the_second_connection_goes_after_the_first() {
    let (mut old, mut new) = (Rig::new().await, Rig::leading(None).await);
    let tasks = Tasks::new();
    let (dialer, bulk) = old.reach(&[old.address, new.address], TOKEN).worker(&tasks);
    let wants = |offset| FromWorkerBulk::Fetch { digest: HELD, offset };
    // It waits for the first one, and is heard then.
    let mut second = within(bulk.dial()).await.unwrap();
    second.tx.send(wants(1)).await.unwrap();
    let mut first = within(dialer.dial()).await.unwrap();
    let _theirs = old.hears(&first).await;
    let (_, mut heard) = within(old.workers_bulk.accept()).await.unwrap();
    assert_eq!(within(heard.rx.recv()).await, Some(wants(1)));

    new.lead(Some(SECOND));
    assert_eq!(within(first.rx.recv()).await, None);
    let first = within(dialer.dial()).await.unwrap();
    let _theirs = new.hears(&first).await;
    assert_eq!(within(second.rx.recv()).await, None, "the old one still leads, by itself");
    let second = within(bulk.dial()).await.unwrap();
    second.tx.send(wants(2)).await.unwrap();
    let (_, mut heard) = within(new.workers_bulk.accept()).await.unwrap();
    assert_eq!(within(heard.rx.recv()).await, Some(wants(2)));
}

#[tokio::test]
async fn a_role_is_told_when_nobody_leads() {
    let rig = Rig::leading(None).await;
    let dialer = rig.reach(&[rig.address], TOKEN).worker(&rig.tasks).0;
    let mut ours = within(dialer.dial()).await.unwrap();
    assert_eq!(within(ours.rx.recv()).await, None);
}

#[tokio::test]
async fn a_line_tells_whether_the_leader_lives_is_gone_or_silent() {
    let rig = Rig::new().await;
    let tasks = Tasks::new();
    let line = |at| {
        let (told, heard) = mpsc::channel(1);
        let reach = rig.reach(&[at], TOKEN);
        tasks.run("line", OnCancel::Abort, async move { reach.line(at, told).await });
        heard
    };
    async fn until(heard: &mut mpsc::Receiver<Event>, event: Event) {
        while within(heard.recv()).await.unwrap() != event {}
    }
    let mut heard = line(rig.address);
    assert_eq!(within(heard.recv()).await, Some(Event::Connected));
    rig.lead(None);
    assert_eq!(within(heard.recv()).await, Some(Event::Refused), "it has resigned");
    rig.lead(Some(Epoch(5)));
    until(&mut heard, Event::Connected).await;
    rig.tasks.stop();
    assert!(rig.tasks.wait(DEADLINE).await);
    until(&mut heard, Event::Refused).await;

    // The kernel takes the connection, and nobody says anything.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut heard = line(silent.local_addr().unwrap());
    assert_eq!(within(heard.recv()).await, Some(Event::Silent));
    tasks.stop();
}

#[tokio::test]
async fn artifacts_are_read_and_kept_whether_or_not_it_leads() {
    let rig = Rig::leading(None).await;
    let reach = rig.reach(&[rig.address], TOKEN);
    let pieces = within(reach.read_artifact(rig.address, HELD)).await.unwrap();
    let pieces: Vec<Bytes> = within(pieces.try_collect()).await.unwrap();
    let sizes: Vec<usize> = pieces.iter().map(Bytes::len).collect();
    assert_eq!(sizes, [256 << 10, 256 << 10, 88 << 10, 5]);
    let other = Digest([8; 32]);
    assert_eq!(
        within(reach.read_artifact(rig.address, other)).await.err().unwrap(),
        "it is not here"
    );
    within(reach.keep_artifact(rig.address, HELD, rig.address)).await.unwrap();
    let refused = within(reach.keep_artifact(rig.address, other, rig.address)).await.unwrap_err();
    assert!(refused.contains("is not asked"), "{refused}");
    let stranger = rig.reach(&[rig.address], "wrong");
    assert!(within(stranger.read_artifact(rig.address, HELD)).await.is_err());
}
