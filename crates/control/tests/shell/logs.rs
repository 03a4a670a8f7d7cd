//! Logs and invocations over HTTP, from workers and data planes that the test plays.

use std::time::Duration;

use dirigent_core::{
    Epoch, FunctionId, SandboxId,
    frame::{
        FromDataPlaneBulk, FromWorkerBulk, InvocationRecord, LogLine, LogQuery, ToDataPlaneBulk,
        ToWorkerBulk,
    },
};
use dirigent_service::End;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{host::Host, peers::PATIENCE};

type Worker = End<FromWorkerBulk, ToWorkerBulk>;

fn line(at_ms: u64, text: &str) -> LogLine {
    let sandbox = SandboxId::new(Epoch(1), 1);
    LogLine { at_ms, sandbox, stderr: false, text: text.to_owned() }
}

async fn deployed(host: &Host) {
    let body = r#"{"manifest":{"name":"f","sandbox":{"command":["x"]}}}"#;
    let path = "/v1/functions/default/f?check=false";
    let answer = host.ask("PUT", path, body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// A worker's second connection that is surely known: one is asked for logs until it hears of it.
async fn worker(host: &Host) -> Worker {
    let mut end = host.running.workers_bulk.dial().await.unwrap();
    let heard = async {
        loop {
            let asking = host.get("/v1/functions/default/f/logs?tail=1");
            let hearing = async {
                if let Some(ToWorkerBulk::ReadLogs(query)) = end.rx.recv().await {
                    say(&end, &query, Vec::new(), true).await;
                }
            };
            tokio::select! {
                biased;
                () = hearing => return,
                answer = asking => assert_eq!(answer.status, 200, "{answer:?}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.expect("the connection is known");
    while let Ok(_left_over) = end.rx.try_recv() {}
    end
}

async fn say(end: &Worker, query: &LogQuery, lines: Vec<LogLine>, last: bool) {
    let frame = FromWorkerBulk::LogLines { id: query.id, lines, end: last, missing: None };
    end.tx.send(frame).await.unwrap();
}

/// The next question about logs that is still of interest.
async fn asked(end: &mut Worker) -> LogQuery {
    loop {
        match end.rx.recv().await.expect("the connection is open") {
            ToWorkerBulk::ReadLogs(query) => return query,
            ToWorkerBulk::StopLogs { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn lines_of_several_workers_are_merged_and_cut_to_the_newest() {
    let host = Host::new().await;
    deployed(&host).await;
    let mut one = worker(&host).await;
    let answer_one = async {
        let query = asked(&mut one).await;
        assert_eq!((query.tail, query.since_ms, query.follow), (3, Some(5), false));
        say(&one, &query, vec![line(10, "a"), line(30, "c")], false).await;
        say(&one, &query, vec![line(40, "d")], true).await;
    };
    let mut two = host.running.workers_bulk.dial().await.unwrap();
    let answer_two = async {
        let query = asked(&mut two).await;
        say(&two, &query, vec![line(20, "b")], true).await;
    };
    let get = host.get("/v1/functions/default/f/logs?tail=3&since_ms=5");
    let (answer, (), ()) = tokio::join!(get, answer_one, answer_two);
    assert!(answer.head.contains("application/x-ndjson"), "{answer:?}");
    let texts: Vec<String> = answer
        .text()
        .lines()
        .map(|line| serde_json::from_str::<LogLine>(line).unwrap().text)
        .collect();
    assert_eq!(texts, ["b", "c", "d"]);

    let missing = host.get("/v1/functions/default/nobody/logs").await;
    assert_eq!(missing.status, 404);
    host.stop().await;
}

#[tokio::test]
async fn a_reader_who_follows_gets_lines_as_they_come_and_is_let_go() {
    let host = Host::new().await;
    deployed(&host).await;
    let mut end = worker(&host).await;
    let mut stream = TcpStream::connect(host.running.api).await.unwrap();
    let request = format!(
        "GET /v1/functions/default/f/logs?follow=true HTTP/1.1\r\nHost: api\r\n\
         Authorization: Bearer {}\r\n\r\n",
        host.token
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let query = asked(&mut end).await;
    assert!(query.follow);
    let mut seen = String::new();
    for text in ["first", "second"] {
        say(&end, &query, vec![line(1, text)], false).await;
        let read = async {
            while !seen.contains(text) {
                let mut buffer = [0; 4096];
                let n = stream.read(&mut buffer).await.unwrap();
                assert!(n > 0, "the stream ended: {seen}");
                seen.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("the line comes");
    }
    drop(stream);
    let stopped = async {
        while end.rx.recv().await.unwrap() != (ToWorkerBulk::StopLogs { id: query.id }) {}
    };
    tokio::time::timeout(PATIENCE, stopped).await.expect("the worker is told to stop");
    host.stop().await;
}

#[tokio::test]
async fn readers_who_follow_do_not_hold_up_the_end() {
    let host = Host::new().await;
    deployed(&host).await;
    let mut end = worker(&host).await;
    let mut stream = TcpStream::connect(host.running.api).await.unwrap();
    let request = format!(
        "GET /v1/functions/default/f/logs?follow=true HTTP/1.1\r\nHost: api\r\n\
         Authorization: Bearer {}\r\n\r\n",
        host.token
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    asked(&mut end).await;
    host.stop().await;
    let mut rest = Vec::new();
    let read = stream.read_to_end(&mut rest);
    tokio::time::timeout(PATIENCE, read).await.expect("the stream ends").unwrap();
    // A whole answer: chunked, with its end.
    assert!(rest.ends_with(b"0\r\n\r\n"), "{:?}", String::from_utf8_lossy(&rest));
}

#[tokio::test]
async fn an_invocation_is_shown_with_the_lines_written_while_it_ran() {
    let host = Host::new().await;
    deployed(&host).await;
    let mut worker = worker(&host).await;
    let mut plane = host.running.data_planes_bulk.dial().await.unwrap();
    let record = InvocationRecord {
        request_id: "r-1".to_owned(),
        function: Some("f".parse().unwrap()),
        function_id: Some(FunctionId::new(Epoch(1), 1)),
        sandbox: Some(SandboxId::new(Epoch(1), 1)),
        revision: None,
        arrived_ms: 1000,
        total: Duration::from_millis(500),
        status: 200,
        code: None,
        attempts: 1,
        cold: true,
        phases: vec![("queue".to_owned(), Duration::from_millis(2))],
    };
    let play = async {
        loop {
            tokio::select! {
                question = plane.rx.recv() => {
                    let Some(ToDataPlaneBulk::FindInvocation { id, .. }) = question else { return };
                    let record = Some(Box::new(record.clone()));
                    plane.tx.send(FromDataPlaneBulk::Invocation { id, record }).await.unwrap();
                }
                query = asked(&mut worker) => {
                    assert_eq!((query.since_ms, query.until_ms), (Some(950), Some(1550)));
                    say(&worker, &query, vec![line(1200, "while it ran")], true).await;
                }
            }
        }
    };
    let ask = async {
        loop {
            // Until the data plane's second connection is known, nobody remembers it.
            let answer = host.get("/v1/invocations/r-1").await;
            if answer.status == 200 {
                return answer.json();
            }
        }
    };
    let found = tokio::select! { found = ask => found, () = play => panic!("the plane left") };
    assert_eq!(found["record"]["phases"][0][0], "queue");
    assert_eq!(found["lines"][0]["text"], "while it ran");
    host.stop().await;
}
