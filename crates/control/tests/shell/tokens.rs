//! Who may do what with which token.

use dirigent_control::store::{RedbStore, Store as _};
use dirigent_core::Epoch;

use crate::host::{Host, config};

impl Host {
    async fn with_token(&self, token: &str, method: &str, path: &str) -> u16 {
        let authorization = format!("Authorization: Bearer {token}\r\n");
        self.raw(method, path, &authorization, b"{}").await.status
    }

    async fn make(&self, body: &str) -> serde_json::Value {
        let made = self.ask("POST", "/v1/tokens", body.as_bytes()).await;
        assert_eq!(made.status, 200, "{made:?}");
        made.json()
    }
}

fn secret(made: &serde_json::Value) -> String {
    made["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_token_opens_what_its_role_allows_and_nothing_else() {
    let host = Host::new().await;
    let list = ("GET", "/v1/functions");
    let metrics = ("HEAD", "/metrics");
    let rollback = ("POST", "/v1/functions/default/nobody/rollback");
    let remove = ("DELETE", "/v1/functions/default/nobody");
    let tokens = ("GET", "/v1/tokens");
    let members = ("GET", "/v1/members");
    for (role, allowed, refused) in [
        ("view", &[list, metrics][..], &[rollback, remove, tokens, members][..]),
        ("invoke", &[], &[list, metrics, rollback, remove, tokens, members]),
        ("deploy", &[list, metrics, rollback, remove], &[tokens, members]),
        ("admin", &[list, metrics, rollback, remove, tokens, members], &[]),
    ] {
        let token = secret(&host.make(&format!("{{\"role\":\"{role}\"}}")).await);
        for (method, path) in refused {
            let status = host.with_token(&token, method, path).await;
            assert_eq!(status, 403, "{role} {method} {path}");
        }
        for (method, path) in allowed {
            let status = host.with_token(&token, method, path).await;
            assert!(![401, 403].contains(&status), "{role} {method} {path}: {status}");
        }
        assert_eq!(host.with_token(&token, "GET", "/nothing").await, 404, "{role}");
    }
    host.stop().await;
}

#[tokio::test]
async fn a_token_counts_until_it_is_revoked_or_expires_also_in_the_next_life() {
    let host = Host::new().await;
    let one = host.make(r#"{"role":"view","name":"one"}"#).await;
    let two = host.make(r#"{"role":"view","name":"two"}"#).await;
    let late = host.make(r#"{"role":"view","name":"late","expires":"0s"}"#).await;
    let (one, two) = (secret(&one), secret(&two));
    assert_eq!(host.with_token(&secret(&late), "GET", "/v1/functions").await, 401);
    for (body, status) in [
        (r#"{"role":"view","name":"one"}"#, 409),
        (r#"{"role":"king"}"#, 400),
        (r#"{"role":"view","name":"/"}"#, 400),
        (r#"{"role":"view","expires":"soon"}"#, 400),
        (r#"{"rolle":"view"}"#, 400),
    ] {
        let answer = host.ask("POST", "/v1/tokens", body.as_bytes()).await;
        assert_eq!(answer.status, status, "{body}: {answer:?}");
    }
    let listed = host.get("/v1/tokens").await.json().to_string();
    assert!(listed.contains("\"one\"") && !listed.contains(&one), "{listed}");
    assert_eq!(host.ask("DELETE", "/v1/tokens/one", b"").await.status, 200);
    assert_eq!(host.ask("DELETE", "/v1/tokens/one", b"").await.status, 404);
    assert_eq!(host.with_token(&one, "GET", "/v1/functions").await, 401);

    let dir = host.stop().await;
    let mut store = RedbStore::new(&dir.path().join("state/store.redb"));
    let (_, records) = store.take_office(Epoch::default()).unwrap();
    let kept = serde_json::to_string(&records.tokens).unwrap();
    assert!(kept.contains("two") && !kept.contains(&two), "only hashes are kept: {kept}");
    drop(store);
    let config = config(&dir);
    let host = Host::start(dir, config).await;
    assert_eq!(host.with_token(&one, "GET", "/v1/functions").await, 401);
    assert_eq!(host.with_token(&two, "GET", "/v1/functions").await, 200);
    host.stop().await;
}
