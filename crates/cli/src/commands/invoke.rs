//! `invoke`: calls a function through the data plane, as any client would.

use std::{fs, io::Read as _, time::Instant};

use bytes::Bytes;
use dirigent_core::{FunctionName, name::DEFAULT_NAMESPACE};
use dirigent_service::Tasks;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::{
    args::InvokeArgs,
    client::{Place, full, header_text, read_token, send},
    fail::{Fail, Kind, OrFail as _, Result},
    format::duration,
    printer::Printer,
};

pub(super) async fn invoke(args: &InvokeArgs, printer: Printer) -> Result {
    let place = match &args.functions {
        Some(text) => Place::parse(text)?,
        None => Place::parse(&args.place.functions_url()?)?,
    };
    let request = request(args, &place)?;
    let begin = Instant::now();
    let tasks = Tasks::new();
    let response = call(args, &place, request, &tasks).await?;
    let first = begin.elapsed();
    let (head, mut body) = response.into_parts();
    let mut kept = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.or_fail(Kind::Unavailable, || "the response was cut")?;
        match frame.data_ref() {
            Some(data) if printer.is_json() => kept.extend_from_slice(data),
            Some(data) => printer.raw(data)?,
            None => {}
        }
    }
    let total = begin.elapsed();
    if printer.is_json() {
        let headers: Vec<_> = head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
            .collect();
        printer.json(&serde_json::json!({
            "status": head.status.as_u16(),
            "headers": headers,
            "body": String::from_utf8_lossy(&kept),
            "first_byte_us": u64::try_from(first.as_micros()).unwrap_or(u64::MAX),
            "total_us": u64::try_from(total.as_micros()).unwrap_or(u64::MAX),
        }))?;
    }
    printer.detail(&format_args!("{} after {}", head.status, duration(total)));
    for (name, value) in &head.headers {
        printer.detail(&format_args!("{name}: {}", String::from_utf8_lossy(value.as_bytes())));
    }
    if head.status.as_u16() < 400 {
        return Ok(());
    }
    let code = header_text(&head.headers, "x-dirigent-error");
    let fail = match code {
        Some(code) => platform_failure(code, &args.name),
        None => Fail::user(format!("`{}` answered {}", args.name, head.status)),
    };
    // What was refused before its head was read is not remembered.
    let unread = matches!(code, Some("request_timeout" | "head_too_large"));
    Err(match header_text(&head.headers, "x-dirigent-request-id") {
        Some(id) if !unread => fail.hint(format!("dirigent logs --request-id {id}")),
        _ => fail,
    })
}

/// Calls without a token first: a function that asks for none is not to see one. Who asks for one has
/// not let the function see anything of the first call.
async fn call(
    args: &InvokeArgs,
    place: &Place,
    mut request: Request<Bytes>,
    tasks: &Tasks,
) -> Result<Response<Incoming>> {
    let send = |request: Request<Bytes>| async {
        send(place, None, request.map(full), tasks).await.map_err(|fail| {
            fail.hint("start Dirigent with `dirigent up`, or name it with --functions")
        })
    };
    let response = send(request.clone()).await?;
    let code = header_text(response.headers(), "x-dirigent-error");
    let wants_token = response.status() == StatusCode::UNAUTHORIZED && code == Some("unauthorized");
    if !wants_token || request.headers().contains_key(header::AUTHORIZATION) {
        return Ok(response);
    }
    let token = match (&args.place.token, args.place.context()?) {
        (Some(token), _) => Some(token.clone()),
        (None, Some(context)) => context.token,
        (None, None) => read_token(&args.place.dir())?,
    };
    let Some(token) = token else { return Ok(response) };
    if place.is_open() {
        return Err(Fail::config(format!(
            "`{}` is called with a token, and others could read it on its way to {}",
            args.name,
            place.url()
        ))
        .hint("name where functions are called by https://, with --functions")
        .hint("or send one all the same: -H 'Authorization: Bearer TOKEN'"));
    }
    let value = HeaderValue::from_str(&format!("Bearer {token}"));
    let mut value = value.or_fail(Kind::Config, || "the token cannot be sent")?;
    value.set_sensitive(true);
    request.headers_mut().insert(header::AUTHORIZATION, value);
    send(request).await
}

fn request(args: &InvokeArgs, place: &Place) -> Result<Request<Bytes>> {
    let body = match args.data.as_deref() {
        None => Bytes::new(),
        Some("@-") => {
            let mut data = Vec::new();
            std::io::stdin().lock().read_to_end(&mut data)?;
            data.into()
        }
        Some(text) => match text.strip_prefix('@') {
            Some(file) => {
                fs::read(file).or_fail(Kind::Config, || format!("cannot read {file}"))?.into()
            }
            None => Bytes::copy_from_slice(text.as_bytes()),
        },
    };
    let method = match &args.method {
        Some(text) => Method::from_bytes(text.as_bytes())
            .or_fail(Kind::Config, || format!("`{text}` is not a method"))?,
        None if args.data.is_some() => Method::POST,
        None => Method::GET,
    };
    let (host, prefix) = route(&args.name, place);
    let slash = if args.path.starts_with('/') { "" } else { "/" };
    let mut request = Request::builder()
        .method(method)
        .uri(format!("{prefix}{slash}{}", args.path))
        .header(header::HOST, host)
        .body(body)
        .or_fail(Kind::Config, || format!("`{}` is not a path", args.path))?;
    for text in &args.headers {
        let (name, value) = text.split_once(':').ok_or_else(|| {
            Fail::config(format!("`{text}` is not a header")).hint("write -H 'Name: value'")
        })?;
        let name = HeaderName::from_bytes(name.trim().as_bytes())
            .or_fail(Kind::Config, || format!("`{text}` is not a header"))?;
        let value = HeaderValue::from_str(value.trim())
            .or_fail(Kind::Config, || format!("`{text}` is not a header"))?;
        request.headers_mut().append(name, value);
    }
    Ok(request)
}

/// Host and path prefix that lead to a function whatever domains are configured.
fn route(name: &FunctionName, place: &Place) -> (String, String) {
    if name.namespace() == DEFAULT_NAMESPACE {
        (name.name().to_owned(), String::new())
    } else {
        (format!("localhost:{}", place.port()), format!("/fn/{}/{}", name.namespace(), name.name()))
    }
}

/// The platform failed, not the function.
fn platform_failure(code: &str, name: &FunctionName) -> Fail {
    let fail = |kind, text: String| Fail::new(kind, anyhow::anyhow!("{text}"));
    match code {
        "not_found" => fail(Kind::User, format!("there is no function `{name}`"))
            .hint("`dirigent list` shows those there are"),
        "unauthorized" => {
            fail(Kind::Config, format!("`{name}` is called with a token of the API that counts"))
                .hint("set DIRIGENT_TOKEN: `dirigent token create --role invoke` makes one")
        }
        "forbidden" => fail(Kind::Config, format!("this token may not call `{name}`"))
            .hint("`dirigent token create --role invoke` makes one that may"),
        "crash_loop" | "start_failed" | "start_timeout" => {
            fail(Kind::User, format!("`{name}` does not start ({code})"))
                .hint(format!("dirigent describe {name}"))
        }
        _ => fail(Kind::Unavailable, format!("`{name}` could not be called ({code})"))
            .hint(format!("dirigent describe {name}")),
    }
}
