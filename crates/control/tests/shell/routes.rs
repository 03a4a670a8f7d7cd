//! Who may ask, what can be asked, and what is said to those who ask wrongly.

use dirigent_control::{StartError, store::RedbStore, store::Store as _};
use dirigent_core::{
    Bytes, Isolation, MilliCpu, RuntimeKind,
    frame::{Capacity, FromWorker, Hello, Incarnation, PROTOCOL, ToWorker, WorkerHello},
};
use dirigent_service::Tasks;

use crate::{
    host::{Host, config, loopback},
    http::exchange,
    peers,
};

/// Every route of the document, with its parameters filled in.
fn routes(document: &serde_json::Value) -> Vec<(String, String)> {
    let mut routes = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path
            .replace("{namespace}", "default")
            .replace("{role}", "worker")
            .replace("{name}", "nobody")
            .replace("{request_id}", "r-1")
            .replace("{digest}", &format!("sha256:{}", "0".repeat(64)));
        for method in methods.as_object().unwrap().keys() {
            routes.push((method.to_uppercase(), path.clone()));
        }
    }
    routes
}

#[tokio::test]
async fn every_documented_route_wants_the_token_and_exists() {
    let host = Host::new().await;
    let routes = routes(&host.get("/v1/openapi.json").await.json());
    assert!(routes.len() >= 15, "{routes:?}");
    let wrong = format!("Authorization: Bearer {}\r\n", "0".repeat(64));
    let prefix = format!("Authorization: Bearer {}\r\n", &host.token[..63]);
    for (method, path) in &routes {
        for headers in ["", &wrong, &prefix, "Authorization: Basic eDp5\r\n"] {
            let answer = host.raw(method, path, headers, b"").await;
            let wanted = match path.as_str() {
                "/health" => 200,
                // It wants a join token, in its body.
                "/v1/join" => 400,
                _ => 401,
            };
            assert_eq!(answer.status, wanted, "{method} {path} {headers}");
        }
    }
    // One after the other: those that ask the machine may take a moment.
    for (method, path) in &routes {
        let answer = host.ask(method, path, b"").await;
        assert_ne!(answer.status, 405, "{method} {path}");
        assert_ne!(answer.status, 401, "{method} {path}");
        if answer.status >= 400 && method != "HEAD" {
            let (code, message) = answer.error();
            assert!(code != "no_route" && !message.is_empty(), "{method} {path}: {answer:?}");
        }
    }
    host.stop().await;
}

#[tokio::test]
async fn what_does_not_exist_is_refused_in_json() {
    let host = Host::new().await;
    for (method, path, status, code) in [
        ("GET", "/nothing", 404, "no_route"),
        ("GET", "/v1/functions/only-namespace", 404, "no_route"),
        ("POST", "/", 404, "no_route"),
        ("POST", "/v1/workers", 405, "no_method"),
        ("POST", "/health", 405, "no_method"),
        ("GET", "/v1/functions?limt=3", 400, "bad_request"),
        ("GET", "/v1/functions?limit=many", 400, "bad_request"),
        ("GET", "/v1/functions/default/Not_A_Label", 400, "bad_request"),
        ("GET", "/v1/functions/default/f/logs?sandbox=x", 400, "bad_request"),
        ("GET", "/v1/functions/default/f/revisions/x", 400, "bad_request"),
        ("GET", "/v1/functions/default/f/revisions/1", 404, "not_found"),
        ("PUT", "/v1/artifacts/md5:123", 400, "bad_request"),
        ("GET", "/v1/invocations/r-404", 404, "not_found"),
    ] {
        let answer = host.ask(method, path, b"").await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        assert!(answer.head.contains("application/json"), "{method} {path}: {answer:?}");
        assert_eq!(answer.error().0, code, "{method} {path}");
    }
    host.stop().await;
}

#[tokio::test]
async fn deploys_that_cannot_be_read_say_where_and_why() {
    let host = Host::new().await;
    let large = vec![b' '; (1 << 20) + 1];
    let absent = format!("sha256:{}", "0".repeat(64));
    let manifest = |name: &str| format!(r#"{{"name":"{name}","sandbox":{{"command":["x"]}}}}"#);
    for (body, status, code, wanted) in [
        ("{", 400, "bad_request", "line 1 column 1"),
        (r#"{"manifest":{"name":"f","sandbox":{"comand":["x"]}}}"#, 400, "bad_request", "comand"),
        (
            &format!(r#"{{"manifest":{}}}"#, manifest("other")),
            400,
            "bad_request",
            "the path names `f`",
        ),
        (
            &format!(r#"{{"manifest":{},"artifact":"{absent}"}}"#, manifest("f")),
            422,
            "no_artifact",
            "PUT /v1/artifacts/",
        ),
    ] {
        let answer = host.ask("PUT", "/v1/functions/default/f", body.as_bytes()).await;
        assert_eq!(answer.status, status, "{body}: {answer:?}");
        let (found, message) = answer.error();
        assert_eq!(found, code);
        assert!(message.contains(wanted), "{message}");
    }
    let answer = host.ask("PUT", "/v1/functions/default/f", &large).await;
    assert_eq!((answer.status, answer.error().0.as_str()), (413, "too_large"));
    host.stop().await;
}

#[tokio::test]
async fn a_head_of_megabytes_is_cut_off() {
    let host = Host::new().await;
    let mut bytes = b"GET /health HTTP/1.1\r\nHost: api\r\nX: ".to_vec();
    bytes.resize(50 << 20, b'x');
    bytes.extend(b"\r\n\r\n");
    assert_eq!(exchange(host.running.api, &bytes).await.status, 431);
    assert_eq!(host.raw("GET", "/health", "", b"").await.text(), "ok\n");
    host.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_the_cluster_and_the_token_and_raises_the_epoch() {
    let host = Host::new().await;
    let first = host.get("/v1/status").await.json();
    assert_eq!(first["epoch"], 1);
    let url = std::fs::read_to_string(host.state().join("api")).unwrap();
    assert_eq!(url.trim(), format!("http://{}", host.running.api));
    let (state, token) = (host.state(), host.token.clone());
    let dir = host.stop().await;
    assert!(!state.join("api").exists());

    let config = config(&dir);
    let host = Host::start(dir, config).await;
    let second = host.get("/v1/status").await.json();
    assert_eq!(second["epoch"], 2);
    assert_eq!(second["cluster"], first["cluster"]);
    assert_eq!(host.token, token);
    host.stop().await;
}

#[tokio::test]
async fn what_is_in_the_way_of_a_start_is_named() {
    let host = Host::new().await;
    let tasks = Tasks::new();
    let start = |config| dirigent_control::start(config, &tasks);

    let same = start(config(&host.dir)).await.unwrap_err();
    assert!(matches!(same, StartError::Lock(_)), "{same}");
    assert!(same.to_string().contains(&format!("(pid {})", std::process::id())), "{same}");

    let other = tempfile::tempdir().unwrap();
    let mut taken = config(&other);
    taken.listen = host.running.api;
    let taken = start(taken).await.unwrap_err().to_string();
    assert!(taken.contains("is taken by") && taken.contains("`--api`"), "{taken}");

    let mut open = config(&other);
    open.listen = ([0, 0, 0, 0], 0).into();
    let open = start(open).await.unwrap_err();
    assert!(matches!(open, StartError::NotLoopback { .. }), "{open}");

    let file = other.path().join("file");
    std::fs::write(&file, "").unwrap();
    let mut blocked = config(&other);
    blocked.state = file.join("state");
    let blocked = start(blocked).await.unwrap_err();
    assert!(matches!(blocked, StartError::State { .. }), "{blocked}");

    let mut opened = RedbStore::new(&other.path().join("store.redb"));
    opened.take_office(dirigent_core::Epoch(0)).unwrap();
    let mut used = config(&other);
    used.state = other.path().to_owned();
    used.listen = loopback();
    let used = start(used).await.unwrap_err().to_string();
    assert!(used.contains("is open in another process"), "{used}");
    tasks.stop();
    host.stop().await;
}

#[tokio::test]
async fn a_peer_that_has_obeyed_more_than_an_old_copy_of_the_store_knows_makes_the_next_term_later()
{
    let host = Host::new().await;
    let end = host.running.workers.named("w1").dial().await.unwrap();
    // What the store had said before it was restored.
    let shown = dirigent_core::Epoch(8).next(77);
    let hello = peers::hello_after(shown);
    end.tx.send(FromWorker::Hello(Box::new(hello))).await.unwrap();
    let term = loop {
        let term = host.get("/v1/status").await.json()["epoch"].clone();
        if term.is_number() && term != 1 {
            break term;
        }
    };
    assert_eq!(term, 10, "above what was shown, in the same process");
    // Who was sent away is welcome to the new term.
    let mut end = host.running.workers.named("w1").dial().await.unwrap();
    let hello = peers::hello_after(shown);
    end.tx.send(FromWorker::Hello(Box::new(hello))).await.unwrap();
    let Some(ToWorker::Welcome { welcome, .. }) = end.rx.recv().await else {
        panic!("no welcome");
    };
    assert_eq!(welcome.epoch.term(), 10);
    host.stop().await;
}

#[tokio::test]
async fn the_status_shows_what_attached_workers_offer() {
    let host = Host::new().await;
    let end = host.running.workers.named("w1").dial().await.unwrap();
    let hello = Hello {
        cluster: None,
        protocol: (PROTOCOL, PROTOCOL),
        features: Vec::new(),
        incarnation: Incarnation::default(),
        highest_epoch: dirigent_core::Epoch(0),
    };
    let capacity = Capacity {
        memory: Bytes::mib(1024),
        cpu: MilliCpu(2000),
        cpu_overcommit: 10,
        sandboxes: 10,
        starts: 8,
        runtimes: vec![(RuntimeKind::Process, Isolation::Basic)],
        missing: Vec::new(),
    };
    let hello = WorkerHello { hello, capacity, sandboxes: Vec::new(), artifacts: Vec::new() };
    end.tx.send(FromWorker::Hello(Box::new(hello))).await.unwrap();
    host.running.set_functions(([127, 0, 0, 1], 8080).into());
    let status = loop {
        let status = host.get("/v1/status").await.json();
        if status["workers"][0].is_object() {
            break status;
        }
    };
    assert_eq!(status["workers"][0]["name"], "w1");
    assert_eq!(status["workers"][0]["runtimes"][0]["isolation"], "basic");
    assert_eq!(status["functions_url"], "http://127.0.0.1:8080");
    drop(end);
    while host.get("/v1/status").await.json()["workers"][0].is_object() {}
    host.stop().await;
}

#[tokio::test]
async fn the_metrics_page_has_the_pages_of_other_roles() {
    let host = Host::with(|config| {
        config.pages = vec![std::sync::Arc::new(|page| page.push_str("proxy_calls_total 3\n"))];
    })
    .await;
    let page = host.get("/metrics").await;
    assert!(page.head.contains("text/plain; version=0.0.4"), "{page:?}");
    // As Prometheus asks.
    let accept = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;q=0.5,*/*;q=0.1";
    let headers = format!("Authorization: Bearer {}\r\nAccept: {accept}\r\n", host.token);
    let page = host.raw("GET", "/metrics", &headers, b"").await;
    assert!(page.head.contains("application/openmetrics-text"), "{page:?}");
    for line in ["dirigent_control_epoch 1", "dirigent_control_functions 0", "proxy_calls_total 3"]
    {
        assert!(page.text().lines().any(|found| found == line), "{line}: {}", page.text());
    }
    host.stop().await;
}
