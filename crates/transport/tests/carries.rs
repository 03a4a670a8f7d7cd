//! A control plane's doors on one side of a real connection, a role's dialers on the other.

#![cfg(test)]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use dirigent_core::{
    Cause, Epoch, Fault, SandboxId, StartFailure,
    frame::{FromWorker, ToDataPlane, ToWorker},
};
use dirigent_service::{Acceptor, End, OnCancel, Tasks, acceptor};
use dirigent_transport::{Doors, Reach, serve};
use tokio::net::TcpListener;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const DEADLINE: Duration = Duration::from_secs(20);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("the test's deadline")
}

struct Rig {
    tasks: Tasks,
    address: SocketAddr,
    workers: Acceptor<ToWorker, FromWorker>,
}

impl Rig {
    async fn new() -> Self {
        let tasks = Tasks::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (to_workers, workers) = acceptor("worker");
        // Nobody accepts at the other doors.
        let doors = Doors {
            workers: to_workers,
            workers_bulk: acceptor("worker").0,
            data_planes: acceptor("data plane").0,
            data_planes_bulk: acceptor("data plane").0,
        };
        serve(listener, doors, Arc::new(|token| token == TOKEN), &tasks);
        Self { tasks, address, workers }
    }

    fn reach(&self, addresses: &[SocketAddr], token: &str) -> Reach {
        Reach::new(addresses.to_vec(), "w1", token).unwrap()
    }

    /// A worker's end, and the control plane's.
    async fn meet(&mut self) -> (End<FromWorker, ToWorker>, End<ToWorker, FromWorker>) {
        let dialer = self.reach(&[self.address], TOKEN).worker(&self.tasks);
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
    let (said, mut heard) = tokio::sync::watch::channel(0_u64);
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
async fn the_next_address_is_tried_and_no_token_is_no_connection() {
    let mut rig = Rig::new().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let dialer = rig.reach(&[nobody, rig.address], TOKEN).worker(&rig.tasks);
    let mut ours = within(dialer.dial()).await.unwrap();
    assert_eq!(within(ours.rx.recv()).await, None, "nobody is there");
    let ours = within(dialer.dial()).await.unwrap();
    let (_, mut theirs) = within(rig.workers.accept()).await.unwrap();
    ours.tx.send(gone(1)).await.unwrap();
    assert_eq!(within(theirs.rx.recv()).await, Some(gone(1)));

    let wrong = rig.reach(&[rig.address], "wrong").data_plane(&rig.tasks);
    let mut refused: End<_, ToDataPlane> = within(wrong.dial()).await.unwrap();
    assert_eq!(within(refused.rx.recv()).await, None);
    assert!(Reach::new(Vec::new(), "w1", TOKEN).is_err());
    assert!(Reach::new(vec![rig.address], "w\n1", TOKEN).is_err());
    assert!(Reach::new(vec![rig.address], "w1", "").is_err());
}
