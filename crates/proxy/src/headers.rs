//! Headers on their way to a function and back: what is removed, what is added.

use std::{net::SocketAddr, sync::Arc};

use bytes::{BufMut as _, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header, request::Parts};

use crate::ids;

/// What an invocation adds to the client's head.
#[derive(Clone, Debug)]
pub(crate) struct Forward {
    pub(crate) request_id: HeaderValue,
    pub(crate) peer: Arc<Peer>,
    /// The Host as received, or HTTP/2's authority.
    pub(crate) host: HeaderValue,
    /// The part of the path that named the function: its length, with `/fn`.
    pub(crate) prefix: usize,
    /// Which attempt this is, if not the first.
    pub(crate) attempt: u32,
    /// The protocol to switch to is offered to the function.
    pub(crate) upgrade: bool,
    /// `Authorization` was for us: no function may call others with its callers' tokens.
    pub(crate) authorized: bool,
}

/// A client as the headers of a proxy name it; written once per connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// As in `X-Forwarded-For`.
    ip: String,
    /// As in `Forwarded` (RFC 7239): `for=` and a quoted IPv6 address, up to the Host.
    forwarded: String,
    /// What it says of the hops before it is believed.
    is_trusted: bool,
}

impl Peer {
    pub(crate) fn new(address: SocketAddr, is_trusted: bool) -> Self {
        let ip = address.ip();
        let quoted = if ip.is_ipv4() { ip.to_string() } else { format!("\"[{ip}]\"") };
        Self { ip: ip.to_string(), forwarded: format!("for={quoted};host=\""), is_trusted }
    }
}

/// How the length of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none.
    None,
    /// Known.
    Length(u64),
    /// Not known: by chunks.
    Chunked,
}

/// Headers of one hop, which end here, and those that we write ourselves.
pub(crate) fn ends_here(name: &HeaderName) -> bool {
    let text = name.as_str();
    let known = match text.len() {
        2 => *name == header::TE,
        4 => *name == header::HOST,
        6 => *name == header::EXPECT,
        7 => *name == header::UPGRADE,
        9 => text == "forwarded",
        10 => *name == header::CONNECTION || text == "keep-alive" || text == "tracestate",
        11 => text == "traceparent",
        12 => text == "x-request-id",
        14 => *name == header::CONTENT_LENGTH || text == "http2-settings",
        15 => text == "x-forwarded-for",
        16 => text == "proxy-connection" || text == "x-forwarded-host",
        17 => *name == header::TRANSFER_ENCODING || text == "x-forwarded-proto",
        18 => text == "x-forwarded-prefix",
        _ => false,
    };
    known || is_ours(text)
}

/// What only a proxy on the way can know of a client: `X-Forwarded-Port`, `X-Real-IP` and their like,
/// beside those that we write.
fn is_of_a_proxy(name: &HeaderName) -> bool {
    let text = name.as_str();
    text.starts_with("x-forwarded-") || text == "x-real-ip"
}

fn is_ours(name: &str) -> bool {
    name.starts_with("x-dirigent-")
}

/// The headers named by `Connection`, which end here as well.
#[derive(Debug)]
struct Named<'a>(Option<&'a HeaderMap>);

impl<'a> Named<'a> {
    fn of(headers: &'a HeaderMap) -> Self {
        // The usual `close` and `keep-alive` name no header.
        let names_any = headers.get_all(header::CONNECTION).iter().any(|value| {
            !value.as_bytes().eq_ignore_ascii_case(b"keep-alive")
                && !value.as_bytes().eq_ignore_ascii_case(b"close")
        });
        Self(names_any.then_some(headers))
    }

    fn contains(&self, name: &HeaderName) -> bool {
        self.0.is_some_and(|headers| connection_has(headers, name.as_str()))
    }
}

/// Whether `Connection` lists `token`.
pub(crate) fn connection_has(headers: &HeaderMap, token: &str) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|value| lists(value.as_bytes(), token))
}

/// Whether the client offers to switch protocols, to one that functions may know. HTTP/2 in the
/// place of this HTTP/1 is none of them (RFC 9113 has dropped it): what a function would be told
/// then would come past everything that is done for invocations.
pub(crate) fn offers_upgrade(headers: &HeaderMap) -> bool {
    let mut offers = headers.get_all(header::UPGRADE).iter().map(HeaderValue::as_bytes);
    connection_has(headers, "upgrade")
        && headers.contains_key(header::UPGRADE)
        && !offers.any(|offer| lists(offer, "h2c"))
}

fn lists(value: &[u8], token: &str) -> bool {
    value
        .split(|&byte| byte == b',')
        .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// Whether the client understands trailers.
fn takes_trailers(headers: &HeaderMap) -> bool {
    headers.get_all(header::TE).iter().any(|value| lists(value.as_bytes(), "trailers"))
}

/// Whether another attempt does no harm.
pub(crate) fn is_idempotent(parts: &Parts) -> bool {
    matches!(
        parts.method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    ) || parts.headers.contains_key("idempotency-key")
}

/// The path and query for the function, without the prefix that named it.
pub(crate) fn path(uri: &Uri, prefix: usize) -> &str {
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    path.get(prefix..).unwrap_or("/")
}

fn put_line(out: &mut BytesMut, name: &str, value: &[&[u8]]) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    for part in value {
        out.put_slice(part);
    }
    out.put_slice(b"\r\n");
}

/// Calls `put` for every header that goes to the function, except framing and Host, with the parts
/// of its value.
fn each(parts: &Parts, forward: &Forward, mut put: impl FnMut(&str, &[&[u8]])) {
    let headers = &parts.headers;
    let trusted = forward.peer.is_trusted;
    let named = Named::of(headers);
    for (name, value) in headers {
        let was_for_us = forward.authorized && *name == header::AUTHORIZATION;
        if !was_for_us
            && !ends_here(name)
            && !named.contains(name)
            && (trusted || !is_of_a_proxy(name))
        {
            put(name.as_str(), &[value.as_bytes()]);
        }
    }
    let (peer, host) = (&forward.peer, forward.host.as_bytes());
    let said = |name| if trusted { said(headers, name) } else { Vec::new() };
    let before = said("forwarded");
    put("forwarded", &[&before, peer.forwarded.as_bytes(), host, b"\";proto=http"]);
    let before = said("x-forwarded-for");
    put("x-forwarded-for", &[&before, peer.ip.as_bytes()]);
    // What a trusted hop before us saw is nearer to the truth than what we see.
    let given = |name| headers.get(name).filter(|_| trusted).map(HeaderValue::as_bytes);
    put("x-forwarded-proto", &[given("x-forwarded-proto").unwrap_or(b"http")]);
    put("x-forwarded-host", &[given("x-forwarded-host").unwrap_or(host)]);
    put("x-request-id", &[forward.request_id.as_bytes()]);
    match headers.get("traceparent") {
        Some(given) if ids::is_traceparent(given) => {
            put("traceparent", &[given.as_bytes()]);
            for state in headers.get_all("tracestate") {
                put("tracestate", &[state.as_bytes()]);
            }
        }
        // The state belongs to the trace that is not continued.
        _ => put("traceparent", &[&ids::traceparent()]),
    }
    if forward.prefix > 0 {
        let path = parts.uri.path().get(..forward.prefix).unwrap_or_default();
        put("x-forwarded-prefix", &[path.as_bytes()]);
    }
    if forward.attempt > 1 {
        put("x-dirigent-attempt", &[forward.attempt.to_string().as_bytes()]);
    }
    if takes_trailers(headers) {
        put("te", &[b"trailers"]);
    }
}

/// What earlier hops said, to be followed by what we say.
fn said(headers: &HeaderMap, name: &str) -> Vec<u8> {
    let mut joined = Vec::new();
    for value in headers.get_all(name) {
        joined.extend_from_slice(value.as_bytes());
        joined.extend_from_slice(b", ");
    }
    joined
}

/// The head as a function that speaks HTTP/1.1 reads it.
pub(crate) fn put_http1(out: &mut BytesMut, parts: &Parts, forward: &Forward, framing: Framing) {
    out.put_slice(parts.method.as_str().as_bytes());
    out.put_u8(b' ');
    let path = path(&parts.uri, forward.prefix);
    if !path.starts_with('/') && path != "*" {
        out.put_u8(b'/');
    }
    out.put_slice(path.as_bytes());
    out.put_slice(b" HTTP/1.1\r\n");
    put_line(out, "host", &[forward.host.as_bytes()]);
    match framing {
        Framing::None => {}
        Framing::Length(length) => {
            put_line(out, "content-length", &[length.to_string().as_bytes()]);
        }
        Framing::Chunked => put_line(out, "transfer-encoding", &[b"chunked"]),
    }
    each(parts, forward, |name, value| put_line(out, name, value));
    if forward.upgrade {
        put_line(out, "connection", &[b"upgrade"]);
        for value in parts.headers.get_all(header::UPGRADE) {
            put_line(out, "upgrade", &[value.as_bytes()]);
        }
    } else if takes_trailers(&parts.headers) {
        put_line(out, "connection", &[b"te"]);
    }
    out.put_slice(b"\r\n");
}

/// The head as a function that speaks HTTP/2 reads it.
pub(crate) fn http2(
    parts: &Parts,
    forward: &Forward,
    framing: Framing,
) -> Option<(Uri, HeaderMap)> {
    let mut headers = HeaderMap::with_capacity(parts.headers.len() + 8);
    each(parts, forward, |name, value| {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(&value.concat())) {
            headers.append(name, value);
        }
    });
    if let Framing::Length(length) = framing {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    let path = path(&parts.uri, forward.prefix);
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let uri = Uri::builder()
        .scheme("http")
        .authority(forward.host.as_bytes())
        .path_and_query(path)
        .build()
        .ok()?;
    Some((uri, headers))
}

/// Removes from a function's answer what belongs to its hop or is ours to say.
pub(crate) fn clean_answer(headers: &mut HeaderMap) {
    let more: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            is_ours(name.as_str())
                || (!matches!(**name, header::CONNECTION) && connection_has(headers, name.as_str()))
        })
        .cloned()
        .collect();
    for name in more {
        headers.remove(name);
    }
    for name in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
        headers.remove(name);
    }
}

/// Whether a header of a function's answer goes on to the client; the quick form of
/// [`clean_answer`] for answers whose `Connection` names no header.
pub(crate) fn goes_back(name: &str) -> bool {
    let hop = match name.len() {
        7 => name.eq_ignore_ascii_case("upgrade"),
        10 => name.eq_ignore_ascii_case("connection") || name.eq_ignore_ascii_case("keep-alive"),
        16 => name.eq_ignore_ascii_case("proxy-connection"),
        17 => name.eq_ignore_ascii_case("transfer-encoding"),
        _ => false,
    };
    let ours = name.get(..11).is_some_and(|start| start.eq_ignore_ascii_case("x-dirigent-"));
    !hop && !ours
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward() -> Forward {
        Forward {
            request_id: HeaderValue::from_static("id-1"),
            peer: Arc::new(Peer::new(SocketAddr::from(([192, 0, 2, 1], 7)), true)),
            host: HeaderValue::from_static("hello.example"),
            prefix: 0,
            attempt: 1,
            upgrade: false,
            authorized: false,
        }
    }

    fn head(request: http::Request<()>, forward: &Forward) -> String {
        let mut out = BytesMut::new();
        put_http1(&mut out, &request.into_parts().0, forward, Framing::None);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn headers_of_the_hop_and_forged_ones_end_here() {
        let request = http::Request::builder()
            .uri("/a?b=c")
            .header("host", "ignored")
            .header("connection", "close, X-Secret")
            .header("x-secret", "1")
            .header("x-dirigent-attempt", "9")
            .header("keep-alive", "timeout=5")
            .header("proxy-connection", "keep-alive")
            .header("te", "gzip")
            .header("expect", "100-continue")
            .header("accept", "*/*")
            .body(())
            .unwrap();
        let head = head(request, &forward());
        assert!(head.starts_with("GET /a?b=c HTTP/1.1\r\nhost: hello.example\r\n"), "{head}");
        assert!(head.contains("accept: */*\r\n"), "{head}");
        for gone in ["secret", "dirigent", "keep-alive", "proxy", "gzip", "expect", "ignored"] {
            assert!(!head.contains(gone), "{gone}: {head}");
        }
    }

    #[test]
    fn hops_are_appended_and_identity_is_kept() {
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let request = http::Request::builder()
            .uri("/fn/hello/x")
            .header("x-forwarded-for", "10.0.0.1")
            .header("x-forwarded-proto", "https")
            .header("forwarded", "for=10.0.0.1")
            .header("traceparent", trace)
            .body(())
            .unwrap();
        let head = head(request, &Forward { prefix: 9, attempt: 2, ..forward() });
        for line in [
            "GET /x HTTP/1.1",
            "x-forwarded-for: 10.0.0.1, 192.0.2.1",
            "x-forwarded-proto: https",
            "x-forwarded-host: hello.example",
            "forwarded: for=10.0.0.1, for=192.0.2.1;host=\"hello.example\";proto=http",
            "x-request-id: id-1",
            "x-forwarded-prefix: /fn/hello",
            "x-dirigent-attempt: 2",
            &format!("traceparent: {trace}"),
        ] {
            assert!(head.contains(&format!("{line}\r\n")), "{line}: {head}");
        }
    }

    #[test]
    fn what_a_stranger_says_of_hops_before_it_is_replaced() {
        let request = || {
            http::Request::builder()
                .uri("/")
                .header("x-forwarded-for", "10.6.6.6")
                .header("x-forwarded-proto", "https")
                .header("x-forwarded-host", "bank.example")
                .header("x-forwarded-port", "443")
                .header("x-real-ip", "10.6.6.6")
                .header("forwarded", "for=10.6.6.6;proto=https")
                .body(())
                .unwrap()
        };
        let peer = Arc::new(Peer::new(SocketAddr::from(([192, 0, 2, 1], 7)), false));
        let told = head(request(), &Forward { peer, ..forward() });
        for line in [
            "x-forwarded-for: 192.0.2.1",
            "x-forwarded-proto: http",
            "x-forwarded-host: hello.example",
            "forwarded: for=192.0.2.1;host=\"hello.example\";proto=http",
        ] {
            assert!(told.contains(&format!("\r\n{line}\r\n")), "{line}: {told}");
        }
        for forged in ["10.6.6.6", "https", "bank", "443", "x-real-ip"] {
            assert!(!told.contains(forged), "{forged}: {told}");
        }
        let told = head(request(), &forward());
        for kept in ["x-forwarded-port: 443", "x-forwarded-host: bank.example", "x-real-ip: 10.6"] {
            assert!(told.contains(kept), "{kept}: {told}");
        }
    }

    #[test]
    fn a_function_cannot_speak_for_the_platform() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("x-dirigent-error", "timeout"),
            ("content-type", "text/plain"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            assert_eq!(goes_back(name), ["x-hop", "content-type"].contains(&name), "{name}");
        }
        clean_answer(&mut headers);
        assert_eq!(headers.len(), 1);
    }
}
