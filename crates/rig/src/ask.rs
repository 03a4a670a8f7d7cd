//! Questions to the cluster's own interfaces, asked from one of its hosts.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use dirigent_service::tls::{self, Trust};
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{task::JoinSet, time::timeout};

/// Until an answer is there. A host that is cut off gives none.
const WITHIN: Duration = Duration::from_secs(2);

/// What a plain HTTP server answers.
pub(crate) fn plain(ip: Ipv4Addr, port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&(ip, port).into(), WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    // The older version: no chunks, and the end of the connection is the end of the answer.
    let request = format!("GET {path} HTTP/1.0\r\nhost: {ip}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer without a body")?;
    if !head.contains(" 200 ") {
        bail!("{path}: {}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

/// What a control plane's API answers, of the authority and with the token that are given.
pub(crate) fn api(ip: Ipv4Addr, path: &str, trust: &Trust, token: &str) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        timeout(WITHIN, get(ip, path, trust, token)).await.context("no answer in time")?
    })
}

async fn get(ip: Ipv4Addr, path: &str, trust: &Trust, token: &str) -> Result<Value> {
    let stream = tokio::net::TcpStream::connect((ip, crate::cluster::API)).await?;
    let stream = tls::connect(stream, &ip.to_string(), trust, "/control-plane/").await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, ip.to_string())
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        bail!("{path}: {status}: {}", String::from_utf8_lossy(&body));
    }
    Ok(serde_json::from_slice(&body)?)
}
