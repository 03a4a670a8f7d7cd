//! Second connections, with peers played on channel ends.

use dirigent_core::{Epoch, FunctionId, FunctionName, SandboxId};
use dirigent_service::acceptor;
use sha2::Digest as _;

use super::*;
use crate::blobs::Blobs;

fn line(at_ms: u64, text: &str) -> LogLine {
    let sandbox = SandboxId::new(Epoch(1), 1);
    LogLine { at_ms, sandbox, stderr: false, text: text.to_owned() }
}

fn query(follow: bool) -> LogQuery {
    LogQuery {
        id: 0,
        function: FunctionId::new(Epoch(1), 1),
        sandbox: None,
        since_ms: None,
        until_ms: None,
        tail: 10,
        follow,
    }
}

/// A bulk connection as a worker sees it, once the control plane knows of it.
async fn worker(bulk: &Bulk, blobs: &Blobs, tasks: &Tasks) -> End<FromWorkerBulk, ToWorkerBulk> {
    let (dialer, acceptor) = acceptor("worker");
    let before = bulk.lock().workers.len();
    bulk.accept_workers(acceptor, &Artifacts::alone(blobs.clone()), tasks);
    let end = dialer.dial().await.unwrap();
    while bulk.lock().workers.len() == before {
        tokio::task::yield_now().await;
    }
    end
}

fn blobs(dir: &tempfile::TempDir) -> Blobs {
    Blobs::open(dir.path(), 1 << 30).unwrap()
}

#[tokio::test]
async fn artifacts_go_out_by_pieces_from_the_offset_on() {
    let (dir, tasks, bulk) = (tempfile::tempdir().unwrap(), Tasks::new(), Bulk::default());
    let blobs = blobs(&dir);
    let bytes: Vec<u8> = (0..=250).cycle().take(PIECE * 2 + 5).collect();
    let digest = Digest(sha2::Sha256::digest(&bytes).into());
    let body = futures_util::stream::iter([Ok::<_, std::io::Error>(bytes.clone().into())]);
    blobs.put(digest, body).await.unwrap();
    let mut end = worker(&bulk, &blobs, &tasks).await;
    end.tx.send(FromWorkerBulk::Fetch { digest, offset: 3 }).await.unwrap();
    let mut got = Vec::new();
    loop {
        match end.rx.recv().await.unwrap() {
            ToWorkerBulk::Chunk { data, end: false, .. } => {
                assert!(data.len() <= PIECE);
                got.extend(data);
            }
            ToWorkerBulk::Chunk { data, end: true, .. } => {
                assert!(data.is_empty());
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got, bytes[3..]);
    let missing = Digest([7; 32]);
    end.tx.send(FromWorkerBulk::Fetch { digest: missing, offset: 0 }).await.unwrap();
    let answer = end.rx.recv().await.unwrap();
    assert!(matches!(answer, ToWorkerBulk::NoArtifact { digest, .. } if digest == missing));
    tasks.stop();
}

#[tokio::test]
async fn only_so_much_of_an_artifact_waits_for_a_worker() {
    let (dir, tasks, bulk) = (tempfile::tempdir().unwrap(), Tasks::new(), Bulk::default());
    let blobs = blobs(&dir);
    let bytes = vec![7; PIECE * (PIECES * 3)];
    let digest = Digest(sha2::Sha256::digest(&bytes).into());
    let body = futures_util::stream::iter([Ok::<_, std::io::Error>(bytes.clone().into())]);
    blobs.put(digest, body).await.unwrap();
    let mut end = worker(&bulk, &blobs, &tasks).await;
    end.tx.send(FromWorkerBulk::Fetch { digest, offset: 0 }).await.unwrap();
    let mut got = 0;
    loop {
        // As many as come before the next one is taken.
        while end.rx.len() < PIECES && got + PIECE * end.rx.len() < bytes.len() {
            tokio::task::yield_now().await;
        }
        let Some(ToWorkerBulk::Chunk { data, end: last, .. }) = end.rx.recv().await else {
            panic!("no piece")
        };
        assert!(end.rx.len() < PIECES, "{} wait", end.rx.len());
        got += data.len();
        if last {
            break;
        }
    }
    assert_eq!(got, bytes.len());
    tasks.stop();
}

#[tokio::test]
async fn lines_of_all_workers_reach_the_reader_until_each_is_through_or_gone() {
    let (dir, tasks, bulk) = (tempfile::tempdir().unwrap(), Tasks::new(), Bulk::default());
    let blobs = blobs(&dir);
    let mut one = worker(&bulk, &blobs, &tasks).await;
    let mut two = worker(&bulk, &blobs, &tasks).await;
    let mut reader = bulk.read_logs(query(false)).await;
    let Some(ToWorkerBulk::ReadLogs(asked)) = one.rx.recv().await else { panic!("not asked") };
    assert!(matches!(two.rx.recv().await, Some(ToWorkerBulk::ReadLogs(_))));
    let lines = vec![line(1, "a")];
    let answer =
        FromWorkerBulk::LogLines { id: asked.id, lines: lines.clone(), end: true, missing: None };
    one.tx.send(answer).await.unwrap();
    assert_eq!(reader.next().await, Some(Read::Lines(lines)));
    drop(two);
    assert!(matches!(reader.next().await, Some(Read::Missing(why)) if why.contains("left")));
    assert_eq!(reader.next().await, None);
    tasks.stop();
}

#[tokio::test]
async fn a_reader_who_leaves_stops_the_workers() {
    let (dir, tasks, bulk) = (tempfile::tempdir().unwrap(), Tasks::new(), Bulk::default());
    let mut one = worker(&bulk, &blobs(&dir), &tasks).await;
    let reader = bulk.read_logs(query(true)).await;
    let Some(ToWorkerBulk::ReadLogs(asked)) = one.rx.recv().await else { panic!("not asked") };
    assert!(asked.follow);
    drop(reader);
    assert_eq!(one.rx.recv().await, Some(ToWorkerBulk::StopLogs { id: asked.id }));
    assert!(bulk.lock().readers.is_empty());
    tasks.stop();
}

#[tokio::test(start_paused = true)]
async fn a_reader_who_takes_nothing_is_told_and_the_worker_let_go() {
    let (dir, tasks, bulk) = (tempfile::tempdir().unwrap(), Tasks::new(), Bulk::default());
    let mut one = worker(&bulk, &blobs(&dir), &tasks).await;
    let mut reader = bulk.read_logs(query(true)).await;
    let Some(ToWorkerBulk::ReadLogs(asked)) = one.rx.recv().await else { panic!("not asked") };
    let lines = || FromWorkerBulk::LogLines {
        id: asked.id,
        lines: vec![line(1, "a")],
        end: false,
        missing: None,
    };
    for _ in 0..BATCHES + 2 {
        one.tx.send(lines()).await.unwrap();
    }
    assert_eq!(one.rx.recv().await, Some(ToWorkerBulk::StopLogs { id: asked.id }));
    for _ in 0..BATCHES {
        assert!(matches!(reader.next().await, Some(Read::Lines(_))));
    }
    assert!(matches!(reader.next().await, Some(Read::Missing(why)) if why.contains("slowly")));
    assert_eq!(reader.next().await, None);
    tasks.stop();
}

#[tokio::test]
async fn an_invocation_is_found_on_whichever_data_plane_remembers_it() {
    let (tasks, bulk) = (Tasks::new(), Bulk::default());
    let (dialer, acceptor) = acceptor("data plane");
    bulk.accept_data_planes(acceptor, &tasks);
    let (mut one, mut two) = (dialer.dial().await.unwrap(), dialer.dial().await.unwrap());
    while bulk.lock().data_planes.len() < 2 {
        tokio::task::yield_now().await;
    }
    let record = InvocationRecord {
        request_id: "r-1".to_owned(),
        function: Some("hello".parse::<FunctionName>().unwrap()),
        function_id: Some(FunctionId::new(Epoch(1), 1)),
        sandbox: None,
        revision: None,
        arrived_ms: 1,
        total: Duration::from_millis(5),
        status: 200,
        code: None,
        attempts: 1,
        cold: false,
        phases: Vec::new(),
    };
    let answer = async {
        for (end, record) in [(&mut one, None), (&mut two, Some(Box::new(record)))] {
            let Some(ToDataPlaneBulk::FindInvocation { id, .. }) = end.rx.recv().await else {
                panic!("not asked")
            };
            end.tx.send(FromDataPlaneBulk::Invocation { id, record }).await.unwrap();
        }
    };
    let (found, ()) = tokio::join!(bulk.find("r-1"), answer);
    assert_eq!(found.unwrap().request_id, "r-1");
    assert!(bulk.lock().finders.is_empty());
    tasks.stop();
}
