//! Functions that are called with tokens: who is let in, and what the function sees of it.

use dirigent_core::{
    Access, Auth, Digest, Settings, TokenView,
    frame::{CHECKS_TOKENS, FromDataPlane, ToDataPlane},
};
use sha2::{Digest as _, Sha256};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::common::{
    Backend, Function, Rig, body, header, read_head, read_request, read_response, status, within,
};

fn view(secret: &str, access: Access) -> TokenView {
    TokenView { hash: Digest(Sha256::digest(secret).into()), access, expires_ms: None }
}

/// The function from now on, as the next version of the catalogue has it.
async fn publish(rig: &Rig, function: &Function, version: u64) {
    let (name, view) = ("hello".parse().unwrap(), Some(function.view("hello")));
    rig.say(ToDataPlane::Resolved { name, version, function: view }).await;
    rig.saw(
        "it is applied",
        |frame| matches!(frame, FromDataPlane::Applied { version: v, .. } if *v == version),
    )
    .await;
}

/// From now on these count: what is said after it is heard after it.
async fn tokens(rig: &Rig, tokens: Vec<TokenView>, function: &Function, version: u64) {
    rig.say(ToDataPlane::Tokens { tokens }).await;
    publish(rig, function, version).await;
}

/// That asks for tokens, over whatever the function speaks.
pub(crate) async fn asking(rig: &Rig, open: Function, backend: &Backend, slots: u32) -> Function {
    rig.serving("hello", open.clone(), backend.address, slots).await;
    let settings = Settings { auth: Auth::Token, ..open.settings.clone() };
    let function = Function { settings, ..open };
    let all = vec![view("look", Access::View), view("call", Access::Invoke)];
    tokens(rig, all, &function, 2).await;
    function
}

/// A call on a connection that is kept: its head and body.
async fn call(caller: &mut TcpStream, authorization: &str) -> (String, String) {
    let request =
        format!("POST / HTTP/1.1\r\nHost: hello\r\n{authorization}Content-Length: 2\r\n\r\nhi");
    caller.write_all(request.as_bytes()).await.unwrap();
    read_response(caller).await
}

const CALL: &str = "Authorization: Bearer call\r\n";

#[tokio::test]
async fn only_who_shows_a_token_that_may_call_is_let_in_and_the_function_does_not_see_it() {
    let rig = Rig::start().await;
    let backend = Backend::answering(|head, body| format!("{head}{}", body.len())).await;
    rig.saw("what it can do", |frame| match frame {
        FromDataPlane::Hello(hello) => hello.hello.has(CHECKS_TOKENS),
        _ => false,
    })
    .await;
    // Without a token asked for, the header is the function's.
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let (_, seen) = call(&mut rig.connect().await, CALL).await;
    assert!(seen.contains("authorization: Bearer call\r\n"), "{seen}");

    let rig = Rig::start().await;
    let function = asking(&rig, Function::default(), &backend, 1).await;
    let mut refusals = 0;
    for (authorization, expected, code, challenge) in [
        ("", 401, "unauthorized", "Bearer realm=\"dirigent\""),
        ("Authorization: Bearer wrong\r\n", 401, "unauthorized", "Bearer realm=\"dirigent\""),
        ("Authorization: Basic Y2FsbDo=\r\n", 401, "unauthorized", "Bearer realm=\"dirigent\""),
        (
            "Authorization: Bearer look\r\n",
            403,
            "forbidden",
            "Bearer realm=\"dirigent\", error=\"insufficient_scope\"",
        ),
    ] {
        let (head, text) = call(&mut rig.connect().await, authorization).await;
        assert_eq!(status(&head), expected, "{head}");
        assert_eq!(header(&head, "x-dirigent-error"), Some(code), "{head}");
        assert_eq!(header(&head, "www-authenticate"), Some(challenge), "{head}");
        let error: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(error["error"]["code"], code, "{error}");
        let id = header(&head, "x-dirigent-request-id").unwrap();
        let record = rig.proxy.find_invocation(id).expect("it is remembered");
        assert_eq!((record.status, record.code.as_deref()), (expected, Some(code)));
        refusals += 1;
    }
    assert_eq!(refusals, 4);
    let mut caller = rig.connect().await;
    let (head, seen) = call(&mut caller, CALL).await;
    assert_eq!(status(&head), 200, "{head}");
    assert!(!seen.to_ascii_lowercase().contains("authorization"), "{seen}");
    assert!(seen.ends_with("\r\n\r\n2"), "{seen}");
    // Nobody else was admitted: the one before, who subscribed, and the one after.
    rig.demand("an end", |demand| demand.busy == 0 && demand.finished_total == 1).await;
    rig.demand("two callers", |demand| demand.arrivals_total == 2).await;

    // Revoked, it counts no more, on the connection that has just been served too.
    tokens(&rig, vec![view("other", Access::Admin)], &function, 3).await;
    assert_eq!(status(&call(&mut caller, CALL).await.0), 401);
    let (head, _) = call(&mut rig.connect().await, "authorization: bearer other\r\n").await;
    assert_eq!(status(&head), 200, "{head}");
}

#[tokio::test]
async fn who_was_not_told_which_tokens_count_lets_nobody_in() {
    let rig = Rig::start().await;
    let backend = Backend::answering(|_, _| "ok".into()).await;
    rig.serving("hello", Function::default(), backend.address, 1).await;
    let settings = Settings { auth: Auth::Token, ..Settings::default() };
    publish(&rig, &Function { settings, ..Function::default() }, 2).await;
    let (head, text) = call(&mut rig.connect().await, CALL).await;
    assert_eq!(status(&head), 503, "{head}");
    assert_eq!(header(&head, "x-dirigent-error"), Some("no_control_plane"), "{head}");
    assert_eq!(header(&head, "retry-after"), Some("1"), "{head}");
    assert!(text.contains("which count"), "{text}");
}

#[tokio::test]
async fn without_a_control_plane_those_that_counted_go_on() {
    let rig = Rig::start().await;
    let backend = Backend::answering(|_, _| "ok".into()).await;
    asking(&rig, Function::default(), &backend, 1).await;
    rig.attach(false).await;
    let mut caller = rig.connect().await;
    let (head, text) = call(&mut caller, CALL).await;
    assert_eq!((status(&head), text.as_str()), (200, "ok"), "{head}");
    assert_eq!(status(&call(&mut caller, "").await.0), 401);
}

#[tokio::test]
async fn a_protocol_is_switched_only_for_who_is_let_in() {
    let rig = Rig::start().await;
    let backend = Backend::start(|mut stream, _| async move {
        let (head, _) = read_request(&mut stream).await.unwrap();
        assert!(!head.contains("uthorization"), "{head}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                      Upgrade: websocket\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        // Until the caller leaves.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.unwrap();
    })
    .await;
    asking(&rig, Function::default(), &backend, 1).await;
    for (authorization, expected) in [("", 401), (CALL, 101)] {
        let mut caller = rig.connect().await;
        let request = format!(
            "GET / HTTP/1.1\r\nHost: hello\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             {authorization}\r\n"
        );
        caller.write_all(request.as_bytes()).await.unwrap();
        let head = within(read_head(&mut caller)).await.unwrap();
        assert_eq!(status(&head), expected, "{head}");
    }
}

#[tokio::test]
async fn a_body_is_not_asked_for_before_its_caller_is_let_in() {
    let rig = Rig::start().await;
    let backend = Backend::answering(|_, body| body.len().to_string()).await;
    asking(&rig, Function::default(), &backend, 1).await;
    let answer = rig
        .raw(
            "POST / HTTP/1.1\r\nHost: hello\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\
             Connection: close\r\n\r\n",
        )
        .await;
    assert_eq!(status(&answer), 401, "{answer}");
    assert!(body(&answer).contains("dirigent token create"), "{answer}");
}
