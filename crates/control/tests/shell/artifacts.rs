//! Artifacts over HTTP.

use sha2::Digest as _;

use crate::host::{Host, config};

fn path(bytes: &[u8]) -> String {
    let hex: String = sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("/v1/artifacts/sha256:{hex}")
}

#[tokio::test]
async fn an_artifact_is_sent_once_verified_and_found_after_a_restart() {
    let host = Host::new().await;
    let bytes = vec![7; 300_000];
    let path = path(&bytes);
    assert_eq!(host.ask("HEAD", &path, b"").await.status, 404);
    assert_eq!(host.ask("PUT", &path, &bytes).await.status, 201);
    let again = host.ask("PUT", &path, &bytes).await;
    assert_eq!((again.status, again.json()["bytes"].as_u64()), (200, Some(300_000)));
    let head = host.ask("HEAD", &path, b"").await;
    assert!(head.status == 200 && head.head.contains("content-length: 300000"), "{head:?}");

    let dir = host.stop().await;
    let config = config(&dir);
    let host = Host::start(dir, config).await;
    assert_eq!(host.ask("HEAD", &path, b"").await.status, 200);
    host.stop().await;
}

#[tokio::test]
async fn an_artifact_that_is_wrong_or_too_large_leaves_nothing() {
    let host = Host::new().await;
    let wrong = host.ask("PUT", &path(b"right"), b"wrong").await;
    assert_eq!((wrong.status, wrong.error().0.as_str()), (400, "digest_mismatch"));

    let large = vec![1; (1 << 20) + 1];
    let refused = host.ask("PUT", &path(&large), &large).await;
    assert_eq!((refused.status, refused.error().0.as_str()), (413, "too_large"));

    // Without an announced length it is found out on the way.
    let mut chunked = format!("{:x}\r\n", large.len()).into_bytes();
    chunked.extend(&large);
    chunked.extend(b"\r\n0\r\n\r\n");
    let head = format!(
        "PUT {} HTTP/1.1\r\nHost: api\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\
         Authorization: Bearer {}\r\n\r\n",
        path(&large),
        host.token
    );
    let request = [head.as_bytes(), &chunked].concat();
    let refused = crate::http::exchange(host.running.api, &request).await;
    assert_eq!((refused.status, refused.error().0.as_str()), (413, "too_large"));
    assert_eq!(std::fs::read_dir(host.state().join("blobs")).unwrap().count(), 0);
    host.stop().await;
}
