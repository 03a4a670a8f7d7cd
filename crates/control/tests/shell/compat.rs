//! The artifact's registration, with the bytes that its client sends.

use std::collections::BTreeMap;

use crate::{host::Host, http::exchange};

/// What Go's `http.PostForm` sends.
fn form(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:9091\r\nUser-Agent: Go-http-client/1.1\r\n\
         Content-Length: {}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Accept-Encoding: gzip\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

const FORM: &str = "cold_start_sweep=false&image=docker.io%2Fcvetkovic%2Fdirigent_trace_function\
                    &name=trace-func-0-1234&port_forwarding=80&port_forwarding=tcp\
                    &requested_cpu=10&requested_memory=16";

#[tokio::test]
async fn it_is_not_there_unless_asked_for() {
    let host = Host::new().await;
    for path in ["/", "/registerService"] {
        assert_eq!(exchange(host.running.api, &form(path, FORM)).await.status, 401);
    }
    host.stop().await;
}

#[tokio::test]
async fn wrong_forms_and_browsers_are_refused() {
    let host = Host::with(|config| config.compat = Some(BTreeMap::new())).await;
    let post = async |body: &str| exchange(host.running.api, &form("/registerService", body)).await;
    assert_eq!(post(FORM).await.status, 503);
    host.running.set_functions(([127, 0, 0, 1], 8080).into());
    for (body, wanted) in [
        ("image=dirigent_x", "`name` is missing"),
        ("name=f", "`image` is missing"),
        ("name=f&image=nginx", "[compat.images]"),
        ("name=f&image=dirigent_x&requested_cpu=much", "requested_cpu"),
    ] {
        let answer = post(body).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.text().contains(wanted), "{body}: {}", answer.text());
    }
    assert_eq!(post(&"x".repeat(100_000)).await.status, 413);
    let page = host.raw("POST", "/", "Origin: http://evil.example\r\n", FORM.as_bytes()).await;
    assert_eq!(page.status, 403);
    assert_eq!(host.raw("GET", "/registerService", "", b"").await.status, 405);
    // The rest of the API is as closed as without it.
    assert_eq!(host.raw("GET", "/v1/functions", "", b"").await.status, 401);
    host.stop().await;
}
