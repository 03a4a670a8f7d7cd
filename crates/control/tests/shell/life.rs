//! Functions from the API through the machine to workers and data planes, and back.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use dirigent_core::{
    FunctionView,
    frame::{Demand, FromDataPlane, Returned, ToDataPlane, WhyReturned},
};
use serde_json::{Value, json};
use sha2::Digest as _;

use crate::{
    host::{Host, config},
    http::exchange,
    peers::{DataPlane, PATIENCE, worker},
};

async fn deploy(host: &Host, name: &str, query: &str, body: &Value) -> Value {
    let path = format!("/v1/functions/default/{name}?{query}");
    let answer = host.ask("PUT", &path, body.to_string().as_bytes()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn body(name: &str, env: &Value) -> Value {
    let sandbox = json!({ "command": ["dirigent", "example", "hello"] });
    json!({ "manifest": { "name": name, "sandbox": sandbox, "env": env } })
}

#[tokio::test]
async fn a_deploy_waits_until_the_revision_is_live_or_says_why_it_failed() {
    let host = Host::new().await;
    worker(&host.running, host.tasks()).await;
    let good = deploy(&host, "f", "wait=true", &body("f", &json!({}))).await;
    assert_eq!(good["settled"]["state"], "live", "{good}");

    let bad = deploy(&host, "f", "wait=true", &body("f", &json!({ "FAIL": "1" }))).await;
    assert_eq!(bad["settled"]["state"], "failed", "{bad}");
    assert_eq!(bad["settled"]["failure"]["log_tail"], json!(["no such module"]));

    let secret = body("f", &json!({ "KEY": "hunter2" }));
    assert_eq!(deploy(&host, "f", "", &secret).await["deployed"]["changed"], true);
    let back = host.ask("POST", "/v1/functions/default/f/rollback?to=1&wait=true", b"").await;
    assert_eq!(back.json()["settled"]["state"], "live", "{back:?}");
    let described = host.get("/v1/functions/default/f").await.text();
    assert!(described.contains("KEY") && !described.contains("hunter2"), "{described}");
    let settled = host.get("/v1/functions/default/f/revisions/1").await;
    assert_eq!(settled.status, 200, "{settled:?}");
    let none = host.get("/v1/functions/default/f/revisions/77").await;
    assert_eq!((none.status, none.error().0.as_str()), (404, "no_revision"));
    let none = host.ask("POST", "/v1/functions/default/f/rollback?to=77", b"").await;
    assert_eq!((none.status, none.error().0.as_str()), (404, "no_revision"));

    let listed = host.get("/v1/functions").await.json();
    assert_eq!(listed["functions"][0]["name"], "f");
    assert_eq!(host.ask("DELETE", "/v1/functions/default/f", b"").await.status, 200);
    let gone = host.get("/v1/functions/default/f").await;
    assert_eq!((gone.status, gone.error().0.as_str()), (404, "not_found"));
    host.stop().await;
}

fn demand(view: &FunctionView, queued: u32, busy: u32, n: u64) -> FromDataPlane {
    FromDataPlane::Demand(Demand {
        function: view.id,
        queued,
        oldest_wait: Duration::from_millis(u64::from(queued)),
        held: 1,
        idle: 1_u32.saturating_sub(busy),
        busy,
        busy_integral: n * 1_000_000,
        elapsed: n * 2_000_000,
        arrivals_total: n,
        finished_total: n.saturating_sub(1),
        expected: 0,
    })
}

const COLD_STARTS: u64 = 20;

#[tokio::test]
async fn nothing_is_written_on_the_path_of_an_invocation() {
    let host = Host::new().await;
    worker(&host.running, host.tasks()).await;
    let mut plane = DataPlane::attach(&host.running).await;
    deploy(&host, "f", "check=false&wait=true", &body("f", &json!({}))).await;
    plane.say(FromDataPlane::Resolve { name: "f".parse().unwrap() }).await;
    let view = plane
        .until(|frame| match frame {
            ToDataPlane::Resolved { function, .. } => function.clone(),
            _ => None,
        })
        .await;
    let writes = || host.running.store.writes.load(Ordering::SeqCst);
    let before = writes();
    assert!(before >= 3, "a worker, a data plane and a function were recorded: {before}");

    // Cold start after cold start: queued, granted, served, given back.
    for n in 1..=COLD_STARTS {
        plane.say(demand(&view, 1, 0, n)).await;
        let grant = plane
            .until(|frame| match frame {
                ToDataPlane::Grant(grant) => Some(grant.clone()),
                _ => None,
            })
            .await;
        let start = grant.start.expect("a cold start explains itself");
        assert!(!start.decide.is_zero(), "its demand waited for the machine: {start:?}");
        plane.say(demand(&view, 0, 1, n)).await;
        if n == COLD_STARTS {
            break;
        }
        plane.say(demand(&view, 0, 0, n)).await;
        plane
            .say(FromDataPlane::Returned(Returned {
                sandbox: grant.sandbox,
                share: grant.share,
                serial: grant.serial,
                why: WhyReturned::Idle,
            }))
            .await;
    }
    // The last one still runs: the function is active, and shown once its demand was heard.
    let heard = async {
        while host.get("/v1/top").await.json()["top"][0]["arrivals_total"] != COLD_STARTS {}
    };
    tokio::time::timeout(PATIENCE, heard).await.expect("the demand is heard");
    assert_eq!(writes(), before);
    let page = host.get("/metrics").await.text();
    assert!(page.contains("dirigent_function_invocations_total{function=\"f\"} 20"), "{page}");
    host.stop().await;
}

#[tokio::test]
async fn functions_workers_and_artifacts_are_there_after_a_restart() {
    let host = Host::new().await;
    worker(&host.running, host.tasks()).await;
    let artifact = b"an archive";
    let hex: String = sha2::Sha256::digest(artifact).iter().map(|b| format!("{b:02x}")).collect();
    let place = format!("/v1/artifacts/sha256:{hex}");
    assert_eq!(host.ask("PUT", &place, artifact).await.status, 201);
    let mut with_artifact = body("kept", &json!({}));
    with_artifact["artifact"] = json!(format!("sha256:{hex}"));
    deploy(&host, "kept", "check=false", &with_artifact).await;
    deploy(&host, "gone", "check=false", &body("gone", &json!({}))).await;
    assert_eq!(host.ask("DELETE", "/v1/functions/default/gone", b"").await.status, 200);
    let dir = host.stop().await;

    let config = config(&dir);
    let host = Host::start(dir, config).await;
    let listed = host.get("/v1/functions").await.json();
    assert_eq!(listed["functions"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed["functions"][0]["name"], "kept");
    assert_eq!(host.get("/v1/workers").await.json()["workers"][0]["name"], "worker");
    let status = host.get("/v1/status").await.json();
    assert_eq!(status["counts"]["functions"], 1, "{status}");

    // With its last function the artifact goes.
    assert_eq!(host.ask("DELETE", "/v1/functions/default/kept", b"").await.status, 200);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while host.ask("HEAD", &place, b"").await.status != 404 {
        assert!(tokio::time::Instant::now() < deadline, "the artifact is still there");
    }
    host.stop().await;
}

#[tokio::test]
async fn the_artifacts_client_registers_and_registers_again() {
    let host = Host::with(|config| config.compat = Some(BTreeMap::new())).await;
    host.running.set_functions(([127, 0, 0, 1], 8080).into());
    for (path, upper) in [("/", 10), ("/", 20), ("/registerService", 20)] {
        let form = format!(
            "cold_start_sweep=false&image=docker.io%2Fcvetkovic%2Fdirigent_trace_function%3Alatest\
             &name=trace-func-0-1234&port_forwarding=80&port_forwarding=tcp&requested_cpu=10\
             &requested_memory=16&scaling_upper_bound={upper}&scaling_lower_bound=0"
        );
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:9091\r\nUser-Agent: Go-http-client/1.1\r\n\
             Content-Length: {}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Accept-Encoding: gzip\r\nConnection: close\r\n\r\n{form}",
            form.len()
        );
        let answer = exchange(host.running.api, request.as_bytes()).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "127.0.0.1:8080"));
        let function = host.get("/v1/functions/default/trace-func-0-1234").await.json();
        assert_eq!(function["function"]["settings"]["max"], upper, "{function}");
        let command = &function["function"]["revisions"][0]["spec"]["sandbox"]["command"];
        assert_eq!(command, &json!(["dirigent", "example", "trace"]));
    }
    host.stop().await;
}

#[tokio::test]
async fn a_peer_that_left_can_attach_again_and_is_the_same() {
    let host = Host::new().await;
    // Writes are applied in order: behind an acknowledged deploy all before it are counted.
    let mut counts = Vec::new();
    for name in ["a", "b"] {
        drop(DataPlane::attach(&host.running).await);
        deploy(&host, name, "check=false", &body(name, &json!({}))).await;
        counts.push(host.running.store.writes.load(Ordering::SeqCst));
    }
    // It was recorded once, before the first deploy.
    assert_eq!(counts[1] - counts[0], counts[0] - 1, "{counts:?}");
    host.stop().await;
}
